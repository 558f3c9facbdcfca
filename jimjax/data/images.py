"""Volumes and masks that a particle table names, read and checked.

Each file is read once, however many particles lie in it. What would surface as a NaN or a crash
far from its cause is an `InputError` that names the table's line, the particle and the remedy.
"""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np

from jimjax.data.columns import particle_name
from jimjax.data.lazy import LazyVolumes, Volumes
from jimjax.io import mrc, packed, star
from jimjax.io.errors import InputError, InputWarning

Nonfinite = Literal["error", "drop", "zero", "mean"]
ANY_SIZE = 1.0  # angstrom; that of headers has been looked at, or is not wanted
STORE_STEP = 512  # particles read from a store at a time
MAX_LISTED = 5  # names listed in one message
MASK_LEVEL = 0.5  # of a soft mask: a voxel belongs to the particle above it
MASK_ROUNDING = 1e-3  # a soft mask may leave 0 to 1 by so much


Stores = dict[Path, packed.Packed]


def open_stores(references: list[mrc.ImageReference]) -> Stores:
    """Opens the packed particles among image files.

    Raises:
        InputError: if one is damaged, or a folder that is something else.
    """
    paths = dict.fromkeys(reference.path for reference in references)
    return {path: packed.open_packed(path) for path in paths if path.is_dir()}


def open_volumes(
    table: star.ParticleTable, references: list[mrc.ImageReference], stores: Stores
) -> LazyVolumes:
    """Particles that are read when they are asked for; each file once, whoever lies in it.

    Args:
        table: the particles, for messages.
        references: where each lies.
        stores: of ``open_stores``.

    Returns:
        Volumes; reading raises InputError if a file is missing or damaged, or another particle's
        box is not that of the first.

    Raises:
        InputError: if the first of them is no cube, or cannot be read.
    """
    try:
        box = _read_box(references[0].path, stores)
    except mrc.MrcFormatError as problem:
        raise table.error(0, str(problem)) from problem
    _check_cube(table, box)

    def read(rows: np.ndarray) -> np.ndarray:
        volumes = _allocate(table, (len(rows), *box), np.float32)
        chosen = [references[row] for row in rows]
        for path, places in _rows_of_file(chosen).items():
            step = STORE_STEP if path in stores else len(places)
            for first in range(0, len(places), step):
                part = places[first : first + step]
                those = rows[part].tolist()
                if path in stores:
                    data = _read_store(table, stores[path], those, references)
                else:
                    data = _read_file(table, path, those, references)
                if data.shape[1:] != box:
                    raise _mixed_boxes(table, _rows_of_file(references), stores)
                volumes[part] = data
        return volumes

    return LazyVolumes(read, (len(references), *box))


def read_masks(
    table: star.ParticleTable, shape: tuple[int, ...], *, allow_outside: bool = True
) -> np.ndarray:
    """Reads which voxels belong to each particle.

    Masks are taken to have the particles' voxel size, whatever their headers say, as programs that
    make masks often leave it out.

    Args:
        table: the particles, with column rlnMaskName. Values are 0 to 1; a voxel belongs to the
            particle above 0.5, so that a soft mask ends where it falls to one half.
        shape: ``(n, z, y, x)`` of the particles' volumes.
        allow_outside: also files that are none of the project's, see ``io.places``.

    Returns:
        ``shape`` bool.

    Raises:
        InputError: if there is no such column, a file is missing or damaged, its box is not the
            particles', or its values are not those of a mask.
    """
    if star.MASK_COLUMN not in table.columns:
        raise InputError(
            f"{table.name}: the particles have no masks; add a column {star.MASK_COLUMN}"
            " (NUMBER@STACK or the path of each, 1 inside the particle and 0 outside),"
            " or simulate particles with --masks"
        )
    references = table.image_references(star.MASK_COLUMN, allow_outside=allow_outside)
    masks = _allocate(table, shape, bool)
    for path, rows in _rows_of_file(references).items():
        data = _read_file(table, path, rows, references)
        if data.shape[1:] != shape[1:]:
            raise table.error(
                rows[0],
                f"mask {particle_name(references[rows[0]])} has {_box_text(data.shape[1:])} voxels,"
                f" its particle {_box_text(shape[1:])}; masks must have the particles' box",
            )
        for row, mask in zip(rows, data, strict=True):
            low, high = mask.min(), mask.max()
            if not (low >= -MASK_ROUNDING and high <= 1 + MASK_ROUNDING):  # or NaN
                raise table.error(
                    row,
                    f"mask {particle_name(references[row])} has values from {low:g} to {high:g};"
                    " a mask is 1 inside the particle and 0 outside",
                )
            masks[row] = mask > MASK_LEVEL
    return masks


def settle_voxels(
    table: star.ParticleTable,
    volumes: Volumes,
    names: tuple[str, ...],
    nonfinite: Nonfinite = "error",
    *,
    first: int = 0,
) -> np.ndarray:
    """Sees to voxels that are NaN or infinite, and that every particle holds a signal.

    Args:
        table: for messages.
        volumes: ``(m, z, y, x)``, of particles that follow each other; "zero" and "mean" write to
            an array.
        names: of all particles.
        nonfinite: "error" refuses such particles, "drop" leaves them out, "zero" puts 0 for such
            voxels, and "mean" the mean of the particle's others. The last three warn, with the
            names of all of them.
        first: row of the first of them.

    Returns:
        ``(m,)`` bool, the particles to keep.

    Raises:
        InputError: if a voxel is not finite and may not be, none is left, or one is constant.
    """
    is_kept = np.ones(len(volumes), bool)
    settled, constant = [], []
    for row, volume in enumerate(volumes, first):
        is_finite = np.isfinite(volume)
        if not np.all(is_finite):
            if nonfinite == "error" or (nonfinite == "mean" and not is_finite.any()):
                raise _nonfinite_error(table, row, names[row], is_finite)
            settled.append(names[row])
            if nonfinite == "drop":
                is_kept[row - first] = False
                continue
            fill_voxels(volume, nonfinite)
        if volume.min() == volume.max():
            constant.append(names[row])
    if not np.any(is_kept):
        raise InputError(f"{table.name}: all particles have voxels that are NaN or infinite")
    if settled:
        done = "left out" if nonfinite == "drop" else f"filled with {nonfinite}"
        told = f"{len(settled)} of {len(volumes)} particles with voxels that are NaN or infinite"
        warnings.warn(
            f"{table.name}: {told} are {done}: {', '.join(settled)}", InputWarning, stacklevel=3
        )
    if constant:
        listed = ", ".join(constant[:MAX_LISTED])
        more = f" and {len(constant) - MAX_LISTED} more" if len(constant) > MAX_LISTED else ""
        raise InputError(
            f"{table.name}: {len(constant)} particles are constant, without any signal: {listed}"
            f"{more}; leave them out"
        )
    return is_kept


def fill_voxels(volume: np.ndarray, nonfinite: Nonfinite) -> None:
    """Writes 0 ("zero") or the mean of the others ("mean") for voxels that are not finite."""
    is_finite = np.isfinite(volume)
    if not np.all(is_finite):
        filling = 0.0 if nonfinite == "zero" else volume[is_finite].mean(dtype=np.float64)
        volume[~is_finite] = filling


def _nonfinite_error(
    table: star.ParticleTable, row: int, name: str, is_finite: np.ndarray
) -> InputError:
    first = np.argwhere(~is_finite)[0].tolist()
    return table.error(
        row,
        f"{name} has {is_finite.size - int(np.count_nonzero(is_finite))} voxels that are"
        f" NaN or infinite, the first at [z, y, x] = {first};"
        " leave this particle out (--nonfinite drop) or extract it again",
    )


def _rows_of_file(references: list[mrc.ImageReference]) -> dict[Path, list[int]]:
    rows_of_file: dict[Path, list[int]] = {}
    for row, reference in enumerate(references):
        rows_of_file.setdefault(reference.path, []).append(row)
    return rows_of_file


def _read_file(
    table: star.ParticleTable, path: Path, rows: list[int], references: list[mrc.ImageReference]
) -> np.ndarray:
    indices = [references[row].index for row in rows]
    try:
        if None in indices:
            volume = mrc.read_volume(path, voxel_size=ANY_SIZE)
            return np.repeat(volume.data[None], len(rows), axis=0)
        return mrc.read_images(path, indices, voxel_size=ANY_SIZE).data
    except mrc.MrcIndexError as problem:
        raise table.error(rows[indices.index(problem.index)], str(problem)) from problem
    except mrc.MrcFormatError as problem:
        raise table.error(rows[0], str(problem)) from problem


def _read_store(
    table: star.ParticleTable,
    store: packed.Packed,
    rows: list[int],
    references: list[mrc.ImageReference],
) -> np.ndarray:
    num = store.shape[0]
    indices = [references[row].index for row in rows]
    for row, index in zip(rows, indices, strict=True):
        if index is None or index > num:
            said = f"no particle {index}" if index else "NUMBER@ is missing"
            raise table.error(row, f"{store.path}: {said}, it holds {num}, counted from 1")
    try:
        return store.read(np.array(indices) - 1)
    except InputError as problem:
        raise table.error(rows[0], str(problem)) from problem


def _read_box(path: Path, stores: Stores) -> tuple[int, ...]:
    return stores[path].shape[1:] if path in stores else mrc.read_box(path)


def _check_cube(table: star.ParticleTable, box: tuple[int, ...]) -> None:
    if len(set(box)) != 1:
        raise table.error(
            0,
            f"expected a cubic box, got {_box_text(box)} voxels; crop or pad the particles"
            " (stacks of 2-D images cannot be used: extract 3-D particles)",
        )


def _allocate(table: star.ParticleTable, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    num, *box = shape
    _check_cube(table, tuple(box))
    try:
        return np.empty(shape, dtype)
    except MemoryError as problem:
        need = np.prod(shape, dtype=float) * np.dtype(dtype).itemsize / 2**30
        raise InputError(
            f"{table.name}: {num} particles of {box[0]}^3 voxels need {need:.3g} GiB of memory;"
            " select fewer particles, bin them, or train on them packed (jimjax pack)"
        ) from problem


def _mixed_boxes(
    table: star.ParticleTable, rows_of_file: dict[Path, list[int]], stores: Stores
) -> InputError:
    example_of_size: dict[tuple[int, ...], Path] = {}
    for path in rows_of_file:
        example_of_size.setdefault(_read_box(path, stores), path)
    listed = list(example_of_size.items())
    sizes = ", ".join(f"{_box_text(shape)} ({path})" for shape, path in listed[:MAX_LISTED])
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return InputError(
        f"{table.name}: all particles must have one box size, found {sizes}{more};"
        " crop, pad or re-extract them"
    )


def _box_text(shape: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, shape[::-1]))
