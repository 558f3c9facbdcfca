"""Imports subtomograms kept in one ``.npz``: volumes, Fourier masks, rotations and a reference.

Such files give the missing wedge as a mask over the Fourier grid. Here a wedge is a tilt range, so
the range that agrees best with each mask is fitted, and how well it agrees is reported.
"""

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from jimjax.data.subtomograms import Subtomograms, to_star
from jimjax.io.errors import InputError
from jimjax.io.files import open_input
from jimjax.io.mrc import write_volume
from jimjax.progress import stop_request

VOLUMES = "subtomograms"  # (n, z, y, x)
MASKS = "wedge_mask"  # (n, z, y, x), zero frequency at n // 2, true = measured
ROTATIONS = "rot_ref_to_tomo_xyz"  # (n, 3, 3), active, reference into particle
REFERENCE = "warp_reference"  # (z, y, x)
VOXEL_SIZE = "voxel_size_A"
BAND_SHARE = 0.75  # a shell ends the band if it is measured by less than this, relative to half-way
ORTHOGONALITY = 1e-3  # largest entry of R^T R - 1 that float32 and a few products explain


class ImportedParticles(NamedTuple):
    """What was written, and how well tilt ranges describe the masks of the file.

    Attributes:
        star_path: particle STAR file; its stack lies beside it.
        reference_path: MRC file with the reference.
        tilt_ranges: ``(n, 2)`` degrees, fitted.
        agreements: ``(n,)`` share of the frequencies in the masks' band on which both agree.
    """

    star_path: Path
    reference_path: Path
    tilt_ranges: np.ndarray
    agreements: np.ndarray


def import_npz(path: str | Path, out_dir: str | Path) -> ImportedParticles:
    """Turns an ``.npz`` into ``particles.star``, ``particles.mrcs`` and ``reference.mrc``.

    The arrays must be called ``subtomograms``, ``wedge_mask``, ``rot_ref_to_tomo_xyz``,
    ``warp_reference`` and ``voxel_size_A``. Volumes are copied as they are: no contrast is changed.
    Shifts are zero, as particles were cut at their centres. Alternate particles of the file go to
    the two half sets.

    Args:
        path: NumPy archive; objects in it are refused.
        out_dir: existing or new folder.

    Returns:
        The paths written, with tilt ranges and agreements.

    Raises:
        InputError: if the file is no such archive, or arrays are missing or misshapen.
    """
    arrays = _read_arrays(Path(path))
    volumes = arrays[VOLUMES].astype(np.float32)
    fits = [fit_tilt_range(mask) for mask in arrays[MASKS]]
    tilt_ranges = np.array([fit.tilt_range for fit in fits], np.float32)
    voxel_size = float(arrays[VOXEL_SIZE])
    particles = Subtomograms(
        volumes=volumes,
        tilt_ranges=tilt_ranges,
        voxel_size=voxel_size,
        names=tuple(f"{number}@{path}" for number in range(1, len(volumes) + 1)),
        halves=(1 + np.arange(len(volumes)) % 2).astype(np.int32),
        rotations=arrays[ROTATIONS].astype(np.float32),
        shifts=np.zeros((len(volumes), 3), np.float32),
        labels=np.zeros(len(volumes), np.int32),
    )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    star_path, reference_path = folder / "particles.star", folder / "reference.mrc"
    with stop_request():  # all of them or none
        to_star(particles, star_path, stack_path=folder / "particles.mrcs")
        write_volume(reference_path, arrays[REFERENCE], voxel_size=voxel_size)
    agreements = np.array([fit.agreement for fit in fits])
    return ImportedParticles(star_path, reference_path, tilt_ranges, agreements)


class TiltRangeFit(NamedTuple):
    """A tilt range ``(2,)`` in degrees and the share of frequencies where it gives the mask."""

    tilt_range: np.ndarray
    agreement: float


def fit_tilt_range(mask: np.ndarray) -> TiltRangeFit:
    """Fits the tilt range whose wedge agrees with a Fourier mask on most frequencies.

    Tilt axis y, beam z: a frequency is measured if ``atan2(kz, kx)``, wrapped to [-90, 90), lies in
    the range. Each frequency votes +1 for measured or -1 for missing; sorted by angle, the range
    wanted is the run of votes with the largest sum. A tilt beyond a gap is thus kept if it measured
    more than the gap misses. Masks are often cut by a sphere, so only shells count that are
    measured about as well as the shell half-way out.

    Args:
        mask: ``(n, n, n)``, zero frequency at ``n // 2``, true (or above 0.5) = measured.

    Returns:
        Limits midway between the last measured and the first missing angle, and the agreement.

    Raises:
        InputError: if the mask is not a cube or misses zero frequency.
    """
    if mask.ndim != 3 or len(set(mask.shape)) != 1:
        raise InputError(f"a wedge mask must be a cube (n, n, n), got shape {mask.shape}")
    is_measured = np.asarray(mask) > 0.5
    middle = mask.shape[0] // 2
    if not is_measured[middle, middle, middle]:
        raise InputError(
            f"a wedge mask must measure zero frequency, at voxel {middle};"
            " check that its zero frequency is at n // 2"
        )
    kz, ky, kx = np.indices(mask.shape) - middle
    in_band = _band(is_measured, np.sqrt(kz**2 + ky**2 + kx**2))
    on_axis = (kz == 0) & (kx == 0)
    votes_at = in_band & ~on_axis
    angles = (np.degrees(np.arctan2(kz[votes_at], kx[votes_at])) + 90) % 180 - 90
    votes = np.where(is_measured[votes_at], 1, -1)
    distinct, group = np.unique(angles.round(6), return_inverse=True)
    sums = np.concatenate([[0], np.cumsum(np.bincount(group, weights=votes))])
    first, end = _largest_run(sums)
    edges = np.concatenate([[-90.0], (distinct[1:] + distinct[:-1]) / 2, [90.0]])
    num_missing = np.count_nonzero(votes < 0)
    num_right = num_missing + sums[end] - sums[first] + is_measured[in_band & on_axis].sum()
    return TiltRangeFit(edges[[first, end]], float(num_right / in_band.sum()))


def _band(is_measured: np.ndarray, radius: np.ndarray) -> np.ndarray:
    shell = np.rint(radius).astype(int).ravel()
    share = np.bincount(shell, is_measured.ravel()) / np.bincount(shell)
    share = share[: is_measured.shape[0] // 2 + 1]
    last = np.flatnonzero(share >= BAND_SHARE * share[len(share) // 2])[-1]
    return radius <= last


def _largest_run(sums: np.ndarray) -> tuple[int, int]:
    """Returns i < j with the largest ``sums[j] - sums[i]``."""
    lowest = np.minimum.accumulate(sums)
    end = 1 + int(np.argmax(sums[1:] - lowest[:-1]))
    return int(np.argmin(sums[:end])), end


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with open_input(path) as stream:
        try:
            with np.load(stream, allow_pickle=False) as archive:
                missing = {VOLUMES, MASKS, ROTATIONS, REFERENCE, VOXEL_SIZE} - set(archive.files)
                if missing:
                    raise InputError(
                        f"{path}: arrays {', '.join(sorted(missing))} are missing;"
                        f" found {', '.join(archive.files)}"
                    )
                names = (VOLUMES, MASKS, ROTATIONS, REFERENCE, VOXEL_SIZE)
                arrays = {name: archive[name] for name in names}
        except InputError:
            raise
        except (ValueError, OSError, EOFError, AttributeError, BadZipFile) as problem:
            raise InputError(f"{path}: is no NumPy archive of plain arrays: {problem}") from problem
    _check_arrays(path, arrays)
    return arrays


def _check_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    volumes = arrays[VOLUMES]
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1:
        raise InputError(f"{path}: {VOLUMES} must be (n, z, y, x) cubes, got {volumes.shape}")
    num, *box = volumes.shape
    wanted = {MASKS: (num, *box), ROTATIONS: (num, 3, 3), REFERENCE: tuple(box), VOXEL_SIZE: ()}
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise InputError(f"{path}: {name} must have shape {shape}, got {arrays[name].shape}")
    for name in (VOLUMES, ROTATIONS, REFERENCE, VOXEL_SIZE):
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"{path}: {name} has values that are not finite numbers")
    if not arrays[VOXEL_SIZE] > 0:
        raise InputError(f"{path}: {VOXEL_SIZE} must be positive, got {arrays[VOXEL_SIZE]}")
    rotations = arrays[ROTATIONS].astype(float)
    products = np.einsum("nij,nik->njk", rotations, rotations)
    proper = np.linalg.det(rotations) > 0
    if np.abs(products - np.eye(3)).max() > ORTHOGONALITY or not proper.all():
        raise InputError(f"{path}: {ROTATIONS} must be rotation matrices of determinant 1")
