"""From features to classes: a mixture along their principal axes, or a linear map of them."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops import mixture
from jimjax.ops.mixture import Mixture

MAX_ITERATIONS = 200  # of a mixture's fit
TOLERANCE = 1e-4  # of the mean log-likelihood
REGULARIZATION = 1e-4  # of variances along axes of which the first has variance 1
TAUGHT_AXES = 16  # along which known classes are told apart
LEAST_SPREAD = 1e-6  # of a class about its centre, in units of the features' largest


class Axes(NamedTuple):
    """Principal axes of features.

    Attributes:
        origin: ``(d,)``, the mean.
        directions: ``(d, p)``, orthogonal, of a length that gives the first axis variance 1.
    """

    origin: np.ndarray
    directions: np.ndarray

    def project(self, features: np.ndarray) -> np.ndarray:
        """Coordinates ``(n, p)`` of features ``(n, d)``."""
        return ((features - self.origin) @ self.directions).astype(np.float32)


class Assignment(NamedTuple):
    """Classes as components of a mixture along principal axes.

    Attributes:
        axes: ``(d, p)``.
        mixture: of k components in p dimensions.
    """

    axes: Axes
    mixture: Mixture

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.mixture.means)

    def posterior(self, features: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, ``(n, k)``, of features ``(n, d)``."""
        known = mixture.e_step(self.axes.project(features), self.mixture)
        return np.asarray(jnp.exp(known.log_responsibilities))


class Linear(NamedTuple):
    """Classes as the softmax of a linear map: a network's head, or the centres of k-means.

    Attributes:
        kernel: ``(d, k)``.
        bias: ``(k,)``.
    """

    kernel: np.ndarray
    bias: np.ndarray

    @classmethod
    def from_centres(cls, features: np.ndarray, labels: np.ndarray) -> Self:
        """Classes of the nearest centre, as a mixture of spheres that share one variance.

        Args:
            features: ``(n, d)``.
            labels: ``(n,)`` from 0, no class empty; their means are the centres.
        """
        features, labels = np.asarray(features, np.float64), np.asarray(labels)
        members = np.eye(int(labels.max()) + 1)[labels]
        centres = members.T @ features / members.sum(axis=0)[:, None]
        from_own = np.mean((features - centres[labels]) ** 2)
        variance = from_own + (LEAST_SPREAD * max(np.abs(features).max(), LEAST_SPREAD)) ** 2
        # Of the squared distances, what all centres have in common cancels in the softmax.
        kernel = (centres - centres.mean(axis=0)).T / variance
        bias = -0.5 * (centres**2).sum(axis=1) / variance
        return cls(kernel.astype(np.float32), (bias - bias.mean()).astype(np.float32))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.bias)

    def posterior(self, features: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, ``(n, k)``, of features ``(n, d)``."""
        logits = features.astype(np.float64) @ self.kernel + self.bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def principal_axes(features: np.ndarray, num_axes: int) -> Axes:
    """Finds the axes along which features differ most.

    Args:
        features: ``(n, d)``, finite.
        num_axes: how many; fewer if there are not so many features or particles.

    Returns:
        Axes; of length 0 where all features are the same.
    """
    features = np.asarray(features, np.float64)
    origin = features.mean(axis=0)
    _, lengths, rows = np.linalg.svd(features - origin, full_matrices=False)
    spread = lengths[0] / np.sqrt(len(features))
    kept = rows[: min(num_axes, len(rows))]
    scale = 1 / spread if spread > np.finfo(np.float32).eps * np.abs(features).max() else 0.0
    return Axes(origin.astype(np.float32), np.ascontiguousarray(kept.T * scale, np.float32))


def group(
    key: jax.Array,
    rows: np.ndarray,
    candidates: Sequence[int],
    *,
    num_starts: int,
    current: np.ndarray | None = None,
) -> np.ndarray:
    """Fits mixtures of several numbers of components and believes the one of lowest BIC.

    Args:
        key: seeds the starts.
        rows: ``(n, p)``.
        candidates: numbers of components.
        num_starts: of each fit.
        current: ``(n,)`` labels that a fit of as many classes may begin with as well.

    Returns:
        ``(n,)`` int32 labels from 0; classes without particles are left out.

    Raises:
        ValueError: if a candidate is below 1 or above the number of rows.
    """
    rows = jnp.asarray(rows)
    found = [
        mixture.fit(
            jax.random.fold_in(key, number),
            rows,
            num_components=number,
            num_init=num_starts,
            max_iterations=MAX_ITERATIONS,
            tolerance=TOLERANCE,
            regularization=REGULARIZATION,
        )[0]
        for number in candidates
    ]
    if current is not None and current.max() + 1 in candidates:
        found.append(fit_labels(rows, current))
    best = min(found, key=lambda each: float(mixture.bic(rows, each)))
    labels = np.asarray(jnp.argmax(mixture.e_step(rows, best).log_responsibilities, axis=1))
    return np.unique(labels, return_inverse=True)[1].astype(np.int32)


def fit_labels(rows: jax.Array, labels: np.ndarray) -> Mixture:
    """Fits a mixture that begins with one component for each label."""
    members = jax.nn.one_hot(labels, int(labels.max()) + 1)
    start = mixture.m_step(rows, members, regularization=REGULARIZATION)
    return mixture.refine(
        rows,
        start,
        max_iterations=MAX_ITERATIONS,
        tolerance=TOLERANCE,
        regularization=REGULARIZATION,
    )[0]


def fit_probabilities(features: np.ndarray, probabilities: np.ndarray) -> Assignment:
    """Fits a mixture with one covariance for all to classes that are known in part.

    Args:
        features: ``(n, d)``.
        probabilities: ``(n, k)``, rows sum to 1.

    Returns:
        What tells the classes apart linearly, along the features' first ``TAUGHT_AXES`` axes.
    """
    axes = principal_axes(features, TAUGHT_AXES)
    fitted = mixture.m_step(
        jnp.asarray(axes.project(features)),
        jnp.asarray(probabilities, jnp.float32),
        covariance="tied",
        regularization=REGULARIZATION,
    )
    return Assignment(axes, fitted)


def davies_bouldin(rows: np.ndarray, labels: np.ndarray) -> float:
    """Judges classes by how far their centres are apart, in units of their own spread.

        mean_i max_(j != i) (T_i + T_j) / (D_ij + D_ji)

    with T the mean squared Mahalanobis distance of a class's members from its centre, and D_ij
    that of the centre of j from class i.

    Args:
        rows: ``(n, p)``.
        labels: ``(n,)`` from 0, no class empty.

    Returns:
        The distortion-based Davies-Bouldin index, lower is better; infinite for a single class.

    Reference: Zeng et al. 2023, DISCA.
    """
    num_classes = int(labels.max()) + 1
    if num_classes < 2:
        return float("inf")
    members = jax.nn.one_hot(labels, num_classes)
    fitted = mixture.m_step(jnp.asarray(rows), members, regularization=REGULARIZATION)
    inverse = np.linalg.inv(np.asarray(fitted.covariances, np.float64))
    means = np.asarray(fitted.means, np.float64)
    from_own = rows - means[labels]
    own = np.einsum("ni,nij,nj->n", from_own, inverse[labels], from_own)
    within = np.bincount(labels, own, num_classes) / np.bincount(labels, minlength=num_classes)
    gaps = means[None] - means[:, None]
    between = np.einsum("abi,aij,abj->ab", gaps, inverse, gaps)
    apart = between + between.T + np.diag(np.full(num_classes, np.inf))
    return float(np.mean(np.max((within[:, None] + within) / apart, axis=1)))
