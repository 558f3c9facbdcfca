"""Orientations that a density cannot easily be told apart in.

A particle of near symmetry may be found in the twin of its true pose, and an average of particles
in both frames is symmetric, and then attracts both. Naming the twins lets every particle choose.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align import bands, slices
from jimjax.align.bands import Band, over_norms, split
from jimjax.align.joint_em import Model, Observations
from jimjax.align.local_em import Hypotheses, expect_nearby
from jimjax.ops.rotation import Pose, super_fibonacci

NUM_ROTATIONS = 2304  # 15 degrees apart
CLOSE = 12.0  # degrees; nearer rotations belong to one maximum
SELF = 30.0  # degrees; nearer ones to the density itself
NUM_STARTS = 12  # maxima on the grid that are made precise
FIRST_STEPS = 0.1, 0.5  # radians and voxels, of the lattices that make the poses precise
NUM_HALVINGS = 7  # of those steps
NOISE = 0.01  # of a density's power, that it is compared with itself under


class Twins(NamedTuple):
    """Poses that carry a density nearly onto itself, of each class, most similar first.

    Attributes:
        poses: rotations ``(c, m, 3, 3)`` and shifts ``(c, m, 3)``, voxels.
        similarity: ``(c, m)``, correlation of the density with its copy.
    """

    poses: Pose
    similarity: np.ndarray


def find_twins(grids: jax.Array, band: Band, *, num_twins: int, max_shift: float) -> Twins:
    """Compares densities with turned and moved copies of themselves.

    Args:
        grids: ``(c, g, g, g)``; see ``slices``.
        band: theirs.
        num_twins: how many of each class.
        max_shift: voxels.
    """
    rotations = super_fibonacci(NUM_ROTATIONS)
    axis = np.linspace(-max_shift, max_shift, 5)
    shifts = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3).astype(np.float32)
    scores, moves = _compare(grids, rotations, jnp.asarray(shifts), band)
    scores, moves, rotations = np.asarray(scores), np.asarray(moves), np.asarray(rotations)

    is_close = _are_within(CLOSE, rotations, rotations)
    is_other = ~_are_within(SELF, rotations, np.eye(3)[None])[:, 0]
    starts = []
    for own in scores:
        highest_around = np.max(np.where(is_close, own, -np.inf), axis=1)
        ranks = np.where(is_other & (own >= highest_around), own, own - 2)
        starts.append(np.argsort(-ranks)[:NUM_STARTS])
    starts = np.array(starts)
    rows = np.arange(len(starts))[:, None]
    begin = Pose(jnp.asarray(rotations[starts]), jnp.asarray(shifts[moves[rows, starts]]))
    # The highest place of the grid need not be beside the highest maximum.
    poses, similarity = jax.tree.map(np.asarray, _make_precise(grids, begin, band))
    chosen = np.array(
        [_pick_apart(*each, num_twins) for each in zip(similarity, poses.rotation, strict=True)]
    )
    return Twins(jax.tree.map(lambda field: field[rows, chosen], poses), similarity[rows, chosen])


def _are_within(degrees: float, rotations: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which rotations ``(n, 3, 3)`` are near which others ``(m, 3, 3)``: ``(n, m)``."""
    traces = rotations.reshape(-1, 9) @ others.reshape(-1, 9).T
    return traces > 1 + 2 * np.cos(np.deg2rad(degrees))


def _pick_apart(similarity: np.ndarray, rotations: np.ndarray, num: int) -> list[int]:
    """The most similar, and then always the most similar away from those; others if too few."""
    chosen: list[int] = []
    is_near = _are_within(CLOSE, rotations, rotations)
    is_self = _are_within(SELF, rotations, np.eye(3)[None])[:, 0]
    for _ in range(num):
        is_taken = is_self | is_near[:, chosen].any(axis=1)
        ranks = similarity - 2 * is_taken
        ranks[chosen] = -np.inf
        chosen.append(int(ranks.argmax()))
    return chosen


@functools.partial(jax.jit, static_argnames="band")
def _make_precise(grids: jax.Array, poses: Pose, band: Band) -> tuple[Pose, jax.Array]:
    """Lets each density look for itself around poses ``(c, m)``; also how similar it is there."""
    spectra = slices.cut(grids, jnp.eye(3)[None], band)[:, 0]
    num_classes, num_twins = poses.shift.shape[:2]
    power = bands.per_shell(jnp.mean(jnp.abs(spectra) ** 2, axis=0), band)
    power /= np.bincount(band.shells)
    model = Model(grids[None], NOISE * jnp.maximum(power, jnp.finfo(power.dtype).tiny))
    nothing, everything = jnp.zeros((1, num_classes), int), jnp.ones((1, num_classes))
    own = Observations(spectra[None], nothing, everything, jnp.ones((1, len(band.shells))))
    classes = jnp.broadcast_to(jnp.arange(num_classes)[:, None], (num_classes, num_twins))
    steps = (jnp.full(classes.shape, step) for step in FIRST_STEPS)
    hypotheses = Hypotheses(classes, *poses, *steps)
    hypotheses = jax.tree.map(lambda field: field[None], hypotheses)

    def look(_: int, hypotheses: Hypotheses) -> Hypotheses:
        return expect_nearby(own, model, hypotheses, band)[0].hypotheses

    found = jax.lax.fori_loop(0, NUM_HALVINGS, look, hypotheses)
    found = Pose(found.rotations[0], found.shifts[0])
    turned = slices.cut_own(grids, jnp.arange(num_classes), found.rotation, band)
    moved = turned * bands.phase_ramps(found.shift, band)
    products = jnp.einsum("cmk,ck->cm", split(moved), split(spectra))
    return found, over_norms(products, turned, spectra[:, None])


@functools.partial(jax.jit, static_argnames="band")
def _compare(
    grids: jax.Array, rotations: jax.Array, shifts: jax.Array, band: Band
) -> tuple[jax.Array, jax.Array]:
    """The best correlation at each rotation, and at which shift: both ``(c, r)``."""
    back = jnp.conj(bands.phase_ramps(shifts, band))
    own = slices.cut(grids, jnp.eye(3)[None], band)[:, 0]
    turned = slices.cut(grids, rotations, band)

    def one_class(own: jax.Array, turned: jax.Array) -> tuple[jax.Array, jax.Array]:
        products = split(turned) @ split(own * back).T
        scores = over_norms(products, turned[:, None], own)
        return scores.max(axis=1), scores.argmax(axis=1)

    return jax.lax.map(lambda each: one_class(*each), (own, turned))
