"""Correlation scores between volumes, restricted to the Fourier region both have measured."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import fourier, resample, wedge
from jimjax.ops._precision import narrow, widen
from jimjax.ops.rotation import Pose

FLAT_CONTRAST = 32  # a contrast below this many float roundings of the root mean square is none
STANDARD_EPSILON = 1e-6  # of a standard deviation; keeps a constant volume finite


class Peak(NamedTuple):
    """The best translation and its score.

    Attributes:
        score: scalar in [-1, 1].
        shift: ``(3,)``, (x, y, z) voxels.
    """

    score: jax.Array
    shift: jax.Array


def standardize(volume: jax.Array) -> jax.Array:
    """Scales a volume to zero mean and unit deviation.

        (v - mean(v)) / sqrt(var(v) + eps^2),   eps = 1e-6

    Args:
        volume: any shape.

    Returns:
        Same shape; zeros, with a finite gradient, if the volume is constant.
    """
    wide = widen(volume)
    centred = wide - jnp.mean(wide)
    scaled = centred * lax.rsqrt(jnp.mean(centred**2) + STANDARD_EPSILON**2)
    return narrow(scaled, volume)


def pearson(a: jax.Array, b: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Correlates two arrays in real space.

        r = sum(m a' b') / sqrt(sum(m a'^2) sum(m b'^2)),   a', b' zero-mean under m

    Args:
        a: any shape.
        b: same shape.
        mask: same shape, weights >= 0; all ones if None.

    Returns:
        Scalar in [-1, 1]; 0, with gradient 0, if either is constant under the mask or the mask
        is empty.

    Raises:
        ValueError: if shapes differ.
    """
    _check_same_shape("b", b, a.shape)
    a, b = widen(a), widen(b)
    if mask is None:
        weights = jnp.full(a.shape, 1 / a.size, a.dtype)
    else:
        _check_same_shape("mask", mask, a.shape)
        mask = widen(mask)
        total = mask.sum()
        weights = mask / jnp.where(total > 0, total, 1)
    centred_a, centred_b = _centre(a, weights), _centre(b, weights)
    return (
        jnp.sum(weights * centred_a * centred_b)
        * _inverse_norm(jnp.sum(weights * centred_a**2), jnp.sum(weights * a**2))
        * _inverse_norm(jnp.sum(weights * centred_b**2), jnp.sum(weights * b**2))
    )


def _centre(array: jax.Array, weights: jax.Array) -> jax.Array:
    # Twice: the rounding of one float32 mean would pass for contrast in a constant array.
    array = array - jnp.sum(weights * array)
    return array - jnp.sum(weights * array)


def constrained_correlation(volume: jax.Array, template: jax.Array, mask: jax.Array) -> jax.Array:
    """Correlates two volumes over the frequencies that a mask lets through.

    Both spectra are multiplied by M and the Pearson correlation of the two filtered volumes is
    taken, without going back to real space (Parseval):

        c = sum(w M^2 Re(V conj T)) / sqrt(sum(w M^2 |V|^2) sum(w M^2 |T|^2)),   k = 0 left out

    with w counting the half of the spectrum that ``rfftn`` leaves out. Per example; the caller
    vmaps over a batch, so examples never share a mean or a variance.

    Args:
        volume: ``(z, y, x)``.
        template: same shape, already in the volume's frame.
        mask: ``(z, y, x // 2 + 1)``, usually the product of a band-pass and both wedges.

    Returns:
        Scalar in [-1, 1]; 0, with gradient 0, if either is constant or nothing of it passes.

    Raises:
        ValueError: if shapes disagree.

    Reference: Jim-Net, eq. 6 (there as one minus this).
    """
    _check_volumes(volume, template, mask)
    volume, template = widen(volume), widen(template)
    weights = _spectral_weights(volume.shape, mask)
    a, b = _centred_spectrum(volume), _centred_spectrum(template)
    overlap = jnp.sum(weights * (a.real * b.real + a.imag * b.imag))
    return overlap * _spectral_scale(volume, a, weights) * _spectral_scale(template, b, weights)


def constrained_correlation_loss(
    volume: jax.Array, template: jax.Array, mask: jax.Array
) -> jax.Array:
    """Turns ``constrained_correlation`` into a loss, 1 - c.

    Args:
        volume: ``(z, y, x)``.
        template: same shape.
        mask: ``(z, y, x // 2 + 1)``.

    Returns:
        Scalar in [0, 2]; 1 for a constant volume.

    Raises:
        ValueError: if shapes disagree.

    Reference: Jim-Net, eq. 6.
    """
    return 1 - constrained_correlation(volume, template, mask)


def aligned_correlation(
    source: jax.Array,
    target: jax.Array,
    pose: Pose,
    *,
    source_tilt_range: jax.Array,
    target_tilt_range: jax.Array,
    cutoff: float,
) -> jax.Array:
    """Moves a source particle by a pose and correlates it with a target, each with its wedge.

    The mask is a cube low-pass times the target's wedge times the source's wedge turned by the
    pose. Wedges are piecewise constant in the rotation, so their gradient is stopped: the pose
    learns from the volumes alone.

    Args:
        source: ``(z, y, x)``.
        target: same shape.
        pose: carries the source into the target.
        source_tilt_range: ``(2,)`` degrees, of the source before it is moved.
        target_tilt_range: ``(2,)`` degrees.
        cutoff: largest frequency along any axis, cycles per voxel (Nyquist is 0.5).

    Returns:
        Scalar in [-1, 1], differentiable in the volumes and the pose.

    Raises:
        ValueError: if shapes differ.

    Reference: Jim-Net, eq. 6.
    """
    _check_same_shape("target", target, source.shape)
    shape = source.shape
    turned = wedge.wedge_mask(shape, source_tilt_range, rotation=pose.rotation)
    fixed = wedge.wedge_mask(shape, target_tilt_range)
    band = fourier.bandpass_mask(shape, high=cutoff, norm="max")
    mask = lax.stop_gradient(band * fixed * turned)
    return constrained_correlation(resample.transform(source, pose), target, mask)


def correlation_peak(
    a: jax.Array, b: jax.Array, *, mask: jax.Array | None = None, max_shift: float
) -> Peak:
    """Finds the translation of one volume that matches it best to another.

    All circular shifts are scored at once by FFT, c(t) = corr(a(p - t), b(p)), and the best one
    is refined by a parabola through its two neighbours along each axis (exact for integer
    shifts; good to about 0.1 voxel for volumes without power near Nyquist).

    Args:
        a: ``(z, y, x)``, the volume to move.
        b: same shape, where it should go.
        mask: ``(z, y, x // 2 + 1)``, frequencies that both have measured; all if None.
        max_shift: largest shift along any axis, voxels.

    Returns:
        ``Peak`` such that ``fourier_shift(a, peak.shift)`` matches b; the score is the
        constrained correlation there. Score 0 and some shift if either volume is constant.

    Raises:
        ValueError: if shapes disagree.
    """
    _check_volumes(a, b, mask)
    a, b = widen(a), widen(b)
    shape = a.shape
    weights = _spectral_weights(shape, mask)
    spectrum_a, spectrum_b = _centred_spectrum(a), _centred_spectrum(b)
    scale = _spectral_scale(a, spectrum_a, weights) * _spectral_scale(b, spectrum_b, weights)
    product = (jnp.conj(spectrum_a) * spectrum_b).at[0, 0, 0].set(0)
    if mask is not None:
        product = product * mask**2
    scores = jnp.fft.irfftn(product, s=shape) * a.size * scale

    lags = [jnp.fft.fftfreq(n, 1 / n) for n in shape]
    allowed = [jnp.abs(lag) <= max_shift for lag in lags]
    inside = allowed[0][:, None, None] & allowed[1][:, None] & allowed[2]
    best = jnp.unravel_index(jnp.argmax(jnp.where(inside, scores, -jnp.inf)), shape)
    centre = scores[best]
    shift, score = [], centre
    for axis, lag in enumerate(lags):
        below, above = (_neighbour(scores, best, axis, step) for step in (-1, 1))
        offset, gain = _parabola(below, centre, above)
        shift.append(jnp.clip(lag[best[axis]] + offset, -max_shift, max_shift))
        score = score + gain
    return Peak(jnp.clip(score, -1, 1), jnp.stack(shift[::-1]))


def _neighbour(scores: jax.Array, index: tuple[jax.Array, ...], axis: int, step: int) -> jax.Array:
    moved = list(index)
    moved[axis] = (index[axis] + step) % scores.shape[axis]
    return scores[tuple(moved)]


def _parabola(below: jax.Array, centre: jax.Array, above: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Vertex of the parabola through three equally spaced values: offset, gain over centre."""
    curvature = below - 2 * centre + above
    is_peak = curvature < 0
    safe = jnp.where(is_peak, curvature, -1)
    offset = jnp.clip((below - above) / (2 * safe), -0.5, 0.5)
    gain = (above - below) / 2 * offset + curvature / 2 * offset**2
    return jnp.where(is_peak, offset, 0), jnp.where(is_peak, gain, 0)


def _spectral_weights(shape: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    """How often each coefficient counts: not at all at k = 0."""
    weights = fourier.hermitian_weights(shape)
    weights = jnp.where(jnp.arange(weights.size).reshape(weights.shape) == 0, 0, weights)
    return weights if mask is None else weights * widen(mask) ** 2


def _centred_spectrum(volume: jax.Array) -> jax.Array:
    """Spectrum but for k = 0; the phase origin drops out of every product taken here."""
    # Taking the mean away first keeps float32 digits for a small contrast on a large background.
    return jnp.fft.rfftn(volume - volume.mean(), norm="ortho")


def _spectral_scale(volume: jax.Array, spectrum: jax.Array, weights: jax.Array) -> jax.Array:
    power = jnp.sum(weights * (spectrum.real**2 + spectrum.imag**2))
    return _inverse_norm(power, jnp.sum(volume**2))


def _inverse_norm(power: jax.Array, total: jax.Array) -> jax.Array:
    """1 / sqrt(power); 0 where the power is only the rounding error of the total."""
    floor = (FLAT_CONTRAST * jnp.finfo(power.dtype).eps) ** 2 * total
    has_contrast = power > floor
    return jnp.where(has_contrast, lax.rsqrt(jnp.where(has_contrast, power, 1)), 0)


def _check_volumes(volume: jax.Array, template: jax.Array, mask: jax.Array | None) -> None:
    if volume.ndim != 3:
        raise ValueError(
            f"correlation wants one volume (z, y, x), got {volume.shape}; use jax.vmap over a batch"
        )
    _check_same_shape("the second volume", template, volume.shape)
    if mask is not None:
        half = (*volume.shape[:2], volume.shape[2] // 2 + 1)
        _check_same_shape("mask", mask, half)


def _check_same_shape(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}; crop or pad it first")
