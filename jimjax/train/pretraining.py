"""Random molecules in training: before the particles, and beside them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jimjax.config import RunConfig
from jimjax.mesh import join_batches, part_batches
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculeConfig, MoleculePairs, observe_molecules
from jimjax.train.step import LossResult

SIGNS = {"dark": -1.0, "light": 1.0}
ROUND_STEPS = 50  # of the pre-training, between checkpoints

Score = Callable[[Any, MoleculePairs], tuple[jax.Array, dict[str, jax.Array]]]
MoleculeLoss = Callable[[Network, MoleculePairs], tuple[jax.Array, LossResult]]


def num_pretrain(config: RunConfig) -> tuple[int, int]:
    """Rounds of the pre-training, each logged and saved, and steps in each; 0 if there are none."""
    steps = config.pretrain.steps
    num_rounds = min(steps, max(1, steps // ROUND_STEPS))
    return num_rounds, steps // max(1, num_rounds)


def num_beside(config: RunConfig, num_devices: int) -> int:
    """Molecules beside a batch of pairs, a multiple of the devices."""
    wanted = config.joint.molecule_share * config.joint.batch_size
    return int(np.ceil(wanted / num_devices)) * num_devices


def observe(
    key: jax.Array,
    tilt_ranges: jax.Array,
    config: RunConfig,
    *,
    box: int,
    mesh: Mesh,
    with_masks: bool = False,
) -> MoleculePairs:
    """Molecules of a configuration's family and contrast; see ``observe_molecules``."""
    section = config.pretrain
    family = MoleculeConfig(
        snr_min=section.snr_min, snr_max=section.snr_max, max_shift=section.max_shift
    )
    sign = SIGNS[config.data.contrast]
    how = {"box": box, "sign": sign, "mesh": mesh, "with_masks": with_masks}
    return observe_molecules(key, tilt_ranges, family, **how)


def apply_beside(
    network: Network, source: jax.Array, target: jax.Array, made: MoleculePairs, mesh: Mesh
) -> tuple[Any, Any, Any]:
    """Asks a network about pairs and molecules in one batch.

    Args:
        network: in training.
        source: ``(batch, z, y, x)``.
        target: same shape.
        made: molecules beside them.
        mesh: devices that share the batch.

    Returns:
        What it says of the pairs, what it says of the molecules, and its new statistics.
    """
    sources = join_batches((source, made.source), mesh)
    targets = join_batches((target, made.target), mesh)
    found, stats = functional.apply(network, sources, targets, train=True)
    sizes = len(source), len(made.source)
    pairs, shown = part_batches(found, sizes, mesh)
    return pairs, shown, stats


def pair_loss(score: Score) -> MoleculeLoss:
    """The loss of a network that is asked about pairs, from the score of its answers."""

    def loss(network: Network, pairs: MoleculePairs) -> tuple[jax.Array, LossResult]:
        found, stats = functional.apply(network, pairs.source, pairs.target, train=True)
        value, metrics = score(found, pairs)
        return value, LossResult(stats, metrics)

    return loss


def molecule_stage(
    config: RunConfig,
    tilt_ranges: np.ndarray,
    box: int,
    mesh: Mesh,
    loss: MoleculeLoss,
    *,
    with_masks: bool = False,
) -> Stage:
    """Training on random molecules alone.

    Args:
        config: the run; of its pretrain section the steps, batch size and family.
        tilt_ranges: ``(n, 2)`` degrees, of particles; molecules are observed with them.
        box: side in voxels.
        mesh: devices.
        loss: of the network and pairs.
        with_masks: whether pairs are to say where their molecules are.
    """
    num_rounds, num_steps = num_pretrain(config)

    def observed_loss(
        network: Network, tilt_ranges: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, LossResult]:
        made = observe(key, tilt_ranges, config, box=box, mesh=mesh, with_masks=with_masks)
        return loss(network, made)

    def draw(epoch: int, memory: Any) -> Iterator[np.ndarray]:
        del memory
        generator = np.random.default_rng([config.seed, epoch, *b"tilt ranges"])
        for _ in range(num_steps):
            yield tilt_ranges[generator.integers(len(tilt_ranges), size=config.pretrain.batch_size)]

    return Stage("molecules", num_rounds, observed_loss, draw, num_steps)
