"""Gaussian mixtures with full covariances: E-step, M-step and EM with restarts.

Everything runs in log space through Cholesky factors, so that far points, empty components and
flat covariances give numbers and not NaN.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

EMPTY_COUNT = 1e-2  # a component holding less than this many rows is re-seeded
LLOYD_STEPS = 10  # k-means steps that settle the k-means++ seeds before EM


class Mixture(NamedTuple):
    """A Gaussian mixture of k components in d dimensions.

    Attributes:
        log_weights: ``(k,)``, natural logarithm; the weights sum to 1.
        means: ``(k, d)``.
        covariances: ``(k, d, d)``, symmetric positive definite.
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
    _check_rows(x, mixture.means.shape[-1])

    def log_density(component: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        log_weight, mean, covariance = component
        factor = _safe_cholesky(covariance)
        whitened = solve_triangular(factor, (x - mean).T, lower=True)
        log_volume = jnp.sum(jnp.log(jnp.diagonal(factor)))
        constant = log_weight - log_volume - 0.5 * x.shape[1] * math.log(2 * math.pi)
        return constant - 0.5 * jnp.sum(whitened**2, axis=0)

    # One component at a time: a batched solve holds (k, d, n) and is slower on CPU.
    log_joint = lax.map(log_density, tuple(mixture)).T
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


def m_step(x: jax.Array, responsibilities: jax.Array, *, regularization: float = 1e-5) -> Mixture:
    """Fits each component to the rows it is responsible for.

        n_k = sum r_nk,  mu_k = sum r_nk x_n / n_k,
        S_k = sum r_nk (x_n - mu_k)(x_n - mu_k)^T / n_k + regularization I

    Args:
        x: ``(n, d)``.
        responsibilities: ``(n, k)``, >= 0, not logarithms; rows sum to the rows' weights.
        regularization: added to each variance, in squared units of x; above 0.

    Returns:
        ``Mixture``; a component without rows gets weight about 0, mean 0 and the regulariser as
        its covariance.

    Raises:
        ValueError: if shapes disagree.
    """
    if x.ndim != 2 or responsibilities.ndim != 2 or responsibilities.shape[0] != x.shape[0]:
        raise ValueError(
            f"m_step wants x (n, d) and responsibilities (n, k), got {x.shape} and "
            f"{responsibilities.shape}"
        )
    counts = responsibilities.sum(axis=0) + 10 * jnp.finfo(x.dtype).eps
    ridge = regularization * jnp.eye(x.shape[1], dtype=x.dtype)

    def fit_component(component: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        responsibility, count = component
        share = responsibility / count
        mean = jnp.dot(share, x, precision=lax.Precision.HIGHEST)
        centred = x - mean
        scatter = jnp.dot((share[:, None] * centred).T, centred, precision=lax.Precision.HIGHEST)
        return mean, (scatter + scatter.T) / 2 + ridge

    means, covariances = lax.map(fit_component, (responsibilities.T, counts))
    return Mixture(jnp.log(counts / counts.sum()), means, covariances)


@functools.partial(
    jax.jit, static_argnames=("num_components", "num_init", "max_iterations", "regularization")
)
def fit(
    key: jax.Array,
    x: jax.Array,
    *,
    num_components: int,
    num_init: int = 5,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    regularization: float = 1e-5,
) -> tuple[Mixture, jax.Array]:
    """Fits a mixture by expectation maximisation from several starts and keeps the best.

    Each start takes k-means++ seeds, settles them with a few k-means steps and gives every
    component the pooled within-cluster covariance; the restarts run side by side (``vmap``).
    The result is a constant for autodiff.

    Args:
        key: random key of the seeds.
        x: ``(n, d)``, n >= num_components, finite.
        num_components: k.
        num_init: number of starts.
        max_iterations: of EM, for each start.
        tolerance: stop when the mean log-likelihood of a row changes by less.
        regularization: added to each variance, in squared units of x; above 0.

    Returns:
        The best mixture and its mean log-likelihood per row.

    Raises:
        ValueError: if there are fewer rows than components, or an option is out of range.
    """
    _check_counts(x, num_components, num_init, max_iterations)
    # Centring keeps float32 covariances right for data far from the origin.
    x = lax.stop_gradient(x)
    origin = x.mean(axis=0)
    x = x - origin

    def fit_once(key: jax.Array) -> tuple[Mixture, jax.Array]:
        start = _seed(key, x, num_components, regularization)
        return _maximize(x, start, max_iterations, tolerance, regularization)

    mixtures, scores = jax.vmap(fit_once)(jax.random.split(key, num_init))
    best = jnp.argmax(scores)
    mixture = jax.tree.map(lambda leaf: leaf[best], mixtures)
    return mixture._replace(means=mixture.means + origin), scores[best]


@functools.partial(jax.jit, static_argnames=("max_iterations", "regularization"))
def refine(
    x: jax.Array,
    mixture: Mixture,
    *,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    regularization: float = 1e-5,
) -> tuple[Mixture, jax.Array]:
    """Improves a given mixture by expectation maximisation.

    A component left with less than ``EMPTY_COUNT`` rows restarts at the row that the mixture
    explains worst, the next one at the second worst and so on, with the covariance of all rows
    and a fair weight. The result is a constant for autodiff.

    Args:
        x: ``(n, d)``.
        mixture: where to start.
        max_iterations: upper bound of steps.
        tolerance: stop when the mean log-likelihood of a row changes by less.
        regularization: added to each variance, in squared units of x; above 0.

    Returns:
        The mixture and its mean log-likelihood per row.

    Raises:
        ValueError: if shapes disagree or the regularization is not above 0.
    """
    _check_rows(x, mixture.means.shape[-1])
    x, mixture = lax.stop_gradient((x, mixture))
    origin = x.mean(axis=0)
    start = mixture._replace(means=mixture.means - origin)
    end, score = _maximize(x - origin, start, max_iterations, tolerance, regularization)
    return end._replace(means=end.means + origin), score


def bic(x: jax.Array, mixture: Mixture) -> jax.Array:
    """Scores a mixture by the Bayesian information criterion; lower is better.

        -2 sum log p(x) + (k - 1 + k d + k d (d + 1) / 2) log n

    Args:
        x: ``(n, d)``.
        mixture: its parameters.

    Returns:
        Scalar.
    """
    k, d = mixture.means.shape
    num_parameters = k - 1 + k * d + k * d * (d + 1) // 2
    log_likelihood = e_step(x, mixture).log_likelihood.sum()
    return -2 * log_likelihood + num_parameters * math.log(x.shape[0])


class _Progress(NamedTuple):
    mixture: Mixture
    posterior: Posterior
    score: jax.Array
    change: jax.Array
    step: jax.Array


def _maximize(
    x: jax.Array, start: Mixture, max_iterations: int, tolerance: float, regularization: float
) -> tuple[Mixture, jax.Array]:
    if regularization <= 0:
        raise ValueError(
            f"regularization must be above 0, got {regularization}; it keeps a component of "
            "identical rows from a zero variance"
        )

    def is_moving(progress: _Progress) -> jax.Array:
        return (jnp.abs(progress.change) >= tolerance) & (progress.step < max_iterations)

    def improve(progress: _Progress) -> _Progress:
        responsibilities = jnp.exp(progress.posterior.log_responsibilities)
        mixture = m_step(x, responsibilities, regularization=regularization)
        mixture = _reseed_empty(x, mixture, progress.posterior, regularization)
        posterior = e_step(x, mixture)
        score = posterior.log_likelihood.mean()
        return _Progress(mixture, posterior, score, score - progress.score, progress.step + 1)

    posterior = e_step(x, start)
    score = posterior.log_likelihood.mean()
    first = _Progress(start, posterior, score, jnp.full_like(score, jnp.inf), jnp.array(0))
    last = lax.while_loop(is_moving, improve, first)
    return last.mixture, last.score


def _reseed_empty(
    x: jax.Array, mixture: Mixture, posterior: Posterior, regularization: float
) -> Mixture:
    """Moves components without rows to the rows that are explained worst."""
    num_rows, num_components = posterior.log_responsibilities.shape
    counts = jnp.exp(jax.nn.logsumexp(posterior.log_responsibilities, axis=0))
    is_empty = counts < EMPTY_COUNT
    worst = jnp.argsort(posterior.log_likelihood)
    rank = jnp.cumsum(is_empty) - 1  # 0 for the first empty component, 1 for the next, ...
    seeds = x[worst[jnp.clip(rank, 0, num_rows - 1)]]
    spread = m_step(x, jnp.ones((num_rows, 1), x.dtype), regularization=regularization)
    fair = -jnp.log(jnp.asarray(num_components, x.dtype))
    log_weights = jnp.where(is_empty, fair, mixture.log_weights)
    return Mixture(
        log_weights - jax.nn.logsumexp(log_weights),
        jnp.where(is_empty[:, None], seeds, mixture.means),
        jnp.where(is_empty[:, None, None], spread.covariances, mixture.covariances),
    )


def _seed(key: jax.Array, x: jax.Array, num_components: int, regularization: float) -> Mixture:
    """Starts from k-means++ centres, equal weights and one pooled covariance."""
    means = _plus_plus(key, x, num_components)

    def lloyd(_: int, means: jax.Array) -> jax.Array:
        member = jax.nn.one_hot(_nearest(x, means), num_components, dtype=x.dtype)
        count = member.sum(axis=0)[:, None]
        moved = jnp.dot(member.T, x, precision=lax.Precision.HIGHEST) / jnp.maximum(count, 1)
        return jnp.where(count > 0, moved, means)

    means = lax.fori_loop(0, LLOYD_STEPS, lloyd, means)
    residual = x - means[_nearest(x, means)]
    scatter = jnp.dot(residual.T, residual, precision=lax.Precision.HIGHEST) / x.shape[0]
    pooled = scatter + regularization * jnp.eye(x.shape[1], dtype=x.dtype)
    log_weights = jnp.full(num_components, -math.log(num_components), x.dtype)
    return Mixture(log_weights, means, jnp.broadcast_to(pooled, (num_components, *pooled.shape)))


def _plus_plus(key: jax.Array, x: jax.Array, num_components: int) -> jax.Array:
    """Draws rows with a chance proportional to the squared distance from those drawn before."""
    first_key, *keys = jax.random.split(key, num_components)
    seeds = [x[jax.random.randint(first_key, (), 0, x.shape[0])]]
    distance = jnp.sum((x - seeds[0]) ** 2, axis=1)
    for draw_key in keys:
        is_new = distance > 0
        logits = jnp.where(is_new, jnp.log(jnp.where(is_new, distance, 1)), -jnp.inf)
        seeds.append(x[jax.random.categorical(draw_key, logits)])
        distance = jnp.minimum(distance, jnp.sum((x - seeds[-1]) ** 2, axis=1))
    return jnp.stack(seeds)


def _nearest(x: jax.Array, means: jax.Array) -> jax.Array:
    # |x|^2 is the same for every mean.
    cross = jnp.dot(x, means.T, precision=lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(means**2, axis=1) - 2 * cross, axis=1)


def _safe_cholesky(covariance: jax.Array) -> jax.Array:
    """Factors S after adding what rounding may have taken away (relative 2 d eps)."""
    slack = 2 * covariance.shape[-1] * jnp.finfo(covariance.dtype).eps
    return jnp.linalg.cholesky(covariance + slack * jnp.diag(jnp.diagonal(covariance)))


def _check_rows(x: jax.Array, num_features: int) -> None:
    if x.ndim != 2 or x.shape[1] != num_features or x.shape[0] == 0:
        raise ValueError(
            f"x must be a table (rows, features) with {num_features} features, got shape {x.shape}"
        )


def _check_counts(x: jax.Array, num_components: int, num_init: int, max_iterations: int) -> None:
    _check_rows(x, x.shape[-1])
    num_rows = x.shape[0]
    if not 1 <= num_components <= num_rows:
        raise ValueError(
            f"num_components must be from 1 to the {num_rows} rows of x, got {num_components}; "
            "ask for fewer components or give more rows"
        )
    if num_init < 1 or max_iterations < 1:
        raise ValueError(
            f"num_init and max_iterations must be 1 or more, got {num_init}, {max_iterations}"
        )
