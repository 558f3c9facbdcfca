"""The particles of one experiment in memory: volumes, tilt ranges, halves, and maybe truth.

Loading checks everything that would otherwise surface as a NaN or a crash far from its cause.
Every mistake is one `InputError` that names the file, the particle and the remedy. Files are
only read. Poses and classes of a STAR file are left out unless asked for, so that the truth
of simulated data cannot leak into training.
"""

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from jimjax.data.columns import (
    ANGLES,
    CLASS,
    HALF,
    ORIGINS,
    TILT_LIMITS,
    VOXEL_SIZE_TOLERANCE,
    annotations_of,
    halves_of,
    header_voxel_size,
    particle_name,
    tilt_ranges_of,
    voxel_size_of,
)
from jimjax.io import mrc, star
from jimjax.io.convert import relion_from_rotation, relion_from_shift
from jimjax.io.errors import InputError, InputWarning
from jimjax.io.files import PathLike

MAX_LISTED = 5  # names listed in one message


@dataclass(frozen=True, eq=False)
class Subtomograms:
    """Particles of one box size and one voxel size.

    Attributes:
        volumes: ``(n, z, y, x)`` float32.
        tilt_ranges: ``(n, 2)`` float32, lowest and highest tilt in degrees.
        voxel_size: angstrom.
        names: absolute ``N@path`` or path of each particle.
        halves: ``(n,)`` int, 1 or 2.
        rotations: ``(n, 3, 3)`` reference into particle; None if not known or not asked for.
        shifts: ``(n, 3)`` voxels, (x, y, z); None together with ``rotations``.
        labels: ``(n,)`` int classes from 0; None if not known or not asked for.
    """

    volumes: np.ndarray
    tilt_ranges: np.ndarray
    voxel_size: float
    names: tuple[str, ...]
    halves: np.ndarray
    rotations: np.ndarray | None = None
    shifts: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.volumes)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Subtomograms":
        """The particles ``indices`` (0-based, or a boolean mask), in that order."""
        rows = np.arange(len(self))[np.asarray(indices, dtype=_index_dtype(indices))]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = value[rows]
        values["names"] = tuple(self.names[row] for row in rows)
        return Subtomograms(**values)


def load(
    star_path: PathLike,
    *,
    tilt_range: tuple[float, float] | None = None,
    voxel_size: float | None = None,
    with_poses: bool = False,
    seed: int = 0,
) -> Subtomograms:
    """Reads the particles that a STAR file lists.

    Args:
        star_path: RELION particle STAR file; relative image names are looked for in its
            folder, then in the working directory.
        tilt_range: lowest and highest tilt in degrees for all particles; from columns
            jimTiltMin and jimTiltMax (of the particles or their optics groups) if None.
        voxel_size: angstrom; from rlnImagePixelSize, or else the images' headers, if None.
        with_poses: also read angles, origins and rlnClassNumber. The angles are those of the
            volume as it lies in the file: rlnTomoSubtomogramRot and its like are not applied.
        seed: deals the half sets if there is no rlnRandomSubset.

    Raises:
        InputError: if anything does not fit; the first mistake found, as one sentence.
    """
    table = star.read_particles(star_path)
    references = table.image_references()
    names = tuple(particle_name(reference) for reference in references)
    tilt_ranges = tilt_ranges_of(table, tilt_range)
    halves = halves_of(table, seed=seed)
    star_voxel_size = voxel_size_of(table) if voxel_size is None else voxel_size
    if star_voxel_size is not None and not (np.isfinite(star_voxel_size) and star_voxel_size > 0):
        raise InputError(f"{table.name}: voxel size must be positive, got {star_voxel_size} A")
    with _one_warning_of_a_kind():
        volumes, header_sizes = _read_volumes(table, references, star_voxel_size)
    size = star_voxel_size or header_voxel_size(table, header_sizes)
    _check_voxels(table, volumes, names)
    rotations, shifts, labels = annotations_of(table, size) if with_poses else (None, None, None)
    return Subtomograms(volumes, tilt_ranges, float(size), names, halves, rotations, shifts, labels)


def check_scale(particles: Subtomograms, *, box: int, voxel_size: float, whose: str) -> None:
    """Raises unless particles are of a box and voxel size.

    Args:
        particles: what came.
        box: that is wanted, voxels.
        voxel_size: that is wanted, angstrom.
        whose: these are, for messages, such as "the model".

    Raises:
        InputError: see above.
    """
    own = particles.volumes.shape[-1]
    if own != box:
        raise InputError(f"{whose} is for boxes of {box} voxels, these have {own}")
    if abs(particles.voxel_size / voxel_size - 1) > VOXEL_SIZE_TOLERANCE:
        raise InputError(
            f"{whose} is for {voxel_size:g} A per voxel, these particles are at "
            f"{particles.voxel_size:g} A; rescale them, or correct their voxel size"
        )


def to_star(particles: Subtomograms, path: PathLike, *, stack_path: PathLike) -> None:
    """Writes a volume stack and the STAR file that lists it.

    Args:
        particles: what to write; poses and classes are written if it has them.
        path: STAR file to make or replace; image names are relative to its folder.
        stack_path: MRC stack to make or replace.

    Raises:
        InputError: if a value is not finite or a folder is missing.
    """
    star_folder = os.path.realpath(Path(path).parent)
    stack = os.path.join(os.path.realpath(Path(stack_path).parent), Path(stack_path).name)
    relative = os.path.relpath(stack, star_folder)
    num = len(particles)
    columns: dict[str, Sequence] = {
        "rlnImageName": [f"{n:06d}@{relative}" for n in range(1, num + 1)],
        "rlnOpticsGroup": [1] * num,
        HALF: particles.halves,
        TILT_LIMITS[0]: particles.tilt_ranges[:, 0],
        TILT_LIMITS[1]: particles.tilt_ranges[:, 1],
    }
    if particles.rotations is not None:
        angles = relion_from_rotation(particles.rotations).T
        columns |= dict(zip(ANGLES, angles, strict=True))
    if particles.shifts is not None:
        origins = relion_from_shift(particles.shifts, particles.voxel_size).T
        columns |= dict(zip(ORIGINS, origins, strict=True))
    if particles.labels is not None:
        columns[CLASS] = np.asarray(particles.labels) + 1
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnImagePixelSize": [particles.voxel_size],
        "rlnImageSize": [particles.volumes.shape[-1]],
        "rlnImageDimensionality": [3],
    }
    table = star.new_table(columns, optics)
    mrc.write_stack(stack_path, particles.volumes, voxel_size=particles.voxel_size)
    table.write(path)


def normalize(volumes: np.ndarray) -> np.ndarray:
    """Gives each particle zero mean and unit standard deviation.

    Args:
        volumes: ``(n, z, y, x)``.

    Returns:
        The same shape in float32; a constant particle becomes zeros.
    """
    out = np.empty(volumes.shape, np.float32)
    for place, volume in enumerate(volumes):
        centred = volume - volume.mean(dtype=np.float64)
        deviation = centred.std()
        is_constant = deviation <= np.abs(volume).max(initial=0.0) * np.finfo(np.float32).eps
        out[place] = 0.0 if is_constant else centred / deviation
    return out


def hash_arrays(*arrays: np.ndarray, salt: str = "") -> str:
    """SHA-256 of numbers in float32, and of a text before them, to tell data sets apart."""
    digest = hashlib.sha256(salt.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.float32))
    return digest.hexdigest()


@contextlib.contextmanager
def _one_warning_of_a_kind() -> Iterator[None]:
    """Thousands of files with the same oddity are one warning that tells how many they are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InputWarning)
        yield
    kinds: dict[str, list[warnings.WarningMessage]] = {}
    for warning in caught:
        # The message without its file name (up to ': ') and without numbers.
        kind = re.sub(r"[0-9.]+", "", str(warning.message).split(": ", 1)[-1])
        kinds.setdefault(kind, []).append(warning)
    for first, *others in kinds.values():
        more = f" (and {len(others)} more files)" if others else ""
        warnings.warn(f"{first.message}{more}", first.category, stacklevel=4)


def _index_dtype(indices: Sequence[int] | np.ndarray) -> type:
    return bool if np.asarray(indices).dtype == bool else np.intp


def _read_volumes(
    table: star.ParticleTable, references: list[mrc.ImageReference], voxel_size: float | None
) -> tuple[np.ndarray, list[float | None]]:
    """Reads all particles, opening each file once; also gives the headers' voxel sizes."""
    rows_of_file: dict[Path, list[int]] = {}
    for row, reference in enumerate(references):
        rows_of_file.setdefault(reference.path, []).append(row)
    volumes = None
    sizes: list[float | None] = [None] * len(references)
    for path, rows in rows_of_file.items():
        data, size = _read_file(table, path, rows, references, voxel_size)
        if volumes is None:
            volumes = _allocate(table, len(references), data.shape[1:])
        if data.shape[1:] != volumes.shape[1:]:
            raise _mixed_boxes(table, rows_of_file)
        volumes[rows] = data
        for row in rows:
            sizes[row] = size
    return volumes, sizes


def _read_file(
    table: star.ParticleTable,
    path: Path,
    rows: list[int],
    references: list[mrc.ImageReference],
    voxel_size: float | None,
) -> mrc.Stack:
    indices = [references[row].index for row in rows]
    try:
        if None in indices:
            volume = mrc.read_volume(path, voxel_size=voxel_size)
            return mrc.Stack(np.repeat(volume.data[None], len(rows), axis=0), volume.voxel_size)
        return mrc.read_images(path, indices, voxel_size=voxel_size)
    except mrc.MrcIndexError as problem:
        raise table.error(rows[indices.index(problem.index)], str(problem)) from problem
    except mrc.MrcFormatError as problem:
        raise table.error(rows[0], str(problem)) from problem


def _allocate(table: star.ParticleTable, num: int, shape: tuple[int, ...]) -> np.ndarray:
    if len(set(shape)) != 1:
        size = " x ".join(map(str, shape[::-1]))
        raise table.error(
            0,
            f"expected a cubic box, got {size} voxels; crop or pad the particles"
            " (stacks of 2-D images cannot be used: extract 3-D particles)",
        )
    try:
        return np.empty((num, *shape), np.float32)
    except MemoryError as problem:
        need = num * np.prod(shape, dtype=float) * 4 / 2**30
        raise InputError(
            f"{table.name}: {num} particles of {shape[0]}^3 voxels need {need:.3g} GiB of memory;"
            " select fewer particles or bin them"
        ) from problem


def _mixed_boxes(table: star.ParticleTable, rows_of_file: dict[Path, list[int]]) -> InputError:
    example_of_size: dict[tuple[int, ...], Path] = {}
    for path in rows_of_file:
        example_of_size.setdefault(mrc.read_box(path), path)
    listed = list(example_of_size.items())
    sizes = ", ".join(
        f"{' x '.join(map(str, shape[::-1]))} ({path})" for shape, path in listed[:MAX_LISTED]
    )
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return InputError(
        f"{table.name}: all particles must have one box size, found {sizes}{more};"
        " crop, pad or re-extract them"
    )


def _check_voxels(table: star.ParticleTable, volumes: np.ndarray, names: tuple[str, ...]) -> None:
    constant = []
    for row, volume in enumerate(volumes):
        is_finite = np.isfinite(volume)
        if not np.all(is_finite):
            first = tuple(np.argwhere(~is_finite)[0].tolist())
            raise table.error(
                row,
                f"{names[row]} has {volume.size - int(np.count_nonzero(is_finite))} voxels that are"
                f" NaN or infinite, the first at [z, y, x] = {list(first)};"
                " leave this particle out or extract it again",
            )
        if volume.min() == volume.max():
            constant.append(names[row])
    if constant:
        listed = ", ".join(constant[:MAX_LISTED])
        more = f" and {len(constant) - MAX_LISTED} more" if len(constant) > MAX_LISTED else ""
        raise InputError(
            f"{table.name}: {len(constant)} particles are constant, without any signal: {listed}"
            f"{more}; leave them out"
        )
