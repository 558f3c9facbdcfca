"""Picks: the peaks of a score map that stand out and lie apart."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

NORMAL_DEVIATIONS = 1.4826  # standard deviations of a normal distribution per median deviation


class Background(NamedTuple):
    """What most of a score map is like.

    Attributes:
        level: median.
        deviation: robust standard deviation, from the median distance to the median.
    """

    level: float
    deviation: float


class Picks(NamedTuple):
    """Peaks, highest first.

    Attributes:
        voxels: ``(n, 3)`` int, (z, y, x) of the highest voxel.
        positions: ``(n, 3)``, (x, y, z) of the peak between voxels; the first voxel is 0.
        scores: ``(n,)``, of the highest voxel.
    """

    voxels: np.ndarray
    positions: np.ndarray
    scores: np.ndarray


def background(scores: np.ndarray) -> Background:
    """Measures what most of a score map is like.

    Args:
        scores: any shape.

    Returns:
        Median and robust standard deviation.
    """
    level = np.median(scores)
    return Background(float(level), float(NORMAL_DEVIATIONS * np.median(np.abs(scores - level))))


def find_picks(
    scores: np.ndarray,
    *,
    threshold: float,
    min_distance: float,
    margin: int = 0,
    max_picks: int | None = None,
) -> Picks:
    """Finds the highest peaks that lie apart.

    The highest comes first; each next one is the highest among those at least ``min_distance``
    from all before it. Positions between voxels are those of parabolas along the axes.

    Args:
        scores: ``(z, y, x)``.
        threshold: no peak is lower.
        min_distance: between two picks, voxels.
        margin: voxels along each face in which no peak is picked.
        max_picks: all if None.

    Returns:
        Picks.

    Raises:
        ValueError: if the scores are not three-dimensional.
    """
    if scores.ndim != 3:
        raise ValueError(f"scores must be (z, y, x), got shape {scores.shape}")
    is_peak = (scores == ndimage.maximum_filter(scores, 3)) & (scores >= threshold)
    voxels = np.argwhere(is_peak)
    voxels = voxels[np.all((voxels >= margin) & (voxels < np.array(scores.shape) - margin), axis=1)]
    heights = scores[tuple(voxels.T)]
    order = np.argsort(-heights, kind="stable")
    voxels, heights = voxels[order], heights[order]
    kept = _apart(voxels, min_distance, max_picks)
    positions = np.array([_between_voxels(scores, voxel) for voxel in voxels[kept]])
    return Picks(voxels[kept], positions.reshape(-1, 3)[:, ::-1], heights[kept])


def _apart(voxels: np.ndarray, min_distance: float, max_picks: int | None) -> list[int]:
    """Rows, each no nearer than ``min_distance`` to a row before it."""
    if len(voxels) == 0:
        return []
    tree = cKDTree(voxels)
    is_free = np.ones(len(voxels), bool)
    kept: list[int] = []
    for row, voxel in enumerate(voxels):
        if is_free[row] and (max_picks is None or len(kept) < max_picks):
            kept.append(row)
            near = tree.query_ball_point(voxel, np.nextafter(min_distance, 0))
            is_free[near] = False
    return kept


def _between_voxels(scores: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """The top of the parabola through a peak and its neighbours, along each axis."""
    position = voxel.astype(float)
    for axis, size in enumerate(scores.shape):
        if not 0 < voxel[axis] < size - 1:
            continue
        step = np.eye(3, dtype=int)[axis]
        below, here, above = (float(scores[tuple(voxel + k * step)]) for k in (-1, 0, 1))
        curvature = below - 2 * here + above
        if curvature < 0:
            position[axis] += 0.5 * (below - above) / curvature
    return position
