"""Tomograms of which boxes are read: MRC files, and OME-Zarr groups.

References: Cheng et al., J. Struct. Biol. 2015 (MRC2014); the OME-NGFF specification, versions 0.4
(Zarr 2) and 0.5 (Zarr 3): multiscales, axes, coordinateTransformations.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jimjax.io.files import PathLike
from jimjax.io.mrc import VolumeReader, open_volume
from jimjax.io.mrc_header import ANISOTROPY_ERROR
from jimjax.io.zarr import Driver, ZarrFormatError, check_folder, open_array, read, read_metadata

MAX_OPEN = 64  # files at a time
# Angstrom in a unit of length, as UDUNITS-2 spells those that tomograms are measured in.
ANGSTROM = {
    "angstrom": 1.0,
    "picometer": 1e-2,
    "nanometer": 1e1,
    "micrometer": 1e4,
    "millimeter": 1e7,
    "meter": 1e10,
}


class Tomogram(NamedTuple):
    """A tomogram of which parts are read, by several threads at once if need be.

    Attributes:
        path: of the file or group.
        shape: ``(z, y, x)``, voxels.
        voxel_size: angstrom; None if not told.
        read: ``(first, size) -> `` float32 of that size, both (z, y, x), inside the tomogram.
    """

    path: Path
    shape: tuple[int, int, int]
    voxel_size: float | None
    read: Callable[[tuple[int, int, int], tuple[int, int, int]], np.ndarray]


def open_tomogram(path: PathLike, *, voxel_size: float | None = None) -> Tomogram:
    """Opens a tomogram: a folder is OME-Zarr, of which the finest scale is read; a file is MRC.

    Args:
        path: of it.
        voxel_size: angstrom; if given, that of the file is neither used nor checked.

    Raises:
        InputError: if it is unreadable, damaged, or has another number of axes than three, apart
            from those of length one.
    """
    path = Path(path)
    return _open_zarr(path, voxel_size) if path.is_dir() else _open_mrc(path, voxel_size)


def _open_mrc(path: Path, voxel_size: float | None) -> Tomogram:
    with open_volume(path, voxel_size=voxel_size) as volume:
        shape, size = volume.shape, volume.voxel_size
        volume.read_part((0, 0, 0), (1, 1, 1))  # fails now rather than later
    return Tomogram(path, shape, size, functools.partial(_read_mrc, path, voxel_size or 1.0))


def _read_mrc(
    path: Path, voxel_size: float, first: tuple[int, int, int], size: tuple[int, int, int]
) -> np.ndarray:
    with _OPENING:
        held = _hold(path, voxel_size)
    with held.lock:
        return held.volume.read_part(first, size)


class _Held(NamedTuple):
    volume: VolumeReader
    lock: threading.Lock  # a file has one position
    closing: contextlib.ExitStack  # the file is closed when nobody holds it any more


_OPENING = threading.Lock()


@functools.lru_cache(MAX_OPEN)
def _hold(path: Path, voxel_size: float) -> _Held:
    closing = contextlib.ExitStack()
    volume = closing.enter_context(open_volume(path, voxel_size=voxel_size))
    return _Held(volume, threading.Lock(), closing)


def _open_zarr(path: Path, voxel_size: float | None) -> Tomogram:
    check_folder(path)
    driver, multiscale = _read_multiscale(path)
    names, units = _axes(path, multiscale)
    dataset = _objects(multiscale.get("datasets"))[0]
    place = PurePosixPath(str(dataset.get("path", "")))
    if place.is_absolute() or ".." in place.parts:
        raise ZarrFormatError(f"{path}: its array {place} lies outside; correct the metadata")
    folder = path / place
    array = open_array(folder, driver, fills_missing=True)
    if array.rank != len(names):
        raise ZarrFormatError(f"{path}: {place} has {array.rank} axes, {len(names)} are described")
    lengths = dict(zip(names, array.shape, strict=True))
    others = [name for name in names if name not in units]
    if any(lengths[name] != 1 for name in others):
        listed = ", ".join(f"{name} {lengths[name]}" for name in names)
        raise ZarrFormatError(
            f"{path}: expected one volume, its axes are {listed}; save one channel and time alone"
        )
    order = [names.index(name) for name in units]
    at_first = tuple(0 if name in others else slice(None) for name in names)
    volume = array[at_first].transpose(list(np.argsort(np.argsort(order))))
    if voxel_size is None:
        voxel_size = _voxel_size(path, [multiscale, dataset], order, list(units.values()))

    def read_part(first: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
        part = tuple(
            slice(start, start + length) for start, length in zip(first, size, strict=True)
        )
        return read(volume[part], folder).astype(np.float32, copy=False)

    return Tomogram(path, tuple(lengths[name] for name in units), voxel_size, read_part)


def _read_multiscale(path: Path) -> tuple[Driver, dict[str, Any]]:
    """The first multiscale image of a group, and how its arrays are stored."""
    driver: Driver = "zarr3" if os.path.exists(path / "zarr.json") else "zarr"
    if driver == "zarr3":
        attributes = read_metadata(path / "zarr.json").get("attributes")
        found = attributes.get("ome") if isinstance(attributes, dict) else None
    else:
        found = read_metadata(path / ".zattrs")
    listed = _objects(found.get("multiscales") if isinstance(found, dict) else None)
    if not listed or not _objects(listed[0].get("datasets")):
        raise ZarrFormatError(
            f"{path}: holds no multiscale image of OME-Zarr 0.4 or 0.5; convert it, or give an MRC"
            " file"
        )
    return driver, listed[0]


def _axes(path: Path, multiscale: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Names of all axes in order, and the units of z, y and x."""
    axes = _objects(multiscale.get("axes"))
    names = [str(axis.get("name")) for axis in axes]
    if len(set(names)) < len(names) or not {"z", "y", "x"} <= set(names):
        raise ZarrFormatError(
            f"{path}: expected axes z, y and x, found {', '.join(names) or 'none'}; correct the"
            " metadata"
        )
    units = {name: axes[names.index(name)].get("unit") for name in ("z", "y", "x")}
    return names, units


def _voxel_size(
    path: Path, levels: list[Mapping[str, Any]], order: list[int], units: list[Any]
) -> float | None:
    """The product of the scales of a dataset and of its image, in angstrom."""
    if not all(isinstance(unit, str) and unit in ANGSTROM for unit in units):
        return None
    sizes = np.array([ANGSTROM[unit] for unit in units])
    for level in levels:
        for change in _objects(level.get("coordinateTransformations")):
            scale = change.get("scale")
            if change.get("type") == "scale" and isinstance(scale, list):
                sizes *= _numbers(path, scale, order)
    if not np.all(np.isfinite(sizes) & (sizes > 0)):
        return None
    if np.ptp(sizes) > ANISOTROPY_ERROR * sizes.mean():
        text = " x ".join(f"{size:.5g}" for size in sizes[::-1])
        raise ZarrFormatError(
            f"{path}: expected cubic voxels, the metadata says {text} A; give the voxel size"
            " explicitly, or correct the metadata"
        )
    return float(sizes.mean())


def _numbers(path: Path, scale: list[Any], order: list[int]) -> np.ndarray:
    try:
        return np.array([float(scale[axis]) for axis in order])
    except (IndexError, TypeError, ValueError) as problem:
        raise ZarrFormatError(
            f"{path}: scale {scale} has no number for each axis; correct the metadata"
        ) from problem


def _objects(found: Any) -> list[Mapping[str, Any]]:
    """The JSON objects of a list; none where something else was written."""
    listed = found if isinstance(found, list) else []
    return [each for each in listed if isinstance(each, dict)]
