"""3-D convolution with kernels that depend on the distance from their centre alone.

A network of such layers is rotation-equivariant by construction up to the grid (scalar fields
in, scalar fields out), so nothing of the data is spent on learning that particles come in all
orientations. It also costs a seventh of the products of a full 3^3 kernel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops._precision import widen

NUM_RADII = 4  # distances of a 3^3 kernel: 0, 1, sqrt 2, sqrt 3 voxels
SHELL_SIZES = (1, 6, 12, 8)  # taps at each distance


def isotropic_conv3d(x: jax.Array, kernel: jax.Array, *, dilation: int = 1) -> jax.Array:
    """Correlates a batch of channel-last volumes with a radial 3^3 kernel, zeros outside.

        out[b, p, o] = sum_r sum_c kernel[r, c, o] * sum_(|d| = sqrt r) x[b, p + dilation d, c]

    Equal to ``conv3d(x, isotropic_kernel(kernel), dilation=dilation)``. The neighbour sums are
    separable, so that four maps and one matrix product replace 27 taps. The gradient is a
    ``jax.custom_vjp``, once and in reverse mode only.

    Args:
        x: ``(batch, z, y, x, in_channels)``.
        kernel: ``(4, in_channels, out_channels)``, one matrix per distance, nearest first.
        dilation: distance between taps in voxels.

    Returns:
        ``(batch, z, y, x, out_channels)``.

    Raises:
        ValueError: if ranks or channels disagree, or dilation is below 1.
    """
    _check(x, kernel, dilation)
    return _isotropic_conv3d(x, kernel, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _isotropic_conv3d(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    weights = kernel.reshape(-1, kernel.shape[-1])
    shells = _shell_sums(x, dilation)
    return jnp.dot(shells, weights, preferred_element_type=_accumulator(x)).astype(x.dtype)


def _forward(
    x: jax.Array, kernel: jax.Array, dilation: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _isotropic_conv3d(x, kernel, dilation), (x, kernel)


def _backward(
    dilation: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # A radial kernel is its own mirror image, so the adjoint is a convolution of the same kind.
    to_x = _isotropic_conv3d(cotangent, kernel.swapaxes(1, 2), dilation)
    shells = _shell_sums(x, dilation).reshape(-1, kernel.shape[0] * kernel.shape[1])
    rows = cotangent.reshape(-1, cotangent.shape[-1])
    to_kernel = jnp.dot(shells.T, rows, preferred_element_type=_accumulator(x))
    return to_x, to_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _accumulator(x: jax.Array) -> jnp.dtype:
    """Sums are float32 at least: bfloat16 cannot count past 256."""
    return jnp.promote_types(x.dtype, jnp.float32)


_isotropic_conv3d.defvjp(_forward, _backward)


def _shell_sums(x: jax.Array, step: int) -> jax.Array:
    """Sums of the neighbours at each of the four distances, as channels side by side."""
    size = x.shape[1:4]
    spatial = ((0, 0), (step, step), (step, step), (step, step), (0, 0))
    padded = jnp.pad(widen(x), spatial)

    def pair(a: jax.Array, axis: int) -> jax.Array:
        before = jax.lax.slice_in_dim(a, 0, size[axis - 1], axis=axis)
        after = jax.lax.slice_in_dim(a, 2 * step, 2 * step + size[axis - 1], axis=axis)
        return before + after

    def centre(a: jax.Array, axis: int) -> jax.Array:
        return jax.lax.slice_in_dim(a, step, step + size[axis - 1], axis=axis)

    row, row_pair = centre(padded, 3), pair(padded, 3)
    plane_centre = centre(row, 2)
    plane_faces = pair(row, 2) + centre(row_pair, 2)
    plane_corners = pair(row_pair, 2)
    faces = centre(plane_faces, 1) + pair(plane_centre, 1)
    edges = centre(plane_corners, 1) + pair(plane_faces, 1)
    shells = [faces, edges, pair(plane_corners, 1)]
    return jnp.concatenate([x, *(sums.astype(x.dtype) for sums in shells)], axis=-1)


def isotropic_kernel(kernel: jax.Array) -> jax.Array:
    """Spreads a radial kernel over the 27 taps of a full one.

    Args:
        kernel: ``(4, in_channels, out_channels)``.

    Returns:
        ``(3, 3, 3, in_channels, out_channels)``.

    Raises:
        ValueError: if the kernel does not have four radii.
    """
    if kernel.ndim != 3 or kernel.shape[0] != NUM_RADII:
        raise ValueError(f"kernel must be (4, in, out), got shape {kernel.shape}")
    offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1)
    return kernel[(offsets**2).sum(-1)]


def _check(x: jax.Array, kernel: jax.Array, dilation: int) -> None:
    if x.ndim != 5:
        raise ValueError(f"x must be (batch, z, y, x, channels), got shape {x.shape}")
    if kernel.ndim != 3 or kernel.shape[:2] != (NUM_RADII, x.shape[-1]):
        raise ValueError(
            f"kernel must be (4, {x.shape[-1]}, out_channels) for x of shape {x.shape}, "
            f"got shape {kernel.shape}"
        )
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
