"""How a kernel walks over volumes, and XLA's own convolution with it.

Arrays are ``(batch, z, y, x, channels)`` and kernels ``(kz, ky, kx, in, out)``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS_3D = ("NDHWC", "DHWIO", "NDHWC")


class Window(NamedTuple):
    """How the kernel walks over the volume; hashable, so that it can be static."""

    strides: tuple[int, int, int]
    dilations: tuple[int, int, int]
    pads: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves by XLA; GPU and TPU accumulate half precision in float32 by themselves."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        dimension_numbers=DIMENSIONS_3D,
    )


def spread(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int, int], window: Window
) -> jax.Array:
    """Applies the adjoint of ``convolve`` of volumes of this size, in its input."""
    fine = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)
    (out,) = jax.linear_transpose(lambda volumes: convolve(volumes, kernel, window), fine)(x)
    return out


def products_first(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Each voxel's share in each tap by one matrix product, then the shifted shares summed.

    For few output channels: the shares of all taps are then fewer than the input's channels.
    """
    num_in, num_out = kernel.shape[3:]
    flat = kernel.reshape(-1, num_in, num_out).transpose(1, 0, 2).reshape(num_in, -1)
    total = jnp.promote_types(x.dtype, jnp.float32)
    shares = jnp.matmul(x, flat, preferred_element_type=total)
    reached = taps(pad(shares, window), kernel.shape, window)
    return sum(r[..., i * num_out : (i + 1) * num_out] for i, r in enumerate(reached))


def out_shape(
    shape: tuple[int, ...], kernel_shape: tuple[int, ...], window: Window
) -> tuple[int, ...]:
    """Sides of what a kernel makes of volumes."""
    return tuple(
        (n + sum(pads) - d * (k - 1) - 1) // s + 1
        for n, k, s, d, pads in zip(
            shape[1:4], kernel_shape[:3], window.strides, window.dilations, window.pads, strict=True
        )
    )


def pad(x: jax.Array, window: Window) -> jax.Array:
    """Adds the window's zeros."""
    return jnp.pad(x, ((0, 0), *window.pads, (0, 0)))


def taps(padded: jax.Array, kernel_shape: tuple[int, ...], window: Window) -> list[jax.Array]:
    """What each kernel tap sees, in the kernel's C order; each has the output's grid."""
    views = [padded]
    for axis in (1, 2, 3):
        num_taps = kernel_shape[axis - 1]
        views = [tap for view in views for tap in axis_taps(view, axis, num_taps, window)]
    return views


def axis_taps(padded: jax.Array, axis: int, num_taps: int, window: Window) -> list[jax.Array]:
    """The same along one axis; each view has all of the others."""
    step, gap = window.strides[axis - 1], window.dilations[axis - 1]
    span = padded.shape[axis] - gap * (num_taps - 1)
    return [
        lax.slice_in_dim(padded, i * gap, i * gap + span, step, axis=axis) for i in range(num_taps)
    ]
