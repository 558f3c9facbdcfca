"""Classes and poses as the columns of a particle table."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms
    from jimjax.io.star import ParticleTable


def class_columns(
    particles: "Subtomograms", table: "ParticleTable", labels: "np.ndarray"
) -> dict[str, object]:
    """Makes the columns that say class, half set and tilt range.

    Args:
        particles: as loaded from the table.
        table: whose other columns are kept.
        labels: ``(n,)`` classes from 0.

    Returns:
        Values by column name; half sets only if the table has none.
    """
    from jimjax.data import columns as names

    columns: dict[str, object] = {names.CLASS: labels + 1}
    if names.HALF not in table.columns:
        columns[names.HALF] = particles.halves
    # As used here, so that averages of the new file use the same.
    return columns | dict(zip(names.TILT_LIMITS, particles.tilt_ranges.T, strict=True))


def pose_columns(
    particles: "Subtomograms",
    table: "ParticleTable",
    labels: "np.ndarray",
    rotations: "np.ndarray",
    shifts: "np.ndarray",
) -> dict[str, object]:
    """Makes the columns that say class, pose, half set and tilt range.

    Args:
        particles: as loaded from the table.
        table: whose other columns are kept.
        labels: ``(n,)`` classes from 0.
        rotations: ``(n, 3, 3)``, reference into particle.
        shifts: ``(n, 3)``, voxels.

    Returns:
        Values by column name; half sets only if the table has none.
    """
    from jimjax.data import columns as names
    from jimjax.io.convert import relion_from_rotation, relion_from_shift

    angles = relion_from_rotation(rotations).T
    origins = relion_from_shift(shifts, particles.voxel_size).T
    columns = dict(zip(names.ANGLES, angles, strict=True))
    columns |= dict(zip(names.ORIGINS, origins, strict=True))
    if any(name in table.columns for name in names.OLD_ORIGINS):
        columns |= dict(zip(names.OLD_ORIGINS, -shifts.T, strict=True))
    return columns | class_columns(particles, table, labels)


def write_poses(
    particles: "Subtomograms",
    data: Path,
    out: Path,
    labels: "np.ndarray",
    rotations: "np.ndarray",
    shifts: "np.ndarray",
    **more: "np.ndarray",
) -> None:
    """Writes a copy of a STAR file with new classes and poses.

    Args:
        particles: as loaded from ``data``.
        data: STAR file whose columns and blocks are kept.
        out: STAR file to write.
        labels: ``(n,)`` classes from 0.
        rotations: ``(n, 3, 3)``, reference into particle.
        shifts: ``(n, 3)``, voxels.
        **more: further columns.
    """
    from jimjax.data.subtomograms import table_of

    table = table_of(particles, data)
    columns = pose_columns(particles, table, labels, rotations, shifts)
    table.with_columns(columns | more).write(out)
