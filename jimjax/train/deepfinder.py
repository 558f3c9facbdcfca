"""How a DeepFinder encoder learns to tell random molecules apart: each of them is a class."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jimjax.config import RunConfig
from jimjax.mesh import map_batch
from jimjax.models import deepfinder, weights
from jimjax.models.deepfinder import DeepFinderConfig
from jimjax.models.functional import Network
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculeConfig, draw_molecules, observe_molecule
from jimjax.train.pretraining import SIGNS, num_pretrain
from jimjax.train.step import LossResult
from jimjax.train.supervised import draw_balanced, score

PRESETS = {"small": deepfinder.small, "paper": deepfinder.paper}
NUM_MOLECULES = 200  # classes


class Observed(NamedTuple):
    """Which molecules to observe, and how.

    Attributes:
        tilt_ranges: ``(batch, 2)`` degrees.
        labels: ``(batch,)`` molecules.
    """

    tilt_ranges: np.ndarray
    labels: np.ndarray


def network_config(config: RunConfig, box: int) -> DeepFinderConfig:
    """Sizes of the network of a configuration for particles of a box size."""
    return PRESETS[config.network.preset](box, NUM_MOLECULES)


def build_network(config: RunConfig, box: int) -> Network:
    """Builds the network of a configuration for particles of a box size."""
    key = jax.random.key(config.seed)
    return weights.build(network_config(config, box), key, config.compute)


def molecule_stage(config: RunConfig, tilt_ranges: np.ndarray, box: int, mesh: Mesh) -> Stage:
    """Training on observations of ``NUM_MOLECULES`` molecules, never the same one twice.

    Args:
        config: the run; of its pretrain section the steps, batch size and family.
        tilt_ranges: ``(n, 2)`` degrees, of particles; molecules are observed with them.
        box: side in voxels.
        mesh: devices.
    """
    section = config.pretrain
    num_rounds, num_steps = num_pretrain(config)
    family = MoleculeConfig(
        snr_min=section.snr_min, snr_max=section.snr_max, max_shift=section.max_shift
    )
    sign = SIGNS[config.data.contrast]
    molecules = draw_molecules(jax.random.key(config.seed), NUM_MOLECULES, family, box=box)

    def observe(key: jax.Array, molecule: Any, tilt_range: jax.Array) -> jax.Array:
        return observe_molecule(key, molecule, tilt_range, family, box=box, sign=sign)

    def loss(network: Network, batch: Observed, key: jax.Array) -> tuple[jax.Array, LossResult]:
        keys = jax.random.split(key, len(batch.labels))
        shown = jax.tree.map(lambda each: each[batch.labels], molecules)
        return score(
            network, map_batch(observe, mesh)(keys, shown, batch.tilt_ranges), batch.labels
        )

    def draw(epoch: int, memory: Any) -> Iterator[Observed]:
        del memory
        generator = np.random.default_rng([config.seed, epoch, *b"tilt ranges"])
        shape = num_steps, section.batch_size
        seen = generator.integers(len(tilt_ranges), size=shape)
        every = np.arange(NUM_MOLECULES)
        classes = draw_balanced(every, shape[0] * shape[1], seed=config.seed, epoch=epoch)
        for rows, labels in zip(seen, classes.reshape(shape), strict=True):
            yield Observed(tilt_ranges[rows], labels)

    return Stage("molecules", num_rounds, loss, draw, num_steps)
