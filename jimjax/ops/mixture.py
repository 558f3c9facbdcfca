"""Gaussian mixtures in log space: E-step, M-step and EM with restarts, on one device or many.

Far points, empty components and flat covariances give numbers and not NaN. Inside
``jax.shard_map``, with ``axis_name``, the rows are those of one device; what the fit needs of
all rows is added up over the axis, and every device gets the same mixture.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import _rows as rows
from jimjax.ops import kmeans, normal
from jimjax.ops.normal import Covariance, Statistics

EMPTY_COUNT = 1e-2  # a component holding less than this many rows of mean weight is re-seeded
LLOYD_STEPS = 10  # k-means steps that settle the k-means++ seeds before EM


class Mixture(NamedTuple):
    """A Gaussian mixture of k components in d dimensions.

    Attributes:
        log_weights: ``(k,)``, natural logarithm; the weights sum to 1.
        means: ``(k, d)``.
        covariances: positive definite; the shape says which kind: full ``(k, d, d)``, tied
            ``(1, d, d)``, one for all components, or diagonal ``(k, 1, d)``, variances alone.
    """

    log_weights: jax.Array
    means: jax.Array
    covariances: jax.Array


class Posterior(NamedTuple):
    """What the E-step knows about each row.

    Attributes:
        log_responsibilities: ``(n, k)``, natural logarithm.
        log_likelihood: ``(n,)``, log density of each row.
    """

    log_responsibilities: jax.Array
    log_likelihood: jax.Array


def e_step(x: jax.Array, mixture: Mixture, *, weights: jax.Array | None = None) -> Posterior:
    """Computes how likely each row is and which component it belongs to.

        log p(x) = logsumexp_k (log w_k + log N(x; mu_k, S_k))
        log r_k  = log w_k + log N(x; mu_k, S_k) - log p(x)

    Rows do not know of each other, so that split rows need no ``axis_name``.

    Args:
        x: ``(n, d)``.
        mixture: its parameters.
        weights: ``(n,)``, how often each row counts, >= 0; 1 if None. A row's responsibilities
            then sum to its weight, which is what ``m_step`` wants, and its log-likelihood is
            multiplied by it; weight 0 removes a padding row.

    Returns:
        ``Posterior``; finite wherever the weight is not 0.

    Raises:
        ValueError: if shapes disagree.
    """
    log_densities = normal.log_densities(x, mixture.means, mixture.covariances)
    log_joint = log_densities + mixture.log_weights
    log_likelihood = jax.nn.logsumexp(log_joint, axis=1)
    log_responsibilities = log_joint - log_likelihood[:, None]
    if weights is None:
        return Posterior(log_responsibilities, log_likelihood)
    counted = weights > 0
    log_weights = jnp.where(counted, jnp.log(jnp.where(counted, weights, 1)), -jnp.inf)
    return Posterior(
        log_responsibilities + log_weights[:, None],
        jnp.where(counted, weights * log_likelihood, 0),
    )


def m_step(
    x: jax.Array,
    responsibilities: jax.Array,
    *,
    covariance: Covariance = "full",
    regularization: float = 1e-5,
    axis_name: str | None = None,
) -> Mixture:
    """Fits each component to the rows it is responsible for.

        n_k = sum r_nk,  mu_k = sum r_nk x_n / n_k,
        S_k = sum r_nk (x_n - mu_k)(x_n - mu_k)^T / n_k + regularization I

    Diagonal covariances are the diagonals of S_k; the tied one is sum n_k S_k / sum n_k.

    Args:
        x: ``(n, d)``.
        responsibilities: ``(n, k)``, >= 0, not logarithms; rows sum to the rows' weights.
        covariance: "full", "diagonal" or "tied".
        regularization: added to each variance, in squared units of x; above 0.
        axis_name: inside ``jax.shard_map``, the mesh axis that the rows are split over; None if
            they are whole.

    Returns:
        ``Mixture``; a component without rows gets weight about 0, mean 0 and, unless tied, the
        regulariser as its covariance.

    Raises:
        ValueError: if shapes disagree or the covariance is of no such kind.
    """
    measured = normal.statistics(x, responsibilities, covariance=covariance, axis_name=axis_name)
    return from_statistics(measured, regularization=regularization)


def from_statistics(statistics: Statistics, *, regularization: float = 1e-5) -> Mixture:
    """Makes the mixture that ``m_step`` makes, from sums over rows alone.

    Args:
        statistics: of all rows.
        regularization: added to each variance, in squared units of x; above 0.

    Returns:
        ``Mixture`` with covariances of the scatter's kind.
    """
    counts, means, scatter = statistics
    counts = counts + 10 * jnp.finfo(counts.dtype).eps
    log_weights = jnp.log(counts / counts.sum())
    if scatter.shape[0] < counts.shape[0]:  # tied
        counts = counts.sum(keepdims=True)
    is_matrix = scatter.shape[1] == scatter.shape[2]
    identity = jnp.eye(scatter.shape[2], dtype=scatter.dtype) if is_matrix else 1
    covariances = scatter / counts[:, None, None] + regularization * identity
    return Mixture(log_weights, means, covariances)


@functools.partial(
    jax.jit,
    static_argnames=(
        "num_components",
        "covariance",
        "num_init",
        "max_iterations",
        "regularization",
        "axis_name",
    ),
)
def fit(
    key: jax.Array,
    x: jax.Array,
    *,
    num_components: int,
    covariance: Covariance = "full",
    num_init: int = 5,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    regularization: float = 1e-5,
    weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[Mixture, jax.Array]:
    """Fits a mixture by expectation maximisation from several starts and keeps the best.

    Each start is a few steps of k-means with the pooled within-cluster covariance; the starts
    run side by side (``vmap``). The result is a constant for autodiff.

    Args:
        key: random key of the seeds; the same on every device.
        x: ``(n, d)``, at least num_components rows, finite.
        num_components: k.
        covariance: "full", "diagonal" or "tied".
        num_init: number of starts.
        max_iterations: of EM, for each start.
        tolerance: stop when the mean log-likelihood of a row changes by less.
        regularization: added to each variance, in squared units of x; above 0.
        weights: ``(n,)``, how often each row counts, >= 0; 1 if None. 0 removes a padding row.
        axis_name: inside ``jax.shard_map``, the mesh axis that x and weights are split over;
            None if x is whole.

    Returns:
        The best mixture and its mean log-likelihood per row.

    Raises:
        ValueError: if there are fewer rows than components or an option is out of range.
    """
    num_rows = len(rows.as_table(x)) * rows.num_devices(axis_name=axis_name)
    _check_counts(num_rows, num_components, num_init, max_iterations)
    # Centring keeps float32 covariances right for data far from the origin.
    table = rows.centre(*lax.stop_gradient((x, weights)), axis_name=axis_name)

    def fit_once(key: jax.Array) -> tuple[Mixture, jax.Array]:
        start = _start(key, table, num_components, covariance, regularization, axis_name)
        return _maximize(table, start, max_iterations, tolerance, regularization, axis_name)

    mixtures, scores = jax.vmap(fit_once)(jax.random.split(key, num_init))
    best = jnp.argmax(scores)
    mixture = jax.tree.map(lambda leaf: leaf[best], mixtures)
    return mixture._replace(means=mixture.means + table.origin), scores[best]


@functools.partial(jax.jit, static_argnames=("max_iterations", "regularization", "axis_name"))
def refine(
    x: jax.Array,
    mixture: Mixture,
    *,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    regularization: float = 1e-5,
    weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[Mixture, jax.Array]:
    """Improves a given mixture by expectation maximisation; its kind of covariances stays.

    A component left with less than ``EMPTY_COUNT`` rows restarts at the row that the mixture
    explains worst, the next one at the second worst and so on, with the covariance of all rows
    (unless tied) and a fair weight. The result is a constant for autodiff.

    Args:
        x: ``(n, d)``.
        mixture: where to start; the same on every device.
        max_iterations: upper bound of steps.
        tolerance: stop when the mean log-likelihood of a row changes by less.
        regularization: added to each variance, in squared units of x; above 0.
        weights: ``(n,)``, how often each row counts, >= 0; 1 if None. 0 removes a padding row.
        axis_name: inside ``jax.shard_map``, the mesh axis that x and weights are split over;
            None if x is whole.

    Returns:
        The mixture and its mean log-likelihood per row.

    Raises:
        ValueError: if shapes disagree or the regularization is not above 0.
    """
    x = rows.as_table(x, num_features=mixture.means.shape[-1])
    x, mixture, weights = lax.stop_gradient((x, mixture, weights))
    table = rows.centre(x, weights, axis_name=axis_name)
    start = mixture._replace(means=mixture.means - table.origin)
    end, score = _maximize(table, start, max_iterations, tolerance, regularization, axis_name)
    return end._replace(means=end.means + table.origin), score


def bic(
    x: jax.Array,
    mixture: Mixture,
    *,
    weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Scores a mixture by the Bayesian information criterion; lower is better.

        -2 sum log p(x) + (k - 1 + k d + c) log n

    with c = k d (d + 1) / 2 for full, k d for diagonal and d (d + 1) / 2 for tied covariances.

    Args:
        x: ``(n, d)``.
        mixture: its parameters.
        weights: ``(n,)``, how often each row counts, >= 0; 1 if None. Their sum stands for n.
        axis_name: inside ``jax.shard_map``, the mesh axis that x and weights are split over;
            None if x is whole.

    Returns:
        Scalar.

    Raises:
        ValueError: if shapes disagree.
    """
    _, means, covariances = mixture
    k, d = means.shape
    kind = normal.covariance_kind(means, covariances)
    num_each = d if kind == "diagonal" else d * (d + 1) // 2
    num_parameters = k - 1 + k * d + covariances.shape[0] * num_each
    log_likelihood = e_step(x, mixture, weights=weights).log_likelihood
    count = jnp.ones_like(log_likelihood) if weights is None else weights
    total, num_rows = rows.sum_devices((log_likelihood.sum(), count.sum()), axis_name=axis_name)
    return -2 * total + num_parameters * jnp.log(num_rows)


class _Progress(NamedTuple):
    mixture: Mixture
    posterior: Posterior
    score: jax.Array
    change: jax.Array
    step: jax.Array


def _maximize(
    table: rows.Centred,
    start: Mixture,
    max_iterations: int,
    tolerance: float,
    regularization: float,
    axis_name: str | None,
) -> tuple[Mixture, jax.Array]:
    if regularization <= 0:
        raise ValueError(
            f"regularization must be above 0, got {regularization}; it keeps a component of "
            "identical rows from a zero variance"
        )
    x, weights, _ = table
    kind = normal.covariance_kind(start.means, start.covariances)
    sum_rows = functools.partial(normal.statistics, covariance=kind, axis_name=axis_name)
    everything = sum_rows(x, weights[:, None])
    whole = everything.counts[0]
    num_counted = rows.sum_devices(jnp.sum(weights > 0), axis_name=axis_name)
    spread = from_statistics(everything, regularization=regularization).covariances

    def expect(mixture: Mixture) -> tuple[Posterior, jax.Array]:
        posterior = e_step(x, mixture)
        total = jnp.sum(weights * posterior.log_likelihood)
        return posterior, rows.sum_devices(total, axis_name=axis_name) / whole

    def is_moving(progress: _Progress) -> jax.Array:
        return (jnp.abs(progress.change) >= tolerance) & (progress.step < max_iterations)

    def improve(progress: _Progress) -> _Progress:
        responsibilities = jnp.exp(progress.posterior.log_responsibilities) * weights[:, None]
        sums = sum_rows(x, responsibilities)
        is_empty = sums.counts < EMPTY_COUNT * whole / num_counted
        mixture = from_statistics(sums, regularization=regularization)
        surprise = jnp.where(weights > 0, -progress.posterior.log_likelihood, -jnp.inf)
        mixture = _reseed(x, mixture, is_empty, surprise, spread, axis_name)
        posterior, score = expect(mixture)
        return _Progress(mixture, posterior, score, score - progress.score, progress.step + 1)

    posterior, score = expect(start)
    first = _Progress(start, posterior, score, jnp.full_like(score, jnp.inf), jnp.array(0))
    last = lax.while_loop(is_moving, improve, first)
    return last.mixture, last.score


def _reseed(
    x: jax.Array,
    mixture: Mixture,
    is_empty: jax.Array,
    surprise: jax.Array,
    spread: jax.Array,
    axis_name: str | None,
) -> Mixture:
    """Moves components without rows to the rows that are explained worst."""
    log_weights, means, covariances = mixture
    num_rows = len(x) * rows.num_devices(axis_name=axis_name)
    num_seeds = min(len(means), num_rows)
    _, seeds = rows.highest(x, surprise, num_seeds, axis_name=axis_name)
    rank = jnp.clip(jnp.cumsum(is_empty) - 1, 0, num_seeds - 1)  # 0 for the first empty one
    log_weights = jnp.where(is_empty, -math.log(len(means)), log_weights)
    if len(covariances) == len(means):  # the tied one has no component of its own
        covariances = jnp.where(is_empty[:, None, None], spread, covariances)
    means = jnp.where(is_empty[:, None], seeds[rank], means)
    return Mixture(log_weights - jax.nn.logsumexp(log_weights), means, covariances)


def _start(
    key: jax.Array,
    table: rows.Centred,
    num_components: int,
    covariance: Covariance,
    regularization: float,
    axis_name: str | None,
) -> Mixture:
    """Starts from k-means centres, equal weights and one pooled covariance."""
    x, weights, _ = table
    split = {"weights": weights, "axis_name": axis_name}
    seeds = kmeans.seed(key, x, num_clusters=num_components, **split)
    centres, labels, _ = kmeans.refine(x, seeds, max_iterations=LLOYD_STEPS, **split)
    members = weights[:, None] * jax.nn.one_hot(labels, num_components, dtype=x.dtype)
    pooled = m_step(
        x, members, covariance="tied", regularization=regularization, axis_name=axis_name
    ).covariances
    if covariance == "diagonal":
        pooled = jnp.diagonal(pooled[0])[None, None]
    shape = normal.covariance_shape(covariance, *centres.shape)
    log_weights = jnp.full(num_components, -math.log(num_components), x.dtype)
    return Mixture(log_weights, centres, jnp.broadcast_to(pooled, shape))


def _check_counts(num_rows: int, num_components: int, num_init: int, max_iterations: int) -> None:
    if not 1 <= num_components <= num_rows:
        raise ValueError(
            f"num_components must be from 1 to the {num_rows} rows of x, got {num_components}; "
            "ask for fewer components or give more rows"
        )
    if num_init < 1 or max_iterations < 1:
        raise ValueError(
            f"num_init and max_iterations must be 1 or more, got {num_init}, {max_iterations}"
        )
