"""A trained Jim-Net applied to particles: descriptions, and poses against references."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.data.batches import padded_chunks
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.ops import fourier, resample
from jimjax.ops.correlation import aligned_correlation
from jimjax.ops.rotation import Pose, compose, super_fibonacci

FULL_TILT = (-90.0, 90.0)  # degrees; a reference has no missing wedge
SCORING_MARGIN = 4  # voxels that the box of the correlation has beyond its cutoff


class Description(NamedTuple):
    """What the network says of particles by themselves.

    Attributes:
        features: ``(n, d)``, F(x, x).
        probabilities: ``(n, num_classes)`` of the cluster head.
        maps: ``(n, m, m, m, c)`` coarse feature maps.
    """

    features: np.ndarray
    probabilities: np.ndarray
    maps: np.ndarray


class Alignments(NamedTuple):
    """Poses against references.

    Attributes:
        rotations: ``(..., 3, 3)``, carry the reference into the particle.
        shifts: ``(..., 3)``, ``(x, y, z)`` in voxels.
        correlations: ``(...)`` constrained cross-correlation with the reference at that pose.
    """

    rotations: np.ndarray
    shifts: np.ndarray
    correlations: np.ndarray

    def best(self) -> tuple[np.ndarray, "Alignments"]:
        """The best-correlating reference of each particle, and the alignment to it."""
        choice = np.argmax(self.correlations, axis=1)
        rows = np.arange(len(choice))
        return choice, Alignments(*(field[rows, choice] for field in self))


def describe(network: Network, volumes: np.ndarray, *, batch_size: int) -> Description:
    """Describes and classifies particles.

    Args:
        network: a Jim-Net.
        volumes: ``(n, z, y, x)``, normalised.
        batch_size: particles at a time; has no influence on the result.

    Returns:
        One row per particle.
    """
    chunks = [
        jax.tree.map(np.asarray, _describe_chunk(network, volumes[rows]))
        for rows in padded_chunks(len(volumes), batch_size)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(volumes)], *chunks)


def align_to_all(
    network: Network,
    references: np.ndarray,
    volumes: np.ndarray,
    maps: np.ndarray,
    tilt_ranges: np.ndarray,
    *,
    num_proposals: int,
    batch_size: int,
    cutoff: float,
) -> Alignments:
    """Finds the coarse pose of each particle relative to each reference.

    The network looks at each pair ``num_proposals`` times, with the reference turned to begin
    with; of its answers the one with the best constrained cross-correlation is kept.

    Args:
        network: a Jim-Net.
        references: ``(k, z, y, x)``, normalised; without a missing wedge.
        volumes: ``(n, z, y, x)``, normalised.
        maps: ``(n, m, m, m, c)`` of the volumes, from ``describe``.
        tilt_ranges: ``(n, 2)`` degrees.
        num_proposals: turns of the reference.
        batch_size: particles at a time; has no influence on the result.
        cutoff: half side of the cube kept by the correlation, cycles per voxel.

    Returns:
        Alignments with fields ``(n, k, ...)``.
    """
    turns = _turns(num_proposals)
    box = references.shape[-1]
    size = min(box, 2 * int(np.ceil(cutoff * box)) + SCORING_MARGIN)
    # One reference at a time: one compilation serves any number of them.
    prepared = [_prepare(network, reference, turns, size) for reference in references]
    chunks = []
    for rows in padded_chunks(len(volumes), batch_size):
        small, chunk = _shrink(volumes[rows], size), (maps[rows], tilt_ranges[rows])
        found = [
            _align_chunk(network, *reference, turns, small, *chunk, box=box, cutoff=cutoff)
            for reference in prepared
        ]
        chunks.append(jax.tree.map(lambda *each: np.stack(each, axis=1), *found))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(volumes)], *chunks)


def encode(network: Network, volumes: np.ndarray) -> np.ndarray:
    """Coarse feature maps ``(n, m, m, m, c)`` of a few volumes ``(n, z, y, x)``."""
    maps, _ = functional.apply(network, volumes, train=False, method="encode")
    return np.asarray(maps)


def refine(
    network: Network,
    references: np.ndarray,
    volumes: np.ndarray,
    coarse: Alignments,
    *,
    batch_size: int,
) -> Alignments:
    """Lets the fine stage improve poses, each against its own reference.

    Args:
        network: a Jim-Net.
        references: ``(n, z, y, x)``, normalised, one per particle.
        volumes: ``(n, z, y, x)``, normalised.
        coarse: ``(n, ...)`` where to begin.
        batch_size: particles at a time; has no influence on the result.

    Returns:
        Alignments with the correlations of ``coarse``.
    """
    chunks = []
    for rows in padded_chunks(len(volumes), batch_size):
        pose = Pose(coarse.rotations[rows], coarse.shifts[rows])
        refined = _refine_chunk(network, references[rows], volumes[rows], pose)
        chunks.append(jax.tree.map(np.asarray, refined))
    pose = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(volumes)], *chunks)
    return Alignments(pose.rotation, pose.shift, coarse.correlations)


@jax.jit
def _describe_chunk(network: Network, volumes: jax.Array) -> Description:
    (features, logits), _ = functional.apply(network, volumes, train=False, method="cluster")
    maps, _ = functional.apply(network, volumes, train=False, method="encode")
    return Description(features, jax.nn.softmax(logits), maps)


def _turns(num: int) -> np.ndarray:
    """Starting orientations of a reference; the first is as it is."""
    grid = np.asarray(super_fibonacci(num))
    return np.einsum("nij,kj->nik", grid, grid[0])


@functools.partial(jax.jit, static_argnames="size")
def _prepare(
    network: Network, reference: jax.Array, turns: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Maps of a reference in all turns ``(turns, ...)``, and a small copy to correlate with."""
    turned = jax.vmap(resample.rotate, (None, 0))(reference, turns)
    maps, _ = functional.apply(network, turned, train=False, method="encode")
    return maps, fourier.fourier_resize(reference, size)


@functools.partial(jax.jit, static_argnames="size")
def _shrink(volumes: jax.Array, size: int) -> jax.Array:
    return jax.vmap(lambda volume: fourier.fourier_resize(volume, size))(volumes)


@functools.partial(jax.jit, static_argnames=("box", "cutoff"))
def _align_chunk(
    network: Network,
    turned_maps: jax.Array,
    reference: jax.Array,
    turns: jax.Array,
    volumes: jax.Array,
    maps: jax.Array,
    tilt_ranges: jax.Array,
    *,
    box: int,
    cutoff: float,
) -> Alignments:
    """Aligns small volumes to one reference."""
    scale = volumes.shape[-1] / box

    def correlate(volume: jax.Array, pose: Pose, tilt_range: jax.Array) -> jax.Array:
        return aligned_correlation(
            reference,
            volume,
            Pose(pose.rotation, pose.shift * scale),
            source_tilt_range=jnp.array(FULL_TILT),
            target_tilt_range=tilt_range,
            cutoff=cutoff / scale,
        )

    def propose(turn: jax.Array, source_maps: jax.Array) -> tuple[Pose, jax.Array]:
        sources = jnp.broadcast_to(source_maps, maps.shape)
        found, _ = functional.apply(network, sources, maps, train=False, method="match")
        first = Pose(turn, jnp.zeros(3))
        poses = jax.vmap(lambda pose: compose(pose, first))(found)
        return poses, jax.vmap(correlate)(volumes, poses, tilt_ranges)

    poses, scores = jax.lax.map(lambda each: propose(*each), (turns, turned_maps))
    best, rows = jnp.argmax(scores, axis=0), jnp.arange(len(volumes))
    return Alignments(poses.rotation[best, rows], poses.shift[best, rows], scores[best, rows])


@jax.jit
def _refine_chunk(network: Network, references: jax.Array, volumes: jax.Array, pose: Pose) -> Pose:
    return functional.apply(network, references, volumes, pose, train=False, method="refine")[0]
