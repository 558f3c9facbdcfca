"""Where the volumes of a particle table are: in images, in packed stores, or in tomograms."""

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jimjax.data.boxes import COORDINATES, open_boxes
from jimjax.data.columns import particle_name, read_header_voxel_size, voxel_size_of
from jimjax.data.images import (
    Nonfinite,
    fill_voxels,
    open_stores,
    open_volumes,
    settle_voxels,
)
from jimjax.data.lazy import LazyVolumes, Volumes
from jimjax.io import star
from jimjax.io.errors import InputError, InputWarning


class Opened(NamedTuple):
    """Particles whose volumes have been found, and not read.

    Attributes:
        table: of them; of those cut out of tomograms, with image names, and what is left of it.
        volumes: of them.
        names: absolute ``N@path`` or path of each.
        voxel_size: angstrom.
        shifts: ``(n, 3)`` voxels (x, y, z), beyond those that the table tells.
        is_checked: no voxel is bad, or reading it is an error.
    """

    table: star.ParticleTable
    volumes: LazyVolumes
    names: tuple[str, ...]
    voxel_size: float
    shifts: np.ndarray
    is_checked: bool

    def read(
        self, max_bytes: float | None = None, nonfinite: Nonfinite = "error"
    ) -> tuple[Volumes, np.ndarray]:
        """Reads and checks the volumes; those that take more memory are left as they are.

        Args:
            max_bytes: of memory; None for any.
            nonfinite: see ``settle_voxels``.

        Returns:
            Volumes, and ``(n,)`` bool, those to keep.

        Raises:
            InputError: if one cannot be read, is constant, or not finite and may not be.
        """
        is_small = max_bytes is None or self.volumes.nbytes <= max_bytes
        is_kept = np.ones(len(self.volumes), bool)
        with one_warning_of_a_kind():
            volumes = self.volumes[:] if is_small else self.volumes
            if not self.is_checked:
                is_kept = settle_voxels(self.table, volumes, self.names, nonfinite)
        if nonfinite in ("zero", "mean") and isinstance(volumes, LazyVolumes):
            volumes = volumes.map(functools.partial(_filled, nonfinite=nonfinite))
        return volumes, is_kept


def _filled(volumes: np.ndarray, nonfinite: Nonfinite) -> np.ndarray:
    for volume in volumes:
        fill_voxels(volume, nonfinite)
    return volumes


def open_particles(
    table: star.ParticleTable,
    *,
    voxel_size: float | None = None,
    box: int | None = None,
    allow_outside: bool = True,
) -> Opened:
    """Finds the volumes of particles.

    Args:
        table: the particles.
        voxel_size: angstrom; from the table, or else the files, if None.
        box: side in voxels of boxes to cut out of tomograms; None for images.
        allow_outside: also files that are none of the project's, see ``io.places``.

    Raises:
        InputError: if anything does not fit.
    """
    size = voxel_size_of(table) if voxel_size is None else voxel_size
    if size is not None and not (np.isfinite(size) and size > 0):
        raise InputError(f"{table.name}: voxel size must be positive, got {size} A")
    if box is not None:
        with one_warning_of_a_kind():
            found = open_boxes(table, box, voxel_size=size, allow_outside=allow_outside)
            return Opened(*found, is_checked=True)
    if star.IMAGE_COLUMN not in table.columns and COORDINATES[0] in table.columns:
        raise InputError(
            f"{table.name}: the particles have coordinates but no {star.IMAGE_COLUMN}; cut them out"
            " of their tomograms with jimjax pack --box"
        )
    references = table.image_references(allow_outside=allow_outside)
    names = tuple(particle_name(reference) for reference in references)
    with one_warning_of_a_kind():
        stores = open_stores(references)
        volumes = open_volumes(table, references, stores)
        size = read_header_voxel_size(table, references) if size is None else size
    shifts = np.zeros((len(table), 3), np.float32)
    is_packed = all(reference.path in stores for reference in references)
    return Opened(table, volumes, names, float(size), shifts, is_checked=is_packed)


@contextlib.contextmanager
def one_warning_of_a_kind() -> Iterator[None]:
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
        warnings.warn(f"{first.message}{more}", first.category, stacklevel=5)
