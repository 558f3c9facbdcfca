"""k-means of features, and which number of clusters suits them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import silhouette_score

from jimjax.ops import kmeans

MAX_COMPARED = 5000  # particles whose silhouettes are asked for: their distances are all kept


def divide(
    key: jax.Array, features: np.ndarray, candidates: Sequence[int], *, num_starts: int
) -> np.ndarray:
    """Clusters by k-means; of several numbers of clusters, the best separated are kept.

    Args:
        key: seeds the starts, and the choice of particles to compare.
        features: ``(n, d)``, finite.
        candidates: numbers of clusters.
        num_starts: of each k-means.

    Returns:
        ``(n,)`` int32 labels from 0; clusters without particles are left out.

    Raises:
        ValueError: if there are fewer rows than clusters.
    """
    found = []
    for number in candidates:
        fit = kmeans.fit(key, jnp.asarray(features), num_clusters=number, num_init=num_starts)
        labels = np.unique(np.asarray(fit.labels), return_inverse=True)[1]
        found.append(labels.astype(np.int32))
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda labels: separation(key, features, labels))


def separation(key: jax.Array, features: np.ndarray, labels: np.ndarray) -> float:
    """How much nearer particles are to their own cluster than to the next: the mean silhouette.

    Args:
        key: chooses ``MAX_COMPARED`` particles where there are more.
        features: ``(n, d)``.
        labels: ``(n,)``.

    Returns:
        From -1 to 1; -1 where there is nothing to compare, in a single cluster or in clusters of
        one particle each.

    Reference: Rousseeuw 1987, Silhouettes.
    """
    if len(features) > MAX_COMPARED:
        rows = np.asarray(jax.random.permutation(key, len(features)))[:MAX_COMPARED]
        features, labels = features[rows], labels[rows]
    if not 1 < len(np.unique(labels)) < len(features):
        return -1.0
    return float(silhouette_score(features, labels))
