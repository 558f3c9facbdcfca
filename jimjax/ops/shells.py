"""Averages and correlations over shells of Fourier space, and the resolution they give."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops import frequency
from jimjax.ops._precision import widen

FSC_GOLD_STANDARD = 0.143  # Rosenthal & Henderson 2003


class Resolution(NamedTuple):
    """Where a Fourier shell correlation falls below its threshold.

    Attributes:
        angstrom: the resolution; the Nyquist limit if the curve never crosses.
        is_at_nyquist: whether it never crosses: report "at or beyond", not a number.
    """

    angstrom: float
    is_at_nyquist: bool


def shell_index(shape: tuple[int, int, int]) -> jax.Array:
    """Numbers the width-1 shell of every coefficient: ``|k| n`` rounded to an integer.

    Args:
        shape: ``(z, y, x)`` of the volume; n is the smallest of them.

    Returns:
        ``(z, y, x // 2 + 1)`` integers; above ``n // 2`` in the corners beyond Nyquist.
    """
    size = min(shape)
    numbers = [
        axis * length for axis, length in zip(frequency.axis_frequencies(shape), shape, strict=True)
    ]
    # Exact integers for a cubic box: a shell edge then never depends on rounding.
    scaled = [jnp.round(k) * (size / length) for k, length in zip(numbers, shape, strict=True)]
    return jnp.round(jnp.sqrt(sum(k * k for k in scaled))).astype(jnp.int32)


def _shell_sum(values: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Sums over the full spectrum in each shell up to Nyquist, ``(n // 2 + 1,)``."""
    num_shells = min(shape) // 2 + 1
    weighted = values * frequency.hermitian_weights(shape)
    index = jnp.minimum(shell_index(shape), num_shells)
    sums = jnp.zeros(num_shells + 1, weighted.dtype).at[index.ravel()].add(weighted.ravel())
    return sums[:num_shells]


def shell_average(values: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Averages over shells of the full spectrum.

    Args:
        values: ``(z, y, x // 2 + 1)``, real and centrosymmetric, such as the power ``|F|^2``.
        shape: ``(z, y, x)`` of the volume.

    Returns:
        ``(n // 2 + 1,)``, n the smallest axis; the corners beyond Nyquist are left out.

    Raises:
        ValueError: if the values do not fit the shape.
    """
    values = jnp.asarray(values)
    if values.shape != frequency.half_shape(shape):
        raise ValueError(
            f"values for a volume {tuple(shape)} must have shape {frequency.half_shape(shape)}, "
            f"got {values.shape}"
        )
    return _shell_sum(values, shape) / _shell_sum(jnp.ones_like(values), shape)


def fourier_shell_correlation(
    a: jax.Array, b: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Correlates two volumes shell by shell over non-overlapping shells of width 1.

        FSC(r) = sum Re(A conj B) / sqrt(sum |A|^2 sum |B|^2),   sums over round(|k| n) = r

    Args:
        a: ``(z, y, x)``.
        b: same shape, independent of ``a`` and in the same frame.
        mask: same shape, real space, multiplies both; None for none.

    Returns:
        ``(n // 2 + 1,)`` in [-1, 1], n the smallest axis; 0 where a shell has no power.

    Raises:
        ValueError: if shapes differ or are not three-dimensional.

    Reference: Harauz & van Heel 1986, Exact filters for general geometry 3-D reconstruction.
    """
    if jnp.ndim(a) != 3:
        raise ValueError(f"a must be (z, y, x), got shape {jnp.shape(a)}; vmap a batch")
    for name, other in (("b", b), ("mask", mask)):
        if other is not None and jnp.shape(other) != jnp.shape(a):
            raise ValueError(f"{name} must have a's shape {a.shape}, got {jnp.shape(other)}")
    a, b = widen(a), widen(b)
    if mask is not None:
        a, b = a * mask, b * mask
    # The origin cancels in A conj B.
    spectrum_a, spectrum_b = jnp.fft.rfftn(a), jnp.fft.rfftn(b)
    cross = _shell_sum(_product_real(spectrum_a, spectrum_b), a.shape)
    power_a = _shell_sum(_product_real(spectrum_a, spectrum_a), a.shape)
    power_b = _shell_sum(_product_real(spectrum_b, spectrum_b), a.shape)
    has_power = (power_a > 0) & (power_b > 0)
    # Two roots: the product of two powers may leave the range of float32.
    norm_a = jnp.sqrt(jnp.where(has_power, power_a, 1.0))
    norm_b = jnp.sqrt(jnp.where(has_power, power_b, 1.0))
    return jnp.where(has_power, cross / norm_a / norm_b, 0.0)


def _product_real(a: jax.Array, b: jax.Array) -> jax.Array:
    return a.real * b.real + a.imag * b.imag


def fsc_resolution(
    fsc: np.ndarray,
    voxel_size: float,
    *,
    threshold: float = FSC_GOLD_STANDARD,
    size: int | None = None,
) -> Resolution:
    """Reads the resolution off a Fourier shell correlation curve.

    The first crossing below the threshold is found by linear interpolation between shells. Shell
    0 is the mean, which says nothing: a curve that starts below has the box as its resolution.

    Args:
        fsc: ``(n // 2 + 1,)``.
        voxel_size: angstrom.
        threshold: 0.143 for independent half maps, 0.5 against a reference.
        size: n, the box; None for the even ``2 (len(fsc) - 1)``.

    Returns:
        The resolution in angstrom, and whether the curve stays above up to Nyquist.

    Raises:
        ValueError: if the curve is too short or not finite, or the sizes do not fit.
    """
    curve = np.asarray(fsc, dtype=np.float64)
    if curve.ndim != 1 or len(curve) < 2:
        raise ValueError(f"fsc must be a curve of at least 2 shells, got shape {curve.shape}")
    if not np.all(np.isfinite(curve)):
        raise ValueError(f"fsc must be finite, shell {np.argmin(np.isfinite(curve))} is not")
    if not voxel_size > 0:
        raise ValueError(f"voxel_size must be positive, in angstrom, got {voxel_size}")
    size = 2 * (len(curve) - 1) if size is None else size
    if size // 2 + 1 != len(curve):
        raise ValueError(f"a box of {size} has {size // 2 + 1} shells, fsc has {len(curve)}")
    below = np.flatnonzero(curve[1:] < threshold)
    if len(below) == 0:
        return Resolution(2.0 * voxel_size, True)
    last = below[0]  # the last shell above the threshold
    if last == 0:
        return Resolution(size * voxel_size, False)
    fraction = (curve[last] - threshold) / (curve[last] - curve[last + 1])
    return Resolution(float(size * voxel_size / (last + fraction)), False)
