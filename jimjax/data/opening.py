"""Where the volumes of a particle table are: in images, in packed stores, or in tomograms."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jimjax.data.boxes import COORDINATES, open_boxes
from jimjax.data.columns import particle_name, read_header_voxel_size, voxel_size_of
from jimjax.data.images import check_voxels, open_stores, open_volumes
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

    def read(self, max_bytes: float | None = None) -> Volumes:
        """Reads and checks the volumes; those that take more memory are left as they are.

        Raises:
            InputError: if one cannot be read, is not finite or constant.
        """
        is_small = max_bytes is None or self.volumes.nbytes <= max_bytes
        with one_warning_of_a_kind():
            volumes = self.volumes[:] if is_small else self.volumes
            if not self.is_checked:
                check_voxels(self.table, volumes, self.names)
        return volumes


def open_particles(
    table: star.ParticleTable, *, voxel_size: float | None = None, box: int | None = None
) -> Opened:
    """Finds the volumes of particles.

    Args:
        table: the particles.
        voxel_size: angstrom; from the table, or else the files, if None.
        box: side in voxels of boxes to cut out of tomograms; None for images.

    Raises:
        InputError: if anything does not fit.
    """
    size = voxel_size_of(table) if voxel_size is None else voxel_size
    if size is not None and not (np.isfinite(size) and size > 0):
        raise InputError(f"{table.name}: voxel size must be positive, got {size} A")
    if box is not None:
        with one_warning_of_a_kind():
            return Opened(*open_boxes(table, box, voxel_size=size), is_checked=True)
    if star.IMAGE_COLUMN not in table.columns and COORDINATES[0] in table.columns:
        raise InputError(
            f"{table.name}: the particles have coordinates but no {star.IMAGE_COLUMN}; cut them out"
            " of their tomograms with jimjax pack --box"
        )
    references = table.image_references()
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
