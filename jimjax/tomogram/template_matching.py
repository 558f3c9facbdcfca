"""Particles of known structures in a tomogram: from maps and angstroms to poses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jimjax.io.errors import InputError
from jimjax.ops import symmetry
from jimjax.progress import Progress
from jimjax.tomogram import matched_filter
from jimjax.tomogram.picks import background, find_picks
from jimjax.tomogram.search import ScoreMaps, match_templates


@dataclass(frozen=True)
class MatchOptions:
    """What is looked for, and how closely.

    Attributes:
        diameter: of the particle, angstrom.
        angle_step: between rotations, degrees.
        resolution: angstrom; particle diameter times angle step if None. A rotation halfway
            between two of the grid then moves the particle's edge by a quarter of the finest wave.
        binning: whole factor by which the search is coarser than the tomogram; the largest that
            keeps the resolution if None.
        symmetry: point group of all maps.
        threshold: standard deviations above the median of the score map.
        min_score: lowest score, instead of a threshold.
        max_picks: all above the threshold if None.
        min_distance: between two particles, angstrom; the diameter if None.
        max_bytes: of memory on each device.
    """

    diameter: float
    angle_step: float = 15.0
    resolution: float | None = None
    binning: int | None = None
    symmetry: str = "C1"
    threshold: float = 5.0
    min_score: float | None = None
    max_picks: int | None = None
    min_distance: float | None = None
    max_bytes: float = 2**31


class Plan(NamedTuple):
    """The options in the tomogram's terms.

    Attributes:
        rotations: ``(num, 3, 3)``, one of each set that the symmetry makes alike.
        resolution: angstrom.
        binning: the search's voxel in voxels of the tomogram.
        diameter: of the particle, voxels of the search.
        cutoff: of the band, cycles per voxel of the search.
    """

    rotations: np.ndarray
    resolution: float
    binning: int
    diameter: float
    cutoff: float


class Particles(NamedTuple):
    """Particles found, best first.

    Attributes:
        positions: ``(n, 3)``, (x, y, z) in voxels of the tomogram; the first voxel is 0.
        rotations: ``(n, 3, 3)``, carry the map into the tomogram.
        references: ``(n,)`` int, number of the map.
        scores: ``(n,)`` correlation coefficients.
        deviations: ``(n,)``, scores in standard deviations above the median.
        threshold: the lowest score that was allowed.
    """

    positions: np.ndarray
    rotations: np.ndarray
    references: np.ndarray
    scores: np.ndarray
    deviations: np.ndarray
    threshold: float


def plan_search(options: MatchOptions, voxel_size: float) -> Plan:
    """Decides on rotations, band and binning.

    Args:
        options: what is looked for.
        voxel_size: of the tomogram, angstrom.

    Returns:
        The plan.

    Raises:
        InputError: if an option is out of range.
    """
    _check_options(options, voxel_size)
    step = np.deg2rad(options.angle_step)
    resolution = options.resolution
    if resolution is None:
        resolution = max(options.diameter * step, 2 * voxel_size)
    cutoff, diameter = voxel_size / resolution, options.diameter / voxel_size
    binning = options.binning or matched_filter.choose_binning(cutoff, diameter)
    if cutoff * binning > 0.5 * (1 + 1e-6):
        raise InputError(
            f"the resolution must be {2 * voxel_size * binning:g} A or coarser, two voxels of "
            f"{voxel_size:g} A at binning {binning}, got {resolution:g}"
        )
    try:
        rotations = np.asarray(symmetry.rotation_grid(step, group=options.symmetry))
    except ValueError as problem:
        raise InputError(f"symmetry {options.symmetry!r}: {problem}") from problem
    return Plan(rotations, resolution, binning, diameter / binning, min(0.5, cutoff * binning))


def search(
    tomogram: np.ndarray,
    maps: Sequence[np.ndarray],
    plan: Plan,
    *,
    tilt_range: tuple[float, float],
    max_bytes: float = 2**31,
    progress: Progress | None = None,
) -> ScoreMaps:
    """Scores every voxel of the search as the centre of a particle.

    Args:
        tomogram: ``(z, y, x)``; beam z, tilt axis y.
        maps: cubes with the tomogram's voxel size and contrast.
        plan: from ``plan_search``.
        tilt_range: lowest and highest tilt, degrees.
        max_bytes: of memory on each device.
        progress: told after every few rotations.

    Returns:
        Maps of the search's voxels: voxel ``i`` lies at ``binning * i`` of the tomogram.

    Raises:
        InputError: if the tomogram is too small, constant, or the memory too little.
    """
    smallest = plan.binning * matched_filter.mask_side(plan.diameter)
    if min(tomogram.shape) < smallest:
        raise InputError(
            f"the tomogram must have {smallest} voxels or more along each axis to hold a particle "
            f"and its mask, its shape (z, y, x) is {tomogram.shape}; give a smaller particle "
            "diameter or binning"
        )
    coarse = matched_filter.coarsen(tomogram, plan.binning)
    templates = [matched_filter.coarsen_template(volume, plan.binning) for volume in maps]
    try:
        return match_templates(
            coarse,
            templates,
            plan.rotations,
            diameter=plan.diameter,
            tilt_range=tilt_range,
            cutoff=plan.cutoff,
            max_bytes=max_bytes,
            progress=progress,
        )
    except ValueError as problem:
        raise InputError(str(problem)) from problem


def pick_particles(maps: ScoreMaps, plan: Plan, options: MatchOptions) -> Particles:
    """Picks the peaks of score maps.

    No particle is picked whose sphere reaches beyond the tomogram.

    Args:
        maps: from ``search``.
        plan: from ``plan_search``.
        options: threshold, distance and number.

    Returns:
        Particles, best first.
    """
    margin = int(plan.diameter / 2)
    inner = tuple(slice(margin, max(margin + 1, size - margin)) for size in maps.scores.shape)
    level = background(maps.scores[inner])
    threshold = level.level + options.threshold * level.deviation
    if options.min_score is not None:
        threshold = options.min_score
    distance = plan.diameter
    if options.min_distance is not None:
        distance *= options.min_distance / options.diameter
    picks = find_picks(
        maps.scores,
        threshold=threshold,
        min_distance=distance,
        margin=margin,
        max_picks=options.max_picks,
    )
    places = tuple(picks.voxels.T)
    return Particles(
        positions=picks.positions * plan.binning,
        rotations=plan.rotations[maps.rotations[places]],
        references=maps.references[places],
        scores=picks.scores,
        deviations=(picks.scores - level.level) / max(level.deviation, np.finfo(np.float32).tiny),
        threshold=float(threshold),
    )


def _check_options(options: MatchOptions, voxel_size: float) -> None:
    positive = {
        "the particle diameter": options.diameter,
        "the resolution": options.resolution,
        "the distance between particles": options.min_distance,
        "the memory": options.max_bytes,
    }
    for name, value in positive.items():
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{name} must be positive, got {value:g}")
    if not 1 <= options.angle_step <= 180:
        raise InputError(f"the angle step must be 1 to 180 degrees, got {options.angle_step:g}")
    whole = {"binning": options.binning, "number of picks": options.max_picks}
    for name, number in whole.items():
        if number is not None and number < 1:
            raise InputError(f"the {name} must be 1 or more, got {number}")
    smallest = 4 * voxel_size * (options.binning or 1)
    if options.diameter < smallest:
        raise InputError(
            f"the particle diameter must be {smallest:g} A or more, four voxels of the search, "
            f"got {options.diameter:g}"
        )
