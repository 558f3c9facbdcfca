"""Rows of a table, whole or split over the devices of a mesh axis.

Inside ``jax.shard_map`` a function given ``axis_name`` sees the rows of its own device and answers
as if it held all rows, in the order of the devices; the answer is the same on every device.
Without one (None) the rows given are all there are. Rows that pad an uneven split weigh 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops._precision import widen


class Centred(NamedTuple):
    """Rows about their mean, so that float32 covariances are right far from the origin.

    Attributes:
        x: ``(n, d)``, float32 or wider.
        weights: ``(n,)``, >= 0, how often each row counts.
        origin: ``(d,)``, the weighted mean that was taken away.
    """

    x: jax.Array
    weights: jax.Array
    origin: jax.Array


def as_table(x: jax.Array, *, num_features: int | None = None) -> jax.Array:
    """Checks that an array is a table of rows and widens 16-bit numbers to float32.

    Args:
        x: ``(n, d)``.
        num_features: d; any if None.

    Returns:
        Same shape, float32 or float64.

    Raises:
        ValueError: if it is no table, has no rows or another number of features.
    """
    shape = jnp.shape(x)
    wanted = "any number of" if num_features is None else num_features
    if len(shape) != 2 or 0 in shape or num_features not in (None, shape[1]):
        raise ValueError(
            f"x must be a table (rows, features) with {wanted} features, got shape {shape}; "
            "flatten each example to one row"
        )
    return widen(x)


def centre(x: jax.Array, weights: jax.Array | None, *, axis_name: str | None = None) -> Centred:
    """Takes the weighted mean away from each row.

    Args:
        x: ``(n, d)``.
        weights: ``(n,)``, >= 0; all ones if None.
        axis_name: mesh axis that the rows are split over; None if they are whole.

    Returns:
        ``Centred``; the origin is 0 if every weight is.

    Raises:
        ValueError: if shapes disagree.
    """
    x = as_table(x)
    if weights is None:
        weights = jnp.ones(x.shape[0], x.dtype)
    if jnp.shape(weights) != x.shape[:1]:
        raise ValueError(
            f"weights must have one number for each of the {x.shape[0]} rows, got shape "
            f"{jnp.shape(weights)}; give padding rows weight 0"
        )
    weights = jnp.asarray(weights, x.dtype)
    sums = (weights.sum(), jnp.sum(weights[:, None] * x, axis=0))
    count, total = sum_devices(sums, axis_name=axis_name)
    origin = total / jnp.where(count > 0, count, 1)
    return Centred(x - origin, weights, origin)


def sum_devices(value: Any, *, axis_name: str | None = None) -> Any:
    """Adds up what each device found in its own rows.

    Args:
        value: an array or a tree of arrays.
        axis_name: mesh axis that the rows are split over; None if they are whole.

    Returns:
        Same shapes; the value itself if the rows are whole.
    """
    return value if axis_name is None else lax.psum(value, axis_name)


def num_devices(*, axis_name: str | None = None) -> int:
    """Counts the devices that the rows are split over.

    Args:
        axis_name: mesh axis that the rows are split over; None if they are whole.

    Returns:
        A static number; 1 if the rows are whole.
    """
    return 1 if axis_name is None else lax.axis_size(axis_name)


def highest(
    x: jax.Array, scores: jax.Array, num: int, *, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Finds the rows with the highest scores.

    Args:
        x: ``(n, d)``.
        scores: ``(n,)``, not NaN; of equal ones the earlier row comes first.
        num: how many, at most the rows of all devices together.
        axis_name: mesh axis that the rows are split over; None if they are whole.

    Returns:
        Their scores ``(num,)``, falling, and the rows ``(num, d)``.
    """
    best, index = lax.top_k(scores, min(num, x.shape[0]))
    chosen = x[index]
    if axis_name is None:
        return best, chosen
    best, chosen = _gather(best, axis_name), _gather(chosen, axis_name)
    best, index = lax.top_k(best, num)
    return best, chosen[index]


def draw(
    key: jax.Array, x: jax.Array, chances: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """Draws one row at random, with chances that need not sum to 1.

    The row with the highest log chance plus Gumbel noise. Each device makes the noise of all
    rows and uses its own part, so that the draw does not depend on how they are split.

    Args:
        key: a ``jax.random`` key, the same on every device.
        x: ``(n, d)``.
        chances: ``(n,)``, >= 0.
        axis_name: mesh axis that the rows are split over; None if they are whole.

    Returns:
        ``(d,)``; the first row if no row has a chance.
    """
    num_rows = x.shape[0]
    noise = jax.random.gumbel(key, (num_rows * num_devices(axis_name=axis_name),), x.dtype)
    if axis_name is not None:
        noise = lax.dynamic_slice_in_dim(noise, lax.axis_index(axis_name) * num_rows, num_rows)
    has_chance = chances > 0
    scores = jnp.where(has_chance, jnp.log(jnp.where(has_chance, chances, 1)) + noise, -jnp.inf)
    return highest(x, scores, 1, axis_name=axis_name)[1][0]


def _gather(value: jax.Array, axis_name: str) -> jax.Array:
    """Lines up the rows of all devices; by a sum, which JAX knows to be the same everywhere."""
    buffer = jnp.zeros((lax.axis_size(axis_name), *value.shape), value.dtype)
    gathered = lax.psum(buffer.at[lax.axis_index(axis_name)].set(value), axis_name)
    return gathered.reshape(-1, *value.shape[1:])
