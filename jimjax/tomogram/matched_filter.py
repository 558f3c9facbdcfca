"""What a tomogram and templates are filtered and masked with before they are compared.

The filter is a kernel as small as the template, so that a tile of a tomogram gives what the whole
would. All functions here are of numpy arrays and run once, before the search.
"""

import itertools

import numpy as np
from scipy import signal

from jimjax.ops import fourier, frequency, wedge

MASK_EDGE = 0.1  # particle diameters over which the mask falls to 0
NUM_BLOCKS = 512  # of the tomogram, for its power spectrum
POWER_FLOOR = 1e-4  # of the strongest shell: weaker ones are not amplified further
MAX_CUTOFF = 0.4  # cycles per voxel of a coarser tomogram: what its low-pass leaves alone
MIN_DIAMETER = 8  # voxels of a coarser tomogram


def choose_binning(cutoff: float, diameter: float) -> int:
    """Says how much coarser a tomogram may become.

    Args:
        cutoff: of the band that is needed, cycles per voxel.
        diameter: of the particle, voxels.

    Returns:
        The largest whole factor that keeps the band below 0.4 cycles per new voxel and the
        particle 8 of them wide; at least 1.
    """
    return max(1, int(min(MAX_CUTOFF / cutoff, diameter / MIN_DIAMETER)))


def coarsen(volume: np.ndarray, factor: int) -> np.ndarray:
    """Low-passes and takes every voxel whose indices are multiples of a factor.

    Args:
        volume: ``(z, y, x)``; goes on as its border value outside.
        factor: 1 changes nothing.

    Returns:
        ``(ceil(z / factor), ...)`` float32; voxel ``i`` lies where ``factor * i`` was.
    """
    volume = np.asarray(volume, np.float32)
    for axis in range(3) if factor > 1 else ():
        volume = signal.resample_poly(volume, 1, factor, axis=axis, padtype="edge")
    return np.asarray(volume, np.float32)


def coarsen_template(template: np.ndarray, factor: int) -> np.ndarray:
    """The same of a cube about its centre, which stays voxel ``n // 2``.

    Args:
        template: ``(n, n, n)``.
        factor: 1 changes nothing.

    Returns:
        A cube of an even side, or the template itself.
    """
    if factor == 1:
        return np.asarray(template, np.float32)
    size = len(template)
    side = 2 * -(-(size + 1) // (2 * factor))
    before = factor * (side // 2) - size // 2
    padding = before, max(0, factor * side - before - size)
    return coarsen(np.pad(template, [padding] * 3, mode="edge"), factor)[:side, :side, :side]


def mask_side(diameter: float) -> int:
    """Side in voxels of the smallest even cube that holds the mask of a particle."""
    return 2 * int(np.ceil(diameter * (0.5 + MASK_EDGE))) + 2


def soft_mask(side: int, diameter: float) -> np.ndarray:
    """Makes a sphere around the centre voxel.

    Args:
        side: of the cube, voxels.
        diameter: of what is 1, voxels; falls to 0 as a cosine over a tenth of it.

    Returns:
        ``(side, side, side)`` float32.
    """
    excess = np.float32(_radius(side) - diameter / 2)
    return np.asarray(fourier.raised_cosine(excess, MASK_EDGE * diameter), np.float32)


def fit_template(template: np.ndarray, diameter: float) -> np.ndarray:
    """Crops or pads a template to its mask's cube, on a ground of 0, and masks it.

    The ground is the mean of what lies outside the mask.

    Args:
        template: ``(n, n, n)``.
        diameter: of the particle, voxels.

    Returns:
        A cube of ``mask_side(diameter)``, float32.
    """
    size, side = len(template), mask_side(diameter)
    outside = template[_radius(size) > diameter * (0.5 + MASK_EDGE)]
    ground = outside.mean() if outside.size else 0.0
    out = np.zeros((side,) * 3, np.float32)
    before = min(size // 2, side // 2)
    after = min(size - size // 2, side - side // 2)
    here, there = ((slice(n // 2 - before, n // 2 + after),) * 3 for n in (side, size))
    out[here] = template[there] - ground
    return out * soft_mask(side, diameter)


def whitening_kernel(
    tomogram: np.ndarray, side: int, *, cutoff: float, tilt_range: tuple[float, float]
) -> np.ndarray:
    """Makes the kernel of a filter that leaves a flat spectrum of the measured band.

        H(k) = band(k) M(k) / sqrt(P(|k|)),   h = window * F^-1 H

    P is the power spectrum of the tomogram, averaged over shells of what was measured.

    Args:
        tomogram: ``(z, y, x)``, zero mean, at least ``side`` along each axis.
        side: of the kernel, voxels; decides how fine the filter's details are.
        cutoff: of the band, cycles per voxel.
        tilt_range: lowest and highest tilt, degrees.

    Returns:
        ``(side, side, side)`` float32, centrosymmetric about voxel ``side // 2``; the filtered
        tomogram has a variance of about 1.
    """
    shape = (side,) * 3
    measured = np.asarray(wedge.wedge_mask(shape, np.asarray(tilt_range, np.float32)))
    band = np.asarray(fourier.bandpass_mask(shape, high=cutoff)) * measured
    band[0, 0, 0] = 0.0
    power = _measured_power(tomogram, side, measured)
    shell = np.asarray(frequency.radial_frequency(shape)) * side
    at_voxel = np.interp(shell, np.arange(len(power)), power)
    inside = band > 0
    floor = POWER_FLOOR * at_voxel[inside].max(initial=0.0)
    response = np.where(inside, 1 / np.sqrt(np.maximum(at_voxel, floor)), 0.0)
    kernel = np.fft.fftshift(np.fft.irfftn(response, s=shape, axes=(0, 1, 2)))
    window = np.asarray(fourier.raised_cosine(np.float32(_radius(side) - side / 4), side / 4))
    share = np.sum(np.asarray(frequency.hermitian_weights(shape)) * band) / side**3
    return (kernel * window / np.sqrt(share)).astype(np.float32)


def _measured_power(tomogram: np.ndarray, side: int, measured: np.ndarray) -> np.ndarray:
    """Power per voxel in each shell of a cube, from blocks spread evenly over a tomogram."""
    along = max(1, round(NUM_BLOCKS ** (1 / 3)))
    starts = [
        np.unique(np.linspace(0, length - side, min(along, 1 + length // side)).astype(int))
        for length in tomogram.shape
    ]
    along_axis = signal.windows.hann(side, sym=False)
    taper = along_axis[:, None, None] * along_axis[:, None] * along_axis
    total, count = 0.0, 0
    for z, y, x in itertools.product(*starts):
        block = tomogram[z : z + side, y : y + side, x : x + side] * taper
        total = total + np.abs(np.fft.rfftn(block)) ** 2
        count += 1
    power = total / (count * np.sum(taper**2))
    shape = (side,) * 3
    shells = np.minimum(np.asarray(fourier.shell_index(shape)), side // 2).ravel()
    weights = (measured * np.asarray(frequency.hermitian_weights(shape))).ravel()
    sums = np.bincount(shells, weights * power.ravel(), minlength=side // 2 + 1)
    return sums / np.maximum(np.bincount(shells, weights, minlength=side // 2 + 1), 1)


def _radius(side: int) -> np.ndarray:
    """Distance of each voxel of a cube from its centre voxel."""
    axis = np.arange(side) - side // 2
    return np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
