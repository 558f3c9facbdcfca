"""The subcommands: one module each, thin, with heavy imports inside ``run``."""
