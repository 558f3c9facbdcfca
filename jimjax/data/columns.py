"""What the columns of a particle table mean here: tilt ranges, half sets, voxel size, poses."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jimjax.io import mrc, packed, star
from jimjax.io.convert import rotation_from_relion, shift_from_relion
from jimjax.io.errors import InputError
from jimjax.io.files import PathLike

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
OLD_ORIGINS = ("rlnOriginX", "rlnOriginY", "rlnOriginZ")  # voxels, RELION 3.0 and older
CLASS = "rlnClassNumber"
HALF = "rlnRandomSubset"
TILT_LIMITS = ("jimTiltMin", "jimTiltMax")
VOXEL_SIZE_TOLERANCE = 1e-2  # relative; beyond it, two voxel sizes are two voxel sizes


class Annotations(NamedTuple):
    """Poses and classes of a table, without its volumes.

    Attributes:
        names: absolute ``N@path`` or path of each particle.
        rotations: ``(n, 3, 3)`` float32, reference into particle.
        shifts: ``(n, 3)`` float32, voxels, (x, y, z).
        labels: ``(n,)`` classes from 0; None if the table has none.
        voxel_size: angstrom.
    """

    names: tuple[str, ...]
    rotations: np.ndarray
    shifts: np.ndarray
    labels: np.ndarray | None
    voxel_size: float


def read_annotations(
    star_path: PathLike, *, voxel_size: float | None = None, allow_outside: bool = True
) -> Annotations:
    """Reads poses and classes; of the images, only headers where the table has no voxel size.

    Args:
        star_path: RELION particle STAR file.
        voxel_size: angstrom; overrides the file's.
        allow_outside: also images that are none of the project's, see ``io.places``.

    Raises:
        InputError: if columns are missing or broken, or the voxel size is not known.
    """
    table = star.read_particles(star_path)
    references = table.image_references(allow_outside=allow_outside)
    size = voxel_size_of(table) if voxel_size is None else voxel_size
    if size is None:
        size = read_header_voxel_size(table, references)
    if not (np.isfinite(size) and size > 0):
        raise InputError(f"{table.name}: voxel size must be positive, got {size} A")
    names = tuple(particle_name(reference) for reference in references)
    return Annotations(names, *annotations_of(table, size), float(size))


def particle_name(reference: mrc.ImageReference) -> str:
    """Writes where a particle lies as ``N@path`` or path."""
    if reference.index is None:
        return str(reference.path)
    return f"{reference.index}@{reference.path}"


def tilt_ranges_of(table: star.ParticleTable, tilt_range: tuple[float, float] | None) -> np.ndarray:
    """Reads the tilt range of each particle.

    Args:
        table: the particles.
        tilt_range: lowest and highest tilt in degrees of all of them, instead of the columns'.

    Returns:
        ``(n, 2)`` float32, degrees.

    Raises:
        InputError: if there are no columns, or a range is none.
    """
    if tilt_range is not None:
        low, high = (float(limit) for limit in tilt_range)
        if not -90 <= low < high <= 90:
            raise InputError(
                f"tilt range must be -90 <= lowest < highest <= 90 degrees, got {low} to {high}"
            )
        return np.tile(np.array([low, high], np.float32), (table.num_particles, 1))
    limits = [_from_particles_or_optics(table, name) for name in TILT_LIMITS]
    if limits[0] is None or limits[1] is None:
        raise InputError(
            f"{table.name}: the tilt range is not known; pass --tilt-min and --tilt-max,"
            " or add columns jimTiltMin and jimTiltMax (degrees)"
        )
    low, high = limits
    is_valid = (low >= -90) & (low < high) & (high <= 90)
    if not np.all(is_valid):
        row = int(np.argmin(is_valid))
        raise table.error(
            row,
            "jimTiltMin and jimTiltMax must be -90 <= min < max <= 90 degrees,"
            f" got {low[row]:g} and {high[row]:g}",
        )
    return np.stack([low, high], axis=1).astype(np.float32)


def halves_of(table: star.ParticleTable, *, seed: int = 0) -> np.ndarray:
    """Reads the half set (1 or 2) of each particle, or deals it by a hash of the image name.

    Args:
        table: particles.
        seed: another than 0 is hashed with the names.

    Raises:
        InputError: if a value is neither 1 nor 2.
    """
    if HALF not in table.columns:
        salt = f"{seed} " if seed else ""
        names = table.strings("rlnImageName")
        digests = [hashlib.sha256(f"{salt}{name}".encode()).digest() for name in names]
        return np.array([1 + digest[0] % 2 for digest in digests], np.int32)
    halves = table.ints(HALF)
    is_valid = (halves == 1) | (halves == 2)
    if not np.all(is_valid):
        row = int(np.argmin(is_valid))
        raise table.error(row, f"{HALF} must be 1 or 2, got {halves[row]}")
    return halves.astype(np.int32)


def voxel_size_of(table: star.ParticleTable) -> float | None:
    """Reads the voxel size in angstrom; None if the table does not tell.

    Raises:
        InputError: if there are several.
    """
    for name in ("rlnImagePixelSize", "rlnPixelSize"):
        sizes = _from_particles_or_optics(table, name)
        if sizes is not None:
            return _common_voxel_size(table, sizes, name)
    return None


def read_header_voxel_size(
    table: star.ParticleTable, references: list[mrc.ImageReference]
) -> float:
    """Reads one voxel size from the headers of the particles' images, and nothing else of them.

    Raises:
        InputError: as ``header_voxel_size``, or if a file cannot be read.
    """
    sizes: dict[Path, float | None] = {}
    for row, (_, path) in enumerate(references):
        if path not in sizes:
            try:
                sizes[path] = packed.read_voxel_size(path)
            except InputError as problem:
                raise table.error(row, str(problem)) from problem
    return header_voxel_size(table, [sizes[reference.path] for reference in references])


def header_voxel_size(table: star.ParticleTable, sizes: list[float | None]) -> float:
    """Decides on one voxel size from those in the headers of the particles' images.

    Raises:
        InputError: if one is not known, or they differ.
    """
    missing = [row for row, size in enumerate(sizes) if size is None]
    if missing:
        raise table.error(
            missing[0],
            "the voxel size is neither in the STAR file (rlnImagePixelSize) nor in the image's"
            " header; pass --voxel-size",
        )
    return _common_voxel_size(table, np.array(sizes), "the headers' voxel size")


def annotations_of(
    table: star.ParticleTable, voxel_size: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Reads rotations, shifts in voxels and classes from 0 (None if there are none).

    Args:
        table: the particles.
        voxel_size: angstrom, of the origins' conversion.

    Raises:
        InputError: if angles are missing, origins are incomplete, or a value is broken.
    """
    table.require(*ANGLES)
    rotations = rotation_from_relion(np.stack([table.floats(name) for name in ANGLES], axis=1))
    labels = labels_of(table) if CLASS in table.columns else None
    return rotations.astype(np.float32), shifts_of(table, voxel_size), labels


def labels_of(table: star.ParticleTable) -> np.ndarray:
    """Reads classes from 0, ``(n,)`` int32.

    Raises:
        InputError: if the column is missing, or a value is broken.
    """
    table.require(CLASS)
    classes = table.ints(CLASS)
    is_valid = (classes >= 1) & (classes <= np.iinfo(np.int32).max)
    if not np.all(is_valid):
        row = int(np.argmin(is_valid))
        raise table.error(row, f"{CLASS} must count from 1, got {classes[row]}")
    return (classes - 1).astype(np.int32)


def shifts_of(table: star.ParticleTable, voxel_size: float) -> np.ndarray:
    """Reads shifts ``(n, 3)`` float32 in voxels (x, y, z); zeros if there are none.

    Args:
        table: the particles.
        voxel_size: angstrom, of the origins' conversion.

    Raises:
        InputError: if origins are incomplete, or a value is broken.
    """
    for names, unit in ((ORIGINS, voxel_size), (OLD_ORIGINS, 1.0)):
        if any(name in table.columns for name in names):
            table.require(*names)
            origins = np.stack([table.floats(name) for name in names], axis=1)
            return shift_from_relion(origins, unit).astype(np.float32)
    return np.zeros((table.num_particles, 3), np.float32)


def _from_particles_or_optics(table: star.ParticleTable, name: str) -> np.ndarray | None:
    return table.floats(name) if name in table.columns else table.optics_floats(name)


def _common_voxel_size(table: star.ParticleTable, sizes: np.ndarray, what: str) -> float:
    differs = np.abs(sizes - sizes[0]) > VOXEL_SIZE_TOLERANCE * np.abs(sizes[0])
    if np.any(differs):
        row = int(np.argmax(differs))
        raise table.error(
            row,
            f"{what} is {sizes[row]:g} A but {sizes[0]:g} A for particle 1;"
            " load particles of one voxel size, or rescale them",
        )
    return float(sizes[0])
