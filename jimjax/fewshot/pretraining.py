"""Training of a ProtoNet on random molecules: each is a class, and none is a protein."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.config import RunConfig
from jimjax.fewshot import losses
from jimjax.models import functional, protonet, weights
from jimjax.models.functional import Network
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculeConfig, observe_views
from jimjax.train.pretraining import SIGNS, num_pretrain
from jimjax.train.step import LossResult

PRESETS = {"small": protonet.small, "paper": protonet.paper}
FAMILY = MoleculeConfig(snr_min=0.02, snr_max=10.0, max_shift=0.2)  # beside labelled particles
SHOTS, QUERIES = 2, 2  # of a molecule
GROUPS = (2, 8)  # molecules that the attention sees at a time; tasks have few classes or many


def network_config(config: RunConfig, box: int) -> protonet.ProtoNetConfig:
    """Sizes of the network of a configuration for particles of a box size."""
    return PRESETS[config.network.preset](box)


def build_network(config: RunConfig, box: int) -> Network:
    """Builds the network of a configuration for particles of a box size."""
    key = jax.random.key(config.seed)
    return weights.build(network_config(config, box), key, config.compute)


def molecule_stage(config: RunConfig, tilt_ranges: np.ndarray, box: int, mesh: Mesh) -> Stage:
    """Episodes of random molecules, as many of them as a batch is large.

    Args:
        config: the run; of its pretrain section the steps, batch size and family.
        tilt_ranges: ``(n, 2)`` degrees; molecules are observed with them.
        box: side in voxels.
        mesh: devices.

    Raises:
        ValueError: if the batch cannot be divided into groups for the attention.
    """
    section = config.pretrain
    if section.batch_size % max(GROUPS):
        raise ValueError(
            f"a batch must be a multiple of {max(GROUPS)} molecules, got {section.batch_size}"
        )
    num_rounds, num_steps = num_pretrain(config)
    family = MoleculeConfig(
        snr_min=section.snr_min, snr_max=section.snr_max, max_shift=section.max_shift
    )
    sign = SIGNS[config.data.contrast]

    def loss(
        network: Network, tilt_ranges: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, LossResult]:
        views = observe_views(key, tilt_ranges, family, box=box, sign=sign, mesh=mesh)
        return molecule_loss(network, views)

    def draw(epoch: int, memory: Any) -> Iterator[np.ndarray]:
        del memory
        generator = np.random.default_rng([config.seed, epoch, *b"tilt ranges"])
        shape = section.batch_size, SHOTS + QUERIES
        for _ in range(num_steps):
            yield tilt_ranges[generator.integers(len(tilt_ranges), size=shape)]

    return Stage("molecules", num_rounds, loss, draw, num_steps)


def molecule_loss(network: Network, views: jax.Array) -> tuple[jax.Array, LossResult]:
    """What both methods lose, so that one network serves either.

    The embedding answers for an episode of all molecules. What it says of them, the attention is
    shown in groups of several sizes; it does not teach the embedding, except through the distances
    that ProtoNet-CE adds to its own.

    Args:
        network: a ProtoNet.
        views: ``(molecules, SHOTS + QUERIES, z, y, x)``.
    """
    found, stats = functional.apply(network, views.reshape(-1, *views.shape[2:]), train=True)
    features = found.features.reshape(*views.shape[:2], -1)
    value, noted = losses.task_loss(network, losses.make_task(features, SHOTS), "protonet")
    metrics = {"plain_accuracy": noted["accuracy"]}
    for size in GROUPS:
        groups = features.reshape(-1, size, *features.shape[1:])
        lost, noted = jax.vmap(lambda group: _adapted_loss(network, group))(groups)
        value += jnp.mean(lost) / len(GROUPS)
        metrics |= {f"{name}_of_{size}": jnp.mean(each) for name, each in noted.items()}
    return value, LossResult(stats, metrics)


def _adapted_loss(network: Network, group: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    return losses.task_loss(network, losses.make_task(group, SHOTS), "protonet-ce")
