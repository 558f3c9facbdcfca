"""Normal distributions: densities of rows under several, and the sums over rows that fix them.

The shape of ``covariances`` says which kind they are, for k Gaussians in d dimensions:

    full      (k, d, d)   each its own
    tied      (1, d, d)   one for all
    diagonal  (k, 1, d)   each its own variances along the axes

Where two kinds have one shape (k or d is 1) they are the same model.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from jimjax.ops import _rows as rows
from jimjax.ops._precision import widen

Covariance = Literal["full", "diagonal", "tied"]


class Statistics(NamedTuple):
    """What there is to know about all rows, of a size that does not grow with them.

    Attributes:
        counts: ``(k,)``, rows that each Gaussian is responsible for.
        means: ``(k, d)``, of those rows; 0 without any.
        scatter: sums of squared deviations from the means, shaped like covariances.
    """

    counts: jax.Array
    means: jax.Array
    scatter: jax.Array


def covariance_shape(covariance: Covariance, num: int, num_features: int) -> tuple[int, int, int]:
    """Gives the shape that covariances of a kind have.

    Args:
        covariance: "full", "diagonal" or "tied".
        num: k, how many Gaussians.
        num_features: d.

    Returns:
        ``(k, d, d)``, ``(k, 1, d)`` or ``(1, d, d)``.

    Raises:
        ValueError: if there is no such kind.
    """
    shapes = {
        "full": (num, num_features, num_features),
        "diagonal": (num, 1, num_features),
        "tied": (1, num_features, num_features),
    }
    if covariance not in shapes:
        kinds = ", ".join(f'"{kind}"' for kind in shapes)
        raise ValueError(f"covariance must be one of {kinds}, got {covariance!r}; choose one")
    return shapes[covariance]


def covariance_kind(means: jax.Array, covariances: jax.Array) -> Covariance:
    """Tells the kind of covariances by their shape.

    Args:
        means: ``(k, d)``.
        covariances: ``(k, d, d)``, ``(k, 1, d)`` or ``(1, d, d)``.

    Returns:
        "full", "diagonal" or "tied", the first that fits.

    Raises:
        ValueError: if none fits.
    """
    shapes = {kind: covariance_shape(kind, *means.shape) for kind in get_args(Covariance)}
    for kind, shape in shapes.items():
        if covariances.shape == shape:
            return kind
    wanted = ", ".join(f"{shape} ({kind})" for kind, shape in shapes.items())
    raise ValueError(
        f"covariances of {len(means)} Gaussians must have one of the shapes {wanted}, got "
        f"{covariances.shape}; keep three axes"
    )


def log_densities(x: jax.Array, means: jax.Array, covariances: jax.Array) -> jax.Array:
    """Computes the log density of each row under each Gaussian, in natural logarithm.

        log N(x; mu, S) = -((x - mu)^T S^-1 (x - mu) + log det S + d log 2 pi) / 2

    Full and tied covariances go through Cholesky factors. Diagonal ones expand the square into
    two matrix products; their rounding, in nats, is a few float roundings times the square of
    (distance of x and the means from the middle of the means / smallest deviation).

    Args:
        x: ``(n, d)``.
        means: ``(k, d)``.
        covariances: ``(k, d, d)``, ``(1, d, d)`` or ``(k, 1, d)``, positive definite.

    Returns:
        ``(n, k)``.

    Raises:
        ValueError: if shapes disagree.
    """
    x = rows.as_table(x, num_features=means.shape[-1])
    kind = covariance_kind(means, covariances)
    means, covariances = widen(means), widen(covariances)
    # Far from the origin the digits go to the offset.
    middle = means.mean(axis=0)
    x, means = x - middle, means - middle
    if kind == "full":
        # One at a time: a batched solve holds (k, d, n) and is slower on CPU.
        squared, log_volumes = lax.map(lambda each: _distances(x, *each), (means, covariances))
        squared = squared.T
    elif kind == "tied":
        squared, log_volumes = _tied_distances(x, means, covariances[0])
    else:
        squared = _diagonal_distances(x, means, covariances[:, 0])
        log_volumes = jnp.sum(jnp.log(covariances[:, 0]), axis=1) / 2
    return -0.5 * (squared + x.shape[1] * math.log(2 * math.pi)) - log_volumes


def _distances(x: jax.Array, mean: jax.Array, covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared Mahalanobis distance of each row, and half the log determinant."""
    whiten, log_volume = _whitening(covariance)
    whitened = jnp.dot(x - mean, whiten, precision=lax.Precision.HIGHEST)
    return jnp.sum(whitened**2, axis=1), log_volume


def _tied_distances(
    x: jax.Array, means: jax.Array, covariance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As ``_distances``, ``(n, k)``: rows and means are whitened once, then subtracted."""
    whiten, log_volume = _whitening(covariance)
    whitened, centres = (
        jnp.dot(each, whiten, precision=lax.Precision.HIGHEST) for each in (x, means)
    )
    squared = lax.map(lambda centre: jnp.sum((whitened - centre) ** 2, axis=1), centres)
    return squared.T, log_volume


def _whitening(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """W with ``W^T S W = I``, and half the log determinant of S.

    A product of all rows with W takes a tenth of the time of a triangular solve for them.
    """
    factor = _safe_cholesky(covariance)
    inverse = solve_triangular(factor, jnp.eye(len(factor), dtype=factor.dtype), lower=True)
    return inverse.T, jnp.sum(jnp.log(jnp.diagonal(factor)))


def _diagonal_distances(x: jax.Array, means: jax.Array, variances: jax.Array) -> jax.Array:
    precisions = 1 / variances
    squares = jnp.dot(x**2, precisions.T, precision=lax.Precision.HIGHEST)
    cross = jnp.dot(x, (means * precisions).T, precision=lax.Precision.HIGHEST)
    # Rounding must not make a row more likely than the mean itself.
    return jnp.maximum(squares - 2 * cross + jnp.sum(means**2 * precisions, axis=1), 0)


def _safe_cholesky(covariance: jax.Array) -> jax.Array:
    """Factors S; where rounding has made it indefinite, with 2 d eps more on its diagonal."""
    slack = 2 * covariance.shape[-1] * jnp.finfo(covariance.dtype).eps
    tried = jnp.linalg.cholesky(lax.stop_gradient(covariance))
    added = jnp.where(jnp.all(jnp.isfinite(tried)), 0, slack)
    return jnp.linalg.cholesky(covariance + added * jnp.diag(jnp.diagonal(covariance)))


def statistics(
    x: jax.Array,
    responsibilities: jax.Array,
    *,
    covariance: Covariance = "full",
    axis_name: str | None = None,
) -> Statistics:
    """Sums up the rows that each Gaussian is responsible for.

        n_k = sum r_nk,  mu_k = sum r_nk x_n / n_k,  scatter_k = sum r_nk (x_n - mu_k)(x_n - mu_k)^T

    Means come first, deviations from them second, so that nothing cancels as it would in
    ``sum r x x^T - n mu mu^T``; split rows cost two rounds of sums over the axis.

    Args:
        x: ``(n, d)``.
        responsibilities: ``(n, k)``, >= 0, not logarithms; rows sum to the rows' weights.
        covariance: which scatter is wanted: "full", its "diagonal", or "tied", summed over k.
        axis_name: inside ``jax.shard_map``, the mesh axis that the rows are split over; None if
            they are whole.

    Returns:
        ``Statistics`` of all rows.

    Raises:
        ValueError: if shapes disagree or the covariance is of no such kind.
    """
    x = rows.as_table(x)
    _check_responsibilities(x, responsibilities)
    covariance_shape(covariance, responsibilities.shape[1], x.shape[1])  # is there such a kind?
    responsibilities = responsibilities.astype(x.dtype)
    counts = rows.sum_devices(responsibilities.sum(axis=0), axis_name=axis_name)
    shares = responsibilities / jnp.where(counts > 0, counts, 1)
    means = jnp.dot(shares.T, x, precision=lax.Precision.HIGHEST)
    means = rows.sum_devices(means, axis_name=axis_name)

    def scatter_of(component: tuple[jax.Array, jax.Array]) -> jax.Array:
        responsibility, mean = component
        centred = x - mean
        if covariance == "diagonal":
            return jnp.dot(responsibility[None], centred**2, precision=lax.Precision.HIGHEST)
        weighted = responsibility[:, None] * centred
        product = jnp.dot(weighted.T, centred, precision=lax.Precision.HIGHEST)
        return (product + product.T) / 2

    scatter = lax.map(scatter_of, (responsibilities.T, means))
    if covariance == "tied":
        scatter = scatter.sum(axis=0, keepdims=True)
    return Statistics(counts, means, rows.sum_devices(scatter, axis_name=axis_name))


def _check_responsibilities(x: jax.Array, responsibilities: jax.Array) -> None:
    if responsibilities.ndim != 2 or responsibilities.shape[0] != x.shape[0]:
        raise ValueError(
            f"responsibilities must be (n, k) for the {x.shape[0]} rows of x, got shape "
            f"{responsibilities.shape}; give each row one number per component"
        )
