"""Warps images by affine maps and thin-plate splines, as the two-dimensional Jim-Net does.

Images are ``[y, x]`` or ``[y, x, channel]``. Points are ``(x, y)`` in normalised coordinates: the
centres of the corner pixels lie at -1 and 1, so that pixel i of n is at ``2 i / (n - 1) - 1``
(torch's ``align_corners=True``) and 0 is the middle of the image, between two pixels if n is even.
A map is passive: it takes a point of the output to the point of the source that is seen there.

Volumes differ in all three: their points are voxels, their centre is voxel ``n // 2``, and their
poses are active, source to output.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

OUTSIDE = -1e10  # normalised coordinate of a point that sees nothing; Jim-Net 2D's value
BORDER_SLACK = 1e-5  # normalised units; a spline onto the border is rounded to either side of it


def points_from_pixels(pixels: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Converts pixel indices to normalised coordinates.

        u = 2 i / (n - 1) - 1

    Args:
        pixels: ``(..., 2)``, ``(x, y)``, 0 is the centre of the first pixel (MATLAB: subtract 1).
        shape: ``(y, x)`` of the image, each at least 2.

    Returns:
        Same shape, ``(x, y)``; [-1, 1] inside the image.

    Raises:
        ValueError: if the points are not ``(x, y)`` or an axis has fewer than 2 pixels.
    """
    pixels = _as_points(pixels)
    return pixels * 2 / _last_pixel(shape, pixels.dtype) - 1


def pixels_from_points(points: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Converts normalised coordinates to pixel indices, the inverse of ``points_from_pixels``.

        i = (u + 1) (n - 1) / 2

    Args:
        points: ``(..., 2)``, ``(x, y)``.
        shape: ``(y, x)`` of the image, each at least 2.

    Returns:
        Same shape, ``(x, y)``, not rounded.

    Raises:
        ValueError: as ``points_from_pixels``.
    """
    points = _as_points(points)
    return (points + 1) * _last_pixel(shape, points.dtype) / 2


def pixel_grid(shape: tuple[int, int]) -> jax.Array:
    """Lists the pixel centres of an image: the grid that changes nothing.

    Args:
        shape: ``(y, x)``, each at least 2.

    Returns:
        ``(y, x, 2)``, ``(x, y)`` in [-1, 1].

    Raises:
        ValueError: if an axis has fewer than 2 pixels.
    """
    dtype = jnp.result_type(float)
    _last_pixel(shape, dtype)
    height, width = shape
    x, y = (jnp.asarray(np.linspace(-1, 1, size), dtype) for size in (width, height))
    return jnp.stack(jnp.meshgrid(x, y), axis=-1)


def apply_affine(matrix: jax.Array, points: jax.Array) -> jax.Array:
    """Maps points by an affine map: ``A p + b``.

    Args:
        matrix: ``(2, 3)``, ``[A | b]`` on ``(x, y)`` columns; six parameters reshaped in C order.
        points: ``(..., 2)``, ``(x, y)``.

    Returns:
        Same shape as ``points``, float32 or wider.

    Raises:
        ValueError: if ``matrix`` is not 2 x 3 or the points are not ``(x, y)``.
    """
    matrix, points = jnp.asarray(matrix), _as_points(points)
    if matrix.shape != (2, 3):
        raise ValueError(f"matrix must have shape (2, 3), got {matrix.shape}; vmap a batch")
    return _matmul(points, matrix[:, :2].T) + matrix[:, 2]


def affine_grid(matrix: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Lists where an affine map takes every output pixel.

    Args:
        matrix: ``(2, 3)``, output point to source point, as in ``apply_affine``.
        shape: ``(y, x)`` of the output, each at least 2.

    Returns:
        ``(y, x, 2)``, source points for ``sample``.

    Raises:
        ValueError: if ``matrix`` is not 2 x 3 or an axis has fewer than 2 pixels.
    """
    return apply_affine(matrix, _pixel_grid_like(matrix, shape))


def control_points(num_controls: int) -> jax.Array:
    """Lists the control points of the spline, a square grid over the image.

    Args:
        num_controls: a square number, 4 or more; 9 in Jim-Net.

    Returns:
        ``(num_controls, 2)``, ``(x, y)``, column after column: y runs fastest.

    Raises:
        ValueError: if ``num_controls`` is not a square number of at least 4.
    """
    return jnp.asarray(_controls(num_controls), jnp.result_type(float))


def apply_thin_plate_spline(
    targets: jax.Array, points: jax.Array, *, regularization: float = 0.0
) -> jax.Array:
    """Maps points by the smoothest map that takes the control points to their targets.

        f(p) = a_0 + A p + sum_k w_k U(|p - c_k|^2),   U(s) = s log s,   U(0) = 0
        (K + regularization I) w + P a = targets,   P^T w = 0

    with c the ``control_points``, K = U between them and P = (1, c). Linear in the targets; the
    identity, to the last bit, if they equal the control points.

    Args:
        targets: ``(controls, 2)``, ``(x, y)``, where each control point goes, in the order of
            ``control_points``. Jim-Net's 18 parameters, all x before all y, are
            ``parameters.reshape(2, 9).T``.
        points: ``(..., 2)``, ``(x, y)``.
        regularization: 0 or more, a Python number; bending is punished and the targets are no
            longer met. Jim-Net trains and evaluates with 0.2.

    Returns:
        Same shape as ``points``, float32 or wider; gradients are finite on the control points.

    Raises:
        ValueError: if the number of targets is not a square of at least 4, the points are not
            ``(x, y)`` or ``regularization`` is negative.

    Reference: Bookstein 1989, Principal warps: thin-plate splines and the decomposition of
    deformations.
    """
    targets, points = _as_points(targets), _as_points(points)
    if targets.ndim != 2:
        raise ValueError(f"targets must be (controls, 2), got {targets.shape}; vmap a batch")
    if regularization < 0:
        raise ValueError(f"regularization must be 0 or more, got {regularization}")
    dtype = jnp.promote_types(targets.dtype, points.dtype)
    controls = _controls(len(targets))
    # The spline of the displacements: what the identity adds would only be rounded.
    solution = jnp.asarray(_spline_solution(controls, regularization), dtype)
    coefficients = _matmul(solution, targets - jnp.asarray(controls, dtype))
    bending, linear = coefficients[:-3], coefficients[-3:]
    offsets = points[..., None, :] - jnp.asarray(controls, dtype)
    square = jnp.sum(offsets**2, axis=-1)
    safe = jnp.where(square > 0, square, 1)  # 1 log 1 = 0, the limit at 0
    return points + _matmul(safe * jnp.log(safe), bending) + linear[0] + _matmul(points, linear[1:])


def thin_plate_spline_grid(
    targets: jax.Array, shape: tuple[int, int], *, regularization: float = 0.0
) -> jax.Array:
    """Lists where a thin-plate spline takes every output pixel.

    Args:
        targets: ``(controls, 2)``, as in ``apply_thin_plate_spline``.
        shape: ``(y, x)`` of the output, each at least 2.
        regularization: as in ``apply_thin_plate_spline``.

    Returns:
        ``(y, x, 2)``, source points for ``sample``.

    Raises:
        ValueError: as ``apply_thin_plate_spline``, or if an axis has fewer than 2 pixels.
    """
    points = _pixel_grid_like(targets, shape)
    return apply_thin_plate_spline(targets, points, regularization=regularization)


def composed_grid(
    matrix: jax.Array,
    targets: jax.Array,
    shape: tuple[int, int],
    *,
    regularization: float = 0.0,
    is_cropped: bool = False,
) -> jax.Array:
    """Lists where a spline followed by an affine map takes every output pixel.

        grid(p) = affine(spline(p))

    The second stage of Jim-Net warps by the spline what the first has warped by the affine map.
    Both maps are known as formulas and composed as such, so the image is interpolated once.
    Resampling the affine grid by the spline's, as published, is the same inside the image, where
    interpolation is exact for affine maps, and spoils the coordinates beyond. Keypoints of the
    output go to the source likewise, by ``apply_affine`` of ``apply_thin_plate_spline``.

    Args:
        matrix: ``(2, 3)``, as in ``apply_affine``.
        targets: ``(controls, 2)``, as in ``apply_thin_plate_spline``.
        shape: ``(y, x)`` of the output, each at least 2.
        regularization: as in ``apply_thin_plate_spline``.
        is_cropped: whether the first stage has cut off what left its image, as in the published
            Jim-Net 2D. Pixels that the spline takes beyond [-1, 1] then see nothing: both
            coordinates are ``OUTSIDE``, with gradient 0. Points on the border itself stay; the
            published code drops them, all border pixels under the identity, and the cells that
            the source's border crosses.

    Returns:
        ``(y, x, 2)``, source points for ``sample``.

    Raises:
        ValueError: as ``apply_affine`` and ``thin_plate_spline_grid``.
    """
    between = thin_plate_spline_grid(targets, shape, regularization=regularization)
    grid = apply_affine(matrix, between)
    if not is_cropped:
        return grid
    is_inside = jnp.all(jnp.abs(between) <= 1 + BORDER_SLACK, axis=-1, keepdims=True)
    return jnp.where(is_inside, grid, OUTSIDE)


def sample(image: jax.Array, grid: jax.Array) -> jax.Array:
    """Interpolates an image bilinearly at given points.

    Around the image lie zeros that the interpolation sees (scipy's ``grid-constant``, torch's
    ``padding_mode="zeros"``): the result is continuous in the points and fades to 0 over one
    pixel. Differentiable in the image and the grid; at a pixel centre the slope is that of one
    of the sides.

    Args:
        image: ``(y, x)`` or ``(y, x, channel)``, y and x at least 2.
        grid: ``(..., 2)``, ``(x, y)`` normalised; ``(y', x', 2)`` makes an image.

    Returns:
        ``(...)`` or ``(..., channel)``, the image's dtype; sums are taken in float32 or wider.

    Raises:
        ValueError: if the image is not one image or the points are not ``(x, y)``.
    """
    image = jnp.asarray(image)
    if image.ndim not in (2, 3):
        raise ValueError(
            f"image must be (y, x) or (y, x, channel), got shape {image.shape}; vmap a batch"
        )
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = image.astype(float)
    height, width, *channels = image.shape
    pixels = pixels_from_points(grid, (height, width))
    column, right = _cell(pixels[..., 0], width)
    row, lower = _cell(pixels[..., 1], height)
    padded = jnp.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * len(channels))
    flat = padded.reshape(-1, *channels)
    first = row * (width + 2) + column

    def corner(offset: int, weight: jax.Array) -> jax.Array:
        values = flat.at[first + offset].get(mode="promise_in_bounds")
        return weight.reshape(weight.shape + (1,) * len(channels)) * values

    total = (
        corner(0, (1 - lower) * (1 - right))
        + corner(1, (1 - lower) * right)
        + corner(width + 2, lower * (1 - right))
        + corner(width + 3, lower * right)
    )
    return total.astype(image.dtype)


def _cell(position: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Index of the pixel before a position, in an axis padded by one, and the way to the next."""
    position = jnp.clip(position, -1, size) + 1
    # Clipped as an integer: a NaN position must not become an address.
    first = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, size)
    return first, position - first.astype(position.dtype)


def _controls(num_controls: int) -> np.ndarray:
    side = math.isqrt(num_controls)
    if side < 2 or side * side != num_controls:
        raise ValueError(
            f"the number of control points must be a square of at least 4, got {num_controls}; "
            "Jim-Net uses 9"
        )
    span = np.linspace(-1, 1, side)
    return np.stack(np.meshgrid(span, span, indexing="ij"), axis=-1).reshape(-1, 2)


def _spline_solution(controls: np.ndarray, regularization: float) -> np.ndarray:
    """``(controls + 3, controls)``: targets to spline coefficients, then constant, x and y."""
    size = len(controls)
    square = np.sum((controls[:, None] - controls) ** 2, axis=-1)
    kernel = square * np.log(np.where(square > 0, square, 1)) + regularization * np.eye(size)
    plane = np.concatenate([np.ones((size, 1)), controls], axis=1)
    system = np.block([[kernel, plane], [plane.T, np.zeros((3, 3))]])
    return np.linalg.inv(system)[:, :size]


def _pixel_grid_like(parameters: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Pixel centres in the precision of a map's parameters, float32 at least."""
    dtype = jnp.result_type(jnp.asarray(parameters), jnp.float32)
    return pixel_grid(shape).astype(dtype)


def _as_points(points: jax.Array) -> jax.Array:
    points = jnp.asarray(points)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"points must be (..., 2) with (x, y) last, got shape {points.shape}")
    return points.astype(jnp.promote_types(points.dtype, jnp.float32))


def _last_pixel(shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    if len(shape) != 2 or min(shape) < 2:
        raise ValueError(f"shape must be (y, x) with at least 2 pixels each, got {tuple(shape)}")
    return jnp.asarray([shape[1] - 1, shape[0] - 1], dtype)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
