"""Slow, readable numpy and scipy twins of the operations in ``jimjax.ops``.

Everything is float64 and loops or full spectra where the package uses tricks.
"""

import numpy as np
from scipy import fft, ndimage


def transform(
    volume: np.ndarray,
    rotation: np.ndarray,
    shift: np.ndarray,
    *,
    order: int = 1,
    fill: float = 0.0,
    mode: str = "grid-constant",
) -> np.ndarray:
    """Resamples with scipy: ``out(p) = volume(R^T (p - t))``, centre ``n // 2``."""
    centre = np.array(volume.shape) // 2
    grid = np.moveaxis(np.indices(volume.shape), 0, -1) - centre
    source = (grid[..., ::-1] - np.asarray(shift, float)) @ np.asarray(rotation, float)
    indices = np.moveaxis(source[..., ::-1] + centre, -1, 0)
    return ndimage.map_coordinates(
        np.asarray(volume, float), indices, order=order, mode=mode, cval=fill
    )


def full_frequencies(shape: tuple[int, ...]) -> np.ndarray:
    """``(z, y, x, 3)`` frequencies of the full spectrum, ``(kx, ky, kz)``, fft order."""
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij")
    return np.stack(axes[::-1], axis=-1)


def opposite(spectrum: np.ndarray) -> np.ndarray:
    """The value at -k for every k of a full spectrum."""
    return np.roll(spectrum[::-1, ::-1, ::-1], 1, axis=(0, 1, 2))


def half(spectrum: np.ndarray) -> np.ndarray:
    """The part of a full spectrum that ``rfftn`` keeps."""
    return spectrum[..., : spectrum.shape[2] // 2 + 1]


def full(half_spectrum: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Completes a real, centrosymmetric half spectrum."""
    z, y, x = np.indices(shape)
    is_kept = x <= shape[2] // 2
    mirrored = ((-z) % shape[0], (-y) % shape[1], (-x) % shape[2])
    own, other = np.minimum(x, shape[2] // 2), np.minimum(mirrored[2], shape[2] // 2)
    return np.where(
        is_kept, half_spectrum[z, y, own], half_spectrum[mirrored[0], mirrored[1], other]
    )


def wedge_mask(
    shape: tuple[int, int, int],
    tilt_range: tuple[float, float],
    *,
    rotation: np.ndarray | None = None,
    tilt_axis: str = "y",
) -> np.ndarray:
    """Full-spectrum mask from angles: measured where both k and -k are."""
    rotation = np.eye(3) if rotation is None else np.asarray(rotation, float)
    k = full_frequencies(shape) @ rotation  # R^T k
    horizontal = k[..., 0] if tilt_axis == "y" else k[..., 1]
    angle = np.rad2deg(np.arctan2(k[..., 2], horizontal))
    angle = (angle + 90.0) % 180.0 - 90.0
    low, high = tilt_range
    slack = 1e-3  # degrees; a line at 90 is the line at -90
    is_measured = (angle >= low - slack) & (angle <= high + slack)
    is_measured |= (angle + 180.0 >= low - slack) & (angle + 180.0 <= high + slack)
    is_measured |= (angle - 180.0 >= low - slack) & (angle - 180.0 <= high + slack)
    is_measured |= np.hypot(horizontal, k[..., 2]) < 1e-6
    return (is_measured & opposite(is_measured)).astype(float)


def apply_full_mask(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Masks the full spectrum; complex, so that a mask without symmetry shows."""
    return np.fft.ifftn(np.fft.fftn(volume) * mask)


def spectral_pool(volume: np.ndarray, keep: int, out: int) -> np.ndarray:
    """Crops and pads scipy's orthonormal DCT-II."""
    spectrum = fft.dctn(volume, norm="ortho", axes=(0, 1, 2))
    padded = np.zeros((out,) * 3 + volume.shape[3:])
    padded[:keep, :keep, :keep] = spectrum[:keep, :keep, :keep]
    return fft.idctn(padded, norm="ortho", axes=(0, 1, 2))


def fourier_shell_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Loops over shells of the full spectrum."""
    size = min(a.shape)
    radius = np.linalg.norm(full_frequencies(a.shape), axis=-1) * size
    spectrum_a, spectrum_b = np.fft.fftn(a), np.fft.fftn(b)
    curve = []
    for shell in range(size // 2 + 1):
        inside = np.rint(radius) == shell
        cross = np.sum(spectrum_a[inside] * np.conj(spectrum_b[inside])).real
        power_a = np.sum(np.abs(spectrum_a[inside]) ** 2)
        power_b = np.sum(np.abs(spectrum_b[inside]) ** 2)
        curve.append(cross / np.sqrt(power_a * power_b))
    return np.array(curve)


def shell_average(power: np.ndarray) -> np.ndarray:
    """Means over shells of a full spectrum."""
    size = min(power.shape)
    radius = np.rint(np.linalg.norm(full_frequencies(power.shape), axis=-1) * size)
    return np.array([power[radius == shell].mean() for shell in range(size // 2 + 1)])
