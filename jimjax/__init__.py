"""Joint alignment and clustering of cryo-electron subtomograms in JAX."""

__version__ = "0.1.0"
