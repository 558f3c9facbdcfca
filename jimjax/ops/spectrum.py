"""Works on the amplitudes and phases of a spectrum: high-pass, amplitude swap, random phases.

Spectra are ``rfftn`` half spectra; every change here keeps them Hermitian, so that the result is
the real volume whose full spectrum was changed, not the real part of a complex one.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops import fourier, shells

ROUNDING = 1e-9  # of a coefficient number; 0.58 of 50 counts as 29
LEAST_ROOM = 1e-4  # of 1 - FSC; below it the corrected curve would divide by rounding errors


class CorrectedFsc(NamedTuple):
    """Fourier shell correlations of two half maps, with and without the part the mask adds.

    Attributes:
        unmasked: ``(n // 2 + 1,)``, of the volumes as they are.
        masked: same shape, of the masked volumes; too high by what the mask has in common.
        randomized: same shape, masked after the phases beyond the cutoff were made random.
        corrected: same shape, the masked curve freed of the mask's part beyond the cutoff.
    """

    unmasked: jax.Array
    masked: jax.Array
    randomized: jax.Array
    corrected: jax.Array


def highpass_mask(shape: tuple[int, int, int], *, fraction: float, by: str = "rank") -> jax.Array:
    """Builds the mask that keeps the highest fraction of all Fourier coefficients.

    "rank" sorts the coefficients of the full spectrum by ``|k|``, finds the one whose place from
    the top is ``round(fraction * z * y * x)``, and keeps all whose ``|k|`` is at least as large:
    coefficients of equal ``|k|`` stay or go together, so that the mask is centrosymmetric and
    depends on no order among them; it keeps the wanted number and at most the rest of one such
    shell. "radius" keeps ``|k| >= (1 - fraction) * K``, where K is the largest ``|k|`` of the
    box, in its corner (0.87 cycles per voxel for even cubes).

    Args:
        shape: ``(z, y, x)`` of the volume.
        fraction: kept part of the coefficients or of the radius, above 0; 1 keeps everything.
        by: "rank" or "radius".

    Returns:
        ``(z, y, x // 2 + 1)``, 0 or 1.

    Raises:
        ValueError: if the fraction is not in (0, 1] or ``by`` is unknown.
    """
    _check_fraction(fraction)
    if by == "rank":
        squares = _whole_squares(shape)
        place = max(round(fraction * squares.size), 1)
        smallest = np.partition(squares, -place, axis=None)[-place]
        is_kept = squares[..., : shape[2] // 2 + 1] >= smallest
        return jnp.asarray(is_kept, jnp.result_type(float))
    if by == "radius":
        largest = math.hypot(*(size // 2 / size for size in shape))
        return fourier.bandpass_mask(shape, low=(1 - fraction) * largest, high=largest)
    raise ValueError(f'by must be "rank" or "radius", got {by!r}')


def _whole_squares(shape: tuple[int, int, int]) -> np.ndarray:
    """``|k|^2`` over the full spectrum in a unit that makes it an integer: ties are exact."""
    unit = math.lcm(*shape)
    numbers = [np.rint(np.fft.fftfreq(n, 1 / n)).astype(np.int64) * (unit // n) for n in shape]
    z, y, x = (number * number for number in numbers)
    return z[:, None, None] + y[:, None] + x


def highpass(volume: jax.Array, *, fraction: float, by: str = "rank") -> jax.Array:
    """Multiplies a volume's spectrum with ``highpass_mask``.

    A volume less its own ``highpass`` is its low-pass; Vox-UDA calls that NGM denoising.

    Args:
        volume: ``(z, y, x)``.
        fraction: as in ``highpass_mask``; Vox-UDA takes its noise from the highest 0.244.
        by: as in ``highpass_mask``.

    Returns:
        ``(z, y, x)``; zero mean unless the fraction keeps everything.

    Raises:
        ValueError: as ``highpass_mask``, or if the volume is not three-dimensional.
    """
    _check_volume("volume", volume)
    spectrum = _transform(volume)
    mask = highpass_mask(volume.shape, fraction=fraction, by=by)
    return _back(spectrum * mask.astype(spectrum.real.dtype), volume)


def swap_amplitude(source: jax.Array, target: jax.Array, *, fraction: float) -> jax.Array:
    """Gives a volume the low-frequency amplitudes of another and keeps its phases.

        F = |F_target| F_source / |F_source|   where every |k_axis| n_axis < b,   else F_source
        b = floor(min(z, y, x) / 2 * fraction)

    The band is a cube of ``(2 b - 1)^3`` coefficients about the mean. In a box of 32, fraction
    0.1 gives b = 1: only the mean is exchanged; 0.25 gives b = 4. The mean keeps its sign, which
    in a standardised source is the sign of a rounding error. A coefficient that is 0 in the
    source has phase 0; its phase has no gradient.

    Args:
        source: ``(z, y, x)``, gives the phases.
        target: same shape, gives the low amplitudes.
        fraction: half width of the band over half the smallest side, up to 1; the Nyquist
            frequency of an even side is never in the band.

    Returns:
        ``(z, y, x)``, real: the band is centrosymmetric.

    Raises:
        ValueError: if shapes differ, or the fraction is not in (0, 1] or so small that b is 0.

    Reference: Yang & Soatto 2020, FDA: Fourier domain adaptation for semantic segmentation.
    """
    _check_volume("source", source)
    if jnp.shape(target) != source.shape:
        raise ValueError(
            f"target must have source's shape {source.shape}, got {jnp.shape(target)}; "
            "crop or pad it first"
        )
    _check_fraction(fraction)
    side = min(source.shape)
    width = math.floor(0.5 * side * fraction + ROUNDING)
    if width < 1:
        raise ValueError(
            f"fraction must be at least {2 / side:.4g} in a box of {side}, got {fraction}; "
            "a smaller band holds no coefficient"
        )
    spectrum, other = _transform(source), _transform(target)
    z, y, x = (np.abs(np.fft.fftfreq(n, 1 / n)) < width - 0.5 for n in source.shape)
    in_band = z[:, None, None] & y[:, None] & x[: source.shape[2] // 2 + 1]
    mixed = jnp.abs(other) * _unit_phases(spectrum)
    return _back(jnp.where(in_band, mixed, spectrum), source)


def radial_power(volumes: jax.Array) -> jax.Array:
    """Mean power of volumes in each shell of Fourier space.

    Args:
        volumes: ``(batch, z, y, x)``.

    Returns:
        ``(n // 2 + 1,)``, mean of ``|F|^2`` over the volumes and over the coefficients with
        ``round(|k| n) = r``, n the smallest side; the corners beyond Nyquist are left out.

    Raises:
        ValueError: if the volumes are not four-dimensional.
    """
    if jnp.ndim(volumes) != 4:
        raise ValueError(f"volumes must be (n, z, y, x), got shape {jnp.shape(volumes)}")
    power = jnp.mean(jnp.abs(jax.vmap(_transform)(volumes)) ** 2, axis=0)
    return shells.shell_average(power, volumes.shape[1:])


def match_power(volume: jax.Array, power: jax.Array, target_power: jax.Array) -> jax.Array:
    """Filters a volume of one kind so that its kind gets the radial power of another.

        F(k) sqrt(target_power / power),   interpolated between shells, beyond Nyquist as at it

    Signal and noise of a frequency are multiplied alike, so that no signal-to-noise ratio of a
    frequency changes. The mean is kept, and so are shells without power.

    Args:
        volume: ``(z, y, x)``.
        power: ``(n // 2 + 1,)``, of the volume's kind; see ``radial_power``.
        target_power: same shape, to get.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the volume is not three-dimensional or a curve does not fit it.
    """
    _check_volume("volume", volume)
    num_shells = min(volume.shape) // 2 + 1
    for name, curve in (("power", power), ("target_power", target_power)):
        if jnp.shape(curve) != (num_shells,):
            raise ValueError(f"{name} must have shape ({num_shells},), got {jnp.shape(curve)}")
    has_power = (power > 0) & (target_power > 0) & (jnp.arange(num_shells) > 0)
    ratio = jnp.where(has_power, target_power, 1.0) / jnp.where(has_power, power, 1.0)
    radius = fourier.radial_frequency(volume.shape) * min(volume.shape)
    gain = jnp.interp(radius, jnp.arange(num_shells), jnp.sqrt(ratio)).at[0, 0, 0].set(1.0)
    return _back(_transform(volume) * gain, volume)


def phase_randomize(key: jax.Array, volume: jax.Array, *, cutoff: jax.Array | float) -> jax.Array:
    """Replaces the phases beyond a frequency by random ones and keeps all amplitudes.

    The phases are those of white noise, hence uniform, independent, opposite at k and -k, and 0
    or pi where k and -k are the same coefficient.

    Args:
        key: of the random phases.
        volume: ``(z, y, x)``.
        cutoff: cycles per voxel, ``voxel_size / resolution``; coefficients up to and at it stay.
            May be traced.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the volume is not three-dimensional.

    Reference: Chen et al. 2013, High-resolution noise substitution to measure overfitting and
    validate resolution in 3D structure determination by single particle electron cryomicroscopy.
    """
    _check_volume("volume", volume)
    spectrum = _transform(volume)
    noise = jax.random.normal(key, volume.shape, spectrum.real.dtype)
    scrambled = jnp.abs(spectrum) * _unit_phases(jnp.fft.rfftn(noise))
    is_kept = fourier.bandpass_mask(volume.shape, high=cutoff) > 0
    return _back(jnp.where(is_kept, spectrum, scrambled), volume)


def corrected_fsc(
    key: jax.Array, a: jax.Array, b: jax.Array, mask: jax.Array, *, cutoff: jax.Array | float
) -> CorrectedFsc:
    """Correlates two masked half maps shell by shell and takes away what the mask adds.

        corrected = (masked - randomized) / (1 - randomized)   beyond the cutoff, else masked

    Just beyond the cutoff, a mask carries strong shells over into random ones: there the
    corrected curve is too low rather than too high.

    Args:
        key: of the random phases, independent for the two volumes.
        a: ``(z, y, x)``, a half map.
        b: same shape, the other half map, in the same frame.
        mask: same shape, real space, with a soft edge.
        cutoff: cycles per voxel beyond which phases are made random, usually where the unmasked
            curve falls below 0.8. May be traced.

    Returns:
        The four curves, shells as in ``fourier_shell_correlation``; corrected is 0 where the
        random phases correlate to within 1e-4 of 1.

    Raises:
        ValueError: if shapes differ or are not three-dimensional.

    Reference: Chen et al. 2013, as in ``phase_randomize``.
    """
    unmasked = shells.fourier_shell_correlation(a, b)
    masked = shells.fourier_shell_correlation(a, b, mask=mask)
    key_a, key_b = jax.random.split(key)
    randomized = shells.fourier_shell_correlation(
        phase_randomize(key_a, a, cutoff=cutoff),
        phase_randomize(key_b, b, cutoff=cutoff),
        mask=mask,
    )
    shell_frequency = jnp.arange(len(masked), dtype=masked.dtype) / min(a.shape)
    is_beyond = shell_frequency > cutoff + fourier.FREQUENCY_TOLERANCE
    has_room = 1 - randomized > LEAST_ROOM
    true = (masked - randomized) / jnp.where(has_room, 1 - randomized, 1)
    corrected = jnp.where(is_beyond, jnp.where(has_room, true, 0), masked)
    return CorrectedFsc(unmasked, masked, randomized, corrected)


def _transform(volume: jax.Array) -> jax.Array:
    """Half spectrum, in float32 for lower precision; the origin is voxel 0, only phases see it."""
    return jnp.fft.rfftn(volume.astype(jnp.promote_types(volume.dtype, jnp.float32)))


def _back(spectrum: jax.Array, like: jax.Array) -> jax.Array:
    volume = jnp.fft.irfftn(spectrum, s=like.shape)
    return volume.astype(like.dtype) if jnp.issubdtype(like.dtype, jnp.floating) else volume


def _unit_phases(spectrum: jax.Array) -> jax.Array:
    """``F / |F|``; 1, without a gradient, where F is 0."""
    # The derivative divides by |F|^2, which must not underflow.
    is_zero = jnp.abs(spectrum) <= math.sqrt(jnp.finfo(spectrum.dtype).tiny)
    safe = jnp.where(is_zero, 1, spectrum)
    return safe / jnp.abs(safe)


def _check_volume(name: str, volume: jax.Array) -> None:
    if jnp.ndim(volume) != 3:
        raise ValueError(f"{name} must be (z, y, x), got shape {jnp.shape(volume)}; vmap a batch")


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
