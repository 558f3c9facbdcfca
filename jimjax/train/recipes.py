"""Which module trains which kind of network."""

from types import ModuleType

from jimjax.config import RunConfig
from jimjax.train import gumnet, jimnet, umtl

RECIPES = {"jimnet": jimnet, "gumnet": gumnet, "umtl": umtl}


def recipe_of(config: RunConfig) -> ModuleType:
    """The module of a configuration's network.

    Each has ``network_config``, ``build_network``, ``molecule_stage`` and ``molecule_loss`` with
    the same arguments, and those that a teacher can teach ``taught_loss``.
    """
    return RECIPES[config.network.kind]


def settle(config: RunConfig) -> RunConfig:
    """What the tasks of a UMTL make of a configuration; that of another network stays."""
    return umtl.settle(config) if config.network.kind == "umtl" else config
