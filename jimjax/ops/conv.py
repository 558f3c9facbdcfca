"""3-D convolution and its transpose, also fast on CPU.

On CPU the work is rewritten, one form for each kind of layer, and so are the gradients. On GPU
it is rewritten where cuDNN is slow; TPU uses ``lax.conv_general_dilated``.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import _windows as windows
from jimjax.ops._cpu import conv as cpu
from jimjax.ops._gpu import conv as gpu
from jimjax.ops._windows import Window


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
    return _by_platform(_CONVOLVE, (window,), x, kernel)


def _conv3d_forward(
    x: jax.Array, kernel: jax.Array, window: Window
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not _conv3d itself: the gradient stays open to either mode for second derivatives.
    return _by_platform(_CONVOLVE, (window,), x, kernel), (x, kernel)


def _conv3d_backward(
    window: Window, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _by_platform(_CONVOLVE_GRADIENTS, (window,), *residuals, cotangent)


_conv3d.defvjp(_conv3d_forward, _conv3d_backward)


def _on_cpu(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    out = cpu.convolve(*_in_accumulator(x, kernel), window)
    return out.astype(x.dtype)


def _gradients_on_cpu(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array, window: Window
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
    return _by_platform(_SPREAD, (size, window), x, kernel)


def _conv_transpose3d_forward(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int, int], window: Window
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _by_platform(_SPREAD, (size, window), x, kernel), (x, kernel)


def _conv_transpose3d_backward(
    size: tuple[int, int, int],
    window: Window,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return _by_platform(_SPREAD_GRADIENTS, (size, window), *residuals, cotangent)


_conv_transpose3d.defvjp(_conv_transpose3d_forward, _conv_transpose3d_backward)


def _spread_on_cpu(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int, int], window: Window
) -> jax.Array:
    shape = (x.shape[0], *size, kernel.shape[3])
    coarse, taps = _in_accumulator(x, kernel)
    return cpu.input_gradient(shape, taps, coarse, window).astype(x.dtype)


def _spread_gradients_on_cpu(
    x: jax.Array,
    kernel: jax.Array,
    cotangent: jax.Array,
    size: tuple[int, int, int],
    window: Window,
) -> tuple[jax.Array, jax.Array]:
    del size  # the cotangent's
    dtype = x.dtype
    x, kernel, cotangent = _in_accumulator(x, kernel, cotangent)
    x_gradient = cpu.convolve(cotangent, kernel, window)
    kernel_gradient = cpu.kernel_gradient(cotangent, kernel, x, window)
    return x_gradient.astype(dtype), kernel_gradient.astype(dtype)


def _gradients_of(form: Callable) -> Callable:
    """The adjoint, in input and kernel, of a function of these and a layer."""

    def gradients(
        x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *layer: Hashable
    ) -> tuple[jax.Array, jax.Array]:
        _, pullback = jax.vjp(lambda x, kernel: form(x, kernel, *layer), x, kernel)
        return pullback(cotangent)

    return gradients


class _Forms(NamedTuple):
    """Functions of one result, of arrays and a layer; the default is for TPU and others."""

    default: Callable
    cpu: Callable
    gpu: Callable


_CONVOLVE = _Forms(windows.convolve, _on_cpu, gpu.convolve)
_SPREAD = _Forms(windows.spread, _spread_on_cpu, gpu.spread)
_CONVOLVE_GRADIENTS = _Forms(_gradients_of(windows.convolve), _gradients_on_cpu, gpu.gradients)
_SPREAD_GRADIENTS = _Forms(
    _gradients_of(windows.spread), _spread_gradients_on_cpu, _gradients_of(gpu.spread)
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _by_platform(
    forms: _Forms, layer: tuple[Hashable, ...], *arrays: jax.Array
) -> jax.Array | tuple[jax.Array, jax.Array]:
    def of(form: Callable) -> Callable:
        return lambda *arrays: form(*arrays, *layer)

    # Decided when lowering, not when tracing: right for jax.export and for a CPU beside a GPU.
    on_gpu = of(forms.gpu)
    return lax.platform_dependent(
        *arrays, cpu=of(forms.cpu), cuda=on_gpu, rocm=on_gpu, default=of(forms.default)
    )


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
