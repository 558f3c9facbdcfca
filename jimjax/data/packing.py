"""Particles of many files, or of tomograms, into one store that training reads by chunks."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jimjax.data.columns import HALF, OLD_ORIGINS, ORIGINS, TILT_LIMITS, halves_of, shifts_of
from jimjax.data.images import settle_voxels
from jimjax.data.opening import Opened, open_particles
from jimjax.io import star
from jimjax.io.convert import relion_from_shift
from jimjax.io.errors import InputError
from jimjax.io.files import PathLike
from jimjax.io.packed import Precision, write_packed
from jimjax.progress import Progress

STORE, TABLE = "volumes.zarr", "particles.star"


class PackedSet(NamedTuple):
    """What was packed.

    Attributes:
        num_particles: how many.
        num_bytes: of the store's files.
        star_path: that lists them.
    """

    num_particles: int
    num_bytes: int
    star_path: Path


def pack(
    star_path: PathLike,
    folder: PathLike,
    *,
    precision: Precision = "float16",
    box: int | None = None,
    voxel_size: float | None = None,
    tilt_range: tuple[float, float] | None = None,
    allow_outside: bool = True,
    progress: Progress | None = None,
) -> PackedSet:
    """Writes particles into ``folder/volumes.zarr``, and the table that names them beside it.

    A small part of them is in memory at a time. Columns and blocks of the table are kept; image
    names are those in the store, and half sets that were a matter of the old names are written.

    Args:
        star_path: RELION particle STAR file.
        folder: to make; neither of the two may be in it.
        precision: of the voxels, "float16" or "float32"; see ``io.packed``.
        box: side in voxels of boxes to cut out of tomograms, instead of reading images; see
            ``open_boxes``. What is left of a position goes into the particle's origin.
        voxel_size: angstrom; from the table, or else the files, if None.
        tilt_range: lowest and highest tilt of all particles, degrees, for the new table.
        allow_outside: also read files that are none of the project's, see ``io.places``.
        progress: told of every part.

    Returns:
        What was packed.

    Raises:
        InputError: if a particle cannot be read, is not finite or constant, or something is there.
        OSError: if the disk fails. In either case nothing is left behind.
    """
    folder = Path(folder)
    for name in (STORE, TABLE):
        if (folder / name).exists():
            raise InputError(f"{folder / name}: exists; choose another folder")
    table = star.read_particles(star_path)
    opened = open_particles(table, voxel_size=voxel_size, box=box, allow_outside=allow_outside)
    num, size = len(opened.volumes), opened.volumes.shape[-1]

    def read(rows: np.ndarray) -> np.ndarray:
        volumes = opened.volumes[rows]
        if not opened.is_checked:
            settle_voxels(opened.table, volumes, opened.names, first=int(rows[0]))
        if progress is not None:
            done = int(rows[-1]) + 1
            progress.update("pack", done, num, {"GiB": done * volumes[0].nbytes / 2**30})
        return volumes

    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / STORE
    try:
        write_packed(store, read, num, size, voxel_size=opened.voxel_size, precision=precision)
        _table(opened, folder, tilt_range, is_cut=box is not None).write(folder / TABLE)
    except BaseException:
        shutil.rmtree(store, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    num_bytes = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return PackedSet(num, num_bytes, folder / TABLE)


def _table(
    opened: Opened, folder: Path, tilt_range: tuple[float, float] | None, *, is_cut: bool
) -> star.ParticleTable:
    """The table of the store, for ``folder``."""
    table, num = opened.table, len(opened.table)
    columns: dict[str, object] = {HALF: halves_of(table)}
    if is_cut:
        is_old = OLD_ORIGINS[0] in table.columns and ORIGINS[0] not in table.columns
        names, unit = (OLD_ORIGINS, 1.0) if is_old else (ORIGINS, opened.voxel_size)
        shifts = shifts_of(table, opened.voxel_size) + opened.shifts
        columns |= dict(zip(names, relion_from_shift(shifts, unit).T, strict=True))
    if tilt_range is not None:
        for name, limit in zip(TILT_LIMITS, tilt_range, strict=True):
            columns[name] = np.full(num, limit)
    images = [f"{number:06d}@{STORE}" for number in range(1, num + 1)]
    moved = table.with_columns(columns).with_image_paths_relative_to(folder)
    return replace(moved, path=folder / TABLE).with_columns({star.IMAGE_COLUMN: images})
