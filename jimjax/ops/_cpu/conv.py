"""3-D convolution on CPU: one form for each kind of layer, and the gradients of all of them.

XLA's own 3-D convolution on CPU is 2 to 15 times slower than what its 2-D one and its matrix
product can do. Arrays are ``(batch, z, y, x, channels)`` and kernels ``(kz, ky, kx, in, out)``.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import _windows as windows
from jimjax.ops._cpu import blocks
from jimjax.ops._divisors import largest_divisor
from jimjax.ops._windows import Window

DIMENSIONS_2D = ("NHWC", "HWIO", "NHWC")

# Measured on two x86 cores with jax 0.10.2; they choose between forms of equal result.
NARROW_RATIO = 4  # taps' values in over out from which they are summed after the product
SMALL_OUTPUT = 216  # output voxels up to which one matrix product beats a 2-D convolution
LARGE_SHRINK = 1.5  # input over output voxels from which gradients are made of the output's
WIDE_CHANNELS = 16  # in from which unpadded columns cost less with voxels first
MANY_TAPS = 64  # kernel taps from which one view of the volume for each takes too long to compile
CHUNK_ROWS = 512  # rows that keep a matrix product busy and its operands in the cache


UNIT_WINDOW = Window((1, 1, 1), (1, 1, 1), ((0, 0), (0, 0), (0, 0)))


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves in the form that is fastest for the layer."""
    if _is_foldable(kernel.shape, window):
        if _has_whole_blocks(kernel.shape, window):
            folded = blocks.fold_volume(x, kernel.shape, window)
            return convolve(folded, blocks.fold_kernel(kernel, window), UNIT_WINDOW)
        flat = kernel.reshape(-1, kernel.shape[-1])
        return lax.map(lambda volume: blocks.patches(volume, kernel.shape, window) @ flat, x)
    num_in, num_out = kernel.shape[3:]
    num_steps = math.prod(windows.out_shape(x.shape, kernel.shape, window))
    shares, columns = math.prod(x.shape[1:4]) * num_out, num_steps * num_in
    if window.strides == (1, 1, 1) and NARROW_RATIO * shares <= columns:
        return _products_first(x, kernel, window)
    if num_in == 1:
        taps = windows.taps(windows.pad(x, window), kernel.shape, window)
        return sum(t * w for t, w in zip(taps, kernel.reshape(-1, num_out), strict=True))
    if num_steps <= SMALL_OUTPUT:
        return _gather_columns(x, kernel, window)
    if not any(sum(window.pads, ())):  # XLA's 2-D convolution is 4 to 8 times slower unpadded
        return _gather_planes(x, kernel, window)
    return _fold_depth(x, kernel, window)


def _is_foldable(kernel_shape: tuple[int, ...], window: Window) -> bool:
    return (
        math.prod(kernel_shape[:3]) >= MANY_TAPS
        and window.strides != (1, 1, 1)
        and window.dilations == (1, 1, 1)
    )


def _has_whole_blocks(kernel_shape: tuple[int, ...], window: Window) -> bool:
    """Whether ``fold_volume`` adds no zeros; then it is 1.2 to 2 times as fast as ``patches``."""
    return not any(k % s for k, s in zip(kernel_shape[:3], window.strides, strict=True))


def _products_first(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Unit strides: each voxel's share in each tap by one product, then the shifted shares summed.

    The shares of a few planes at a time stay in the cache. 224 channels to 5 at 32^3: 12 times as
    fast as ``_fold_depth``; 32 to 8: 2.1 at 32^3, 1.0 at 16^3; 32 to 16: 1.2 and 0.7.
    """
    kz, ky, kx, num_in, num_out = kernel.shape
    batch, depth, height, width = x.shape[:4]
    flat = kernel.transpose(2, 1, 0, 4, 3).reshape(-1, num_in)
    thickness = _chunk(batch * depth, height * width)

    def sum_within(voxels: jax.Array) -> jax.Array:
        shares = (flat @ voxels.T).reshape(kx, ky, kz, num_out, thickness, height, width)
        return _sum_shifted(_sum_shifted(shares, window, -1), window, -2)

    sums = lax.map(sum_within, x.reshape(-1, thickness * height * width, num_in))
    sums = sums.transpose(1, 2, 0, 3, 4, 5)
    sums = _sum_shifted(sums.reshape(kz, num_out, batch, depth, *sums.shape[4:]), window, -3)
    return jnp.moveaxis(sums, 0, -1)


def _sum_shifted(shares: jax.Array, window: Window, axis: int) -> jax.Array:
    """Sums the taps, the first axis, along one of the last three, which are z, y and x."""
    edges = [(0, 0)] * shares.ndim
    edges[axis] = window.pads[axis]
    padded, gap = jnp.pad(shares, edges), window.dilations[axis]
    span = padded.shape[axis] - gap * (len(shares) - 1)
    return sum(
        lax.slice_in_dim(tap, i * gap, i * gap + span, axis=axis % shares.ndim - 1)
        for i, tap in enumerate(padded)
    )


def _fold_depth(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Depth neighbours as channels, then one 2-D convolution for each plane."""
    kz, ky, kx, num_in, num_out = kernel.shape
    x = jnp.pad(x, ((0, 0), window.pads[0], (0, 0), (0, 0), (0, 0)))
    stacked = jnp.concatenate(windows.axis_taps(x, 1, kz, window), axis=-1)
    batch, depth = stacked.shape[:2]
    out = lax.conv_general_dilated(
        stacked.reshape(batch * depth, *stacked.shape[2:]),
        kernel.transpose(1, 2, 0, 3, 4).reshape(ky, kx, kz * num_in, num_out),
        window.strides[1:],
        window.pads[1:],
        rhs_dilation=window.dilations[1:],
        dimension_numbers=DIMENSIONS_2D,
    )
    return out.reshape(batch, depth, *out.shape[1:])


def _gather_columns(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """All taps of a voxel as one row, then one matrix product for a few examples at a time."""
    flat = kernel.reshape(-1, kernel.shape[-1])

    def convolve(chunk: jax.Array) -> jax.Array:
        return _columns(chunk, kernel.shape, window) @ flat

    chunk = _chunk(x.shape[0], math.prod(windows.out_shape(x.shape, kernel.shape, window)))
    return _merge(lax.map(convolve, _split(x, chunk)))


def _gather_planes(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Unpadded: all taps of a voxel as one row, one matrix product for a few planes at a time."""
    flat = kernel.reshape(-1, kernel.shape[-1])
    batch, (depth, height, width) = len(x), windows.out_shape(x.shape, kernel.shape, window)
    thickness = _chunk(depth, height * width)
    step, reach = window.strides[0], _reach(thickness, kernel.shape, window)

    def convolve(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        example, plane = at
        slab = lax.dynamic_slice(x, (example, plane * step, 0, 0, 0), (1, reach, *x.shape[2:]))
        return (_columns(slab, kernel.shape, window) @ flat)[0]

    planes = jnp.arange(0, depth, thickness)
    places = jnp.repeat(jnp.arange(batch), planes.size), jnp.tile(planes, batch)
    return lax.map(convolve, places).reshape(batch, depth, height, width, -1)


def _reach(thickness: int, kernel_shape: tuple[int, ...], window: Window) -> int:
    """Planes of the input that so many planes of the output see."""
    return (thickness - 1) * window.strides[0] + (kernel_shape[0] - 1) * window.dilations[0] + 1


def _columns(x: jax.Array, kernel_shape: tuple[int, ...], window: Window) -> jax.Array:
    """All taps of a voxel side by side: ``(batch, z', y', x', kz ky kx channels)``."""
    return jnp.concatenate(windows.taps(windows.pad(x, window), kernel_shape, window), axis=-1)


def _scatter_columns(
    shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, window: Window
) -> jax.Array:
    """The adjoint of ``_gather_columns``: no work for the zeros that a stride leaves."""
    flat = kernel.reshape(-1, kernel.shape[-1])
    chunk = _chunk(shape[0], math.prod(cotangent.shape[1:4]))

    def gather(volumes: jax.Array) -> jax.Array:
        return _columns(volumes, kernel.shape, window)

    scatter = jax.linear_transpose(
        gather, jax.ShapeDtypeStruct((chunk, *shape[1:]), cotangent.dtype)
    )
    return _merge(lax.map(lambda g: scatter(g @ flat.T)[0], _split(cotangent, chunk)))


def _convolve_back(
    shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, window: Window
) -> jax.Array:
    """The same convolution of the cotangent, spread by the stride, with the flipped kernel."""
    spread = [(0, 0, step - 1) for step in window.strides]
    spread = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    adjoint = _adjoint_window(shape, kernel.shape, spread.shape, window)
    flipped = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    return convolve(spread, flipped, adjoint)


def gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: Window
) -> tuple[jax.Array, jax.Array]:
    """Applies the adjoint of ``convolve`` in its input and in its kernel."""
    return (
        input_gradient(x.shape, kernel, cotangent, window),
        kernel_gradient(x, kernel, cotangent, window),
    )


def input_gradient(
    shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, window: Window
) -> jax.Array:
    """Applies the adjoint of ``convolve`` in its input, of the given shape."""
    if _is_foldable(kernel.shape, window):
        if math.prod(cotangent.shape[1:4]) <= SMALL_OUTPUT:
            return blocks.spread_patches(shape, kernel, cotangent, window)
        return _spread_blocks(shape, kernel, cotangent, window)
    if math.prod(shape[1:4]) >= LARGE_SHRINK * math.prod(cotangent.shape[1:4]):
        return _scatter_columns(shape, kernel, cotangent, window)
    return _convolve_back(shape, kernel, cotangent, window)


def _spread_blocks(
    shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, window: Window
) -> jax.Array:
    """Applies the adjoint of ``convolve`` to the voxels of each step's block as channels.

    Voxels that the kernel's last, incomplete blocks do not reach are apart, so that zeros are not
    multiplied: 2.2 times as fast for 6^3 taps 4 apart.
    """
    volume = jax.ShapeDtypeStruct(shape, cotangent.dtype)
    fold = functools.partial(blocks.fold_volume, kernel_shape=kernel.shape, window=window)
    folded = jax.eval_shape(fold, volume).shape
    counts = [-(-k // s) for k, s in zip(kernel.shape[:3], window.strides, strict=True)]

    def spread(taps: jax.Array, axis: int) -> jax.Array:
        """From taps ``(blocks, voxels of one, in, out)``, apart along the axes before this."""
        if axis == 3:
            sides = [m + n - 1 for m, n in zip(cotangent.shape[1:4], taps.shape[:3], strict=True)]
            flat = taps.reshape(*taps.shape[:3], -1, taps.shape[7])
            seen = (len(cotangent), *sides, flat.shape[3])
            gradient = input_gradient(seen, flat, cotangent, UNIT_WINDOW)
            return gradient.reshape(*seen[:4], *taps.shape[3:7])
        rest = kernel.shape[axis] % window.strides[axis]
        if not rest or counts[axis] == 1:
            return spread(taps, axis + 1)
        near, far = jnp.split(taps, [rest], axis=3 + axis)
        far = spread(lax.slice_in_dim(far, 0, counts[axis] - 1, axis=axis), axis + 1)
        edges = [(0, int(a == 1 + axis)) for a in range(far.ndim)]
        return jnp.concatenate([spread(near, axis + 1), jnp.pad(far, edges)], axis=4 + axis)

    taps = blocks.fold_kernel(kernel, window)
    gradient = spread(taps.reshape(*counts, *window.strides, *kernel.shape[3:]), 0)
    return jax.linear_transpose(fold, volume)(gradient.reshape(folded))[0]


def kernel_gradient(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: Window
) -> jax.Array:
    """Sums over examples, or slabs of them: all taps of a voxel as one row, one product."""
    if _is_foldable(kernel.shape, window):
        if _has_whole_blocks(kernel.shape, window):
            folded = blocks.fold_volume(x, kernel.shape, window)
            fold = functools.partial(blocks.fold_kernel, window=window)
            taps = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
            gradient = kernel_gradient(folded, fold(kernel), cotangent, UNIT_WINDOW)
            return jax.linear_transpose(fold, taps)(gradient)[0]
        rows = cotangent.reshape(cotangent.shape[0], -1, kernel.shape[-1])

        def add_example(
            total: jax.Array, example: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, None]:
            volume, rows = example
            columns = blocks.patches(volume, kernel.shape, window).reshape(len(rows), -1)
            return total + rows.T @ columns, None

        zeros = jnp.zeros((kernel.shape[-1], math.prod(kernel.shape[:4])), x.dtype)
        total, _ = lax.scan(add_example, zeros, (x, rows))
        return total.T.reshape(kernel.shape)
    num_in, num_out = kernel.shape[3:]
    # Unpadded, 16 channels or more to as many or more: voxels first is 0.9 to 1.3 times as fast.
    is_wide = WIDE_CHANNELS <= num_in <= num_out and not any(sum(window.pads, ()))
    if window.strides == (1, 1, 1) and not is_wide:
        return _narrower_columns(x, kernel, cotangent, window)
    padded = windows.pad(x, window)
    batch, depth, height, width = cotangent.shape[:4]
    thickness = _chunk(depth, height * width)
    chunk = _chunk(batch, depth * height * width)
    step, reach = window.strides[0], _reach(thickness, kernel.shape, window)

    def add_slab(total: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        first, plane = at
        slab = (chunk, thickness, *cotangent.shape[2:])
        gradient = lax.dynamic_slice(cotangent, (first, plane, 0, 0, 0), slab)
        seen = (chunk, reach, *padded.shape[2:])
        volumes = lax.dynamic_slice(padded, (first, plane * step, 0, 0, 0), seen)
        columns = jnp.concatenate(windows.taps(volumes, kernel.shape, window), axis=-1)
        rows = gradient.reshape(-1, num_out).T
        return total + rows @ columns.reshape(rows.shape[1], -1), None

    firsts, planes = jnp.arange(0, batch, chunk), jnp.arange(0, depth, thickness)
    slabs = jnp.repeat(firsts, planes.size), jnp.tile(planes, firsts.size)
    zeros = jnp.zeros((num_out, math.prod(kernel.shape[:4])), x.dtype)
    total, _ = lax.scan(add_slab, zeros, slabs)
    return total.T.reshape(kernel.shape)


def _narrower_columns(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: Window
) -> jax.Array:
    """Unit strides: the kernel's gradient with columns of whichever side has fewer channels.

    The cotangent's columns are as many as the input's voxels: not where these are many more.
    Channels come before voxels, so that a column is made of copied rows: 13 times as fast as
    voxels first for 224 channels to 5 at 32^3, 2.1 for 1 to 32, 1.0 to 1.4 for equal channels.
    """
    shrink = math.prod(x.shape[1:4]) / math.prod(cotangent.shape[1:4])
    if x.shape[-1] > cotangent.shape[-1] and shrink < LARGE_SHRINK:
        adjoint = _adjoint_window(x.shape, kernel.shape, cotangent.shape, window)
        flipped = _narrower_columns(cotangent, kernel.swapaxes(3, 4), x, adjoint)
        return flipped.swapaxes(3, 4)[::-1, ::-1, ::-1]
    batch, depth, height, width, num_out = cotangent.shape
    padded = jnp.moveaxis(windows.pad(x, window), -1, 0)
    thickness = _chunk(depth, height * width)
    chunk = _chunk(batch, depth * height * width)
    reach = _reach(thickness, kernel.shape, window)

    def add_slab(total: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        first, plane = at
        slab = (chunk, thickness, height, width, num_out)
        gradient = lax.dynamic_slice(cotangent, (first, plane, 0, 0, 0), slab)
        seen = (len(padded), chunk, reach, *padded.shape[3:])
        volumes = lax.dynamic_slice(padded, (0, first, plane, 0, 0), seen)
        reached = windows.taps(volumes.reshape(-1, *seen[2:], 1), kernel.shape, window)
        columns = jnp.concatenate(reached).reshape(len(total), -1)
        return total + columns @ gradient.reshape(-1, num_out), None

    firsts, planes = jnp.arange(0, batch, chunk), jnp.arange(0, depth, thickness)
    slabs = jnp.repeat(firsts, planes.size), jnp.tile(planes, firsts.size)
    zeros = jnp.zeros((math.prod(kernel.shape[:4]), num_out), x.dtype)
    total, _ = lax.scan(add_slab, zeros, slabs)
    return total.reshape(kernel.shape)


def _adjoint_window(
    shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    spread_shape: tuple[int, ...],
    window: Window,
) -> Window:
    """How the flipped kernel walks over a cotangent that was spread by the stride."""
    reach = [d * (k - 1) for d, k in zip(window.dilations, kernel_shape[:3], strict=True)]
    low = [r - lo for r, (lo, _) in zip(reach, window.pads, strict=True)]
    high = [
        n + r - m - lo
        for n, r, m, lo in zip(shape[1:4], reach, spread_shape[1:4], low, strict=True)
    ]
    return Window((1, 1, 1), window.dilations, tuple(zip(low, high, strict=True)))


def _chunk(count: int, rows: int) -> int:
    """How many examples or planes of so many rows each to take at a time."""
    return largest_divisor(count, CHUNK_ROWS // max(1, rows))


def _split(x: jax.Array, chunk: int) -> jax.Array:
    return x.reshape(x.shape[0] // chunk, chunk, *x.shape[1:])


def _merge(chunks: jax.Array) -> jax.Array:
    return chunks.reshape(-1, *chunks.shape[2:])
