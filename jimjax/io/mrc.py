"""MRC volumes and volume stacks, validated before any memory is taken.

The header's promise is computed in Python integers and compared with the file's size first;
compressed files (gzip, bzip2) are read as a stream, never past that promise. Files are only
ever opened for reading; writers replace their target in one step. A volume larger than the
memory is read by ranges of sections and written by slabs.

Reference: Cheng et al., J. Struct. Biol. 2015, "MRC2014: Extensions to the MRC format header
for electron cryo-microscopy and tomography"; IMOD's ``imodStamp`` fields.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jimjax.io.errors import InputError
from jimjax.io.files import PathLike, replace_file
from jimjax.io.mrc_header import (
    HEADER_BYTES,
    MrcFormatError,
    MrcHeader,
    MrcIndexError,
    OpenMrc,
    open_mrc,
)
from jimjax.io.mrc_writing import (
    check_target,
    checked_data,
    checked_voxel_size,
    describe,
    describe_whole,
    find_bad,
    make_header,
)

_INDEXED_NAME = re.compile(r"([+-]?[0-9][0-9.]*)@(.+)", re.DOTALL)

__all__ = [
    "ImageReference",
    "MrcFormatError",
    "MrcIndexError",
    "Stack",
    "Volume",
    "VolumeReader",
    "open_volume",
    "parse_image_name",
    "read_box",
    "read_images",
    "read_particle",
    "read_stack_image",
    "read_volume",
    "read_voxel_size",
    "write_slabs",
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
        _check_single(opened.header)
        size = _voxel_size(opened.header, voxel_size)
        return Volume(opened.read(range(1))[0], size)


class VolumeReader:
    """A volume whose sections are read when they are asked for; made by `open_volume`.

    Attributes:
        shape: ``(z, y, x)``, voxels.
        voxel_size: angstrom per voxel; None if the file does not tell.
    """

    def __init__(self, opened: OpenMrc, voxel_size: float | None):
        self.shape = opened.header.box
        self.voxel_size = voxel_size
        self._opened = opened

    def read(self, first: int, last: int) -> np.ndarray:
        """Reads sections ``first`` to ``last - 1`` along z.

        Returns:
            ``(last - first, y, x)`` float32, all finite; a new array each time.

        Raises:
            ValueError: if there are no such sections.
            InputError: if a voxel of theirs is not finite.
            MrcFormatError: if the file fails, or has been cut since it was opened.
        """
        if not 0 <= first < last <= self.shape[0]:
            raise ValueError(
                f"sections must be a range within 0 to {self.shape[0]}, got {first} to {last}"
            )
        sections = self._opened.read_sections(first, last)
        bad = find_bad(sections, first_section=first)
        if bad is not None:
            raise InputError(
                f"{self._opened.header.path}: {bad} in sections {first} to {last - 1}; replace them"
            )
        return sections

    def read_part(self, first: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
        """Reads a part that lies inside; of the file, only the rows of voxels that it touches.

        Args:
            first: (z, y, x) of its first voxel.
            size: (z, y, x).

        Returns:
            ``size`` float32, which may hold values that are not finite; a new array.

        Raises:
            MrcFormatError: as `read`; or if there are no such rows, as the file is compressed or
                its axes have another order.
        """
        return self._opened.read_part(first, size)


@contextlib.contextmanager
def open_volume(path: PathLike, *, voxel_size: float | None = None) -> Iterator[VolumeReader]:
    """Opens one volume to read ranges of its sections.

    Of a range, only its bytes are read. Exceptions are compressed files, which are unpacked whole
    when they are opened and kept in their own type, and files whose sections do not lie along z
    (maps other than 3), which are read whole the first time and kept as float32.

    Args:
        path: as in `read_volume`.
        voxel_size: as in `read_volume`.

    Yields:
        The reader; of no use once the block is left.

    Raises:
        MrcFormatError: as `read_volume`.
    """
    with open_mrc(path) as opened:
        _check_single(opened.header)
        yield VolumeReader(opened, _voxel_size(opened.header, voxel_size))


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
    """Writes one volume as float32 (mode 2), booleans as bytes 0 and 1 (mode 0), atomically.

    Args:
        path: file to make or replace.
        data: ``(z, y, x)``, boolean, or real and finite in float32.
        voxel_size: angstrom per voxel.

    Raises:
        InputError: if the data or the voxel size cannot be written, or the folder is missing.
        OSError: if the disk fails; the old file is then untouched.
    """
    _write(path, data, 3, voxel_size)


def write_slabs(
    path: PathLike,
    slabs: Iterable[ArrayLike],
    shape: tuple[int, int, int],
    *,
    voxel_size: float,
) -> None:
    """Writes one volume in the mode of `write_volume` slab by slab, atomically.

    Slabs are asked for one by one, and none is kept when the next is there. What is written does
    not depend on how the volume is cut into them.

    Args:
        path: file to make or replace.
        slabs: ``(sections, y, x)`` each, in order along z; all boolean, or all real and finite in
            float32.
        shape: ``(z, y, x)`` of the volume.
        voxel_size: angstrom per voxel.

    Raises:
        InputError: as `write_volume`; or if the slabs do not make up a volume of this shape.
            ``path`` is then as it was.
        OSError: if the disk fails; the old file is then untouched.
    """
    check_target(path)
    voxel_size = checked_voxel_size(path, voxel_size)
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: shape must be (z, y, x) of 1 voxel or more, got {shape}")
    done, parts, dtype = 0, [], None
    with replace_file(path) as stream:
        stream.write(bytes(HEADER_BYTES))  # until the statistics are known
        for slab in slabs:
            data = checked_data(path, slab, 3, first_section=done)
            if data.shape[1:] != tuple(shape[1:]) or done + len(data) > shape[0]:
                raise InputError(
                    f"{path}: a slab of shape {data.shape} after {done} sections does not fit a"
                    f" volume of shape {tuple(shape)}; nothing was written"
                )
            if data.dtype != (dtype or data.dtype):
                raise InputError(f"{path}: slabs are boolean and not; nothing was written")
            dtype = data.dtype
            stream.write(memoryview(data).cast("B"))
            parts += [describe(section) for section in data]
            done += len(data)
        if done < shape[0]:
            raise InputError(
                f"{path}: expected {shape[0]} sections, got {done}; nothing was written"
            )
        stream.seek(0)
        stream.write(make_header(shape, voxel_size, describe_whole(parts), dtype))


def write_stack(path: PathLike, data: ArrayLike, *, voxel_size: float) -> None:
    """Writes a stack of volumes (space group 401) in the mode of `write_volume`, atomically.

    Args:
        path: file to make or replace.
        data: ``(n, z, y, x)``, boolean, or real and finite in float32.
        voxel_size: angstrom per voxel.

    Raises:
        InputError, OSError: as `write_volume`.
    """
    _write(path, data, 4, voxel_size)


def _check_single(header: MrcHeader) -> None:
    if header.num_volumes > 1:
        raise MrcFormatError(
            f"{header.path}: expected one volume, found a stack of {header.num_volumes};"
            f" name one of them as NUMBER@{header.path}"
        )


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
    return checked_voxel_size(header.path, override)


def _write(path: PathLike, data: ArrayLike, ndim: int, voxel_size: float) -> None:
    check_target(path)
    data = checked_data(path, data, ndim)
    voxel_size = checked_voxel_size(path, voxel_size)
    with replace_file(path) as stream:
        stream.write(make_header(data.shape, voxel_size, describe(data), data.dtype))
        stream.write(memoryview(data).cast("B"))
