"""Agreement between predicted classes and true ones, free of the numbering of either."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import (
    adjusted_rand_score,
    homogeneity_completeness_v_measure,
    normalized_mutual_info_score,
)

__all__ = [
    "balanced_accuracy",
    "clustering_accuracy",
    "contingency_table",
    "match_labels",
    "score_clustering",
]


def contingency_table(labels: np.ndarray, true_labels: np.ndarray) -> np.ndarray:
    """Counts how often each predicted label meets each true label.

    Args:
        labels: ``(n,)`` integers; numbers may be missing and need not start at 0.
        true_labels: ``(n,)`` integers, likewise.

    Returns:
        ``(num_predicted, num_true)`` int64, one row (column) per label that occurs, ascending.

    Raises:
        ValueError: if a label list is empty, not integer, not one-dimensional, or if they differ
            in length.
    """
    labels, true_labels = _checked_pair(labels, true_labels)
    predicted_names, rows = np.unique(labels, return_inverse=True)
    true_names, columns = np.unique(true_labels, return_inverse=True)
    table = np.zeros((predicted_names.size, true_names.size), np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def clustering_accuracy(labels: np.ndarray, true_labels: np.ndarray) -> float:
    """Scores the best one-to-one naming of clusters by the share it gets right.

        accuracy = max over one-to-one maps m of sum_i [m(label_i) = true_i] / n

    The map is the rectangular assignment on the contingency table, so the numbers of predicted and
    true classes may differ; a cluster left without a class counts as wrong.

    Args:
        labels: ``(n,)`` integers.
        true_labels: ``(n,)`` integers.

    Returns:
        Share in (0, 1].

    Raises:
        ValueError: as :func:`contingency_table`.
    """
    table = contingency_table(labels, true_labels)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def balanced_accuracy(labels: np.ndarray, true_labels: np.ndarray) -> float:
    """Scores the one-to-one naming that is best for classes, whatever their sizes.

        accuracy = max over one-to-one maps m of mean_c share of class c that m gets right

    Args:
        labels: ``(n,)`` integers.
        true_labels: ``(n,)`` integers.

    Returns:
        Share in (0, 1]; a constant prediction gets one over the number of true classes.

    Raises:
        ValueError: as :func:`contingency_table`.
    """
    table = contingency_table(labels, true_labels)
    shares = table / table.sum(axis=0)
    rows, columns = linear_sum_assignment(shares, maximize=True)
    return float(shares[rows, columns].sum() / table.shape[1])


def match_labels(labels: np.ndarray, reference_labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Renumbers labels so that they agree with a reference as often as possible.

    Two clusterings of the same particles may differ by a permutation of the class numbers only;
    afterwards they do not. Where several permutations agree equally often, the one that keeps most
    numbers unchanged is taken, so that the result is deterministic and empty classes stay put.

    Args:
        labels: ``(n,)`` integers in ``[0, num_labels)``.
        reference_labels: ``(n,)`` integers in ``[0, num_labels)``.
        num_labels: number of classes, occupied or not.

    Returns:
        ``(n,)`` labels under the best permutation of ``0..num_labels - 1``, dtype of ``labels``.

    Raises:
        ValueError: as :func:`contingency_table`, or if a label is outside ``[0, num_labels)``.
    """
    labels, reference_labels = _checked_pair(labels, reference_labels)
    for name, values in (("labels", labels), ("reference_labels", reference_labels)):
        if values.min() < 0 or values.max() >= num_labels:
            raise ValueError(
                f"{name} must lie in [0, {num_labels}), got {values.min()} to {values.max()}"
            )
    agreement = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(agreement, (labels, reference_labels), 1)
    # A kept number is worth less than one particle even if all of them are kept.
    worth = agreement * (num_labels + 1) + np.eye(num_labels, dtype=np.int64)
    _, new_number = linear_sum_assignment(worth, maximize=True)
    return new_number[labels].astype(labels.dtype)


def score_clustering(labels: np.ndarray, true_labels: np.ndarray) -> dict[str, float]:
    """Scores a clustering in the ways that are in use.

    A constant prediction gets the share of the largest class as accuracy (1/K for K equal
    classes), 1/K as balanced accuracy, and 0 for all others but completeness, which is 1.

    Args:
        labels: ``(n,)`` integers.
        true_labels: ``(n,)`` integers.

    Returns:
        ``clustering_accuracy`` and ``balanced_accuracy`` in (0, 1], ``ari`` (Hubert & Arabie 1985)
        in [-0.5, 1], ``nmi`` in [0, 1] (Strehl & Ghosh 2002: over the geometric mean of both
        entropies), ``homogeneity``, ``completeness`` and their harmonic mean ``v_measure``
        (Rosenberg & Hirschberg 2007) in [0, 1].

    Raises:
        ValueError: as :func:`contingency_table`.
    """
    accuracy = clustering_accuracy(labels, true_labels)
    homogeneity, completeness, v_measure = homogeneity_completeness_v_measure(true_labels, labels)
    nmi = normalized_mutual_info_score(true_labels, labels, average_method="geometric")
    return {
        "clustering_accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy(labels, true_labels),
        "ari": float(adjusted_rand_score(true_labels, labels)),
        "nmi": float(nmi),
        "homogeneity": float(homogeneity),
        "completeness": float(completeness),
        "v_measure": float(v_measure),
    }


def _checked_pair(labels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, others = np.asarray(labels), np.asarray(others)
    for values in (labels, others):
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"labels must be a one-dimensional list of integers, got {values.dtype} of shape "
                f"{values.shape}"
            )
    if labels.size != others.size:
        raise ValueError(
            f"both label lists must have one entry a particle, got {labels.size} and {others.size}"
        )
    if labels.size == 0:
        raise ValueError("there are no labels to compare; give at least one particle")
    return labels, others
