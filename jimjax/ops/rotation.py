"""Rotations and rigid poses in three dimensions, with gradients that are finite everywhere.

A rotation is a ``(3, 3)`` matrix that acts on ``(x, y, z)`` column vectors, right-handed and
active: it carries the reference into the particle. Angles are radians. Every function handles
one rotation; use ``jax.vmap`` for many.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SMALL_ANGLE = 1e-3  # rad; below it power series replace quotients (next term < 1e-15)
SERIES_ANGLE = 0.5  # rad; below it angle - sin(angle) cancels in float32
DEGENERATE = 1e-12  # squared length, relative to the input, that has no direction in float32
BISECTIONS = 30  # halvings of an interval; float32 has 24 bits
SUPER_FIBONACCI_PHI = np.sqrt(2.0)  # Alexa 2022, section 4
SUPER_FIBONACCI_PSI = 1.533751168755204288118041  # root of psi^4 = psi + 4, Alexa 2022


class Pose(NamedTuple):
    """A rigid motion ``p -> rotation @ p + shift``, relative to the box centre.

    Attributes:
        rotation: ``(3, 3)``, acts on ``(x, y, z)`` columns.
        shift: ``(3,)``, ``(x, y, z)`` in voxels, applied after the rotation.
    """

    rotation: jax.Array
    shift: jax.Array


def identity() -> Pose:
    """Returns the pose that moves nothing."""
    return Pose(jnp.eye(3), jnp.zeros(3))


def compose(outer: Pose, inner: Pose) -> Pose:
    """Chains two poses: first ``inner``, then ``outer``.

        R = R_outer R_inner,   t = R_outer t_inner + t_outer

    Args:
        outer: the pose applied last.
        inner: the pose applied first.

    Returns:
        Both in one.
    """
    shift = _product(outer.rotation, inner.shift) + outer.shift
    return Pose(_product(outer.rotation, inner.rotation), shift)


def invert(pose: Pose) -> Pose:
    """Inverts a pose: ``(R^T, -R^T t)``.

    Args:
        pose: any pose.

    Returns:
        The pose that undoes it.
    """
    return Pose(pose.rotation.T, -_product(pose.rotation.T, pose.shift))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def random_rotation(key: jax.Array) -> jax.Array:
    """Draws a rotation uniformly from SO(3) (Haar measure).

    Args:
        key: a ``jax.random`` key.

    Returns:
        ``(3, 3)`` rotation.

    Reference: Shoemake 1992, Uniform random rotations; a normal 4-vector has a uniform direction.
    """
    return from_quaternion(jax.random.normal(key, (4,)))


def random_rotation_near(key: jax.Array, max_angle: jax.Array | float) -> jax.Array:
    """Draws a rotation uniformly (Haar) among those at most ``max_angle`` from the identity.

    The axis is uniform on the sphere; the angle inverts its distribution function,
    ``(angle - sin angle) / (max_angle - sin max_angle)``.

    Args:
        key: a ``jax.random`` key.
        max_angle: radians, more than 0; values above pi act as pi. May be traced.

    Returns:
        ``(3, 3)`` rotation.
    """
    key_axis, key_angle = jax.random.split(key)
    axis = jax.random.normal(key_axis, (3,))
    axis = axis / _safe_norm(axis)
    limit = jnp.minimum(jnp.asarray(max_angle, axis.dtype), jnp.pi)
    target = jax.random.uniform(key_angle, (), axis.dtype) * _angle_minus_sine(limit)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        is_below = _angle_minus_sine(middle) < target
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    low, _ = lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(limit), limit))
    return from_rotation_vector(low * axis)


def _angle_minus_sine(angle: jax.Array) -> jax.Array:
    square = angle * angle
    series = angle * square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72)))
    return jnp.where(angle < SERIES_ANGLE, series, angle - jnp.sin(angle))


def _safe_norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm; its gradient at zero is zero instead of NaN."""
    square = jnp.sum(vector * vector)
    is_zero = square == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def about_axis(axis: int, angle: jax.Array | float) -> jax.Array:
    """Builds the right-handed rotation about one coordinate axis.

    Args:
        axis: 0, 1 or 2 for x, y or z.
        angle: radians.

    Returns:
        ``(3, 3)`` rotation; about z, +90 degrees carries x to y.

    Raises:
        ValueError: if ``axis`` is not 0, 1 or 2.
    """
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0 (x), 1 (y) or 2 (z), got {axis!r}")
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    one, zero = jnp.ones_like(cos), jnp.zeros_like(cos)
    rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
    return jnp.roll(_matrix(rows), axis, axis=(0, 1))


def from_quaternion(quaternion: jax.Array) -> jax.Array:
    """Converts a quaternion of any length to a rotation matrix.

    Args:
        quaternion: ``(4,)`` as ``(w, x, y, z)``; it is normalised here. Zero gives the identity.

    Returns:
        ``(3, 3)`` rotation.
    """
    _check_shape("quaternion", quaternion, (4,))
    square = jnp.sum(quaternion * quaternion)
    is_zero = square == 0
    w, x, y, z = quaternion
    scale = jnp.where(is_zero, 0.0, 2.0 / jnp.where(is_zero, 1.0, square))
    rows = [
        [1 - scale * (y * y + z * z), scale * (x * y - w * z), scale * (x * z + w * y)],
        [scale * (x * y + w * z), 1 - scale * (x * x + z * z), scale * (y * z - w * x)],
        [scale * (x * z - w * y), scale * (y * z + w * x), 1 - scale * (x * x + y * y)],
    ]
    return _matrix(rows)


def to_quaternion(rotation: jax.Array) -> jax.Array:
    """Converts a rotation matrix to a unit quaternion with ``w >= 0``.

    Of four equivalent formulas the one with the largest pivot is used: gradients are finite
    everywhere, rotations by pi included.

    Args:
        rotation: ``(3, 3)``.

    Returns:
        ``(4,)`` as ``(w, x, y, z)``.

    Reference: Shepperd 1978, Quaternion from rotation matrix.
    """
    _check_shape("rotation", rotation, (3, 3))
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    wx, wy, wz = zy - yz, xz - zx, yx - xy
    # Four times the outer product of the quaternion with itself.
    rows = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy + yx, xz + zx],
        [wy, xy + yx, 1 - xx + yy - zz, yz + zy],
        [wz, xz + zx, yz + zy, 1 - xx - yy + zz],
    ]
    outer = _matrix(rows)
    quaternion = outer[jnp.argmax(jnp.diagonal(outer))]
    quaternion = quaternion / jnp.sqrt(jnp.sum(quaternion * quaternion))
    return jnp.where(quaternion[0] < 0, -quaternion, quaternion)


def from_rotation_vector(vector: jax.Array) -> jax.Array:
    """Builds the rotation about ``vector`` by its length (Rodrigues' formula).

    Args:
        vector: ``(3,)``, ``(x, y, z)``, radians.

    Returns:
        ``(3, 3)`` rotation.
    """
    _check_shape("vector", vector, (3,))
    square = jnp.sum(vector * vector)
    is_small = square < SMALL_ANGLE**2
    angle = jnp.sqrt(jnp.where(is_small, 1.0, square))
    sine_ratio = jnp.where(is_small, 1 - square / 6, jnp.sin(angle) / angle)
    half_ratio = jnp.where(is_small, 1 - square / 24, jnp.sin(angle / 2) / (angle / 2))
    versine_ratio = half_ratio * half_ratio / 2  # (1 - cos angle) / angle^2 without cancellation
    x, y, z = vector
    zero = jnp.zeros_like(x)
    cross = _matrix([[zero, -z, y], [z, zero, -x], [-y, x, zero]])
    squared_cross = vector[:, None] * vector[None, :] - square * jnp.eye(3, dtype=vector.dtype)
    return jnp.eye(3, dtype=vector.dtype) + sine_ratio * cross + versine_ratio * squared_cross


def to_rotation_vector(rotation: jax.Array) -> jax.Array:
    """Returns the axis times the angle of a rotation.

    Args:
        rotation: ``(3, 3)``.

    Returns:
        ``(3,)``, ``(x, y, z)``, length in [0, pi] radians; at pi one of the two axes.
    """
    quaternion = to_quaternion(rotation)
    w, axis = quaternion[0], quaternion[1:]
    square = jnp.sum(axis * axis)
    is_small = square < SMALL_ANGLE**2
    length = jnp.sqrt(jnp.where(is_small, 1.0, square))
    safe_w = jnp.where(is_small, w, 1.0)
    # atan(s / w) / s = 1 / w - s^2 / (3 w^3) + ...
    series = 2 / safe_w - 2 * square / (3 * safe_w**3)
    return jnp.where(is_small, series, 2 * jnp.arctan2(length, w) / length) * axis


def from_six_d(columns: jax.Array) -> jax.Array:
    """Builds a rotation from its first two columns by Gram-Schmidt.

    Always a rotation: a first column without length becomes x, a second one without a part
    across the first becomes the coordinate axis farthest from it; no gradient flows there.

    Args:
        columns: ``(6,)``, first then second column, of any length.

    Returns:
        ``(3, 3)`` rotation.

    Reference: Zhou et al. 2019, On the continuity of rotation representations, eq. 15.
    """
    _check_shape("columns", columns, (6,))
    dtype = columns.dtype
    first = _direction(columns[:3], jnp.eye(3, dtype=dtype)[0], jnp.ones((), dtype))
    farthest = jnp.eye(3, dtype=dtype)[jnp.argmin(jnp.abs(first))]
    fallback = _reject(farthest, first)
    fallback = fallback / jnp.sqrt(jnp.sum(fallback * fallback))
    length = jnp.sum(columns[3:] * columns[3:])
    second = _direction(_reject(columns[3:], first), fallback, length)
    # A second rejection removes what rounding left of the first column.
    second = _reject(second, first)
    second = second / jnp.sqrt(jnp.sum(second * second))
    return jnp.stack([first, second, jnp.cross(first, second)], axis=1)


def _reject(vector: jax.Array, direction: jax.Array) -> jax.Array:
    return vector - jnp.sum(vector * direction) * direction


def _direction(vector: jax.Array, fallback: jax.Array, scale: jax.Array) -> jax.Array:
    square = jnp.sum(vector * vector)
    is_degenerate = square <= DEGENERATE * scale
    safe = jnp.sqrt(jnp.where(is_degenerate, 1.0, square))
    return jnp.where(is_degenerate, fallback, vector / safe)


def to_six_d(rotation: jax.Array) -> jax.Array:
    """Returns the first two columns of a rotation, the inverse of ``from_six_d``.

    Args:
        rotation: ``(3, 3)``.

    Returns:
        ``(6,)``, first then second column.
    """
    _check_shape("rotation", rotation, (3, 3))
    return rotation[:, :2].T.reshape(6)


def from_zyz(angles: jax.Array) -> jax.Array:
    """Builds ``Rz(rot) Ry(tilt) Rz(psi)``, as scipy's ``from_euler("ZYZ", ...)``.

    Args:
        angles: ``(3,)``, ``(rot, tilt, psi)`` in radians.

    Returns:
        ``(3, 3)`` rotation.
    """
    _check_shape("angles", angles, (3,))
    rot, tilt, psi = angles
    return _product(_product(about_axis(2, rot), about_axis(1, tilt)), about_axis(2, psi))


def to_zyz(rotation: jax.Array) -> jax.Array:
    """Finds the angles of ``Rz(rot) Ry(tilt) Rz(psi)``.

    Args:
        rotation: ``(3, 3)``.

    Returns:
        ``(3,)``, rot and psi in [-pi, pi], tilt in [0, pi]. At gimbal lock (tilt 0 or pi) psi is 0.
    """
    _check_shape("rotation", rotation, (3, 3))
    sine_squared = rotation[0, 2] ** 2 + rotation[1, 2] ** 2
    is_locked = sine_squared < DEGENERATE
    sine = jnp.where(is_locked, 0.0, jnp.sqrt(jnp.where(is_locked, 1.0, sine_squared)))
    rot_y = jnp.where(is_locked, -rotation[0, 1], rotation[1, 2])
    rot_x = jnp.where(is_locked, rotation[1, 1], rotation[0, 2])
    psi_y = jnp.where(is_locked, 0.0, rotation[2, 1])
    psi_x = jnp.where(is_locked, 1.0, -rotation[2, 0])
    tilt = jnp.arctan2(sine, rotation[2, 2])
    return jnp.stack([jnp.arctan2(rot_y, rot_x), tilt, jnp.arctan2(psi_y, psi_x)])


def geodesic_angle(a: jax.Array, b: jax.Array) -> jax.Array:
    """Measures the angle of the rotation between two rotations.

    Uses ``atan2(sin, cos)``, exact near 0 and pi where ``arccos`` of the trace is not; the
    gradient is zero at the kinks, exactly 0 and pi.

    Args:
        a: ``(3, 3)`` rotation.
        b: ``(3, 3)`` rotation.

    Returns:
        Scalar in [0, pi], radians.
    """
    _check_shape("a", a, (3, 3))
    _check_shape("b", b, (3, 3))
    relative = _product(a.T, b)
    skew = relative - relative.T
    sine = _safe_norm(jnp.stack([skew[2, 1], skew[0, 2], skew[1, 0]])) / 2
    return jnp.arctan2(sine, (jnp.trace(relative) - 1) / 2)


def frobenius_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Measures ``||a - b||_F``, which is ``2 sqrt(2) sin(angle / 2)`` for rotations.

    Args:
        a: ``(3, 3)`` rotation.
        b: ``(3, 3)`` rotation.

    Returns:
        Scalar in [0, 2 sqrt(2)].
    """
    _check_shape("a", a, (3, 3))
    _check_shape("b", b, (3, 3))
    return _safe_norm(a - b)


def super_fibonacci(num: int) -> jax.Array:
    """Spreads rotations evenly and deterministically over SO(3).

    Args:
        num: how many.

    Returns:
        ``(num, 3, 3)`` rotations.

    Raises:
        ValueError: if ``num`` is less than 1.

    Reference: Alexa 2022, Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3).
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    sample = np.arange(num) + 0.5
    alpha = 2 * np.pi * sample / SUPER_FIBONACCI_PHI
    beta = 2 * np.pi * sample / SUPER_FIBONACCI_PSI
    inner, outer = np.sqrt(sample / num), np.sqrt(1 - sample / num)
    quaternions = np.stack(
        [outer * np.cos(beta), inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta)],
        axis=-1,
    )
    return _from_quaternions(jnp.asarray(quaternions, jnp.result_type(float)))


@jax.jit
def _from_quaternions(quaternions: jax.Array) -> jax.Array:
    return jax.vmap(from_quaternion)(quaternions)


def _matrix(rows: list[list[jax.Array]]) -> jax.Array:
    return jnp.stack([jnp.stack(row) for row in rows])


def _check_shape(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if jnp.shape(array) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {jnp.shape(array)}; vmap a batch")
