"""How Gum-Net is trained: random molecules first, then pairs of particles without labels.

Zeng and Xu 2020 maximise the correlation of aligned pairs, of whatever class: every epoch draws
partners anew. Two things are added here. Random molecules come before that: from random weights,
and on a laptop's time, correlation alone finds no poses. And particles are centred first.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jimjax.align.gumnet import centre
from jimjax.config import RunConfig
from jimjax.data import batches
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.mesh import map_batch
from jimjax.models import functional, gumnet, weights
from jimjax.models.functional import Network
from jimjax.models.gumnet import Match
from jimjax.ops import resample, wedge
from jimjax.ops.correlation import pearson
from jimjax.ops.rotation import Pose
from jimjax.train import losses, pretraining
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculePairs
from jimjax.train.step import LossResult

PRESETS = {"small": gumnet.small, "paper": gumnet.paper}
MAX_SHIFT = 0.2  # of the box, of particles along each axis before they are centred


class AnyPairs(NamedTuple):
    """Pairs of particles, of one class or not.

    Attributes:
        source: ``(batch, z, y, x)``.
        target: same shape.
        source_tilt_range: ``(batch, 2)`` degrees.
        target_tilt_range: ``(batch, 2)`` degrees.
    """

    source: np.ndarray
    target: np.ndarray
    source_tilt_range: np.ndarray
    target_tilt_range: np.ndarray


def network_config(config: RunConfig, box: int) -> gumnet.GumNetConfig:
    """Sizes of the network of a configuration for particles of a box size."""
    return PRESETS[config.network.preset](box)


def build_network(config: RunConfig, box: int) -> Network:
    """Builds the network of a configuration for particles of a box size."""
    key = jax.random.key(config.seed)
    return weights.build(network_config(config, box), key, config.compute)


def centre_particles(particles: Subtomograms) -> tuple[Subtomograms, np.ndarray]:
    """Particles in the middle of their boxes, and where they were: ``(n, 3)`` voxels."""
    tilt_ranges = np.asarray(particles.tilt_ranges, np.float32)
    max_shift = MAX_SHIFT * particles.volumes.shape[-1]
    moved = centre(normalize(particles.volumes), tilt_ranges, max_shift=max_shift)
    return dataclasses.replace(particles, volumes=moved.volumes), moved.offsets


def build_stages(config: RunConfig, particles: Subtomograms, mesh: Mesh) -> list[Stage]:
    """Lays out training: molecules, then random pairs of the particles.

    Args:
        config: the run.
        particles: centred, without truth; only volumes and tilt ranges are looked at.
        mesh: devices.

    Returns:
        Stages for ``loop.train``; they hand on whatever memory they are given.
    """
    volumes = normalize(particles.volumes)
    tilt_ranges = np.asarray(particles.tilt_ranges, np.float32)
    size, seed = config.joint.batch_size, config.seed

    def pairs(epoch: int, memory: Any) -> Iterator[AnyPairs]:
        partners = batches.draw_partners(np.zeros(len(volumes), int), seed=seed, epoch=epoch)
        for sources in batches.index_batches(len(volumes), size, seed=seed, epoch=epoch):
            targets = partners[sources]
            both = batches.Taken(sources, volumes), batches.Taken(targets, volumes)
            yield AnyPairs(*both, tilt_ranges[sources], tilt_ranges[targets])

    num = batches.num_batches(len(volumes), size)
    molecules = molecule_stage(config, tilt_ranges, volumes.shape[-1], mesh)
    return [molecules, Stage("pairs", config.joint.epochs, _pair_loss(config, mesh), pairs, num)]


def molecule_stage(config: RunConfig, tilt_ranges: np.ndarray, box: int, mesh: Mesh) -> Stage:
    """Pre-training on random molecules, observed with tilt ranges ``(n, 2)`` of particles."""
    loss = pretraining.pair_loss(functools.partial(molecule_loss, box=box))
    return pretraining.molecule_stage(config, tilt_ranges, box, mesh, loss)


def molecule_loss(
    found: Match, made: MoleculePairs, box: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pose errors of molecules, and what to log."""
    return _pose_loss(found, made.pose, jnp.ones(len(made.source)), box)


def taught_loss(
    config: RunConfig, found: Match, true: Pose, labels: jax.Array, weights: jax.Array, box: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Errors against a teacher, each pair's weighted, and what to log; classes are of no use."""
    del labels
    value, metrics = _pose_loss(found, true, weights, box)
    return config.joint.alignment_weight * value, metrics


def _pose_loss(
    found: Match, true: Pose, weights: jax.Array, box: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    each = jax.vmap(lambda found, true: losses.pose_loss(found, true, box=box))
    distance = jnp.sum((found.pose.rotation - true.rotation) ** 2, axis=(1, 2))
    shift = jnp.linalg.norm(found.pose.shift - true.shift, axis=-1)
    estimate = Pose(found.matrix, found.pose.shift)
    return jnp.mean(weights * each(estimate, true)), {
        "rotation_error": jnp.median(jnp.sqrt(distance)),
        "shift_error": jnp.median(shift),
    }


def _pair_loss(config: RunConfig, mesh: Mesh) -> Any:
    section = config.joint

    def loss(network: Network, batch: AnyPairs, key: jax.Array) -> tuple[jax.Array, LossResult]:
        found, stats = functional.apply(network, batch.source, batch.target, train=True)
        poses = found.pose
        ranges = batch.source_tilt_range, batch.target_tilt_range
        each = losses.pair_correlations(
            batch.source, batch.target, poses, *ranges, cutoff=section.cutoff, mesh=mesh
        )
        value = jnp.mean(1 - each)
        if section.loss == "imputed":
            value = 1 - pearson(_imputed(batch, poses, mesh), batch.target) ** 2
        return value, LossResult(stats, {"correlation": jnp.mean(each)})

    return loss


def _imputed(batch: AnyPairs, poses: Pose, mesh: Mesh) -> jax.Array:
    """Moved sources with the targets' coefficients where they have none, as upstream compares."""

    def fill(source: jax.Array, target: jax.Array, *ranges: jax.Array) -> jax.Array:
        pose, shape = Pose(*ranges[2:]), source.shape
        turned = lax.stop_gradient(wedge.wedge_mask(shape, ranges[0], rotation=pose.rotation))
        every = jnp.ones_like(turned)
        return wedge.impute(resample.transform(source, pose), turned, target, every)

    return map_batch(fill, mesh)(*batch, *poses)
