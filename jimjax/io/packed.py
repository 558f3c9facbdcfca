"""Packed particles: any number of volumes of one box in one compressed, chunked Zarr group.

A group of version 3 holds an array ``volumes`` ``(n, z, y, x)``. Its chunks of a few particles lie
in files of many (shards), compressed by zstd and with a checksum each. In float16 a
volume is kept at zero mean and unit deviation, so that no value is out of range, and arrays
``offsets`` and ``scales`` ``(n,)`` turn it back: ``volume = offset + scale * stored``. In float32
it is kept as it is.
"""

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jimjax.io import mrc
from jimjax.io.files import PathLike
from jimjax.io.zarr import (
    ZarrFormatError,
    check_folder,
    first_line,
    open_array,
    read,
    read_metadata,
)

if TYPE_CHECKING:
    import tensorstore

VERSION = 1  # of the layout
MAX_RATIO = 1000  # of voxels to what they are compressed to; noise hardly can be
CHUNK_BYTES, SHARD_BYTES = 2**16, 2**26  # before compression
VOLUMES, OFFSETS, SCALES, GROUP = "volumes", "offsets", "scales", "zarr.json"
_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_CODECS = [_ENDIAN, {"name": "zstd", "configuration": {"level": 1}}, {"name": "crc32c"}]

Precision = Literal["float16", "float32"]


class Packed(NamedTuple):
    """A store that is open for reading, by several threads at once if need be.

    Attributes:
        path: of the group.
        shape: ``(n, z, y, x)``.
        voxel_size: angstrom.
        volumes: the array.
        offsets: ``(n,)`` float32; None where volumes are kept as they are.
        scales: likewise.
    """

    path: Path
    shape: tuple[int, ...]
    voxel_size: float
    volumes: "tensorstore.TensorStore"
    offsets: np.ndarray | None
    scales: np.ndarray | None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Reads some particles as ``(m, z, y, x)`` float32.

        Args:
            rows: ``(m,)``, counted from 0.

        Raises:
            ZarrFormatError: if they are missing or damaged.
        """
        rows = np.asarray(rows)
        found = read(self.volumes.oindex[rows], self.path).astype(np.float32, copy=False)
        if self.scales is not None:
            found *= self.scales[rows, None, None, None]
            found += self.offsets[rows, None, None, None]
        return found


def open_packed(path: PathLike) -> Packed:
    """Opens what ``write_packed`` has written.

    Raises:
        ZarrFormatError: if it is something else, damaged, or holds symbolic links.
    """
    path = Path(path)
    num_bytes = check_folder(path)
    attributes = read_metadata(path / GROUP).get("attributes")
    found = attributes.get("jimjax") if isinstance(attributes, dict) else None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ZarrFormatError(
            f"{path}: holds no packed particles of version {VERSION}; make them with jimjax pack"
        )
    voxel_size = found.get("voxel_size")
    if not (isinstance(voxel_size, int | float) and np.isfinite(voxel_size) and voxel_size > 0):
        raise ZarrFormatError(f"{path}: voxel size must be positive, got {voxel_size}; pack again")
    volumes = open_array(path / VOLUMES, "zarr3", fills_missing=False)
    shape, dtype = volumes.shape, np.dtype(volumes.dtype.numpy_dtype)
    if len(shape) != 4 or min(shape) < 1 or len(set(shape[1:])) > 1 or dtype.kind != "f":
        raise ZarrFormatError(
            f"{path}: expected cubes (n, z, y, x) of floats, found {dtype} of shape {shape};"
            " pack again"
        )
    if math.prod(shape) * dtype.itemsize > MAX_RATIO * num_bytes:
        raise ZarrFormatError(
            f"{path}: announces {shape[0]} particles, more than {num_bytes} bytes can hold;"
            " copy or pack it again"
        )
    offsets = scales = None
    if dtype == np.float16:
        offsets, scales = (_read_column(path, name, shape[0]) for name in (OFFSETS, SCALES))
    return Packed(path, shape, float(voxel_size), volumes, offsets, scales)


def read_voxel_size(path: PathLike) -> float | None:
    """Reads the voxel size in angstrom of an image file or a packed store; None if not told.

    Raises:
        InputError: if it cannot be read.
    """
    return open_packed(path).voxel_size if os.path.isdir(path) else mrc.read_voxel_size(path)


def write_packed(
    path: PathLike,
    volumes: Callable[[np.ndarray], np.ndarray],
    num: int,
    box: int,
    *,
    voxel_size: float,
    precision: Precision = "float16",
) -> None:
    """Writes a store, a shard at a time; it is there whole or not at all.

    Args:
        path: group to make, in a folder that exists.
        volumes: ``(m,) rows -> (m, z, y, x)`` float32, finite, a new array; each row is asked for
            once, in order.
        num: how many there are.
        box: side of each, voxels.
        voxel_size: angstrom.
        precision: of the voxels that are kept.

    Raises:
        OSError: if the disk fails; nothing is left behind then.
    """
    path = Path(path)
    draft = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        _write_arrays(draft, volumes, (num, box, box, box), precision)
        metadata = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"jimjax": {"version": VERSION, "voxel_size": voxel_size}},
        }
        (draft / GROUP).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        os.rename(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_arrays(
    folder: Path,
    volumes: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, int, int, int],
    precision: Precision,
) -> None:
    num, step = shape[0], particles_at_a_time(shape[-1], precision)
    array = _create(folder / VOLUMES, shape, precision)
    offsets, scales = np.zeros(num, np.float32), np.ones(num, np.float32)
    for first in range(0, num, step):
        rows = np.arange(first, min(first + step, num))
        part = volumes(rows)
        stored = np.empty(part.shape, precision)
        for row, volume, place in zip(rows, part, stored, strict=True):
            if precision == "float16":
                offsets[row] = volume.mean(dtype=np.float64)
                volume -= offsets[row]
                deviation = volume.std(dtype=np.float64)
                scales[row] = max(deviation, np.finfo(np.float32).tiny)
                volume /= scales[row]
            place[...] = volume
        _write(array[first : first + len(rows)], stored, folder)
    if precision == "float16":
        for name, values in ((OFFSETS, offsets), (SCALES, scales)):
            _write(_create(folder / name, (num,), "float32"), values, folder)


def particles_at_a_time(box: int, precision: Precision) -> int:
    """Particles of a shard, which are in memory together when one is written."""
    per_chunk = _particles_of_chunk(box, precision)
    return max(1, SHARD_BYTES // (per_chunk * _bytes_of(box, precision))) * per_chunk


def _particles_of_chunk(box: int, precision: Precision) -> int:
    return max(1, CHUNK_BYTES // _bytes_of(box, precision))


def _bytes_of(box: int, precision: Precision) -> int:
    return box**3 * np.dtype(precision).itemsize


def _create(path: Path, shape: tuple[int, ...], precision: Precision) -> "tensorstore.TensorStore":
    import tensorstore

    chunk, inner = shape, shape
    if len(shape) == 4:
        chunk = (particles_at_a_time(shape[-1], precision), *shape[1:])
        inner = (_particles_of_chunk(shape[-1], precision), *shape[1:])
    index = [_ENDIAN, {"name": "crc32c"}]
    sharding = {"chunk_shape": inner, "codecs": _CODECS, "index_codecs": index}
    metadata: dict[str, Any] = {
        "shape": shape,
        "data_type": precision,
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": os.path.abspath(path) + os.sep},
        "metadata": metadata,
        "store_data_equal_to_fill_value": True,  # what is not there is an error to the reader
    }
    try:
        return tensorstore.open(spec, create=True).result()
    except ValueError as problem:
        raise OSError(f"{path.parent}: cannot be written: {first_line(problem)}") from problem


def _write(view: "tensorstore.TensorStore", values: np.ndarray, folder: Path) -> None:
    try:
        view.write(values).result()
    except ValueError as problem:
        raise OSError(f"{folder}: cannot be written: {first_line(problem)}") from problem


def _read_column(path: Path, name: str, num: int) -> np.ndarray:
    array = open_array(path / name, "zarr3", fills_missing=False)
    values = read(array, path / name) if array.shape == (num,) else np.array(np.nan)
    if not np.all(np.isfinite(values)):
        raise ZarrFormatError(f"{path / name}: expected {num} finite numbers; pack again")
    return values.astype(np.float32)
