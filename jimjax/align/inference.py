"""A trained Jim-Net applied to particles: descriptions, and poses against references."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.data.batches import map_chunks
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.ops import fourier, resample
from jimjax.ops.correlation import aligned_correlation
from jimjax.ops.rotation import Pose, compose, super_fibonacci
from jimjax.ops.wedge import wedge_mask

FULL_TILT = (-90.0, 90.0)  # degrees; a reference has no missing wedge
MAX_CORRELATION = 1 - 1e-6  # two volumes are never more alike than float32 can tell
SCORING_MARGIN = 4  # voxels that the box of the correlation has beyond its cutoff


class Description(NamedTuple):
    """What the network says of particles by themselves.

    Attributes:
        features: ``(n, d)``, F(x, x).
        probabilities: ``(n, num_classes)`` of the cluster head.
        codes: what the coarse stage compares; a pytree of ``(n, ...)``.
    """

    features: np.ndarray
    probabilities: np.ndarray
    codes: Any


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
    return map_chunks(
        lambda rows: _describe_chunk(network, volumes[rows]), len(volumes), batch_size
    )


def align_to_all(
    network: Network,
    references: np.ndarray,
    volumes: np.ndarray,
    codes: Any,
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
        codes: of the volumes, from ``describe``.
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

    def align_chunk(rows: np.ndarray) -> Alignments:
        part = jax.tree.map(operator.itemgetter(rows), codes)
        chunk = _shrink(volumes[rows], size), part, tilt_ranges[rows]
        found = [
            _align_chunk(network, *reference, turns, *chunk, box=box, cutoff=cutoff)
            for reference in prepared
        ]
        return jax.tree.map(lambda *each: np.stack(each, axis=1), *found)

    return map_chunks(align_chunk, len(volumes), batch_size)


def encode(network: Network, volumes: np.ndarray) -> Any:
    """What the coarse stage compares of a few volumes ``(n, z, y, x)``."""
    return jax.tree.map(np.asarray, _encode(network, volumes))


def encode_all(network: Network, volumes: np.ndarray, *, batch_size: int) -> Any:
    """What a network compares of any number of volumes ``(n, z, y, x)``, some at a time."""
    return map_chunks(lambda rows: _encode(network, volumes[rows]), len(volumes), batch_size)


def class_probabilities(
    correlations: np.ndarray, tilt_ranges: np.ndarray, *, box: int, cutoff: float
) -> np.ndarray:
    """How probable each reference is, given how well particles correlate with it at their poses.

    A particle is its reference times an unknown gain plus white noise of unknown variance, at best
    both; then ``p(particle) ~ (1 - c^2)^(-m/2)`` for the m independent numbers that are compared,
    and 1 where ``c < 0``, as the gain is not negative. That the poses were sought is left out.

    Args:
        correlations: ``(n, k)``.
        tilt_ranges: ``(n, 2)`` degrees.
        box: side of the particles, voxels.
        cutoff: half side of the cube kept by the correlation, cycles per voxel.

    Returns:
        ``(n, k)``, of equal priors.
    """
    shape = (box,) * 3
    band = fourier.bandpass_mask(shape, high=cutoff, norm="max") * fourier.hermitian_weights(shape)
    ranges, groups = np.unique(np.asarray(tilt_ranges), axis=0, return_inverse=True)
    counts = [float(jnp.sum(band * wedge_mask(shape, each))) for each in ranges]
    numbers = np.asarray(counts)[groups.reshape(-1)]
    squares = np.clip(correlations, 0, MAX_CORRELATION).astype(np.float64) ** 2
    logits = -0.5 * numbers[:, None] * np.log1p(-squares)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def refine(
    network: Network,
    references: np.ndarray,
    volumes: np.ndarray,
    tilt_ranges: np.ndarray,
    begin: Alignments,
    *,
    num_steps: int,
    batch_size: int,
    cutoff: float,
) -> Alignments:
    """Lets the fine stage improve poses, each against its own reference.

    Args:
        network: a Jim-Net.
        references: ``(n, z, y, x)``, normalised, one per particle; without a missing wedge.
        volumes: ``(n, z, y, x)``, normalised.
        tilt_ranges: ``(n, 2)`` degrees.
        begin: ``(n, ...)`` where to begin.
        num_steps: how often the fine stage is asked; an answer that correlates less than what
            it began with is dropped.
        batch_size: particles at a time; has no influence on the result.
        cutoff: half side of the cube kept by the correlation, cycles per voxel.

    Returns:
        Alignments with the correlations of the refined poses.
    """

    def refine_chunk(rows: np.ndarray) -> Alignments:
        pose = Pose(begin.rotations[rows], begin.shifts[rows])
        inputs = references[rows], volumes[rows], tilt_ranges[rows], pose
        return _refine_chunk(network, *inputs, num_steps=num_steps, cutoff=cutoff)

    return map_chunks(refine_chunk, len(volumes), batch_size)


@jax.jit
def _describe_chunk(network: Network, volumes: jax.Array) -> Description:
    (features, logits), _ = functional.describe(network, volumes, train=False)
    return Description(features, jax.nn.softmax(logits), _encode(network, volumes))


@jax.jit
def _encode(network: Network, volumes: jax.Array) -> Any:
    return functional.apply(network, volumes, train=False, method="encode")[0]


def _turns(num: int) -> np.ndarray:
    """Starting orientations of a reference; the first is as it is."""
    grid = np.asarray(super_fibonacci(num))
    return np.einsum("nij,kj->nik", grid, grid[0])


@functools.partial(jax.jit, static_argnames="size")
def _prepare(
    network: Network, reference: jax.Array, turns: jax.Array, size: int
) -> tuple[Any, jax.Array]:
    """Codes of a reference in all turns ``(turns, ...)``, and a small copy to correlate with."""
    turned = jax.vmap(resample.rotate, (None, 0))(reference, turns)
    return _encode(network, turned), fourier.fourier_resize(reference, size)


@functools.partial(jax.jit, static_argnames="size")
def _shrink(volumes: jax.Array, size: int) -> jax.Array:
    return jax.vmap(lambda volume: fourier.fourier_resize(volume, size))(volumes)


@functools.partial(jax.jit, static_argnames=("box", "cutoff"))
def _align_chunk(
    network: Network,
    turned_codes: Any,
    reference: jax.Array,
    turns: jax.Array,
    volumes: jax.Array,
    codes: Any,
    tilt_ranges: jax.Array,
    *,
    box: int,
    cutoff: float,
) -> Alignments:
    """Aligns small volumes to one reference."""
    scale = volumes.shape[-1] / box

    def correlate(volume: jax.Array, pose: Pose, tilt_range: jax.Array) -> jax.Array:
        small = Pose(pose.rotation, pose.shift * scale)
        return _correlate(reference, volume, tilt_range, small, cutoff=cutoff / scale)

    def propose(turn: jax.Array, code: Any) -> tuple[Pose, jax.Array]:
        sources = jax.tree.map(lambda one, each: jnp.broadcast_to(one, each.shape), code, codes)
        found, _ = functional.apply(network, sources, codes, train=False, method="match")
        first = Pose(turn, jnp.zeros(3))
        poses = jax.vmap(lambda pose: compose(pose, first))(found)
        return poses, jax.vmap(correlate)(volumes, poses, tilt_ranges)

    poses, scores = jax.lax.map(lambda each: propose(*each), (turns, turned_codes))
    best, rows = jnp.argmax(scores, axis=0), jnp.arange(len(volumes))
    return Alignments(poses.rotation[best, rows], poses.shift[best, rows], scores[best, rows])


@functools.partial(jax.jit, static_argnames=("num_steps", "cutoff"))
def _refine_chunk(
    network: Network,
    references: jax.Array,
    volumes: jax.Array,
    tilt_ranges: jax.Array,
    pose: Pose,
    *,
    num_steps: int,
    cutoff: float,
) -> Alignments:
    correlate = jax.vmap(functools.partial(_correlate, cutoff=cutoff))

    def improve(_: int, found: tuple[Pose, jax.Array]) -> tuple[Pose, jax.Array]:
        pose, score = found
        refined, _ = functional.apply(
            network, references, volumes, pose, train=False, method="refine"
        )
        new_score = correlate(references, volumes, tilt_ranges, refined)
        is_better = new_score > score

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, (refined, new_score), found)

    first = pose, correlate(references, volumes, tilt_ranges, pose)
    pose, score = jax.lax.fori_loop(0, num_steps, improve, first)
    return Alignments(pose.rotation, pose.shift, score)


def _correlate(
    reference: jax.Array,
    volume: jax.Array,
    tilt_range: jax.Array,
    pose: Pose,
    *,
    cutoff: float,
) -> jax.Array:
    """Correlates a volume with a reference moved by a pose."""
    return aligned_correlation(
        reference,
        volume,
        pose,
        source_tilt_range=jnp.array(FULL_TILT),
        target_tilt_range=tilt_range,
        cutoff=cutoff,
    )
