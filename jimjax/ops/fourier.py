"""Fourier space of a volume: grids, band limits, resizing, shell averages, FSC and CTF.

Spectra are ``rfftn`` half spectra ``(z, y, x // 2 + 1)`` with the zero frequency in the corner and
the phase origin at the box centre, voxel ``n // 2``. Frequencies are cycles per voxel, Nyquist
0.5. All masks here are real and centrosymmetric, so that a masked volume stays real.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.ops._linear import LinearMap
from jimjax.ops._precision import narrow, widen
from jimjax.ops.frequency import (
    axis_frequencies,
    frequencies,
    half_shape,
    hermitian_weights,
    radial_frequency,
)
from jimjax.ops.optics import ctf
from jimjax.ops.shells import (
    FSC_GOLD_STANDARD,
    Resolution,
    fourier_shell_correlation,
    fsc_resolution,
    shell_average,
    shell_index,
)

__all__ = [
    "FSC_GOLD_STANDARD",
    "Resolution",
    "bandpass",
    "bandpass_mask",
    "ctf",
    "fourier_resize",
    "fourier_shell_correlation",
    "frequencies",
    "fsc_resolution",
    "half_shape",
    "hermitian_weights",
    "irfft",
    "radial_frequency",
    "raised_cosine",
    "rfft",
    "shell_average",
    "shell_index",
    "spectral_pool",
    "spectral_pool_matrix",
]

FREQUENCY_TOLERANCE = 1e-6  # cycles/voxel; a voxel on the edge of a band is inside in float32


def rfft(volume: jax.Array) -> jax.Array:
    """Transforms a volume; the phase origin is the box centre.

    Args:
        volume: ``(z, y, x)``.

    Returns:
        ``(z, y, x // 2 + 1)``, complex. Real for a volume symmetric about voxel ``n // 2``.
    """
    _check_volume(volume)
    return jnp.fft.rfftn(jnp.fft.ifftshift(widen(volume)))


def irfft(spectrum: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Inverts ``rfft``.

    Args:
        spectrum: ``(z, y, x // 2 + 1)``.
        shape: of the volume, needed because 2m and 2m + 1 have half spectra of equal size.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the spectrum does not fit the shape.
    """
    if jnp.shape(spectrum) != half_shape(shape):
        raise ValueError(
            f"spectrum of a volume {tuple(shape)} must have shape {half_shape(shape)}, "
            f"got {jnp.shape(spectrum)}"
        )
    return jnp.fft.fftshift(jnp.fft.irfftn(spectrum, s=shape))


def bandpass_mask(
    shape: tuple[int, int, int],
    *,
    low: jax.Array | float = 0.0,
    high: jax.Array | float = 0.5,
    soft: jax.Array | float = 0.0,
    norm: str = "l2",
) -> jax.Array:
    """Builds a band-pass mask: 1 where ``low <= |k| <= high``.

    Args:
        shape: ``(z, y, x)`` of the volume.
        low: cycles per voxel; 0 keeps the mean. May be traced.
        high: cycles per voxel. May be traced.
        soft: width in cycles per voxel over which a raised cosine falls to 0 outside the band, on
            both sides; measured in ``norm``, so that the edge of a cube is a cube as well.
        norm: ``|k|``: "l2" for spheres, "max", the largest component, for cubes.

    Returns:
        ``(z, y, x // 2 + 1)`` in [0, 1].

    Raises:
        ValueError: if ``norm`` is unknown.

    Reference: Zeng, Howe, Xu 2021, End-to-end robust joint unsupervised image alignment and
    clustering (Jim-Net), eq. 6: H is the cube.
    """
    if norm == "l2":
        radius = radial_frequency(shape)
    elif norm == "max":
        kz, ky, kx = axis_frequencies(shape)
        radius = jnp.maximum(jnp.maximum(jnp.abs(kz), jnp.abs(ky)), jnp.abs(kx))
    else:
        raise ValueError(f'norm must be "l2" (sphere) or "max" (cube), got {norm!r}')
    excess = jnp.maximum(radius - high, low - radius) - FREQUENCY_TOLERANCE
    return raised_cosine(excess, soft)


def raised_cosine(excess: jax.Array, width: jax.Array | float) -> jax.Array:
    """Falls from 1 to 0 as a raised cosine.

    Args:
        excess: any shape, distance beyond the edge; 1 up to 0.
        width: same unit as ``excess``; the result is 0 from there on. 0 gives a step.

    Returns:
        Same shape as ``excess``, in [0, 1]; the gradient is finite for width 0 too.
    """
    width = jnp.asarray(width, excess.dtype)
    is_hard = width <= 0
    fraction = jnp.clip(excess / jnp.where(is_hard, 1.0, width), 0.0, 1.0)
    soft = 0.5 + 0.5 * jnp.cos(jnp.pi * fraction)
    return jnp.where(excess <= 0, 1.0, jnp.where(is_hard, 0.0, soft))


def bandpass(
    volume: jax.Array,
    *,
    low: jax.Array | float = 0.0,
    high: jax.Array | float = 0.5,
    soft: jax.Array | float = 0.0,
    norm: str = "l2",
) -> jax.Array:
    """Multiplies a volume's spectrum with ``bandpass_mask``.

    Args:
        volume: ``(z, y, x)``.
        low: as in ``bandpass_mask``.
        high: as in ``bandpass_mask``.
        soft: as in ``bandpass_mask``.
        norm: as in ``bandpass_mask``.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: as ``bandpass_mask``, or if the volume is not three-dimensional.
    """
    _check_volume(volume)
    mask = bandpass_mask(volume.shape, low=low, high=high, soft=soft, norm=norm)
    filtered = jnp.fft.irfftn(jnp.fft.rfftn(widen(volume)) * mask, s=volume.shape)
    return narrow(filtered, volume)


def spectral_pool_matrix(size: int, keep: int, out: int) -> np.ndarray:
    """Builds the matrix that spectral pooling applies along one axis.

        P = D_out^T [I_keep; 0] D_size,   D orthonormal DCT-II

    Args:
        size: length of the input.
        keep: number of low frequencies kept, at most ``min(size, out)``.
        out: length of the output.

    Returns:
        ``(out, size)``, float64. There is no amplitude compensation: a constant is scaled by
        ``sqrt(size / out)``.

    Raises:
        ValueError: if ``keep`` is not in 1 .. min(size, out).
    """
    if not 1 <= keep <= min(size, out):
        raise ValueError(
            f"keep must be between 1 and min(size, out) = {min(size, out)}, got {keep}"
        )
    return _cosine_basis(out)[:keep].T @ _cosine_basis(size)[:keep]


def _cosine_basis(size: int) -> np.ndarray:
    """Rows of the orthonormal DCT-II."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None, :]
    basis = np.sqrt(2.0 / size) * np.cos(np.pi * frequency * (position + 0.5) / size)
    basis[0] /= np.sqrt(2.0)
    return basis


def spectral_pool(volume: jax.Array, *, keep: int, out: int) -> jax.Array:
    """Resizes and low-passes by cropping and padding the cosine spectrum.

    Args:
        volume: ``(z, y, x)`` or ``(z, y, x, channel)``.
        keep: low frequencies kept along each axis.
        out: size of each output axis.

    Returns:
        ``(out, out, out)`` or ``(out, out, out, channel)``, amplitude as in
        ``spectral_pool_matrix``.

    Raises:
        ValueError: if ``keep`` is too large or the rank is not 3 or 4.

    Reference: Zeng & Xu 2020, Gum-Net; Rippel et al. 2015, Spectral representations for CNNs.
    """
    volume = jnp.asarray(volume)
    if volume.ndim not in (3, 4):
        raise ValueError(
            f"volume must be (z, y, x) or (z, y, x, channel), got shape {volume.shape}"
        )
    options = [(size, keep, out) for size in volume.shape[:3]]
    return _multiply_axes(volume, spectral_pool_matrix, options)


def _multiply_axes(
    volume: jax.Array, matrix: Callable[..., np.ndarray], options: Sequence[tuple[int, ...]]
) -> jax.Array:
    """Applies ``matrix(*options)``, which has its own options for each axis, along that axis."""
    wide = widen(volume)
    return narrow(_along_axes(matrix, tuple(options), wide.shape, wide.dtype)(wide), volume)


@functools.lru_cache(maxsize=256)
def _along_axes(
    matrix: Callable[..., np.ndarray],
    options: tuple[tuple[int, ...], ...],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> LinearMap:
    matrices = [matrix(*own) for own in options]

    def apply(x: jax.Array) -> jax.Array:
        for axis, along in enumerate(matrices):
            x = _multiply_axis(x, axis, along)
        return x

    def transpose(y: jax.Array) -> jax.Array:
        for axis, along in reversed(list(enumerate(matrices))):
            y = _multiply_axis(y, axis, along.T)
        return y

    out = (*(len(along) for along in matrices), *shape[3:])
    return LinearMap(
        apply,
        transpose,
        derivative=None,  # there are no parameters
        given=jax.ShapeDtypeStruct(shape, dtype),
        out=jax.ShapeDtypeStruct(out, dtype),
    )


def _multiply_axis(x: jax.Array, axis: int, matrix: np.ndarray) -> jax.Array:
    along = jnp.asarray(matrix, x.dtype)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    if after:
        columns = x.reshape(math.prod(before), x.shape[axis], math.prod(after))
        product = jnp.matmul(along, columns, precision=lax.Precision.HIGHEST)
    else:
        product = jnp.matmul(x, along.T, precision=lax.Precision.HIGHEST)
    return product.reshape(*before, len(matrix), *after)


def fourier_resize(volume: jax.Array, size: int | tuple[int, int, int]) -> jax.Array:
    """Resamples a periodic volume to another box over the same field of view.

    Crops or zero-pads the spectrum about the box centre, which stays voxel ``n // 2``. Values and
    mean are preserved (no amplitude change for a constant). A Nyquist coefficient is split in two
    halves when padding and the two are added when cropping, so up then down is the identity.

    Args:
        volume: ``(z, y, x)``.
        size: new length of every axis, or of each as ``(z, y, x)``.

    Returns:
        ``(size, size, size)`` or ``size``; the voxel is ``n / size`` times as large.

    Raises:
        ValueError: if the volume is not three-dimensional or a size is less than 1.
    """
    _check_volume(volume)
    sizes = (size,) * 3 if isinstance(size, int) else tuple(size)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"size must be one or three positive integers, got {size!r}")
    volume = jnp.asarray(volume)
    return _multiply_axes(volume, _resize_matrix, list(zip(volume.shape, sizes, strict=True)))


def _resize_matrix(size: int, out: int) -> np.ndarray:
    """Trigonometric interpolation from ``size`` to ``out`` samples, ``(out, size)``."""
    shared = min(size, out)
    source = (np.arange(size) - size // 2) / size
    target = (np.arange(out) - out // 2) / out
    phase = 2 * np.pi * (target[:, None] - source[None, :])
    matrix = np.ones((out, size))
    for frequency in range(1, (shared - 1) // 2 + 1):
        matrix += 2 * np.cos(frequency * phase)
    if shared % 2 == 0:
        # Equal sizes and cropping keep one Nyquist coefficient, padding splits it; all are real.
        left = np.cos(np.pi * shared * target)[:, None]
        matrix += left * np.cos(np.pi * shared * source)[None, :] * (2 if out < size else 1)
    return matrix / size


def _check_volume(volume: jax.Array) -> None:
    if jnp.ndim(volume) != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {jnp.shape(volume)}; vmap a batch")
