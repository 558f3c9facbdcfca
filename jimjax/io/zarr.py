"""Zarr arrays of versions 2 and 3, opened for reading through tensorstore.

Tensorstore follows symbolic links: a folder from a stranger could show any file of this host as
voxels. One that holds links is therefore refused before anything in it is read.
"""

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jimjax.io.errors import InputError
from jimjax.io.files import PathLike, open_input

if TYPE_CHECKING:
    import tensorstore

MAX_CHUNK_BYTES = 2**30  # unpacked; a small file must not fill the memory
MAX_METADATA_BYTES = 2**24
CACHE_BYTES = 2**26  # of one array: what of it was read last, indices of shards above all

Driver = Literal["zarr", "zarr3"]


class ZarrFormatError(InputError):
    """A Zarr folder that cannot be read as what it should be."""


def check_folder(path: PathLike) -> int:
    """Sees that a folder holds nothing but folders and regular files, and how many bytes these.

    Raises:
        ZarrFormatError: if it is no folder, cannot be listed, or holds links or special files.
    """

    def fail(problem: OSError) -> None:
        raise ZarrFormatError(
            f"{problem.filename}: cannot be read: {problem.strerror}; check the path"
        ) from problem

    num_bytes = 0
    for folder, folders, files in os.walk(path, onerror=fail):
        for name in (*folders, *files):
            entry = os.path.join(folder, name)
            found = os.lstat(entry)
            mode, num_bytes = found.st_mode, num_bytes + found.st_size
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
                place = os.path.relpath(entry, path)
                raise ZarrFormatError(
                    f"{path}: {place} is {kind}, which is not followed; copy the files themselves"
                )
    return num_bytes


def read_metadata(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ZarrFormatError: if the file is missing, large or holds no object.
    """
    with open_input(path, ZarrFormatError) as stream:
        text = stream.read(MAX_METADATA_BYTES + 1)
    try:
        found = json.loads(text) if len(text) <= MAX_METADATA_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ZarrFormatError(f"{path}: holds no Zarr metadata; copy or make it again")
    return found


def open_array(path: PathLike, driver: Driver, *, fills_missing: bool) -> "tensorstore.TensorStore":
    """Opens an array of a folder that ``check_folder`` has seen.

    Args:
        path: of the array's own folder.
        driver: "zarr" for version 2, "zarr3" for version 3.
        fills_missing: a chunk that is not there is full of the fill value, as the format has it;
            otherwise reading it is an error.

    Raises:
        ZarrFormatError: if there is no such array, it is damaged, no array of real numbers, or its
            chunks are too large.
    """
    import tensorstore

    spec = {
        "driver": driver,
        "kvstore": {"driver": "file", "path": os.path.abspath(path) + os.sep},
        "fill_missing_data_reads": fills_missing,
    }
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    try:
        array = tensorstore.open(spec, read=True, context=context).result()
        dtype = np.dtype(array.dtype.numpy_dtype)
    except (ValueError, TypeError, NotImplementedError) as problem:
        raise _unreadable(path, problem) from problem
    if dtype.kind not in "iuf":
        raise ZarrFormatError(f"{path}: expected real numbers, found {dtype}; convert them")
    num_bytes = int(np.prod(array.chunk_layout.read_chunk.shape, dtype=float)) * dtype.itemsize
    if num_bytes > MAX_CHUNK_BYTES:
        raise ZarrFormatError(
            f"{path}: a chunk takes {num_bytes} bytes, more than the {MAX_CHUNK_BYTES} allowed;"
            " write it again in smaller chunks"
        )
    return array


def read(view: "tensorstore.TensorStore", path: PathLike) -> np.ndarray:
    """Reads all of an array, or of a part of one; a new array.

    Args:
        view: what to read.
        path: of the array, for messages.

    Raises:
        ZarrFormatError: if a chunk is missing or damaged.
    """
    try:
        return np.asarray(view.read().result())
    except (ValueError, IndexError, NotImplementedError) as problem:
        raise _unreadable(path, problem) from problem


def first_line(problem: Exception) -> str:
    """What tensorstore says, without where in its own source it says so."""
    return str(problem).partition(" [")[0].splitlines()[0]


def _unreadable(path: PathLike, problem: Exception) -> ZarrFormatError:
    return ZarrFormatError(f"{path}: cannot be read: {first_line(problem)}; copy or make it again")
