"""3-D convolution that is also fast on CPU.

XLA's own 3-D convolution on CPU is 2 to 15 times slower than what its 2-D one and its matrix
product can do, so on CPU the work is rewritten, one form for each kind of layer; gradients are
written out in the same spirit. GPU and TPU use ``lax.conv_general_dilated``.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS_3D = ("NDHWC", "DHWIO", "NDHWC")
DIMENSIONS_2D = ("NHWC", "HWIO", "NHWC")

# Measured on two x86 cores with jax 0.10.2; they choose between forms of equal result.
NARROW_CHANNELS = 2  # up to here a layer's output is summed after the product, not before
SMALL_OUTPUT = 216  # output voxels up to which one matrix product beats a 2-D convolution
LARGE_SHRINK = 1.5  # input over output voxels from which the gradient is scattered
CHUNK_ROWS = 512  # rows that keep a matrix product busy and its operands in the cache


class _Window(NamedTuple):
    """How the kernel walks over the volume; hashable, so that it can be static."""

    strides: tuple[int, int, int]
    dilations: tuple[int, int, int]
    pads: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    padding: str = "same",
) -> jax.Array:
    """Correlates a batch of channel-last volumes with a kernel, as networks do.

        out[b, p, o] = sum_(i, c) x[b, stride * p + dilation * i - pad, c] * kernel[i, c, o]

    Equal to ``lax.conv_general_dilated`` with ``NDHWC``, ``DHWIO``; the kernel is not flipped.
    Sums run in float32 for bfloat16 and float16; the result has the inputs' dtype. The gradient
    is a ``jax.custom_vjp``: there is no forward mode (``jax.jvp``, ``jax.jacfwd``); second
    derivatives are those of the written-out gradient.

    Args:
        x: ``(batch, z, y, x, in_channels)``.
        kernel: ``(kz, ky, kx, in_channels, out_channels)``.
        stride: step of the output grid in voxels, one for all axes or one per axis (z, y, x).
        dilation: distance of kernel taps in voxels, likewise.
        padding: ``"same"`` pads with zeros to ``ceil(size / stride)`` outputs, the odd voxel at
            the end; ``"valid"`` keeps only windows inside the volume.

    Returns:
        ``(batch, z', y', x', out_channels)``.

    Raises:
        ValueError: if ranks or channels disagree, the padding is unknown, stride or dilation is
            below 1, or the dilated kernel is larger than a ``"valid"`` volume.
    """
    window = _window(x.shape, kernel.shape, stride, dilation, padding)
    dtype = jnp.result_type(x, kernel)
    return _conv3d(x.astype(dtype), kernel.astype(dtype), window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3d(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return _by_platform(_stock, _on_cpu, window, x, kernel)


def _conv3d_forward(
    x: jax.Array, kernel: jax.Array, window: _Window
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not _conv3d itself: the gradient stays open to either mode for second derivatives.
    return _by_platform(_stock, _on_cpu, window, x, kernel), (x, kernel)


def _conv3d_backward(
    window: _Window, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _by_platform(_stock_gradients, _gradients_on_cpu, window, *residuals, cotangent)


_conv3d.defvjp(_conv3d_forward, _conv3d_backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _by_platform(
    stock: Callable, on_cpu: Callable, window: _Window, *arrays: jax.Array
) -> jax.Array | tuple[jax.Array, jax.Array]:
    # Decided when lowering, not when tracing: right for jax.export and for a CPU beside a GPU.
    return lax.platform_dependent(
        *arrays,
        cpu=functools.partial(on_cpu, window=window),
        default=functools.partial(stock, window=window),
    )


def _stock(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    # GPU and TPU accumulate half precision in float32 by themselves.
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        dimension_numbers=DIMENSIONS_3D,
    )


def _stock_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, window: _Window
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(functools.partial(_stock, window=window), x, kernel)
    return pullback(cotangent)


def _on_cpu(x: jax.Array, kernel: jax.Array, *, window: _Window) -> jax.Array:
    out = _fastest_form(*_in_accumulator(x, kernel), window)
    return out.astype(x.dtype)


def _gradients_on_cpu(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, window: _Window
) -> tuple[jax.Array, jax.Array]:
    dtype = x.dtype
    x, kernel, cotangent = _in_accumulator(x, kernel, cotangent)
    if math.prod(x.shape[1:4]) >= LARGE_SHRINK * math.prod(cotangent.shape[1:4]):
        input_gradient = _scatter_columns(x.shape, kernel, cotangent, window)
    else:
        input_gradient = _convolve_back(x.shape, kernel, cotangent, window)
    kernel_gradient = _kernel_gradient(x, kernel, cotangent, window)
    return input_gradient.astype(dtype), kernel_gradient.astype(dtype)


def _fastest_form(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    num_in, num_out = kernel.shape[3:]
    if num_out <= NARROW_CHANNELS < num_in:
        return _products_first(x, kernel, window)
    if num_in == 1:
        taps = _taps(_pad(x, window), kernel.shape, window)
        return sum(t * w for t, w in zip(taps, kernel.reshape(-1, num_out), strict=True))
    if math.prod(_out_shape(x.shape, kernel.shape, window)) <= SMALL_OUTPUT:
        return _gather_columns(x, kernel, window)
    return _fold_depth(x, kernel, window)


def _fold_depth(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Depth neighbours as channels, then one 2-D convolution for each plane."""
    kz, ky, kx, num_in, num_out = kernel.shape
    x = jnp.pad(x, ((0, 0), window.pads[0], (0, 0), (0, 0), (0, 0)))
    stacked = jnp.concatenate(_axis_taps(x, 1, kz, window), axis=-1)
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


def _gather_columns(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """All taps of a voxel as one row, then one matrix product for a few examples at a time."""
    flat = kernel.reshape(-1, kernel.shape[-1])

    def convolve(chunk: jax.Array) -> jax.Array:
        return jnp.concatenate(_taps(_pad(chunk, window), kernel.shape, window), axis=-1) @ flat

    chunk = _chunk(x.shape[0], math.prod(_out_shape(x.shape, kernel.shape, window)))
    return _merge(lax.map(convolve, _split(x, chunk)))


def _scatter_columns(
    shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, window: _Window
) -> jax.Array:
    """The adjoint of ``_gather_columns``: no work for the zeros that a stride leaves."""
    flat = kernel.reshape(-1, kernel.shape[-1])
    chunk = _chunk(shape[0], math.prod(cotangent.shape[1:4]))

    def gather(volumes: jax.Array) -> jax.Array:
        return jnp.concatenate(_taps(_pad(volumes, window), kernel.shape, window), axis=-1)

    scatter = jax.linear_transpose(
        gather, jax.ShapeDtypeStruct((chunk, *shape[1:]), cotangent.dtype)
    )
    return _merge(lax.map(lambda g: scatter(g @ flat.T)[0], _split(cotangent, chunk)))


def _products_first(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Each voxel's share in each tap by one matrix product, then the shifted shares summed."""
    num_in, num_out = kernel.shape[3:]
    flat = kernel.reshape(-1, num_in, num_out).transpose(1, 0, 2).reshape(num_in, -1)

    def convolve(volume: jax.Array) -> jax.Array:
        shares = _taps(_pad(volume[None] @ flat, window), kernel.shape, window)
        return sum(s[0, ..., i * num_out : (i + 1) * num_out] for i, s in enumerate(shares))

    return lax.map(convolve, x)


def _convolve_back(
    shape: tuple[int, ...], kernel: jax.Array, cotangent: jax.Array, window: _Window
) -> jax.Array:
    """The same convolution of the cotangent, spread by the stride, with the flipped kernel."""
    spread = [(0, 0, step - 1) for step in window.strides]
    spread = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    reach = [d * (k - 1) for d, k in zip(window.dilations, kernel.shape[:3], strict=True)]
    low = [r - lo for r, (lo, _) in zip(reach, window.pads, strict=True)]
    high = [
        n + r - m - lo
        for n, r, m, lo in zip(shape[1:4], reach, spread.shape[1:4], low, strict=True)
    ]
    pads = tuple(zip(low, high, strict=True))
    adjoint = _Window((1, 1, 1), window.dilations, pads)
    flipped = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    return _fastest_form(spread, flipped, adjoint)


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: _Window
) -> jax.Array:
    """One matrix product per in-plane tap, depth taps packed, summed by a scan over examples."""
    kz, ky, kx, num_in, num_out = kernel.shape
    in_plane = ky * kx

    def add_chunk(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        volumes, gradient = chunk
        gradient = gradient.reshape(-1, num_out)
        taps = _taps(_pad(volumes, window), kernel.shape, window)
        products = []
        for tap in range(in_plane):
            columns = jnp.concatenate(taps[tap::in_plane], axis=-1).reshape(-1, kz * num_in)
            # The longer side last: the faster layout, by up to a factor of two.
            is_wide = kz * num_in >= num_out
            products.append(gradient.T @ columns if is_wide else (columns.T @ gradient).T)
        return total + jnp.stack(products), None

    chunk = _chunk(x.shape[0], math.prod(cotangent.shape[1:4]))
    zeros = jnp.zeros((in_plane, num_out, kz * num_in), x.dtype)
    total, _ = lax.scan(add_chunk, zeros, (_split(x, chunk), _split(cotangent, chunk)))
    return total.reshape(ky, kx, num_out, kz, num_in).transpose(3, 0, 1, 4, 2)


def _pad(x: jax.Array, window: _Window) -> jax.Array:
    return jnp.pad(x, ((0, 0), *window.pads, (0, 0)))


def _taps(padded: jax.Array, kernel_shape: tuple[int, ...], window: _Window) -> list[jax.Array]:
    """What each kernel tap sees, in the kernel's C order; each has the output's grid."""
    views = [padded]
    for axis in (1, 2, 3):
        num_taps = kernel_shape[axis - 1]
        views = [tap for view in views for tap in _axis_taps(view, axis, num_taps, window)]
    return views


def _axis_taps(padded: jax.Array, axis: int, num_taps: int, window: _Window) -> list[jax.Array]:
    step, gap = window.strides[axis - 1], window.dilations[axis - 1]
    span = padded.shape[axis] - gap * (num_taps - 1)
    return [
        lax.slice_in_dim(padded, i * gap, i * gap + span, step, axis=axis) for i in range(num_taps)
    ]


def _out_shape(
    shape: tuple[int, ...], kernel_shape: tuple[int, ...], window: _Window
) -> tuple[int, ...]:
    return tuple(
        (n + sum(pads) - d * (k - 1) - 1) // s + 1
        for n, k, s, d, pads in zip(
            shape[1:4], kernel_shape[:3], window.strides, window.dilations, window.pads, strict=True
        )
    )


def _chunk(batch: int, rows: int) -> int:
    """How many examples to take at a time: a divisor of the batch."""
    wanted = max(1, CHUNK_ROWS // rows)
    return max((s for s in range(1, batch + 1) if batch % s == 0 and s <= wanted), default=1)


def _split(x: jax.Array, chunk: int) -> jax.Array:
    return x.reshape(x.shape[0] // chunk, chunk, *x.shape[1:])


def _merge(chunks: jax.Array) -> jax.Array:
    return chunks.reshape(-1, *chunks.shape[2:])


def _in_accumulator(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    dtype = jnp.promote_types(arrays[0].dtype, jnp.float32)
    return tuple(array.astype(dtype) for array in arrays)


def _window(
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    padding: str,
) -> _Window:
    if len(x_shape) != 5 or len(kernel_shape) != 5:
        raise ValueError(
            "conv3d wants x (batch, z, y, x, channels) and kernel (kz, ky, kx, in, out), got "
            f"shapes {x_shape} and {kernel_shape}; add the missing axes with [None] or [..., None]"
        )
    if x_shape[4] != kernel_shape[3]:
        raise ValueError(
            f"kernel must take x's {x_shape[4]} channels, but its shape {kernel_shape} takes "
            f"{kernel_shape[3]}; its axes are (kz, ky, kx, in, out)"
        )
    if padding not in ("same", "valid"):
        raise ValueError(f'padding must be "same" or "valid", got {padding!r}')
    strides, dilations = _per_axis("stride", stride), _per_axis("dilation", dilation)
    if padding == "valid":
        for n, k, d in zip(x_shape[1:4], kernel_shape[:3], dilations, strict=True):
            if d * (k - 1) + 1 > n:
                raise ValueError(
                    f"a kernel of {k} taps with dilation {d} needs {d * (k - 1) + 1} voxels, but "
                    f'x has shape {x_shape}; use padding="same" or a larger volume'
                )
        return _Window(strides, dilations, ((0, 0), (0, 0), (0, 0)))
    pads = []
    for n, k, s, d in zip(x_shape[1:4], kernel_shape[:3], strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return _Window(strides, dilations, tuple(pads))


def _per_axis(name: str, value: int | Sequence[int]) -> tuple[int, int, int]:
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(
            f"{name} must be a whole number from 1 up, or three of them (z, y, x), got {value!r}"
        )
    return values
