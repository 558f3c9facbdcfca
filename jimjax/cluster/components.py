"""Classes of features by Gaussian mixtures along their principal axes, and how many there are.

The Bayesian information criterion charges each component for its whole covariance at a price that
is right for many particles. With a hundred of a class it finds too few classes where noise is
strong; what is foreseen of particles that were left out needs no price.
"""

import functools
from collections.abc import Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.cluster.assignment import (
    MAX_ITERATIONS,
    REGULARIZATION,
    TOLERANCE,
    group,
    principal_axes,
)
from jimjax.ops import mixture

NUM_FOLDS = 5  # parts of the particles, each of which is left out once

Criterion = Literal["bic", "left-out"]


class MixtureConfig(Protocol):
    """How classes are made of features.

    Attributes:
        candidates: numbers of classes to choose from.
        criterion: what decides among them: "bic", or "left-out" particles.
        count_axes: principal axes of the features along which these are foreseen.
        num_axes: principal axes along which particles are divided.
        num_starts: of the fit of each mixture.
    """

    candidates: tuple[int, ...]
    criterion: Criterion
    count_axes: int
    num_axes: int
    num_starts: int


def divide(
    key: jax.Array, features: np.ndarray, current: np.ndarray | None, config: MixtureConfig
) -> np.ndarray:
    """Divides features into classes by a mixture, of as many components as there are classes.

    Args:
        key: seeds the starts.
        features: ``(n, d)``.
        current: ``(n,)`` labels that a fit of as many classes may begin with as well.
        config: how.

    Returns:
        ``(n,)`` int32 labels from 0; classes without particles are left out.
    """
    candidates = config.candidates
    if config.criterion == "left-out" and len(candidates) > 1:
        num_classes = count_classes(
            jax.random.fold_in(key, len(features)),
            features,
            candidates,
            num_axes=config.count_axes,
            num_starts=config.num_starts,
        )
        candidates = (num_classes,)
    rows = principal_axes(features, config.num_axes).project(features)
    return group(key, rows, candidates, num_starts=config.num_starts, current=current)


def count_classes(
    key: jax.Array,
    features: np.ndarray,
    candidates: Sequence[int],
    *,
    num_axes: int,
    num_starts: int,
) -> int:
    """Chooses among numbers of classes the one whose mixture foresees left-out particles best.

    Args:
        key: seeds the starts and the parts.
        features: ``(n, d)``.
        candidates: numbers of classes, from 1 to n.
        num_axes: principal axes of the features; fewer than are good for telling classes apart,
            as each costs every class a row of its covariance.
        num_starts: of the fit of each mixture.

    Returns:
        The number; the smaller one of two that are equally good.
    """
    rows = jnp.asarray(principal_axes(features, num_axes).project(features))
    part_key, fit_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(part_key, len(rows)))
    parts = np.empty(len(rows), np.int32)
    parts[order] = np.arange(len(rows)) % NUM_FOLDS
    is_left_out = np.arange(NUM_FOLDS)[:, None] == parts
    foreseen = {
        number: float(_foresee(fit_key, rows, is_left_out, number, num_starts))
        for number in sorted(set(candidates))
    }
    return max(foreseen, key=lambda number: foreseen[number])


@functools.partial(jax.jit, static_argnames=("num_components", "num_starts"))
def _foresee(
    key: jax.Array, rows: jax.Array, is_left_out: jax.Array, num_components: int, num_starts: int
) -> jax.Array:
    """The mean log-likelihood of rows ``(n, p)``, each left out in one of the folds ``(f, n)``."""

    def fold(is_left_out: jax.Array) -> jax.Array:
        fitted, _ = mixture.fit(
            key,
            rows,
            num_components=num_components,
            num_init=num_starts,
            max_iterations=MAX_ITERATIONS,
            tolerance=TOLERANCE,
            regularization=REGULARIZATION,
            weights=jnp.where(is_left_out, 0.0, 1.0),
        )
        known = mixture.e_step(rows, fitted).log_likelihood
        return jnp.sum(jnp.where(is_left_out, known, 0.0))

    return jnp.sum(jax.lax.map(fold, is_left_out)) / len(rows)
