"""One run of several processes, on one host or many.

All processes do the same, in the same order: what is split among them is the batch of a step
(``mesh``) and the chunks of a data set (``data.batches.map_chunks``). Files are written by the
first one. Where there is a single process, nothing here costs anything.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jimjax.io.errors import InputError


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run; to be called before anything is computed.

    Args:
        coordinator: ``host:port`` of the first process; if None, all three are found in the
            environment of the cluster (SLURM, Open MPI, TPU or GKE).
        num_processes: how many there are.
        process_id: which this is, from 0.

    Raises:
        InputError: if only some of them are given, or the others are not found.
    """
    given = coordinator, num_processes, process_id
    if None in given and given != (None, None, None):
        raise InputError("give coordinator, num_processes and process_id together, or none of them")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as problem:
        raise InputError(f"the processes of the run do not find each other: {problem}") from problem


def is_first() -> bool:
    """Whether this process writes what is to be written once."""
    return jax.process_index() == 0


def wait(where: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def gather(tree: Any) -> Any:
    """Arrays of all processes, stacked along a new first axis.

    Args:
        tree: of numpy arrays, of the same shapes in all processes.
    """
    if jax.process_count() == 1:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree))


def from_first(tree: Any) -> Any:
    """Numpy arrays as the first process has them."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def check_alike(what: str, *texts: str) -> None:
    """Raises unless all processes say the same.

    Args:
        what: it is, for the message.
        texts: that are to be equal everywhere, of any length.

    Raises:
        InputError: in all of them, naming those that differ from the first.
    """
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    digests = gather(np.frombuffer(digest, np.uint8))
    others = np.flatnonzero((digests != digests[0]).any(axis=1))
    if len(others):
        named = ", ".join(str(number) for number in others)
        raise InputError(
            f"process {named} has {what} other than process 0; start all with the same command, "
            "files and versions"
        )


def local(tree: Any) -> Any:
    """Arrays that every device has whole, as this process's own; others as they are."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


class Vote:
    """Whether any process has been asked something, such as to stop.

    Processes are not asked at the same moment, but have to act at the same step. The answer is
    that of the question before, so that nobody waits for it.

    Args:
        asked: of this process.
    """

    def __init__(self, asked: Callable[[], bool]):
        self._asked = asked
        self._before: jax.Array | None = None

    def __call__(self) -> bool:
        """To be called by all processes equally often."""
        if jax.process_count() == 1:
            return self._asked()
        before = self._before
        self._before = _any(_one_per_device(self._asked()))
        return before is not None and bool(before)


@jax.jit
def _any(votes: jax.Array) -> jax.Array:
    return votes.any()


def _one_per_device(value: bool) -> jax.Array:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    return jax.make_array_from_callback(
        (mesh.size,), sharding, lambda rows: np.full(mesh.size, value)[rows]
    )
