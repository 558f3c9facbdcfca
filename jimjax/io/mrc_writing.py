"""What MRC writers share: voxels are checked, and a header says what they are."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike

import jimjax
from jimjax.io.errors import InputError
from jimjax.io.files import PathLike

VOLUME_STACK_SPACE_GROUP = 401  # MRC2014: 401-630 are stacks of volumes
MODES = {"|i1": 0, "<f4": 2}  # of what is written here


class Statistics(NamedTuple):
    """What a header tells about the voxels; computed in float64.

    Attributes:
        low: the smallest value.
        high: the largest.
        mean: of all voxels.
        deviation: their standard deviation, which the format calls rms.
    """

    low: float
    high: float
    mean: float
    deviation: float


def describe(data: np.ndarray) -> Statistics:
    """Computes the statistics of an array of any shape."""
    mean, deviation = data.mean(dtype=np.float64), data.std(dtype=np.float64)
    return Statistics(data.min(), data.max(), mean, deviation)


def describe_whole(parts: Sequence[Statistics]) -> Statistics:
    """Computes the statistics of an array from those of parts that have as many voxels each."""
    low, high, mean, deviation = np.asarray(parts, np.float64).T
    variance = np.mean(deviation**2) + np.var(mean)  # within the parts and between them
    return Statistics(low.min(), high.max(), mean.mean(), np.sqrt(variance))


def make_header(
    shape: tuple[int, ...], voxel_size: float, statistics: Statistics, dtype: np.dtype
) -> bytes:
    """Makes a header.

    Args:
        shape: ``(z, y, x)`` of one volume, or ``(n, z, y, x)`` of a stack.
        voxel_size: angstrom per voxel.
        statistics: of all voxels.
        dtype: int8 (mode 0) or little-endian float32 (mode 2).

    Returns:
        1024 bytes.
    """
    nz, ny, nx = shape[-3:]
    header = np.zeros((), dtype=HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"] = nx, ny, math.prod(shape[:-2])
    header["mode"] = MODES[dtype.str]
    header["mx"], header["my"], header["mz"] = nx, ny, nz
    header["cella"] = (nx * voxel_size, ny * voxel_size, nz * voxel_size)
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = statistics
    header["ispg"] = VOLUME_STACK_SPACE_GROUP if len(shape) == 4 else 1
    header["nversion"] = 20141
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = f"jimjax {jimjax.__version__}".encode()
    return header.tobytes()


def check_target(path: PathLike) -> None:
    """Refuses a name that announces a compressed file.

    Raises:
        InputError: if it does.
    """
    if str(path).lower().endswith((".gz", ".bz2")):
        raise InputError(f"{path}: is written uncompressed; leave off the last suffix")


def checked_voxel_size(path: PathLike, voxel_size: float) -> float:
    """Returns a voxel size that is positive and finite.

    Raises:
        InputError: if it is not.
    """
    if not (np.isfinite(voxel_size) and voxel_size > 0):
        raise InputError(f"{path}: voxel_size must be positive and finite, got {voxel_size}")
    return float(voxel_size)


def checked_data(
    path: PathLike, data: ArrayLike, ndim: int, *, first_section: int = 0
) -> np.ndarray:
    """Returns voxels as the file will hold them, contiguous int8 for booleans, else float32.

    Args:
        path: file to be written, for messages.
        data: ``(z, y, x)`` or ``(n, z, y, x)``.
        ndim: 3 or 4.
        first_section: number of the first along z, for messages.

    Raises:
        InputError: if they are of another rank, none, not real, or not finite in float32.
    """
    data = np.asarray(data)
    if data.ndim != ndim or data.size == 0:
        axes = "(z, y, x)" if ndim == 3 else "(n, z, y, x)"
        raise InputError(f"{path}: data must be a non-empty {axes} array, got shape {data.shape}")
    if data.dtype.kind not in "buif":
        raise InputError(f"{path}: data must be real numbers, got {data.dtype}; take the real part")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(data, dtype="i1" if data.dtype == bool else "<f4")
    bad = find_bad(data, first_section=first_section)
    if bad is not None:
        raise InputError(f"{path}: {bad}; nothing was written")
    return data


def find_bad(data: np.ndarray, *, first_section: int = 0) -> str | None:
    """Says how many voxels are not finite and where the first is; None if there are none."""
    is_finite = np.isfinite(data)
    num_bad = data.size - int(np.count_nonzero(is_finite))
    if num_bad == 0:
        return None
    first, *others = np.argwhere(~is_finite)[0].tolist()
    return (
        f"{num_bad} voxels are not finite in float32,"
        f" the first at {(first_section + first, *others)}"
    )
