"""How batches come to the devices: as rows of what is there already, or read ahead of the step.

Particles that fit are put on every device once, and a batch is then the numbers of its rows. Those
that do not are taken on the host, by each process the rows of its own devices; where that means
reading files, threads are a few batches ahead. None of this has any influence on the outcome: the
order is a function of seed and epoch, and where it stands is the number of the step.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jimjax import distributed
from jimjax.data.batches import Taken, is_taken
from jimjax.data.lazy import LazyVolumes, Volumes
from jimjax.device_memory import told_bytes
from jimjax.mesh import replicate, split_batch, split_rows

RESIDENT_SHARE = 0.25  # of a device's memory, for what stays there
RESIDENT_BYTES = 2**30  # of a host's, for the copies of all its devices that have none of their own
AHEAD = 4  # batches that are read before they are asked for
NUM_THREADS = 2


class _Resident(NamedTuple):
    """An array of the host, and the same on all devices."""

    source: Volumes
    copy: jax.Array


class Feeder:
    """Feeds the devices of a mesh.

    Args:
        mesh: devices.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._limit = mesh, resident_limit(mesh)
        self._resident: dict[int, _Resident] = {}  # by the identity of the source

    def feed(self, batches: Iterable[Any], done: int) -> Iterator[Any]:
        """Places batches on the devices.

        Args:
            batches: of an epoch.
            done: how many of them, from the beginning, are left out; nothing of theirs is read.

        Yields:
            Batches as a step wants them; ``Taken`` rows are those that it takes itself.
        """
        left = itertools.islice(batches, done, None)
        first = next(left, None)
        if first is None:
            return
        taken = [leaf for leaf in jax.tree.leaves(first, is_leaf=is_taken) if is_taken(leaf)]
        self._keep([each.source for each in taken])
        left = itertools.chain([first], left)
        if any(isinstance(self._whereabouts(each), LazyVolumes) for each in taken):
            yield from _ahead(list(left), self._place)
        else:
            yield from map(self._place, left)

    def _keep(self, sources: list[Volumes]) -> None:
        """Puts sources on the devices, as far as they fit, and forgets others that were there."""
        before, self._resident, room = self._resident, {}, self._limit
        for source in sources:
            if id(source) in self._resident or source.nbytes > room:
                continue
            room -= source.nbytes
            kept = before.get(id(source))
            if kept is None:
                kept = _Resident(source, replicate(np.asarray(source), self._mesh))
            self._resident[id(source)] = kept

    def _whereabouts(self, taken: Taken) -> Volumes | jax.Array:
        kept = self._resident.get(id(taken.source))
        return taken.source if kept is None else kept.copy

    def _place(self, batch: Any) -> Any:
        def place(leaf: Any) -> Any:
            if not is_taken(leaf):
                return split_batch(leaf, self._mesh)
            source = self._whereabouts(leaf)
            if isinstance(source, jax.Array):
                return Taken(split_batch(leaf.rows, self._mesh), source)
            return split_rows(source, leaf.rows, self._mesh)

        return jax.tree.map(place, batch, is_leaf=is_taken)


def resident_limit(mesh: Mesh) -> float:
    """Bytes on each device for arrays that stay there; the same in all processes.

    A quarter of the memory of a device that tells how much it has, otherwise (on CPU) 1 GiB for
    all devices of a host.
    """
    device = mesh.local_devices[0]
    told = told_bytes(device)
    limit = RESIDENT_BYTES / len(mesh.local_devices) if told is None else RESIDENT_SHARE * told
    return float(distributed.from_first(np.float32(limit)))


def _ahead(batches: list[Any], place: Callable[[Any], Any]) -> Iterator[Any]:
    """Places batches in threads, in order, some before they are asked for."""
    import grain  # only where files are read: it takes most of a second

    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=AHEAD)
    dataset = grain.MapDataset.source(batches).map(place).to_iter_dataset(options)
    with contextlib.closing(iter(dataset)) as coming:
        yield from coming
