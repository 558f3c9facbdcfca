"""The particles of one experiment in memory: volumes, tilt ranges, halves, and maybe truth.

Loading checks everything that would otherwise surface as a NaN or a crash far from its cause.
Every mistake is one `InputError` that names the file, the particle and the remedy. Files are
only read. Poses, classes and masks of a STAR file are left out unless asked for, so that the
truth of simulated data cannot leak into training.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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
    particle_name,
    tilt_ranges_of,
)
from jimjax.data.images import Nonfinite, read_masks
from jimjax.data.lazy import LazyVolumes, Volumes, pieces_of, select_rows
from jimjax.data.opening import one_warning_of_a_kind, open_particles
from jimjax.io import mrc, star
from jimjax.io.convert import relion_from_rotation, relion_from_shift
from jimjax.io.errors import InputError
from jimjax.io.files import PathLike
from jimjax.progress import stop_request


@dataclass(frozen=True, eq=False)
class Subtomograms:
    """Particles of one box size and one voxel size.

    Attributes:
        volumes: ``(n, z, y, x)`` float32, in memory or read when they are asked for.
        tilt_ranges: ``(n, 2)`` float32, lowest and highest tilt in degrees.
        voxel_size: angstrom.
        names: absolute ``N@path`` or path of each particle.
        halves: ``(n,)`` int, 1 or 2.
        rotations: ``(n, 3, 3)`` reference into particle; None if not known or not asked for.
        shifts: ``(n, 3)`` voxels, (x, y, z); None together with ``rotations``.
        labels: ``(n,)`` int classes from 0; None if not known or not asked for.
        masks: ``(n, z, y, x)`` bool, the voxels that belong to the particle, as it lies in its
            volume; None if not known or not asked for.
    """

    volumes: Volumes
    tilt_ranges: np.ndarray
    voxel_size: float
    names: tuple[str, ...]
    halves: np.ndarray
    rotations: np.ndarray | None = None
    shifts: np.ndarray | None = None
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.volumes)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Subtomograms":
        """The particles ``indices`` (0-based, or a boolean mask), in that order."""
        rows = np.arange(len(self))[np.asarray(indices, dtype=_index_dtype(indices))]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Volumes):
                values[name] = select_rows(value, rows)
        values["names"] = tuple(self.names[row] for row in rows)
        return Subtomograms(**values)


def concatenate(parts: Sequence[Subtomograms]) -> Subtomograms:
    """Data sets as one, in their order; what only some of them know is left out.

    Raises:
        ValueError: if there is none, or boxes or voxel sizes differ.
    """
    if not parts:
        raise ValueError("there is nothing to concatenate; give at least one data set")
    scales = sorted({(part.volumes.shape[-1], float(part.voxel_size)) for part in parts})
    if len(scales) > 1:
        raise ValueError(f"boxes and voxel sizes must be the same, got {scales}")
    values: dict[str, Any] = {}
    for field in fields(Subtomograms):
        own = [getattr(part, field.name) for part in parts]
        is_array = all(isinstance(value, np.ndarray) for value in own)
        values[field.name] = np.concatenate(own) if is_array else None
    values["names"] = tuple(name for part in parts for name in part.names)
    values["voxel_size"] = parts[0].voxel_size
    return Subtomograms(**values)


def load(
    star_path: PathLike,
    *,
    tilt_range: tuple[float, float] | None = None,
    voxel_size: float | None = None,
    with_poses: bool = False,
    with_masks: bool = False,
    box: int | None = None,
    max_bytes: float | None = None,
    seed: int = 0,
    nonfinite: Nonfinite = "error",
    allow_outside: bool = True,
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
        with_masks: also read the volumes that rlnMaskName names, as rlnImageName does those of
            the particles, and of the same box. Values are 0 to 1, and a voxel belongs to the
            particle above 0.5: a soft mask ends where it falls to one half.
        box: side in voxels of boxes to cut out of the particles' tomograms, instead of reading
            their images; see ``open_boxes``.
        max_bytes: volumes that take more memory stay where they are and are read when they are
            asked for; None reads all of them now.
        seed: deals the half sets if there is no rlnRandomSubset.
        nonfinite: what to do with particles of which voxels are NaN or infinite: refuse them
            ("error"), leave them out ("drop"; ``table_of`` gives the rows of the others), or fill
            those voxels with 0 ("zero") or the particle's mean ("mean"). All but the first warn.
        allow_outside: also read images that are none of the project's, see ``io.places``. The
            command line does not, unless told to.

    Raises:
        InputError: if anything does not fit; the first mistake found, as one sentence.
    """
    table = star.read_particles(star_path)
    if box is not None and nonfinite != "error":
        raise InputError(
            f"{table.name}: boxes of tomograms cannot be mended (nonfinite is {nonfinite!r}); leave"
            " those with voxels that are NaN or infinite out of the table"
        )
    opened = open_particles(table, voxel_size=voxel_size, box=box, allow_outside=allow_outside)
    table, size = opened.table, opened.voxel_size
    tilt_ranges = tilt_ranges_of(table, tilt_range)
    halves = halves_of(table, seed=seed)
    volumes, is_kept = opened.read(max_bytes, nonfinite)
    masks = None
    if with_masks:
        with one_warning_of_a_kind():
            masks = read_masks(table, volumes.shape, allow_outside=allow_outside)
    rotations = shifts = labels = None
    if with_poses:
        rotations, shifts, labels = annotations_of(table, size)
        shifts = shifts + opened.shifts
    everything = Subtomograms(
        volumes, tilt_ranges, size, opened.names, halves, rotations, shifts, labels, masks
    )
    return everything if np.all(is_kept) else everything.select(is_kept)


def table_of(particles: Subtomograms, star_path: PathLike) -> star.ParticleTable:
    """Reads the table that particles were loaded from, without those that were left out.

    Args:
        particles: as ``load`` gave them.
        star_path: that it read.

    Raises:
        InputError: if the file does not list these particles.
    """
    table = star.read_particles(star_path)
    if len(table) == len(particles):
        return table
    names, kept = map(particle_name, table.image_references()), set(particles.names)
    table = table.select([name in kept for name in names])
    if len(table) != len(particles):
        raise InputError(f"{star_path}: has changed since its particles were loaded; start again")
    return table


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


def to_star(
    particles: Subtomograms,
    path: PathLike,
    *,
    stack_path: PathLike,
    mask_path: PathLike | None = None,
) -> None:
    """Writes a volume stack, one of masks if there are any, and the STAR file that lists them.

    Args:
        particles: what to write; poses, classes and masks are written if it has them.
        path: STAR file to make or replace; image names are relative to its folder.
        stack_path: MRC stack to make or replace.
        mask_path: MRC stack of masks to make or replace, bytes 0 and 1 (mode 0); beside
            ``stack_path`` if None: ``particles_masks.mrcs`` for ``particles.mrcs``.

    Raises:
        InputError: if a value is not finite, a folder is missing, masks are not boolean or not of
            the volumes' shape, or both were to go to one file.
    """
    num = len(particles)
    columns: dict[str, Sequence] = {
        star.IMAGE_COLUMN: _stack_names(stack_path, path, num),
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
    if particles.masks is not None:
        mask_path = _checked_mask_path(particles, stack_path, mask_path)
        columns[star.MASK_COLUMN] = _stack_names(mask_path, path, num)
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnImagePixelSize": [particles.voxel_size],
        "rlnImageSize": [particles.volumes.shape[-1]],
        "rlnImageDimensionality": [3],
    }
    table = star.new_table(columns, optics)
    with stop_request():  # all of them or none
        mrc.write_stack(stack_path, particles.volumes, voxel_size=particles.voxel_size)
        if particles.masks is not None:
            mrc.write_stack(mask_path, particles.masks, voxel_size=particles.voxel_size)
        table.write(path)


def normalize(volumes: Volumes) -> Volumes:
    """Gives each particle zero mean and unit standard deviation.

    Args:
        volumes: ``(n, z, y, x)``; of lazy ones, each is normalised when it is read.

    Returns:
        The same shape in float32; a constant particle becomes zeros.
    """
    if isinstance(volumes, LazyVolumes):
        return volumes.map(normalize)
    out = np.empty(volumes.shape, np.float32)
    for place, volume in enumerate(volumes):
        centred = volume - volume.mean(dtype=np.float64)
        deviation = centred.std()
        is_constant = deviation <= np.abs(volume).max(initial=0.0) * np.finfo(np.float32).eps
        out[place] = 0.0 if is_constant else centred / deviation
    return out


def hash_arrays(*arrays: Volumes, salt: str = "") -> str:
    """SHA-256 of numbers in float32, and of a text before them, to tell data sets apart."""
    digest = hashlib.sha256(salt.encode())
    for array in arrays:
        for piece in pieces_of(array):
            digest.update(np.ascontiguousarray(piece, np.float32))
    return digest.hexdigest()


def _stack_names(stack_path: PathLike, star_path: PathLike, num: int) -> list[str]:
    """Names the volumes of a stack as a STAR file has to, relative to its folder."""
    stack = os.path.join(os.path.realpath(Path(stack_path).parent), Path(stack_path).name)
    relative = os.path.relpath(stack, os.path.realpath(Path(star_path).parent))
    return [f"{number:06d}@{relative}" for number in range(1, num + 1)]


def _checked_mask_path(
    particles: Subtomograms, stack_path: PathLike, mask_path: PathLike | None
) -> PathLike:
    volumes, masks = particles.volumes, particles.masks
    if masks.shape != volumes.shape or masks.dtype != bool:
        raise InputError(
            f"masks must be boolean and have the volumes' shape {volumes.shape}, got {masks.dtype}"
            f" of shape {masks.shape}"
        )
    stack_path = Path(stack_path)
    if mask_path is None:
        return stack_path.with_name(f"{stack_path.stem}_masks{stack_path.suffix}")
    if os.path.realpath(mask_path) == os.path.realpath(stack_path):
        raise InputError(f"{mask_path}: is the stack of the volumes; give masks another file")
    return mask_path


def _index_dtype(indices: Sequence[int] | np.ndarray) -> type:
    return bool if np.asarray(indices).dtype == bool else np.intp
