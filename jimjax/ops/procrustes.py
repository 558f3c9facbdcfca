"""The rigid motion that best carries matched points onto each other."""

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops.rotation import Pose, from_quaternion

SQUARINGS = 12  # the quaternion's error falls with the eigenvalue ratio to the power 2^12
TINY = 1e-12  # squared norm below which a matrix says nothing about a rotation


def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """Finds the rotation R that maximises trace(R^T M).

    The maximiser is the top eigenvector, as a quaternion, of a symmetric 4 x 4 matrix linear in
    M; repeated squaring finds it with gradients that stay finite where an SVD's do not (equal
    or vanishing singular values).

    Args:
        matrix: ``(3, 3)``, for instance ``sum_i w_i p_i q_i^T`` of matched points.

    Returns:
        ``(3, 3)`` with determinant +1; the identity for a matrix of norm below 1e-6. One of the
        maximisers where there are several.

    Raises:
        ValueError: if ``matrix`` is not 3 x 3.

    Reference: Horn 1987, J. Opt. Soc. Am. A 4, 629, section 4.
    """
    if matrix.shape != (3, 3):
        raise ValueError(f"matrix must have shape (3, 3), got {matrix.shape}")
    squared = jnp.sum(matrix**2)
    has_direction = squared > TINY
    matrix = jnp.where(has_direction, matrix, jnp.eye(3, dtype=matrix.dtype))
    matrix = matrix * lax.rsqrt(jnp.where(has_direction, squared, 3.0))
    # |eigenvalue| <= sum of singular values <= sqrt 3 for a unit matrix: the shift makes all >= 0.
    power = _quaternion_form(matrix) + jnp.sqrt(3.0) * jnp.eye(4, dtype=matrix.dtype)

    def square(power: jax.Array, _: None) -> tuple[jax.Array, None]:
        power = jnp.matmul(power, power, precision=lax.Precision.HIGHEST)
        return power / jnp.trace(power), None

    power, _ = lax.scan(square, power / jnp.trace(power), None, length=SQUARINGS)
    # Every column is the eigenvector times a number; the largest is the safest.
    column = power[:, jnp.argmax(jnp.diagonal(power))]
    return from_quaternion(column)


def paired_procrustes(
    weights: jax.Array, source_points: jax.Array, target_points: jax.Array
) -> Pose:
    """Solves for the rigid motion that carries each source point onto its own target.

        minimise  sum_i w_i |R q_i + t - p_i|^2

    Args:
        weights: ``(points,)``, non-negative, of unit sum.
        source_points: ``(points, 3)``, ``(x, y, z)``.
        target_points: same shape and unit.

    Returns:
        Pose with ``target = R source + t``.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    if source_points.shape != target_points.shape or weights.shape != source_points.shape[:1]:
        raise ValueError(
            f"weights {weights.shape}, source points {source_points.shape} and target points "
            f"{target_points.shape} must agree"
        )
    source_mean = _matmul(weights, source_points)
    target_mean = _matmul(weights, target_points)
    moment = _matmul(
        (target_points - target_mean).T, weights[:, None] * (source_points - source_mean)
    )
    rotation = nearest_rotation(moment)
    return Pose(rotation, target_mean - _matmul(rotation, source_mean))


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _quaternion_form(m: jax.Array) -> jax.Array:
    """The symmetric matrix K with q^T K q = trace(R(q)^T M) for unit q = (w, x, y, z)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = m
    return jnp.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
