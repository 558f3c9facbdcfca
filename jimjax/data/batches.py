"""Which particles are seen when: a function of seed and epoch alone, so that runs repeat."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jimjax import distributed
from jimjax.data.lazy import Volumes


class Taken(NamedTuple):
    """Rows of an array in a batch, where the whole array may already be on the devices.

    The loop decides who takes them: the host, or the step. A loss is given the rows themselves.

    Attributes:
        rows: ``(batch,)``.
        source: ``(n, ...)``, the same object in all batches.
    """

    rows: np.ndarray
    source: Volumes


def fetch(batch: Any) -> Any:
    """Takes all rows that are to be taken; in a compiled step, on the devices."""

    def take(leaf: Any) -> Any:
        return leaf.source[leaf.rows] if is_taken(leaf) else leaf

    return jax.tree.map(take, batch, is_leaf=is_taken)


def is_taken(leaf: Any) -> bool:
    """Whether a part of a batch is to be taken."""
    return isinstance(leaf, Taken)


def num_batches(num: int, batch_size: int) -> int:
    """Batches that cover ``num`` examples once."""
    return -(-num // batch_size)


def index_batches(num: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Shuffles examples and cuts them into batches of one fixed size.

    Args:
        num: examples.
        batch_size: of every batch; the last one is filled up from the beginning.
        seed: of the run.
        epoch: shuffles differently each time.

    Yields:
        ``(batch_size,)`` indices; each example at least once per epoch.

    Raises:
        ValueError: if there is nothing to cut.
    """
    if num < 1 or batch_size < 1:
        raise ValueError(f"need examples and a batch size, got {num} and {batch_size}")
    order = _generator(seed, epoch, "order").permutation(num)
    order = np.resize(order, num_batches(num, batch_size) * batch_size)
    yield from order.reshape(-1, batch_size)


def draw_partners(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Draws for each example another one of the same cluster.

    Args:
        labels: ``(n,)`` clusters.
        seed: of the run.
        epoch: draws differently each time.

    Returns:
        ``(n,)`` indices, never the example itself, except that an example alone in its cluster
        gets itself.
    """
    generator = _generator(seed, epoch, "partners")
    partners = np.arange(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            # A shuffled ring: everyone's partner is the next one.
            ring = generator.permutation(members)
            partners[ring] = np.roll(ring, 1)
    return partners


def padded_chunks(num: int, chunk: int) -> Iterator[np.ndarray]:
    """Cuts ``range(num)`` into chunks of one fixed size, the last filled up with its own last."""
    for first in range(0, num, chunk):
        yield np.minimum(np.arange(first, first + chunk), num - 1)


def map_chunks(
    function: Callable[[np.ndarray], Any], num: int, chunk: int, *, is_shared: bool = True
) -> Any:
    """Asks a function about ``num`` examples, some at a time, and some in each process.

    Args:
        function: of ``(chunk,)`` indices; gives a pytree of arrays with as many rows.
        num: examples.
        chunk: how many at a time; has no influence on the result.
        is_shared: processes share the work, so that all have to call this; otherwise the one that
            does is on its own.

    Returns:
        The same pytree of numpy arrays with ``num`` rows.
    """
    count, rank = (jax.process_count(), jax.process_index()) if is_shared else (1, 0)
    chunks = list(padded_chunks(num, chunk))
    # Processes take turns; the last turn is filled up, so that all have equally many.
    own = np.resize(np.arange(len(chunks)), -(-len(chunks) // count) * count)[rank::count]
    found = [jax.tree.map(np.asarray, function(chunks[place])) for place in own]
    mine = jax.tree.map(lambda *parts: np.stack(parts), *found)
    everyone = distributed.gather(mine) if is_shared else jax.tree.map(lambda own: own[None], mine)
    return jax.tree.map(lambda parts: _in_order(parts, num), everyone)


def _in_order(parts: np.ndarray, num: int) -> np.ndarray:
    """From ``(process, turn, row, ...)`` to rows."""
    return np.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[3:])[:num]


def _generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, *purpose.encode()])
