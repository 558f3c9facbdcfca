"""Which particles are seen when: a function of seed and epoch alone, so that runs repeat."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jimjax import distributed
from jimjax.data.lazy import Volumes
from jimjax.device_memory import OutOfMemoryError, is_out_of_memory
from jimjax.progress import Interrupted, is_stop_requested


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

    Where a chunk does not fit into the memory of the device, halves of it are asked about.

    Args:
        function: of ``(chunk,)`` indices; gives a pytree of arrays with as many rows.
        num: examples.
        chunk: how many at a time; has no influence on the result.
        is_shared: processes share the work, so that all have to call this; otherwise the one that
            does is on its own.

    Returns:
        The same pytree of numpy arrays with ``num`` rows.

    Raises:
        OutOfMemoryError: if not even a single example fits.
        Interrupted: after SIGTERM or SIGINT; of several processes all of them at the same chunk.
    """
    count, rank = (jax.process_count(), jax.process_index()) if is_shared else (1, 0)
    chunks = list(padded_chunks(num, chunk))
    # Processes take turns; the last turn is filled up, so that all have equally many.
    own = np.resize(np.arange(len(chunks)), -(-len(chunks) // count) * count)[rank::count]
    is_asked_to_stop = distributed.Vote(is_stop_requested) if is_shared else is_stop_requested
    size, found = chunk, []
    for place in own:
        if is_asked_to_stop():
            raise Interrupted
        answer, size = _ask(function, chunks[place], size)
        found.append(answer)
    mine = jax.tree.map(lambda *parts: np.stack(parts), *found)
    everyone = distributed.gather(mine) if is_shared else jax.tree.map(lambda own: own[None], mine)
    return jax.tree.map(lambda parts: _in_order(parts, num), everyone)


def _ask(function: Callable[[np.ndarray], Any], rows: np.ndarray, size: int) -> tuple[Any, int]:
    """Asks about ``size`` rows at a time, or as many as fit; how many that were, as well."""
    while True:
        try:
            parts = [
                jax.tree.map(np.asarray, function(rows[places]))
                for places in padded_chunks(len(rows), size)
            ]
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            if size == 1:
                raise OutOfMemoryError(
                    "the device has not enough memory for a single example; "
                    "use smaller boxes, or another device"
                ) from problem
            size = -(-size // 2)
            continue
        joined = jax.tree.map(lambda *own: np.concatenate(own)[: len(rows)], *parts)
        return joined, size


def _in_order(parts: np.ndarray, num: int) -> np.ndarray:
    """From ``(process, turn, row, ...)`` to rows."""
    return np.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[3:])[:num]


def _generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, *purpose.encode()])
