"""Climbing a score of a pose by Levenberg and Marquardt's steps, and what its slopes need."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.ops.rotation import Pose, from_rotation_vector

FIRST_DAMPING, LOWEST_DAMPING, HIGHEST_DAMPING = 0.1, 1e-4, 1e6  # of the curvature's diagonal
LESS_DAMPING, MORE_DAMPING = 0.2, 5.0  # after a step that was kept, and one that was undone


class View(Protocol):
    """What a pose looks like; a NamedTuple of arrays."""

    pose: Pose
    score: jax.Array
    gradient: jax.Array  # (6,), of the score by a turn after the rotation, radians, and the shift
    curvature: jax.Array  # (6, 6), of minus the score


Seen = TypeVar("Seen", bound=View)


def ascend(look: Callable[[Pose], Seen], unseen: Seen, num_steps: jax.Array | int) -> Seen:
    """Tries steps; one that lowers the score is undone, and the next is more damped.

    Args:
        look: at a pose.
        unseen: the pose to begin with, with a score below all others, no gradient and the identity
            as curvature: its step changes nothing, so that one program sees first and later poses.
        num_steps: after the first look; may be traced.

    Returns:
        The best view.
    """

    def step(_: int, state: tuple[Seen, jax.Array]) -> tuple[Seen, jax.Array]:
        old, damping = state
        diagonal = jnp.diagonal(old.curvature)
        # No curvature along a parameter means no gradient along it: any number will do.
        diagonal = jnp.where(diagonal > 0, diagonal, 1)
        change = jnp.linalg.solve(old.curvature + jnp.diag(damping * diagonal), old.gradient)
        turn = from_rotation_vector(change[:3])
        turned = jnp.matmul(turn, old.pose.rotation, precision=lax.Precision.HIGHEST)
        new = look(Pose(turned, old.pose.shift + change[3:]))
        is_better = new.score > old.score  # not for nan
        kept = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), new, old)
        factor = jnp.where(is_better, LESS_DAMPING, MORE_DAMPING)
        return kept, jnp.clip(damping * factor, LOWEST_DAMPING, HIGHEST_DAMPING)

    damping = jnp.asarray(FIRST_DAMPING / LESS_DAMPING, unseen.pose.shift.dtype)
    return lax.fori_loop(0, num_steps + 1, step, (unseen, damping))[0]


def interpolate(
    grids: jax.Array, places: jax.Array, number: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """Reads a grid between its points, with slopes.

    Args:
        grids: ``(..., z, y, x)``.
        places: ``(k, 3)``, (x, y, z) in grid steps, inside the grid.
        number: which of the grids.

    Returns:
        Trilinear values ``(k,)`` and their derivatives ``(k, 3)`` by the places.
    """
    sides = np.array(grids.shape[:-4:-1])
    cells = jnp.clip(jnp.floor(places).astype(jnp.int32), 0, sides - 2)
    x, y, z = (places - cells).T
    strides = np.array([1, sides[0], sides[0] * sides[1]])
    corners = np.array(list(np.ndindex(2, 2, 2))) @ strides[::-1]
    first = cells @ jnp.asarray(strides) + number * int(np.prod(sides))
    values = grids.reshape(-1).at[first + corners[:, None]].get(mode="promise_in_bounds")
    values = values.reshape(2, 2, 2, -1)  # z, y, x

    def between(pair: jax.Array, fraction: jax.Array) -> jax.Array:
        return pair[0] + fraction * (pair[1] - pair[0])

    lines = between(jnp.moveaxis(values, 2, 0), x)  # z, y
    rises = values[:, :, 1] - values[:, :, 0]
    planes = between(jnp.moveaxis(lines, 1, 0), y)  # z
    by_x = between(between(jnp.moveaxis(rises, 1, 0), y), z)
    by_y = between(lines[:, 1] - lines[:, 0], z)
    return between(planes, z), jnp.stack([by_x, by_y, planes[1] - planes[0]], axis=-1)
