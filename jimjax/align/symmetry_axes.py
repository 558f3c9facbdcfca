"""How a symmetric density must be turned for its axes to lie where a point group has them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from jimjax.align import slices
from jimjax.align.bands import Band, over_norms, split
from jimjax.ops import symmetry
from jimjax.ops.rotation import from_rotation_vector, super_fibonacci

NUM_ROTATIONS = 2304  # 15 degrees apart
NUM_STARTS = 4  # places of that grid that are made precise
LIMIT = 0.2  # cycles per voxel; what is finer hides how near a turn is
FIRST_ANGLE = 0.1  # radians
BLOCK = 64  # rotations that are compared at a time


def find_setting(density: np.ndarray, group: str) -> tuple[np.ndarray, float]:
    """Finds the rotation that brings a density into the setting of its point group.

    Args:
        density: ``(z, y, x)``, a cube whose axes of symmetry meet in voxel ``n // 2``.
        group: name, as of ``ops.point_group``.

    Returns:
        ``(3, 3)``, to turn the density by, and how well it is then left as it is by the group: the
        mean correlation with its copies, 1 if exactly.

    Raises:
        ValueError: if there is no such group.
    """
    elements = symmetry.point_group(group)[1:]
    if len(elements) == 0:
        return np.eye(3), 1.0
    box = density.shape[0]
    band = Band(box, max(1.0, min(LIMIT * box, box / 2 - 1)))
    grids = slices.make_grids(jnp.asarray(density, jnp.float32)[None], band)
    compare = functools.partial(_compare, grids, elements, band=band)
    rotations = np.asarray(super_fibonacci(NUM_ROTATIONS))
    scores = np.concatenate(
        [compare(jnp.asarray(rotations[first : first + BLOCK]))
         for first in range(0, NUM_ROTATIONS, BLOCK)]
    )  # fmt: skip
    found = []
    for start in np.argsort(-scores)[:NUM_STARTS]:

        def turned(vector: np.ndarray, first: np.ndarray = rotations[start]) -> np.ndarray:
            return np.asarray(from_rotation_vector(jnp.asarray(vector, jnp.float32))) @ first

        corners = np.vstack([np.zeros(3), FIRST_ANGLE * np.eye(3)])
        best = minimize(
            lambda vector, turned=turned: -float(compare(jnp.asarray(turned(vector))[None])[0]),
            np.zeros(3),
            method="Nelder-Mead",
            options={"initial_simplex": corners, "xatol": 1e-4, "fatol": 1e-7},
        )
        found.append((-best.fun, turned(best.x)))
    score, rotation = max(found, key=lambda each: each[0])
    return rotation, score


@functools.partial(jax.jit, static_argnames="band")
def _compare(grids: jax.Array, elements: jax.Array, rotations: jax.Array, band: Band) -> jax.Array:
    """Mean correlation of the density, turned by rotations ``(r, 3, 3)``, with its copies."""
    # Of a density turned by Q the element g is that of the density itself about Q^T g Q.
    own = jnp.einsum("rji,gjk,rkl->rgil", rotations, elements, rotations, precision="highest")
    turned = slices.cut(grids, own.reshape(-1, 3, 3), band)[0]
    seen = slices.cut(grids, jnp.eye(3)[None], band)[0, 0]
    correlations = over_norms(split(turned) @ split(seen), turned, seen)
    return correlations.reshape(len(rotations), -1).mean(axis=1)
