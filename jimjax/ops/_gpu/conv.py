"""3-D convolution and its transpose on GPUs, where cuDNN has no fast way.

Arrays are ``(batch, z, y, x, channels)`` and kernels ``(kz, ky, kx, in, out)``. Measured on an H200
and an H100, float32 as TF32, with 16 or 32 particles. cuDNN's 2-D convolutions are the faster
ones: a 3-D convolution, its gradient for the input and that for the kernel together take 1.2 to
1.7 times as long as in two dimensions with depth among the channels, in nine layers of 32 to 256
channels. Its gradient for a dilated kernel is not usable: 41 ms at dilation 2 and 4.6 ms at 3,
where the undilated layers beside them took 1.3 to 1.9.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import _windows as windows
from jimjax.ops._windows import DIMENSIONS_3D, Window

DIMENSIONS_2D = ("NHWC", "HWIO", "NHWC")
UNDILATED = (1, 1, 1)
VALID = Window((1, 1, 1), UNDILATED, ((0, 0),) * 3)
STACKED_CHANNELS = 96  # at 64 shares of planes take 0.7 to 0.9 of the time, at 112 1.0 to 1.15
NARROW_CHANNELS, WIDE_CHANNELS = 4, 32  # out and in: products first is 7 times as fast at 2 and 224


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves in the form that is fastest for the layer."""
    if not _is_planar(kernel, window):
        return _by_layer(x, kernel, window)
    if window.dilations == UNDILATED:
        return _convolve_planes(x, kernel, window)
    grids = _split(windows.pad(x, window), window.dilations)
    found = _convolve_planes(grids, kernel, VALID)
    sides = windows.out_shape(x.shape, kernel.shape, window)
    return _join(found, window.dilations, (len(x), *sides, kernel.shape[4]))


def gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: Window
) -> tuple[jax.Array, jax.Array]:
    """The adjoints of ``convolve`` in its input and in its kernel."""
    if not _is_planar(kernel, window):
        _, pullback = jax.vjp(lambda x, kernel: _by_layer(x, kernel, window), x, kernel)
        return pullback(cotangent)
    if window.dilations == UNDILATED:
        return _plane_gradients(x, kernel, cotangent, window)
    padded = windows.pad(x, window)
    grids = _split(padded, window.dilations)
    sides = windows.out_shape(grids.shape, kernel.shape, VALID)
    whole = (s * d for s, d in zip(sides, window.dilations, strict=True))
    ends = [(0, w - n) for w, n in zip(whole, cotangent.shape[1:4], strict=True)]
    cotangents = _split(jnp.pad(cotangent, ((0, 0), *ends, (0, 0))), window.dilations)
    to_grids, to_kernel = _plane_gradients(grids, kernel, cotangents, VALID)
    to_padded = _join(to_grids, window.dilations, padded.shape)
    inside = (slice(low, low + n) for (low, _), n in zip(window.pads, x.shape[1:4], strict=True))
    return to_padded[(slice(None), *inside)], to_kernel


def _is_planar(kernel: jax.Array, window: Window) -> bool:
    """Whether two dimensions are the faster way."""
    return window.strides == (1, 1, 1) and kernel.shape[0] > 1 and not _is_narrow(kernel)


def _is_narrow(kernel: jax.Array) -> bool:
    num_in, num_out = kernel.shape[3:]
    return num_out <= NARROW_CHANNELS and num_in >= WIDE_CHANNELS


def _by_layer(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    if _is_narrow(kernel):
        return windows.products_first(x, kernel, window).astype(x.dtype)
    return windows.convolve(x, kernel, window)


def _convolve_planes(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    form = _stacked_planes if x.shape[-1] >= STACKED_CHANNELS else _shares_of_planes
    return form(x, kernel, window)


def _plane_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: Window
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(lambda kernel: _convolve_planes(x, kernel, window), kernel)
    return _to_input(kernel, cotangent, window), *pullback(cotangent)


def _to_input(kernel: jax.Array, cotangent: jax.Array, window: Window) -> jax.Array:
    pads = tuple(
        (k - 1 - low, k - 1 - high)
        for k, (low, high) in zip(kernel.shape[:3], window.pads, strict=True)
    )
    mirrored = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    return _shares_of_planes(cotangent, mirrored, window._replace(pads=pads))


def _shares_of_planes(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """What each plane adds to every plane it reaches, as channels of a 2-D convolution; summed."""
    (depth, *taps), (num_in, num_out) = kernel.shape[:3], kernel.shape[3:]
    flat = kernel.transpose(1, 2, 3, 0, 4).reshape(*taps, num_in, depth * num_out)
    shares = _convolve_2d(x.reshape(-1, *x.shape[2:]), flat, window)
    shares = shares.reshape(*x.shape[:2], *shares.shape[1:])
    shares = jnp.pad(shares, ((0, 0), window.pads[0], *((0, 0),) * 3))
    num = shares.shape[1] - depth + 1
    total = jnp.promote_types(x.dtype, jnp.float32)
    return sum(
        shares[:, i : i + num, ..., i * num_out : (i + 1) * num_out].astype(total)
        for i in range(depth)
    ).astype(x.dtype)


def _stacked_planes(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The planes that each plane of the result sees, as channels of a 2-D convolution."""
    (depth, *taps), (num_in, num_out) = kernel.shape[:3], kernel.shape[3:]
    padded = jnp.pad(x, ((0, 0), window.pads[0], *((0, 0),) * 3))
    num = padded.shape[1] - depth + 1
    stacked = jnp.concatenate([padded[:, i : i + num] for i in range(depth)], axis=-1)
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(*taps, depth * num_in, num_out)
    out = _convolve_2d(stacked.reshape(-1, *stacked.shape[2:]), flat, window)
    return out.reshape(len(x), num, *out.shape[1:])


def _convolve_2d(planes: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return lax.conv_general_dilated(
        planes, kernel, (1, 1), window.pads[1:], dimension_numbers=DIMENSIONS_2D
    )


def _split(volumes: jax.Array, steps: tuple[int, int, int]) -> jax.Array:
    """Every so many voxels as volumes of their own, in which a dilated kernel is an undilated one.

    Zeros complete the last ones. ``(batch, z, y, x, c)`` becomes ``(batch prod(steps), z / step,
    y / step, x / step, c)``.
    """
    sides = volumes.shape[1:4]
    ends = [(0, -n % s) for n, s in zip(sides, steps, strict=True)]
    volumes = jnp.pad(volumes, ((0, 0), *ends, (0, 0)))
    counts = [-(-n // s) for n, s in zip(sides, steps, strict=True)]
    mixed = [part for pair in zip(counts, steps, strict=True) for part in pair]
    parts = volumes.reshape(-1, *mixed, volumes.shape[-1]).transpose(0, 2, 4, 6, 1, 3, 5, 7)
    return parts.reshape(-1, *counts, volumes.shape[-1])


def _join(
    grids: jax.Array, steps: tuple[int, int, int], shape: tuple[int, int, int, int, int]
) -> jax.Array:
    """Undoes ``_split`` of volumes of a shape, or of the first voxels of larger ones."""
    counts, (num, *sides, channels) = grids.shape[1:4], shape
    parts = grids.reshape(num, *steps, *counts, channels).transpose(0, 4, 1, 5, 2, 6, 3, 7)
    whole = parts.reshape(num, *(n * s for n, s in zip(counts, steps, strict=True)), channels)
    return whole[(slice(None), *(slice(n) for n in sides))]


def spread(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int, int], window: Window
) -> jax.Array:
    """Applies the adjoint of ``convolve`` of volumes of this size, in its input.

    All voxels of a stride's block are channels of one convolution on the coarse grid: a kernel of
    k taps reaches ceil(k / stride) blocks, the last of which zeros complete. cuDNN takes as long
    for the result, but 11 to 30 times as long for its gradients.
    """
    strides = window.strides
    if _is_planar(kernel, window) and window.dilations == UNDILATED:
        return _to_input(kernel, x, window)
    if strides == (1, 1, 1):
        return windows.spread(x, kernel, size, window)
    blocks = [-(-k // s) for k, s in zip(kernel.shape[:3], strides, strict=True)]
    ends = [(0, t * s - k) for t, s, k in zip(blocks, strides, kernel.shape[:3], strict=True)]
    num_out, num_in = kernel.shape[3:]
    taps = jnp.pad(kernel, (*ends, (0, 0), (0, 0)))
    split = [part for t, s in zip(blocks, strides, strict=True) for part in (t, s)]
    taps = taps.reshape(*split, num_out, num_in).transpose(0, 2, 4, 7, 1, 3, 5, 6)
    taps = taps.reshape(*blocks, num_in, -1)[::-1, ::-1, ::-1]
    coarse = lax.conv_general_dilated(
        x, taps, (1, 1, 1), [(t - 1, t - 1) for t in blocks], dimension_numbers=DIMENSIONS_3D
    )
    sides = coarse.shape[1:4]
    fine = coarse.reshape(-1, *sides, *strides, num_out).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    fine = fine.reshape(-1, *(m * s for m, s in zip(sides, strides, strict=True)), num_out)
    starts = [low for low, _ in window.pads]
    stops = [low + n for low, n in zip(starts, size, strict=True)]
    return lax.slice(fine, (0, *starts, 0), (len(x), *stops, num_out))
