"""3-D convolution and its transpose, also fast on CPU.

On CPU the work is rewritten, one form for each kind of layer, and so are the gradients. GPU and
TPU use ``lax.conv_general_dilated``; GPUs do so for transposed convolutions, too, whose own
gradients are up to 30 times slower there.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops._cpu import conv as cpu
from jimjax.ops._cpu.conv import Window

DIMENSIONS_3D = ("NDHWC", "DHWIO", "NDHWC")


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
    _check_operands("conv3d", x.shape, kernel.shape, padding)
    strides, dilations = _per_axis("stride", stride), _per_axis("dilation", dilation)
    if padding == "valid":
        for n, k, d in zip(x.shape[1:4], kernel.shape[:3], dilations, strict=True):
            if d * (k - 1) + 1 > n:
                raise ValueError(
                    f"a kernel of {k} taps with dilation {d} needs {d * (k - 1) + 1} voxels, but "
                    f'x has shape {x.shape}; use padding="same" or a larger volume'
                )
    window = _window(x.shape[1:4], kernel.shape, strides, dilations, padding)
    dtype = jnp.result_type(x, kernel)
    return _conv3d(x.astype(dtype), kernel.astype(dtype), window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv3d(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return _by_platform(_FORWARD, (window,), x, kernel)


def _conv3d_forward(
    x: jax.Array, kernel: jax.Array, window: Window
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not _conv3d itself: the gradient stays open to either mode for second derivatives.
    return _by_platform(_FORWARD, (window,), x, kernel), (x, kernel)


def _conv3d_backward(
    window: Window, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _by_platform(_GRADIENTS, (window,), *residuals, cotangent)


_conv3d.defvjp(_conv3d_forward, _conv3d_backward)


def _stock(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
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
    window: Window, x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(functools.partial(_stock, window), x, kernel)
    return pullback(cotangent)


def _on_cpu(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
    out = cpu.convolve(*_in_accumulator(x, kernel), window)
    return out.astype(x.dtype)


def _gradients_on_cpu(
    window: Window, x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    dtype = x.dtype
    x, kernel, cotangent = _in_accumulator(x, kernel, cotangent)
    x_gradient, kernel_gradient = cpu.gradients(x, kernel, cotangent, window)
    return x_gradient.astype(dtype), kernel_gradient.astype(dtype)


def conv_transpose3d(
    x: jax.Array, kernel: jax.Array, *, stride: int | Sequence[int] = 1, padding: str = "same"
) -> jax.Array:
    """Spreads every voxel with a kernel onto a grid ``stride`` times as fine.

        out[b, stride * p + i - pad, o] = sum_(p, i, c) x[b, p, c] * kernel[i, c, o]

    The adjoint of ``conv3d`` with the kernel's channel axes swapped, and equal to
    ``lax.conv_transpose`` of that swapped kernel with ``transpose_kernel=True``; a single 1 in x
    draws the kernel as it is. Sums run in float32 for bfloat16 and float16; the result has the
    inputs' dtype. As in ``conv3d``, there is no forward mode.

    Args:
        x: ``(batch, z, y, x, in_channels)``.
        kernel: ``(kz, ky, kx, in_channels, out_channels)``.
        stride: voxels of the output per voxel of ``x``, one for all axes or one per axis (z, y, x).
        padding: ``"same"`` gives ``size * stride`` outputs, ``pad = max(k - stride, 0) // 2``
            (torch's padding 1 for a kernel of 3 at stride 1, 4 at 2, 6 at 4, 10 at 8); outputs
            that no tap reaches are 0. ``"valid"`` gives all ``(size - 1) * stride + k``, pad 0
            (``lax`` adds zeros at the end if k is below the stride).

    Returns:
        ``(batch, z', y', x', out_channels)``.

    Raises:
        ValueError: if ranks or channels disagree, the padding is unknown or stride is below 1.
    """
    _check_operands("conv_transpose3d", x.shape, kernel.shape, padding)
    strides = _per_axis("stride", stride)
    if padding == "same":
        size = tuple(n * s for n, s in zip(x.shape[1:4], strides, strict=True))
    else:
        size = tuple(
            (n - 1) * s + k for n, s, k in zip(x.shape[1:4], strides, kernel.shape[:3], strict=True)
        )
    window = _window(size, kernel.shape, strides, (1, 1, 1), padding)
    dtype = jnp.result_type(x, kernel)
    return _conv_transpose3d(x.astype(dtype), kernel.astype(dtype).swapaxes(3, 4), size, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_transpose3d(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int, int], window: Window
) -> jax.Array:
    """The adjoint of ``_conv3d`` of volumes of the given size with this kernel and window."""
    return _by_platform(_TRANSPOSE, (size, window), x, kernel)


def _conv_transpose3d_forward(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int, int], window: Window
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _by_platform(_TRANSPOSE, (size, window), x, kernel), (x, kernel)


def _conv_transpose3d_backward(
    size: tuple[int, int, int],
    window: Window,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return _by_platform(_TRANSPOSE_GRADIENTS, (size, window), *residuals, cotangent)


_conv_transpose3d.defvjp(_conv_transpose3d_forward, _conv_transpose3d_backward)


def _stock_transpose(
    size: tuple[int, int, int], window: Window, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    fine = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)
    (out,) = jax.linear_transpose(lambda volumes: _stock(window, volumes, kernel), fine)(x)
    return out


def _stock_transpose_gradients(
    size: tuple[int, int, int],
    window: Window,
    x: jax.Array,
    kernel: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(functools.partial(_stock_transpose, size, window), x, kernel)
    return pullback(cotangent)


def _transpose_on_cpu(
    size: tuple[int, int, int], window: Window, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    shape = (x.shape[0], *size, kernel.shape[3])
    coarse, taps = _in_accumulator(x, kernel)
    return cpu.input_gradient(shape, taps, coarse, window).astype(x.dtype)


def _transpose_gradients_on_cpu(
    size: tuple[int, int, int],
    window: Window,
    x: jax.Array,
    kernel: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    del size  # the cotangent's
    dtype = x.dtype
    x, kernel, cotangent = _in_accumulator(x, kernel, cotangent)
    x_gradient = cpu.convolve(cotangent, kernel, window)
    kernel_gradient = cpu.kernel_gradient(cotangent, kernel, x, window)
    return x_gradient.astype(dtype), kernel_gradient.astype(dtype)


def _transpose_on_gpu(
    size: tuple[int, int, int], window: Window, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """All voxels of a stride's block as channels of one convolution on the coarse grid.

    A kernel of k taps reaches ceil(k / stride) blocks; zeros complete the last of them.
    """
    strides = window.strides
    if strides == (1, 1, 1):
        return _stock_transpose(size, window, x, kernel)
    blocks = [-(-k // s) for k, s in zip(kernel.shape[:3], strides, strict=True)]
    ends = [(0, t * s - k) for t, s, k in zip(blocks, strides, kernel.shape[:3], strict=True)]
    num_out, num_in = kernel.shape[3:]
    taps = jnp.pad(kernel, (*ends, (0, 0), (0, 0)))
    split = [part for t, s in zip(blocks, strides, strict=True) for part in (t, s)]
    taps = taps.reshape(*split, num_out, num_in).transpose(0, 2, 4, 7, 1, 3, 5, 6)
    taps = taps.reshape(*blocks, num_in, -1)[::-1, ::-1, ::-1]
    spread = lax.conv_general_dilated(
        x, taps, (1, 1, 1), [(t - 1, t - 1) for t in blocks], dimension_numbers=DIMENSIONS_3D
    )
    coarse = spread.shape[1:4]
    fine = spread.reshape(-1, *coarse, *strides, num_out).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    fine = fine.reshape(-1, *(m * s for m, s in zip(coarse, strides, strict=True)), num_out)
    starts = [low for low, _ in window.pads]
    stops = [low + n for low, n in zip(starts, size, strict=True)]
    return lax.slice(fine, (0, *starts, 0), (len(x), *stops, num_out))


def _transpose_gradients_on_gpu(
    size: tuple[int, int, int],
    window: Window,
    x: jax.Array,
    kernel: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(functools.partial(_transpose_on_gpu, size, window), x, kernel)
    return pullback(cotangent)


class Forms(NamedTuple):
    """Functions of one result; the default is for TPU and what else there is."""

    default: Callable
    cpu: Callable
    gpu: Callable


_FORWARD = Forms(_stock, _on_cpu, _stock)
_GRADIENTS = Forms(_stock_gradients, _gradients_on_cpu, _stock_gradients)
_TRANSPOSE = Forms(_stock_transpose, _transpose_on_cpu, _transpose_on_gpu)
_TRANSPOSE_GRADIENTS = Forms(
    _stock_transpose_gradients, _transpose_gradients_on_cpu, _transpose_gradients_on_gpu
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _by_platform(
    forms: Forms, layer: tuple[Hashable, ...], *arrays: jax.Array
) -> jax.Array | tuple[jax.Array, jax.Array]:
    # Decided when lowering, not when tracing: right for jax.export and for a CPU beside a GPU.
    default, cpu, gpu = (functools.partial(form, *layer) for form in forms)
    return lax.platform_dependent(*arrays, cpu=cpu, cuda=gpu, rocm=gpu, default=default)


def _in_accumulator(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    dtype = jnp.promote_types(arrays[0].dtype, jnp.float32)
    return tuple(array.astype(dtype) for array in arrays)


def _check_operands(
    name: str, x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], padding: str
) -> None:
    if len(x_shape) != 5 or len(kernel_shape) != 5:
        raise ValueError(
            f"{name} wants x (batch, z, y, x, channels) and kernel (kz, ky, kx, in, out), got "
            f"shapes {x_shape} and {kernel_shape}; add the missing axes with [None] or [..., None]"
        )
    if x_shape[4] != kernel_shape[3]:
        raise ValueError(
            f"kernel must take x's {x_shape[4]} channels, but its shape {kernel_shape} takes "
            f"{kernel_shape[3]}; its axes are (kz, ky, kx, in, out)"
        )
    if padding not in ("same", "valid"):
        raise ValueError(f'padding must be "same" or "valid", got {padding!r}')


def _window(
    size: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    strides: tuple[int, int, int],
    dilations: tuple[int, int, int],
    padding: str,
) -> Window:
    if padding == "valid":
        return Window(strides, dilations, ((0, 0), (0, 0), (0, 0)))
    pads = []
    for n, k, s, d in zip(size, kernel_shape[:3], strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return Window(strides, dilations, tuple(pads))


def _per_axis(name: str, value: int | Sequence[int]) -> tuple[int, int, int]:
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(
            f"{name} must be a whole number from 1 up, or three of them (z, y, x), got {value!r}"
        )
    return values
