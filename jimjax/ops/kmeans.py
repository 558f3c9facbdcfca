"""k-means: k-means++ seeds, Lloyd's steps and restarts, on one device or rows split over many.

Results are constants for autodiff: labels do not change under a small change of the rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import _rows as rows


class KMeans(NamedTuple):
    """Rows divided among k centres.

    Attributes:
        centres: ``(k, d)``.
        labels: ``(n,)`` int32, the nearest centre of each row; of padding rows too.
        inertia: scalar, weighted sum of the squared distances of rows from their centres.
    """

    centres: jax.Array
    labels: jax.Array
    inertia: jax.Array


@functools.partial(
    jax.jit, static_argnames=("num_clusters", "num_init", "max_iterations", "axis_name")
)
def fit(
    key: jax.Array,
    x: jax.Array,
    *,
    num_clusters: int,
    num_init: int = 5,
    max_iterations: int = 100,
    weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> KMeans:
    """Clusters rows by k-means from several k-means++ starts and keeps the best.

    Args:
        key: random key of the seeds; the same on every device.
        x: ``(n, d)``, at least num_clusters rows, finite.
        num_clusters: k.
        num_init: number of starts, which run side by side (``vmap``).
        max_iterations: of Lloyd's steps, for each start.
        weights: ``(n,)``, how often each row counts, >= 0; 1 if None. 0 removes a padding row.
        axis_name: inside ``jax.shard_map``, the mesh axis that x, weights and labels are split
            over; centres and inertia are then those of all rows. None if x is whole.

    Returns:
        ``KMeans`` of the least inertia.

    Raises:
        ValueError: if shapes disagree, there are fewer rows than clusters, or an option is out
            of range.
    """
    if num_init < 1:
        raise ValueError(f"num_init must be 1 or more, got {num_init}")
    split = {"weights": weights, "axis_name": axis_name}

    def fit_once(key: jax.Array) -> KMeans:
        centres = seed(key, x, num_clusters=num_clusters, **split)
        return refine(x, centres, max_iterations=max_iterations, **split)

    results = jax.vmap(fit_once)(jax.random.split(key, num_init))
    best = jnp.argmin(results.inertia)
    return jax.tree.map(lambda leaf: leaf[best], results)


@functools.partial(jax.jit, static_argnames=("num_clusters", "axis_name"))
def seed(
    key: jax.Array,
    x: jax.Array,
    *,
    num_clusters: int,
    weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Draws rows far from each other: k-means++ seeds.

    The first is drawn by its weight, each further one with a chance proportional to its weight
    times its squared distance from the nearest of those before.

    Args:
        key: a ``jax.random`` key; the same on every device.
        x: ``(n, d)``, at least num_clusters rows, finite.
        num_clusters: k.
        weights: ``(n,)``, >= 0; 1 if None.
        axis_name: inside ``jax.shard_map``, the mesh axis that x and weights are split over;
            None if x is whole.

    Returns:
        ``(k, d)``, different rows as long as there are any, then repeated ones.

    Raises:
        ValueError: if shapes disagree or there are fewer rows than clusters.

    Reference: Arthur and Vassilvitskii 2007, k-means++: the advantages of careful seeding.
    """
    x, weights, origin = rows.centre(*lax.stop_gradient((x, weights)), axis_name=axis_name)
    num_rows = x.shape[0] * rows.num_devices(axis_name=axis_name)
    if not 1 <= num_clusters <= num_rows:
        raise ValueError(
            f"num_clusters must be from 1 to the {num_rows} rows of x, got {num_clusters}; "
            "ask for fewer clusters or give more rows"
        )

    def draw_next(nearest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        chances = weights * nearest
        is_any_left = rows.sum_devices(chances.sum(), axis_name=axis_name) > 0
        chances = jnp.where(is_any_left, chances, weights)
        drawn = rows.draw(key, x, chances, axis_name=axis_name)
        return jnp.minimum(nearest, _squared_distances(x, drawn)), drawn

    keys = jax.random.split(key, num_clusters)
    first = rows.draw(keys[0], x, weights, axis_name=axis_name)
    _, others = lax.scan(draw_next, _squared_distances(x, first), keys[1:])
    return jnp.concatenate([first[None], others]) + origin


def _squared_distances(x: jax.Array, centres: jax.Array) -> jax.Array:
    """Of each row from its centre, or from the one centre."""
    return jnp.sum((x - centres) ** 2, axis=1)


class _Progress(NamedTuple):
    centres: jax.Array
    labels: jax.Array
    num_moved: jax.Array
    step: jax.Array


@functools.partial(jax.jit, static_argnames=("max_iterations", "axis_name"))
def refine(
    x: jax.Array,
    centres: jax.Array,
    *,
    max_iterations: int = 100,
    weights: jax.Array | None = None,
    axis_name: str | None = None,
) -> KMeans:
    """Improves given centres by Lloyd's steps until no row changes its cluster.

    A cluster that lost its rows restarts at the row farthest from its own centre, the next such
    cluster at the second farthest and so on.

    Args:
        x: ``(n, d)``, finite.
        centres: ``(k, d)``, where to start.
        max_iterations: upper bound of steps.
        weights: ``(n,)``, how often each row counts, >= 0; 1 if None. 0 removes a padding row.
        axis_name: as in ``fit``.

    Returns:
        ``KMeans``; a cluster stays empty only if there are fewer different rows than clusters.

    Raises:
        ValueError: if shapes disagree or max_iterations is less than 1.
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be 1 or more, got {max_iterations}")
    rows.as_table(x, num_features=jnp.shape(centres)[-1])
    x, centres, weights = lax.stop_gradient((x, centres, weights))
    table = rows.centre(x, weights, axis_name=axis_name)
    x, weights, origin = table

    def is_moving(progress: _Progress) -> jax.Array:
        return (progress.num_moved > 0) & (progress.step < max_iterations)

    def improve(progress: _Progress) -> _Progress:
        centres = _means(table, progress.labels, progress.centres, axis_name)
        labels = _nearest(x, centres)
        # Padding rows follow the others and must not keep them waiting.
        has_moved = (labels != progress.labels) & (weights > 0)
        num_moved = rows.sum_devices(has_moved.sum(), axis_name=axis_name)
        return _Progress(centres, labels, num_moved, progress.step + 1)

    start = centres.astype(x.dtype) - origin
    first = _Progress(start, _nearest(x, start), jnp.array(1), jnp.array(0))
    last = lax.while_loop(is_moving, improve, first)
    squared = _squared_distances(x, last.centres[last.labels])
    inertia = rows.sum_devices(jnp.sum(weights * squared), axis_name=axis_name)
    return KMeans(last.centres + origin, last.labels, inertia)


def _means(
    table: rows.Centred, labels: jax.Array, centres: jax.Array, axis_name: str | None
) -> jax.Array:
    """Moves each centre to the mean of its rows, or to a row that is far from every centre."""
    x, weights, _ = table
    num_clusters = centres.shape[0]
    member = weights[:, None] * jax.nn.one_hot(labels, num_clusters, dtype=x.dtype)
    sums = jnp.dot(member.T, x, precision=lax.Precision.HIGHEST)
    counts, sums = rows.sum_devices((member.sum(axis=0), sums), axis_name=axis_name)
    is_empty = counts == 0
    means = sums / jnp.where(is_empty, 1, counts)[:, None]

    squared = _squared_distances(x, means[labels])
    num_seeds = min(num_clusters, x.shape[0] * rows.num_devices(axis_name=axis_name))
    farthest, seeds = rows.highest(
        x, jnp.where(weights > 0, squared, -jnp.inf), num_seeds, axis_name=axis_name
    )
    rank = jnp.clip(jnp.cumsum(is_empty) - 1, 0, num_seeds - 1)  # 0 for the first empty cluster
    seeds = jnp.where(farthest[rank, None] > 0, seeds[rank], centres)
    return jnp.where(is_empty[:, None], seeds, means)


def _nearest(x: jax.Array, centres: jax.Array) -> jax.Array:
    # |x|^2 is the same for every centre.
    cross = jnp.dot(x, centres.T, precision=lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(centres**2, axis=1) - 2 * cross, axis=1).astype(jnp.int32)
