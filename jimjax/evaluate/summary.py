"""All scores of one run in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jimjax.evaluate.clustering import score_clustering
from jimjax.evaluate.pose import MAX_PAIRS, relative_pose_errors, score_poses

__all__ = ["evaluate"]


def evaluate(
    labels: np.ndarray,
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
) -> dict[str, float]:
    """Scores predicted classes and poses against the truth, ready for a JSON file.

    Class numbers and the frame of each class are free: permuting the classes, or turning and
    moving the reference of a class, changes no score. Poses are compared over pairs of particles
    of the same true class, whatever class was predicted. Without ``groups`` no symmetry is divided
    out: for a symmetric particle the pose errors are then upper bounds.

    Args:
        labels: ``(n,)`` predicted classes, integers.
        rotations: ``(n, 3, 3)`` predicted rotations, reference to particle.
        shifts: ``(n, 3)`` predicted shifts, (x, y, z), voxels.
        true_labels: ``(n,)`` integers.
        true_rotations: ``(n, 3, 3)``.
        true_shifts: ``(n, 3)``, voxels.
        max_pairs: if there are more pairs, a random subset of this size is used.
        seed: of that subset.
        is_shift_rounded: see :func:`relative_pose_errors`.
        groups: point group of each true class; see :func:`relative_pose_errors`.

    Returns:
        Those of :func:`score_clustering`; ``rotation_error_mean``, ``_std``,
        ``_median`` (Frobenius norm, 0 to 2 sqrt(2), chance 2.40), ``translation_error_mean``,
        ``_std`` (voxels); further ``rotation_error_median_degrees``,
        ``rotation_share_below_10_degrees``, ``rotation_share_below_20_degrees``, ``num_pairs`` and
        ``num_particles``. Standard deviations are those of the population.

    Raises:
        ValueError: if shapes disagree, a pose is not finite, or no two particles share a class.
    """
    scores = score_clustering(labels, true_labels)
    truth = (true_labels, true_rotations, true_shifts)
    how = {"max_pairs": max_pairs, "seed": seed, "is_shift_rounded": is_shift_rounded}
    how["groups"] = groups
    errors = relative_pose_errors(rotations, shifts, *truth, **how)
    scores |= score_poses(errors)
    scores["num_particles"] = float(np.asarray(true_labels).size)
    return scores
