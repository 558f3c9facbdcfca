"""Class averages as files: maps, curves and a summary that other programs can read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jimjax.average.class_average import ClassAverage, average_class
from jimjax.data.subtomograms import Subtomograms
from jimjax.io import mrc
from jimjax.io.files import replace_file
from jimjax.ops.fourier import FSC_GOLD_STANDARD
from jimjax.ops.rotation import Pose
from jimjax.progress import stop_request

__all__ = ["average_classes", "fsc_frequencies", "write_averages"]


def average_classes(
    particles: Subtomograms, *, num_classes: int | None = None, order: int = 3
) -> tuple[ClassAverage | None, ...]:
    """Averages the particles of each class in their poses.

    Args:
        particles: with predicted labels, rotations and shifts.
        num_classes: number of classes; the highest label decides if None.
        order: of the interpolation, 1 or 3.

    Returns:
        One entry per class, None where the class is empty.

    Raises:
        ValueError: if labels or poses are missing, or a label is outside ``[0, num_classes)``.
    """
    for name in ("labels", "rotations", "shifts"):
        if getattr(particles, name) is None:
            raise ValueError(f"averages need {name}, these particles have none; align them first")
    labels = np.asarray(particles.labels)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}"
        )
    averages = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if members.size == 0:
            averages.append(None)
            continue
        chosen = particles.select(members)
        averages.append(
            average_class(
                chosen.volumes,
                chosen.tilt_ranges,
                Pose(chosen.rotations, chosen.shifts),
                chosen.halves,
                voxel_size=particles.voxel_size,
                order=order,
            )
        )
    return tuple(averages)


def write_averages(
    particles: Subtomograms,
    out_dir: Path | str,
    *,
    num_classes: int | None = None,
    order: int = 3,
) -> tuple[ClassAverage | None, ...]:
    """Averages each class and writes the maps, the half maps, the curves and a summary.

    Class c (0-based) gives ``class_001.mrc``, ``class_001_half1.mrc``, ``class_001_half2.mrc``
    and ``class_001_fsc.csv`` for c = 0, numbered from 1 as in rlnClassNumber. ``summary.json``
    lists every class, the empty ones too. A half map that has no particles is not written; the
    resolution is then null.

    Args:
        particles: with predicted labels, rotations and shifts.
        out_dir: made if missing; files of the same names are replaced.
        num_classes: see :func:`average_classes`.
        order: of the interpolation, 1 or 3.

    Returns:
        The averages, as :func:`average_classes`.

    Raises:
        ValueError: as :func:`average_classes`.
        OSError: if a file cannot be written.
    """
    averages = average_classes(particles, num_classes=num_classes, order=order)
    with stop_request():  # all files or none
        _write_all(averages, particles, Path(out_dir))
    return averages


def fsc_frequencies(num_shells: int, size: int, voxel_size: float) -> np.ndarray:
    """Lists the spatial frequency of each shell.

    Args:
        num_shells: usually ``size // 2 + 1``.
        size: edge of the box, voxels.
        voxel_size: Angstrom.

    Returns:
        ``(num_shells,)`` in 1/Angstrom: shell / (size * voxel_size).
    """
    return np.arange(num_shells) / (size * voxel_size)


def _write_all(
    averages: tuple[ClassAverage | None, ...], particles: Subtomograms, out_dir: Path
) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, average in enumerate(averages, start=1):
        files = [] if average is None else _write_class(out_dir, number, average, particles)
        entries.append(_summary_entry(number, average, files))
    summary = {
        "voxel_size_angstrom": float(particles.voxel_size),
        "fsc_threshold": FSC_GOLD_STANDARD,
        "classes": entries,
    }
    _write_text(out_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _write_class(
    out_dir: Path, number: int, average: ClassAverage, particles: Subtomograms
) -> list[str]:
    stem = f"class_{number:03d}"
    maps = {
        f"{stem}.mrc": average.volume,
        f"{stem}_half1.mrc": average.half1,
        f"{stem}_half2.mrc": average.half2,
    }
    files = []
    for name, volume in maps.items():
        if volume is not None:
            mrc.write_volume(out_dir / name, volume, voxel_size=particles.voxel_size)
            files.append(name)
    if average.fsc is not None:
        frequencies = fsc_frequencies(
            len(average.fsc), average.volume.shape[0], particles.voxel_size
        )
        lines = ["shell,frequency_per_angstrom,resolution_angstrom,fsc"]
        for shell, (frequency, value) in enumerate(zip(frequencies, average.fsc, strict=True)):
            resolution = f"{1 / frequency:.4f}" if shell else "inf"
            lines.append(f"{shell},{frequency:.8f},{resolution},{value:.6f}")
        _write_text(out_dir / f"{stem}_fsc.csv", "\n".join(lines) + "\n")
        files.append(f"{stem}_fsc.csv")
    return files


def _summary_entry(number: int, average: ClassAverage | None, files: list[str]) -> dict:
    num_half1, num_half2 = (0, 0) if average is None else (average.num_half1, average.num_half2)
    resolution = None if average is None else average.resolution
    return {
        "class": number,
        "num_particles": num_half1 + num_half2,
        "num_half1": num_half1,
        "num_half2": num_half2,
        "resolution_angstrom": None if resolution is None else float(resolution.angstrom),
        "at_nyquist": None if resolution is None else bool(resolution.is_at_nyquist),
        "files": files,
    }


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as stream:
        stream.write(text.encode())
