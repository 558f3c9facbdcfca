"""Errors of estimated poses, measured between particles so that no reference frame is needed.

An unsupervised method may put each class into any frame: if the reference of a class is turned and
moved, every pose of the class changes, and none is wrong. The pose that carries particle i into
particle j does not change, so that is what is compared with the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "MAX_PAIRS",
    "PoseErrors",
    "compare_relative",
    "relative_pose_errors",
    "relative_poses",
    "rotation_error_degrees",
    "sample_pairs",
    "score_poses",
]

MAX_PAIRS = 200_000  # the draw then moves the mean rotation error by about 0.001
LARGEST_ROTATION_ERROR = 2 * np.sqrt(2)  # Frobenius distance of rotations half a turn apart
CLOSE_DEGREES = (10, 20)  # "aligned well" and "aligned" for local refinement


class PoseErrors(NamedTuple):
    """Errors of the relative pose of each pair.

    Attributes:
        rotation: ``(num_pairs,)`` Frobenius norm ``|R_estimated - R_true|``, 0 to 2 sqrt(2).
        translation: ``(num_pairs,)`` Euclidean norm of the shift difference, voxels.
    """

    rotation: np.ndarray
    translation: np.ndarray


def sample_pairs(
    labels: np.ndarray, *, max_pairs: int = MAX_PAIRS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Lists the pairs i < j of particles of one label, or a random subset.

    Args:
        labels: ``(n,)`` integers.
        max_pairs: if there are more pairs, so many are drawn uniformly without replacement.
        seed: of the draw.

    Returns:
        ``first`` and ``second``, each ``(num_pairs,)`` particle indices with ``first < second``.

    Raises:
        ValueError: if no two particles share a label.
    """
    labels = np.asarray(labels)
    members = [np.flatnonzero(labels == name) for name in np.unique(labels)]
    ends = np.cumsum([group.size * (group.size - 1) // 2 for group in members])
    num_pairs = int(ends[-1]) if ends.size else 0
    if num_pairs == 0:
        raise ValueError("no two particles have the same true class, so no relative pose exists")
    if num_pairs > max_pairs:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(num_pairs, max_pairs, replace=False, shuffle=False))
    else:
        chosen = np.arange(num_pairs)
    first, second = [], []
    for group, start, end in zip(members, np.concatenate([[0], ends]), ends, strict=False):
        low, high = _unrank_pairs(chosen[(chosen >= start) & (chosen < end)] - start)
        first.append(group[low])
        second.append(group[high])
    return np.concatenate(first), np.concatenate(second)


def relative_poses(
    rotations: np.ndarray,
    shifts: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    element: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds what carries one particle of each pair into the other.

    Args:
        rotations: ``(n, 3, 3)``, reference to particle.
        shifts: ``(n, 3)``, (x, y, z), voxels.
        first: ``(num_pairs,)``, rows.
        second: same shape.
        element: ``(3, 3)``, turns the reference in between; None if it is not turned.

    Returns:
        Rotations ``(num_pairs, 3, 3)`` and shifts ``(num_pairs, 3)``.
    """
    later = rotations[second] if element is None else rotations[second] @ element
    relative = later @ np.swapaxes(rotations[first], 1, 2)
    return relative, shifts[second] - np.einsum("pij,pj->pi", relative, shifts[first])


def relative_pose_errors(
    rotations: np.ndarray,
    shifts: np.ndarray,
    true_labels: np.ndarray,
    true_rotations: np.ndarray,
    true_shifts: np.ndarray,
    *,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
    is_shift_rounded: bool = False,
    groups: Sequence[np.ndarray] | None = None,
) -> PoseErrors:
    """Compares the relative poses of pairs of one true class with the true ones.

        R_ij = R_j R_i^T,   t_ij = t_j - R_ij t_i

    carry particle i into particle j. They stay the same when the reference of the class is turned
    by any Q and moved by any s (``R -> R Q``, ``t -> t + R s``).

    Args:
        rotations: ``(n, 3, 3)`` estimated rotations, reference to particle.
        shifts: ``(n, 3)`` estimated shifts, (x, y, z), voxels.
        true_labels: ``(n,)`` integers; only pairs of one class have a common reference.
        true_rotations: ``(n, 3, 3)``.
        true_shifts: ``(n, 3)``, voxels.
        max_pairs: see :func:`sample_pairs`.
        seed: see :func:`sample_pairs`.
        is_shift_rounded: whether both relative shifts are rounded to voxels before they are
            compared, as Gum-Net's published evaluation does; to compare with its tables.
        groups: for each true class by its number the rotations ``(order, 3, 3)``, about the origin
            of its true reference, that leave it as it is. Of the true relative poses
            ``R_j g R_i^T`` that with the smallest rotation error counts. None: no symmetry.

    Returns:
        The errors of each pair, float64.

    Raises:
        ValueError: if shapes disagree, a value is not finite, no pair exists, or a class has no
            group.
    """
    num = np.asarray(true_labels).shape[0]
    rotations, true_rotations = (
        _checked(name, values, (num, 3, 3))
        for name, values in (("rotations", rotations), ("true_rotations", true_rotations))
    )
    shifts, true_shifts = (
        _checked(name, values, (num, 3))
        for name, values in (("shifts", shifts), ("true_shifts", true_shifts))
    )
    first, second = sample_pairs(true_labels, max_pairs=max_pairs, seed=seed)
    found = relative_poses(rotations, shifts, first, second)
    return compare_relative(
        *found, true_labels, true_rotations, true_shifts, (first, second),
        is_shift_rounded=is_shift_rounded, groups=groups,
    )  # fmt: skip


def compare_relative(
    rotations: np.ndarray,
    shifts: np.ndarray,
    true_labels: np.ndarray,
    true_rotations: np.ndarray,
    true_shifts: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    *,
    is_shift_rounded: bool = False,
    groups: Sequence[np.ndarray] | None = None,
) -> PoseErrors:
    """Compares relative poses with the true ones of the same pairs.

    Args:
        rotations: ``(num_pairs, 3, 3)``, first particle into second.
        shifts: ``(num_pairs, 3)``, voxels.
        true_labels: ``(n,)`` integers.
        true_rotations: ``(n, 3, 3)``, reference to particle.
        true_shifts: ``(n, 3)``, voxels.
        pairs: first and second particle of each pair, of one class.
        is_shift_rounded: see :func:`relative_pose_errors`.
        groups: likewise.

    Raises:
        ValueError: if a class has no group.
    """
    labels, (first, second) = np.asarray(true_labels), pairs
    if groups is not None and len(groups) <= labels.max():
        raise ValueError(
            f"groups are given for {len(groups)} classes, class {labels.max()} has none"
        )
    best = PoseErrors(np.full(len(first), np.inf), np.empty(len(first)))
    for label in np.unique(labels[first]):
        rows = np.flatnonzero(labels[first] == label)
        group = np.eye(3)[None] if groups is None else np.asarray(groups[label], np.float64)
        for element in group:
            true_rotation, true_shift = relative_poses(
                true_rotations, true_shifts, first[rows], second[rows], element
            )
            rotation_error = np.linalg.norm(rotations[rows] - true_rotation, axis=(1, 2))
            moved = shifts[rows] - true_shift
            if is_shift_rounded:
                moved = np.round(shifts[rows]) - np.round(true_shift)
            is_better = rotation_error < best.rotation[rows]
            best.rotation[rows[is_better]] = rotation_error[is_better]
            best.translation[rows[is_better]] = np.linalg.norm(moved[is_better], axis=1)
    return best


def rotation_error_degrees(frobenius: np.ndarray) -> np.ndarray:
    """Converts a Frobenius distance of rotations to the angle between them.

        d = 2 sqrt(2) sin(angle / 2)

    Args:
        frobenius: any shape, 0 to 2 sqrt(2); rounding beyond the end is clipped.

    Returns:
        Degrees in [0, 180], same shape.
    """
    half_sine = np.clip(np.asarray(frobenius) / LARGEST_ROTATION_ERROR, 0.0, 1.0)
    return np.degrees(2 * np.arcsin(half_sine))


def score_poses(errors: PoseErrors) -> dict[str, float]:
    """Summarises pose errors by mean, population standard deviation and median.

    Random rotations give a mean rotation error of 16 sqrt(2) / (3 pi) = 2.40 with standard
    deviation 0.485.

    Args:
        errors: of at least one pair.

    Returns:
        ``rotation_error_*`` as Frobenius norms (and the median in degrees),
        ``translation_error_*`` in voxels, ``rotation_share_below_*_degrees`` as shares in [0, 1],
        ``num_pairs``.
    """
    degrees = rotation_error_degrees(errors.rotation)
    scores = {
        "rotation_error_mean": errors.rotation.mean(),
        "rotation_error_std": errors.rotation.std(),
        "rotation_error_median": np.median(errors.rotation),
        "translation_error_mean": errors.translation.mean(),
        "translation_error_std": errors.translation.std(),
        "rotation_error_median_degrees": np.median(degrees),
    }
    for limit in CLOSE_DEGREES:
        scores[f"rotation_share_below_{limit}_degrees"] = np.mean(degrees < limit)
    scores["num_pairs"] = errors.rotation.size
    return {name: float(value) for name, value in scores.items()}


def _unrank_pairs(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns ranks into pairs (0,1), (0,2), (1,2), (0,3), ...: rank = high (high - 1)/2 + low."""
    # Exact in float64 for 10^7 particles and more: 8 rank + 1 is an odd square where high steps.
    high = np.floor((1 + np.sqrt(1 + 8 * ranks.astype(np.float64))) / 2).astype(np.int64)
    return ranks - high * (high - 1) // 2, high


def _checked(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name} of {bad.size} particles are not finite, the first is particle {bad[0]}"
        )
    return values
