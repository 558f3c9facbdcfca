"""Moves volumes by rigid and affine poses: nearest, trilinear and cubic B-spline, Fourier shift.

All functions take one volume ``[z, y, x]``; the centre is voxel ``n // 2`` of each axis. Outside
its box a volume goes on for ever, and interpolation sees those voxels: the result is continuous
in the pose up to and beyond the border. What is out there is the ``boundary``: "constant" the
value ``fill`` (scipy's ``grid-constant``), "nearest" the nearest border voxel, "wrap" copies of
the volume, each after the other without a gap (scipy's ``grid-wrap``).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.ops import _interpolation
from jimjax.ops._interpolation import BOUNDARIES, MARGINS
from jimjax.ops._precision import narrow, widen
from jimjax.ops.rotation import Pose
from jimjax.ops.spline import spline_prefilter


def transform(
    volume: jax.Array,
    pose: Pose,
    *,
    order: int = 1,
    fill: jax.Array | float = 0.0,
    boundary: str = "constant",
) -> jax.Array:
    """Moves a volume by a pose: rotates about the centre, then shifts.

        out(p) = volume(R^T (p - t)),   p relative to voxel n // 2

    Differentiable in the volume, the pose and ``fill`` (order 0: not in the pose).

    Args:
        volume: ``(z, y, x)``.
        pose: rotation on ``(x, y, z)`` columns, shift ``(x, y, z)`` in voxels.
        order: 0 nearest, 1 trilinear, 3 interpolating cubic B-spline.
        fill: value outside the box, for "constant".
        boundary: what lies outside the box: "constant", "nearest" or "wrap".

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the volume is not three-dimensional, the pose is not one pose, ``order``
            or ``boundary`` is unknown, or a ``fill`` is given that the boundary never shows.
    """
    rotation, shift_xyz = jnp.asarray(pose.rotation), jnp.asarray(pose.shift)
    _check_motion(rotation, shift_xyz)
    return _resample(volume, rotation.T, shift_xyz, order, fill, boundary)


def rotate(
    volume: jax.Array,
    rotation: jax.Array,
    *,
    order: int = 1,
    fill: jax.Array | float = 0.0,
    boundary: str = "constant",
) -> jax.Array:
    """Rotates a volume about its centre voxel: ``out(p) = volume(R^T p)``.

    Args:
        volume: ``(z, y, x)``.
        rotation: ``(3, 3)`` on ``(x, y, z)`` columns.
        order: as in ``transform``.
        fill: as in ``transform``.
        boundary: as in ``transform``.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: as ``transform``.
    """
    rotation = jnp.asarray(rotation)
    pose = Pose(rotation, jnp.zeros(3, rotation.dtype))
    return transform(volume, pose, order=order, fill=fill, boundary=boundary)


def shift(
    volume: jax.Array,
    shift: jax.Array,
    *,
    order: int = 1,
    fill: jax.Array | float = 0.0,
    boundary: str = "constant",
) -> jax.Array:
    """Shifts a volume: ``out(p) = volume(p - t)``.

    Args:
        volume: ``(z, y, x)``.
        shift: ``(3,)``, ``(x, y, z)`` in voxels.
        order: as in ``transform``.
        fill: as in ``transform``.
        boundary: as in ``transform``.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: as ``transform``.
    """
    shift = jnp.asarray(shift)
    pose = Pose(jnp.eye(3, dtype=shift.dtype), shift)
    return transform(volume, pose, order=order, fill=fill, boundary=boundary)


def affine(
    volume: jax.Array,
    matrix: jax.Array,
    shift: jax.Array,
    *,
    order: int = 1,
    fill: jax.Array | float = 0.0,
    boundary: str = "constant",
) -> jax.Array:
    """Moves a volume by an active affine map: ``out(p) = volume(M^-1 (p - t))``.

    Args:
        volume: ``(z, y, x)``.
        matrix: ``(3, 3)``, invertible, on ``(x, y, z)`` columns; ``2 * eye(3)`` magnifies twice.
        shift: ``(3,)``, ``(x, y, z)`` in voxels, applied after the matrix.
        order: as in ``transform``.
        fill: as in ``transform``.
        boundary: as in ``transform``.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: as ``transform``.
    """
    matrix, shift = jnp.asarray(matrix), jnp.asarray(shift)
    _check_motion(matrix, shift)
    first, second, third = matrix.T
    adjugate = jnp.stack(
        [jnp.cross(second, third), jnp.cross(third, first), jnp.cross(first, second)]
    )
    determinant = jnp.sum(first * adjugate[0])
    return _resample(volume, adjugate / determinant, shift, order, fill, boundary)


def fourier_shift(volume: jax.Array, shift: jax.Array) -> jax.Array:
    """Shifts a periodic volume by multiplying its spectrum with a phase ramp.

    Exact for band-limited volumes; what leaves on one side enters on the other. At the Nyquist
    frequency of an even axis only the real part of the phase is representable and kept.

    Args:
        volume: ``(z, y, x)``.
        shift: ``(3,)``, ``(x, y, z)`` in voxels.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the volume is not three-dimensional.
    """
    volume = _as_volume(volume)
    wide = widen(volume)
    spectrum = jnp.fft.rfftn(wide)
    for axis, distance in zip((2, 1, 0), widen(shift), strict=True):
        size = volume.shape[axis]
        numbers = np.fft.rfftfreq(size) if axis == 2 else np.fft.fftfreq(size)
        angle = -2 * jnp.pi * jnp.asarray(numbers, wide.dtype) * distance
        imaginary = jnp.where(jnp.abs(numbers) == 0.5, 0.0, jnp.sin(angle))
        phase = lax.complex(jnp.cos(angle), imaginary)
        spectrum = spectrum * jnp.expand_dims(phase, [a for a in range(3) if a != axis])
    return narrow(jnp.fft.irfftn(spectrum, s=volume.shape), volume)


def _as_volume(volume: jax.Array) -> jax.Array:
    volume = jnp.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {volume.shape}; vmap a batch")
    return volume if jnp.issubdtype(volume.dtype, jnp.floating) else volume.astype(float)


def _check_motion(matrix: jax.Array, shift_xyz: jax.Array) -> None:
    if matrix.shape != (3, 3) or shift_xyz.shape != (3,):
        raise ValueError(
            "matrix and shift must have shapes (3, 3) and (3,), got "
            f"{matrix.shape} and {shift_xyz.shape}; vmap a batch"
        )


def _resample(
    volume: jax.Array,
    matrix: jax.Array,
    shift_xyz: jax.Array,
    order: int,
    fill: jax.Array | float,
    boundary: str,
) -> jax.Array:
    """Samples ``volume(matrix @ (p - shift))`` at every voxel p."""
    given = _as_volume(volume)
    _check_options(order, fill, boundary)
    volume = widen(given)
    dtype = jnp.result_type(matrix.dtype, shift_xyz.dtype, jnp.float32)
    fill = jnp.asarray(fill, volume.dtype)
    if order == 3:
        padded = spline_prefilter(volume - fill, boundary=boundary)
    else:
        padded = _surround(volume, fill, boundary)
    sample = _interpolation.sampler(order, boundary, volume.shape, padded.shape, padded.dtype)
    values = sample(padded, matrix.astype(dtype), shift_xyz.astype(dtype))
    return narrow(fill + values if order == 3 else values, given)


def _check_options(order: int, fill: jax.Array | float, boundary: str) -> None:
    if order not in MARGINS:
        raise ValueError(f"order must be 0, 1 or 3, got {order!r}")
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")
    is_default = isinstance(fill, int | float) and fill == 0
    if boundary != "constant" and not is_default:
        raise ValueError(f"fill must be left out, boundary {boundary!r} never shows it; got {fill}")


def _surround(volume: jax.Array, fill: jax.Array, boundary: str) -> jax.Array:
    """Adds the border that orders 0 and 1 may touch."""
    if boundary == "constant":
        return lax.pad(volume, fill, [(1, 1, 0)] * 3)
    if boundary == "wrap":
        return jnp.pad(volume, 1, mode="wrap")
    # No border, whose gradient is slow: positions are clipped to the box. Two neighbours there
    # must be for an axis of one voxel too.
    return jnp.broadcast_to(volume, [max(size, 2) for size in volume.shape])
