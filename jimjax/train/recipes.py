"""Which module trains which kind of network."""

from types import ModuleType

from jimjax.config import RunConfig
from jimjax.train import gumnet, jimnet

RECIPES = {"jimnet": jimnet, "gumnet": gumnet}


def recipe_of(config: RunConfig) -> ModuleType:
    """The module of a configuration's network.

    Each has ``network_config``, ``build_network``, ``molecule_stage``, ``molecule_loss`` and
    ``taught_loss`` with the same arguments.
    """
    return RECIPES[config.network.kind]
