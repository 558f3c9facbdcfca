"""A YOPO in training: on molecules before it sees a particle, and on particles."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.config import RunConfig
from jimjax.models import functional, weights, yopo
from jimjax.models.functional import Network
from jimjax.train import losses, pretraining
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculePairs
from jimjax.train.step import LossResult

PRESETS = {"small": yopo.small, "paper": yopo.paper}


def network_config(config: RunConfig, box: int) -> yopo.YopoConfig:
    """Sizes of the network of a configuration for particles of a box size."""
    return PRESETS[config.network.preset](box, config.network.num_classes)


def build_network(config: RunConfig, box: int) -> Network:
    """Builds the network of a configuration for particles of a box size."""
    key = jax.random.key(config.seed)
    return weights.build(network_config(config, box), key, config.compute)


def molecule_stage(config: RunConfig, tilt_ranges: np.ndarray, box: int, mesh: Mesh) -> Stage:
    """Pre-training on random molecules, observed with tilt ranges ``(n, 2)`` of particles.

    DISCA has no such thing: it believes what an untrained network tells apart.
    """
    return pretraining.molecule_stage(config, tilt_ranges, box, mesh, contrast_loss)


def contrast_loss(network: Network, pairs: MoleculePairs) -> tuple[jax.Array, LossResult]:
    """How badly features tell which two of a batch of observations show the same molecule."""
    both = jnp.concatenate([pairs.source, pairs.target])
    found, stats = functional.apply(network, both, train=True)
    first, second = jnp.split(found.features, 2)
    value = losses.contrastive_loss(first, second)
    return value, LossResult(stats, {"contrast": value})
