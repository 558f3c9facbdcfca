"""Orientations that a density cannot easily be told apart in.

A particle of near symmetry may be found in the twin of its true pose, and an average of particles
in both frames is symmetric, and then attracts both. Naming the twins lets every particle choose.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align import slices
from jimjax.align.slices import Band, split
from jimjax.ops.rotation import Pose, super_fibonacci

NUM_ROTATIONS = 2304  # 15 degrees apart
CLOSE = 30.0  # degrees; nearer rotations belong to one maximum
SELF = 50.0  # degrees; nearer ones to the density itself


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
    compare = jax.jit(functools.partial(_compare, band=band))
    scores, moves = compare(grids, rotations, jnp.asarray(shifts))
    scores, moves, rotations = np.asarray(scores), np.asarray(moves), np.asarray(rotations)

    flat = rotations.reshape(-1, 9)
    traces = flat @ flat.T
    is_close = traces > 1 + 2 * np.cos(np.deg2rad(CLOSE))
    is_other = np.trace(rotations, axis1=1, axis2=2) < 1 + 2 * np.cos(np.deg2rad(SELF))
    chosen = []
    for own in scores:
        highest_around = np.max(np.where(is_close, own, -np.inf), axis=1)
        ranks = np.where(is_other & (own >= highest_around), own, own - 2)
        chosen.append(np.argsort(-ranks)[:num_twins])
    chosen = np.array(chosen)
    rows = np.arange(len(chosen))[:, None]
    poses = Pose(jnp.asarray(rotations[chosen]), jnp.asarray(shifts[moves[rows, chosen]]))
    return Twins(poses, scores[rows, chosen])


def _compare(
    grids: jax.Array, rotations: jax.Array, shifts: jax.Array, band: Band
) -> tuple[jax.Array, jax.Array]:
    """The best correlation at each rotation, and at which shift: both ``(c, r)``."""
    back = jnp.conj(slices.phase_ramps(shifts, band))
    own = slices.cut(grids, jnp.eye(3)[None], band)[:, 0]
    turned = slices.cut(grids, rotations, band)

    def one_class(own: jax.Array, turned: jax.Array) -> tuple[jax.Array, jax.Array]:
        products = split(turned) @ split(own * back).T
        norms = jnp.linalg.norm(turned, axis=1) * jnp.linalg.norm(own)
        scores = products / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)[:, None]
        return scores.max(axis=1), scores.argmax(axis=1)

    return jax.lax.map(lambda each: one_class(*each), (own, turned))
