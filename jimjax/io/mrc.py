"""MRC volumes and volume stacks, validated before any memory is taken.

The header's promise is computed in Python integers and compared with the file's size first;
compressed files (gzip, bzip2) are read as a stream, never past that promise. Files are only
ever opened for reading; writers replace their target in one step.

Reference: Cheng et al., J. Struct. Biol. 2015, "MRC2014: Extensions to the MRC format header
for electron cryo-microscopy and tomography"; IMOD's ``imodStamp`` fields.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import ArrayLike

import jimjax
from jimjax.io.errors import InputError
from jimjax.io.files import PathLike, replace_file
from jimjax.io.mrc_header import MrcFormatError, MrcHeader, MrcIndexError, open_mrc

VOLUME_STACK_SPACE_GROUP = 401  # MRC2014: 401-630 are stacks of volumes
_INDEXED_NAME = re.compile(r"([+-]?[0-9][0-9.]*)@(.+)", re.DOTALL)

__all__ = [
    "ImageReference",
    "MrcFormatError",
    "MrcIndexError",
    "Stack",
    "Volume",
    "parse_image_name",
    "read_box",
    "read_images",
    "read_particle",
    "read_stack_image",
    "read_volume",
    "read_voxel_size",
    "write_stack",
    "write_volume",
]


class Volume(NamedTuple):
    """One volume.

    Attributes:
        data: ``(z, y, x)`` float32.
        voxel_size: angstrom per voxel; None if the file does not tell.
    """

    data: np.ndarray
    voxel_size: float | None


class Stack(NamedTuple):
    """Several volumes of one file.

    Attributes:
        data: ``(n, z, y, x)`` float32.
        voxel_size: angstrom per voxel; None if the file does not tell.
    """

    data: np.ndarray
    voxel_size: float | None


class ImageReference(NamedTuple):
    """Where one particle's volume lies.

    Attributes:
        index: 1-based number in a stack; None for a file that holds one volume.
        path: the file.
    """

    index: int | None
    path: Path


def parse_image_name(name: str) -> ImageReference:
    """Splits ``N@stack.mrcs`` or the path of one volume; touches no file.

    Raises:
        InputError: if the name is empty or ``N`` is no number from 1 up.
    """
    match = _INDEXED_NAME.fullmatch(name)
    if match is None:
        if not name or name.startswith("@") or name.endswith("@"):
            raise InputError(f"image name '{name}' names no file; write PATH or NUMBER@PATH")
        return ImageReference(None, Path(name))
    digits, path = match.groups()
    if not re.fullmatch(r"[0-9]{1,12}", digits) or int(digits) == 0:
        raise InputError(f"image name '{name}': '{digits}' must be a whole number, counted from 1")
    return ImageReference(int(digits), Path(path))


def read_volume(path: PathLike, *, voxel_size: float | None = None) -> Volume:
    """Reads one volume of modes 0, 1, 2, 6 or 12.

    Args:
        path: MRC file, possibly gzip or bzip2 compressed.
        voxel_size: angstrom; if given, the header's is neither used nor checked.

    Returns:
        The volume in ``[z, y, x]`` order whatever the order of axes in the file.

    Raises:
        MrcFormatError: if the file is unreadable, damaged, of another mode, a stack of several
            volumes, or its voxels are anisotropic by more than 1 %.
    """
    with open_mrc(path) as opened:
        header = opened.header
        if header.num_volumes > 1:
            raise MrcFormatError(
                f"{path}: expected one volume, found a stack of {header.num_volumes};"
                f" name one of them as NUMBER@{path}"
            )
        size = _voxel_size(header, voxel_size)
        return Volume(opened.read(range(1))[0], size)


def read_images(
    path: PathLike, indices: Sequence[int] | None = None, *, voxel_size: float | None = None
) -> Stack:
    """Reads several volumes of one file, which is opened once.

    Args:
        path: volume stack, or a file with one volume (which then has index 1).
        indices: 1-based numbers, in any order; all if None.
        voxel_size: as in `read_volume`.

    Raises:
        MrcFormatError: as `read_volume`; or if an index is out of range, or the file is a stack
            of 2-D images.
    """
    with open_mrc(path) as opened:
        header = opened.header
        count = header.num_volumes
        wanted = range(1, count + 1) if indices is None else indices
        for index in wanted:
            if not 1 <= index <= count:
                raise MrcIndexError(f"{path}: no volume {index}, {_holding(header)}", index)
        size = _voxel_size(header, voxel_size)
        return Stack(opened.read([index - 1 for index in wanted]), size)


def read_box(path: PathLike) -> tuple[int, int, int]:
    """Reads the (z, y, x) size of one volume of a file, from its header.

    Raises:
        MrcFormatError: as `read_volume`.
    """
    with open_mrc(path) as opened:
        return opened.header.box


def read_voxel_size(path: PathLike) -> float | None:
    """Reads the voxel size in angstrom from a file's header; None if it does not tell.

    Raises:
        MrcFormatError: as `read_volume`.
    """
    with open_mrc(path) as opened:
        return opened.header.voxel_size()


def read_stack_image(path: PathLike, index: int, *, voxel_size: float | None = None) -> Volume:
    """Reads volume number ``index`` (from 1) of a stack.

    Raises:
        MrcFormatError: as `read_images`.
    """
    stack = read_images(path, [index], voxel_size=voxel_size)
    return Volume(stack.data[0], stack.voxel_size)


def read_particle(name: str | PathLike, *, voxel_size: float | None = None) -> Volume:
    """Reads ``N@stack.mrcs`` (N from 1) or the path of one volume.

    Raises:
        InputError: if the name is malformed.
        MrcFormatError: as `read_volume` and `read_images`.
    """
    reference = parse_image_name(str(name))
    if reference.index is None:
        return read_volume(reference.path, voxel_size=voxel_size)
    return read_stack_image(reference.path, reference.index, voxel_size=voxel_size)


def write_volume(path: PathLike, data: ArrayLike, *, voxel_size: float) -> None:
    """Writes one volume as float32 (mode 2), atomically.

    Args:
        path: file to make or replace.
        data: ``(z, y, x)``, real and finite in float32.
        voxel_size: angstrom per voxel.

    Raises:
        InputError: if the data or the voxel size cannot be written, or the folder is missing.
        OSError: if the disk fails; the old file is then untouched.
    """
    _write(path, _checked(path, data, 3), voxel_size)


def write_stack(path: PathLike, data: ArrayLike, *, voxel_size: float) -> None:
    """Writes a stack of volumes as float32 (mode 2, space group 401), atomically.

    Args:
        path: file to make or replace.
        data: ``(n, z, y, x)``, real and finite in float32.
        voxel_size: angstrom per voxel.

    Raises:
        InputError, OSError: as `write_volume`.
    """
    _write(path, _checked(path, data, 4), voxel_size)


def _holding(header: MrcHeader) -> str:
    if header.num_volumes > 1:
        return f"the file holds {header.num_volumes}, counted from 1"
    return (
        f"the file holds one volume of {header.shape[0]} sections; a stack of volumes has space"
        " group 401 and the sections of one volume in mz, a stack of 2-D images cannot be used"
    )


def _voxel_size(header: MrcHeader, override: float | None) -> float | None:
    if override is None:
        return header.voxel_size()
    return _checked_voxel_size(header.path, override)


def _checked_voxel_size(path: PathLike, voxel_size: float) -> float:
    if not (np.isfinite(voxel_size) and voxel_size > 0):
        raise InputError(f"{path}: voxel_size must be positive and finite, got {voxel_size}")
    return float(voxel_size)


def _checked(path: PathLike, data: ArrayLike, ndim: int) -> np.ndarray:
    if str(path).lower().endswith((".gz", ".bz2")):
        raise InputError(f"{path}: is written uncompressed; leave off the last suffix")
    data = np.asarray(data)
    if data.ndim != ndim or data.size == 0:
        axes = "(z, y, x)" if ndim == 3 else "(n, z, y, x)"
        raise InputError(f"{path}: data must be a non-empty {axes} array, got shape {data.shape}")
    if data.dtype.kind not in "buif":
        raise InputError(f"{path}: data must be real numbers, got {data.dtype}; take the real part")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(data, dtype="<f4")
    num_bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if num_bad:
        first = tuple(np.argwhere(~np.isfinite(data))[0].tolist())
        raise InputError(
            f"{path}: {num_bad} voxels are not finite in float32, the first at {first};"
            " nothing was written"
        )
    return data


def _write(path: PathLike, data: np.ndarray, voxel_size: float) -> None:
    voxel_size = _checked_voxel_size(path, voxel_size)
    nz, ny, nx = data.shape[-3:]
    header = np.zeros((), dtype=HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"] = nx, ny, data.size // (ny * nx)
    header["mode"] = 2
    header["mx"], header["my"], header["mz"] = nx, ny, nz
    header["cella"] = (nx * voxel_size, ny * voxel_size, nz * voxel_size)
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"] = data.min(), data.max()
    header["dmean"], header["rms"] = data.mean(dtype=np.float64), data.std(dtype=np.float64)
    header["ispg"] = VOLUME_STACK_SPACE_GROUP if data.ndim == 4 else 1
    header["nversion"] = 20141
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = f"jimjax {jimjax.__version__}".encode()
    with replace_file(path) as stream:
        stream.write(header.tobytes())
        stream.write(memoryview(data).cast("B"))
