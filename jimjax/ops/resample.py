"""Moves volumes by rigid and affine poses: nearest, trilinear and cubic B-spline, Fourier shift.

All functions take one volume ``[z, y, x]``; the centre is voxel ``n // 2`` of each axis. Outside
its box a volume goes on for ever, and interpolation sees those voxels: the result is continuous
in the pose up to and beyond the border. What is out there is the ``boundary``: "constant" the
value ``fill`` (scipy's ``grid-constant``), "nearest" the nearest border voxel, "wrap" copies of
the volume, each after the other without a gap (scipy's ``grid-wrap``).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jimjax.ops._precision import narrow, widen
from jimjax.ops.rotation import Pose
from jimjax.ops.spline import SPLINE_MARGIN, spline_prefilter

BOUNDARIES = ("constant", "nearest", "wrap")
MARGINS = {0: 1, 1: 1, 3: SPLINE_MARGIN}  # order -> voxels of border around the samples
NUM_TAPS = {0: 1, 1: 2, 3: 4}  # order -> neighbours used along each axis


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
    positions = _source_positions(
        volume.shape, matrix.astype(dtype), shift_xyz.astype(dtype), order, boundary
    )
    fill = jnp.asarray(fill, volume.dtype)
    if order == 3:
        coefficients = spline_prefilter(volume - fill, boundary=boundary)
        values = fill + _sample(3, coefficients, *positions)
    else:
        values = _sample(order, _surround(volume, fill, boundary), *positions)
    return narrow(values.reshape(volume.shape), given)


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


def _source_positions(
    shape: tuple[int, ...], matrix: jax.Array, shift_xyz: jax.Array, order: int, boundary: str
) -> tuple[jax.Array, ...]:
    """Where each voxel comes from: z, y and x indices into the padded volume, each ``(n,)``.

    A matrix product along x, although elementwise would do: XLA on CPU writes a product to memory
    instead of repeating it in every user, so that all users take the floor of the same bits; and
    its transpose is one pass over the volume.
    """
    margin = 0 if boundary == "nearest" and order < 3 else MARGINS[order]
    reach = margin - 1 if order == 3 else margin  # beyond it every sample is the same
    offset = -jnp.matmul(matrix, shift_xyz, precision=lax.Precision.HIGHEST)
    z, y, x = (jnp.arange(size, dtype=offset.dtype) - size // 2 for size in shape)
    basis = jnp.stack([x, jnp.ones_like(x)])
    positions = []
    for axis, size in enumerate(shape):
        row, constant = matrix[2 - axis], offset[2 - axis] + size // 2
        start = row[2] * z[:, None] + row[1] * y[None, :] + constant
        line = jnp.stack([jnp.broadcast_to(row[0], start.shape), start], axis=-1)
        position = jnp.matmul(line, basis, precision=lax.Precision.HIGHEST).reshape(-1)
        if boundary == "wrap":
            inside = jnp.mod(position, size)  # up to and, by rounding, including size
        else:
            inside = jnp.clip(position, -reach, size - 1 + reach)
        positions.append(inside + margin)
    return tuple(positions)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sample(order: int, padded: jax.Array, z: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """Interpolates at positions that lie inside the padded volume."""
    base, weights, _ = _taps(order, padded.shape, (z, y, x))
    return _gather_sum(padded, base, weights)


@functools.partial(_sample.defjvp, symbolic_zeros=True)
def _sample_jvp(
    order: int, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array | SymbolicZero, ...]
) -> tuple[jax.Array, jax.Array]:
    """Forward rule whose transpose is fast: reverse mode executes only the transpose.

    The volume's part then scatters rows of packed neighbours instead of single taps. The
    positions' part interpolates the volume's differences along each axis with the next lower
    spline. The barriers keep XLA from computing indices once for all axes: on CPU it would write
    them to memory, which takes several times longer than computing them again.
    """
    padded, *positions = primals
    padded_dot, *positions_dot = tangents
    value = _sample(order, *primals)
    tangent = jnp.zeros_like(value)
    for axis, position_dot in enumerate(positions_dot):
        if not isinstance(position_dot, SymbolicZero):
            differences = jnp.diff(padded, axis=axis)
            differences, *own = lax.optimization_barrier((differences, *positions))
            base, weights, slopes = _taps(order, padded.shape, own, differences.shape)
            weights[axis] = slopes[axis]
            tangent = tangent + _gather_sum(differences, base, weights) * position_dot
    if not isinstance(padded_dot, SymbolicZero):
        tangent = tangent + _sample_packed(order, padded_dot, positions)
    return value, tangent


def _gather_sum(padded: jax.Array, base: jax.Array, weights: list[list[jax.Array]]) -> jax.Array:
    """Sums the neighbours of each position under separable weights."""
    _, height, width = padded.shape
    flat = padded.reshape(-1)
    total = jnp.zeros_like(base, flat.dtype)
    for k, weight_z in enumerate(weights[0]):
        plane = 0.0
        for j, weight_y in enumerate(weights[1]):
            start = base + (k * height + j) * width
            row = sum(
                weight * flat.at[start + i].get(mode="promise_in_bounds")
                for i, weight in enumerate(weights[2])
            )
            plane = plane + weight_y * row
        total = total + weight_z * plane
    return total


def _sample_packed(order: int, padded: jax.Array, positions: Sequence[jax.Array]) -> jax.Array:
    """Interpolates from rows of (y, x) neighbours: slow forward, fast transposed."""
    base, (wz, wy, wx), _ = _taps(order, padded.shape, positions)
    taps = range(NUM_TAPS[order])
    _, height, width = padded.shape
    flat = padded.reshape(-1)
    offsets = [j * width + i for j in taps for i in taps]
    extended = jnp.pad(flat, (0, offsets[-1]))
    rows = jnp.stack([extended[offset : offset + flat.size] for offset in offsets], axis=-1)
    weights = jnp.stack([wy[j] * wx[i] for j in taps for i in taps], axis=-1)
    return sum(
        wz[k]
        * jnp.sum(
            weights * rows.at[base + k * height * width].get(mode="promise_in_bounds"), axis=-1
        )
        for k in taps
    )


def _taps(
    order: int,
    shape: tuple[int, ...],
    positions: Sequence[jax.Array],
    stored_shape: tuple[int, ...] | None = None,
) -> tuple[jax.Array, list[list[jax.Array]], list[list[jax.Array]]]:
    """Flat index of the first neighbour, and per axis the weights and their derivatives.

    The index is into an array of ``stored_shape``, the padded volume's ``shape`` if None.
    """
    num_taps = NUM_TAPS[order]
    lead = (num_taps - 1) // 2  # neighbours before the position's own cell
    base, weights, slopes = 0, [], []
    for position, size, stride in zip(positions, shape, stored_shape or shape, strict=True):
        cell = jnp.floor(position + 0.5 if order == 0 else position)
        # Clipped as an integer: a NaN position must not become an address.
        first = jnp.clip(cell.astype(jnp.int32) - lead, 0, size - num_taps)
        fraction = position - (first + lead).astype(position.dtype)
        base = base * stride + first
        weights.append(_spline(order, fraction))
        slopes.append(_spline(order - 1, fraction) if order else [])
    return base, weights, slopes


def _spline(degree: int, f: jax.Array) -> list[jax.Array]:
    """Weights of the ``degree + 1`` neighbours at fraction ``f`` in [0, 1].

    The derivative of a B-spline is the next lower one applied to differences of coefficients.
    """
    g = 1 - f
    if degree == 0:
        return [jnp.ones_like(f)]
    if degree == 1:
        return [g, f]
    if degree == 2:
        return [g * g / 2, 0.5 + f * g, f * f / 2]
    return [g**3 / 6, 2 / 3 - f * f * (2 - f) / 2, 2 / 3 - g * g * (2 - g) / 2, f**3 / 6]
