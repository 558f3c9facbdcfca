"""Kernels of large steps: what they see in blocks of as many voxels as a step.

Arrays are ``(batch, z, y, x, channels)`` and kernels ``(kz, ky, kx, in, out)``.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import _windows as windows
from jimjax.ops._windows import Window


def patches(volume: jax.Array, kernel_shape: tuple[int, ...], window: Window) -> jax.Array:
    """What the kernel sees at each step over ``(z, y, x, channels)``, as one row.

    Windows of k taps, s apart, are made of ceil(k / s) neighbouring blocks of s voxels, so that a
    few slices along each axis take the place of one for each tap.

    Returns:
        ``(z', y', x', kz ky kx channels)``.
    """
    zero = jnp.zeros((), volume.dtype)
    steps = windows.out_shape((1, *volume.shape), kernel_shape, window)
    for number, (m, k, s, (low, _)) in enumerate(
        zip(steps, kernel_shape[:3], window.strides, window.pads, strict=True)
    ):
        axis, num_blocks = 2 * number, -(-k // s)
        edges = [(0, 0, 0)] * volume.ndim
        edges[axis] = (low, (m - 1 + num_blocks) * s - volume.shape[axis] - low, 0)
        padded = lax.pad(volume, zero, edges)
        blocks = padded.reshape(*padded.shape[:axis], -1, s, *padded.shape[axis + 1 :])
        views = [lax.slice_in_dim(blocks, i, i + m, axis=axis) for i in range(num_blocks)]
        joined = jnp.concatenate(views, axis=axis + 1)
        volume = lax.slice_in_dim(joined, 0, k, axis=axis + 1)
    return volume.transpose(0, 2, 4, 1, 3, 5, 6).reshape(*steps, -1)


def spread_patches(
    shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, window: Window
) -> jax.Array:
    """Applies the adjoint of ``convolve`` as the adjoint of ``patches``."""
    flat = kernel.reshape(-1, kernel.shape[-1])
    volume = jax.ShapeDtypeStruct(shape[1:], cotangent.dtype)
    gather = functools.partial(patches, kernel_shape=kernel.shape, window=window)
    spread = jax.linear_transpose(gather, volume)
    return lax.map(lambda steps: spread(steps @ flat.T)[0], cotangent)


def fold_volume(x: jax.Array, kernel_shape: tuple[int, ...], window: Window) -> jax.Array:
    """Blocks of ``strides`` voxels as channels: the kernel's steps become one voxel each."""
    out_shape = windows.out_shape(x.shape, kernel_shape, window)
    ends = [
        (low, (m - 1 + -(-k // s)) * s - n - low, 0)
        for n, m, k, s, (low, _) in zip(
            x.shape[1:4], out_shape, kernel_shape[:3], window.strides, window.pads, strict=True
        )
    ]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    return _blocks(padded, window.strides)


def fold_kernel(kernel: jax.Array, window: Window) -> jax.Array:
    """The kernel for ``fold_volume``; zeros complete its last blocks."""
    ends = [(0, -k % s) for k, s in zip(kernel.shape[:3], window.strides, strict=True)]
    blocks = _blocks(jnp.pad(kernel, (*ends, (0, 0), (0, 0)))[None], window.strides)
    return blocks.reshape(*blocks.shape[1:4], -1, kernel.shape[4])


def _blocks(x: jax.Array, edges: tuple[int, int, int]) -> jax.Array:
    """Takes blocks of an array ``(batch, z, y, x, ...)`` as one more axis after x, merged."""
    split = [part for n, s in zip(x.shape[1:4], edges, strict=True) for part in (n // s, s)]
    x = x.reshape(x.shape[0], *split, -1).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(*x.shape[:4], -1)
