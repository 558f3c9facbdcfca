"""Particles that are cut out of their tomograms when they are asked for.

A table says where they are: ``rlnCoordinateX``, ``Y``, ``Z`` in voxels of the tomogram, the first
voxel being 0, as ``jimjax match`` writes them. A box is cut at whole voxels; what a position has
beyond them is part of the particle's shift.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jimjax.data.columns import header_voxel_size, voxel_size_of
from jimjax.data.lazy import LazyVolumes
from jimjax.io import star
from jimjax.io.errors import InputError, InputWarning
from jimjax.io.tomograms import Tomogram, open_tomogram

COORDINATES = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
TOMOGRAMS = ("rlnMicrographName", "rlnTomoName")  # the first there is names the tomogram's file


class Boxes(NamedTuple):
    """Particles that lie in their tomograms whole.

    Attributes:
        table: of them; their coordinates are those of the boxes, and ``rlnImageName`` says where
            that is.
        volumes: of them.
        names: the same as ``rlnImageName``, with absolute paths.
        voxel_size: angstrom.
        shifts: ``(n, 3)`` voxels (x, y, z), of the coordinates from those of the boxes.
    """

    table: star.ParticleTable
    volumes: LazyVolumes
    names: tuple[str, ...]
    voxel_size: float
    shifts: np.ndarray


def open_boxes(
    table: star.ParticleTable,
    box: int,
    *,
    voxel_size: float | None = None,
    allow_outside: bool = True,
) -> Boxes:
    """Finds the boxes of particles; none is read yet.

    Particles whose boxes reach beyond their tomograms are left out, with a warning that counts
    them.

    Args:
        table: particles with coordinates and the paths of their tomograms.
        box: side of a cube, voxels.
        voxel_size: angstrom; from the table, or else the tomograms, if None.
        allow_outside: also tomograms that are none of the project's, see ``io.places``.

    Raises:
        InputError: if columns are missing, a tomogram cannot be read, or no box lies in one.
    """
    table.require(*COORDINATES)
    column = next((name for name in TOMOGRAMS if name in table.columns), None)
    if column is None:
        raise InputError(
            f"{table.name}: the particles have coordinates but no tomogram; add a column"
            f" {TOMOGRAMS[0]} with the path of each one's"
        )
    references = table.image_references(column, allow_outside=allow_outside)
    paths = [reference.path for reference in references]
    size = voxel_size_of(table) if voxel_size is None else voxel_size
    tomograms = {path: open_tomogram(path, voxel_size=size) for path in dict.fromkeys(paths)}
    size = header_voxel_size(table, [tomograms[path].voxel_size for path in paths])
    positions = np.stack([table.floats(name) for name in COORDINATES], axis=1)
    centers = np.rint(positions).astype(np.int64)
    first = centers[:, ::-1] - box // 2
    shapes = np.array([tomograms[path].shape for path in paths])
    rows = np.flatnonzero(np.all((first >= 0) & (first + box <= shapes), axis=1))
    if not len(rows):
        raise InputError(
            f"{table.name}: no box of {box} voxels lies in its tomogram whole; choose a smaller"
            f" --box, or correct {', '.join(COORDINATES)}"
        )
    if len(rows) < len(table):
        warnings.warn(
            f"{table.name}: {len(table) - len(rows)} of {len(table)} particles are left out, as"
            f" their boxes of {box} voxels reach beyond their tomograms",
            InputWarning,
            stacklevel=2,
        )
    written = table.strings(column)
    places = [",".join(map(str, centers[row])) for row in rows]
    columns = dict(zip(COORDINATES, centers[rows].T, strict=True))
    columns[star.IMAGE_COLUMN] = [
        f"{place}@{written[row]}" for place, row in zip(places, rows, strict=True)
    ]
    table = table.select(rows)
    owners = [paths[row] for row in rows]
    names = tuple(f"{place}@{path}" for place, path in zip(places, owners, strict=True))
    return Boxes(
        table.with_columns(columns),
        _cut(table, [tomograms[path] for path in owners], first[rows], box),
        names,
        size,
        (positions - centers)[rows].astype(np.float32),
    )


def _cut(
    table: star.ParticleTable, tomograms: Sequence[Tomogram], first: np.ndarray, box: int
) -> LazyVolumes:
    def read(rows: np.ndarray) -> np.ndarray:
        volumes = np.empty((len(rows), box, box, box), np.float32)
        for volume, row in zip(volumes, rows, strict=True):
            volume[...] = tomograms[row].read(tuple(first[row].tolist()), (box, box, box))
            _check(table, row, volume, tomograms[row].path)
        return volumes

    return LazyVolumes(read, (len(first), box, box, box))


def _check(table: star.ParticleTable, row: int, volume: np.ndarray, path: Path) -> None:
    num_bad = volume.size - int(np.count_nonzero(np.isfinite(volume)))
    if num_bad:
        raise table.error(
            row,
            f"its box in {path} has {num_bad} voxels that are NaN or infinite; leave this particle"
            " out, or replace them",
        )
    if volume.min() == volume.max():
        raise table.error(
            row, f"its box in {path} is constant, without any signal; leave this particle out"
        )
