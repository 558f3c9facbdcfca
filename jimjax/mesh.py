"""The devices: batches are split over all of them, and parameters over some, if wanted."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jimjax import distributed
from jimjax.data.lazy import Volumes

AXIS, FSDP_AXIS = "data", "fsdp"
LEAST_SPLIT = 2**14  # entries of an array below which a copy costs less than collecting its parts


def data_mesh(num_devices: int | None = None, *, fsdp: int = 1) -> Mesh:
    """Lines up devices along the axis ``data``, or in rows that also share parameters.

    Args:
        num_devices: how many; all if None, those of other processes included.
        fsdp: devices of a row, along an axis ``fsdp``, each of which keeps a part of every large
            parameter; with 1 there is no such axis, and each device keeps all of them.

    Returns:
        The mesh. Batches are split over all of its devices.

    Raises:
        ValueError: if there are fewer devices, or they do not fill rows of ``fsdp``.
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ValueError(f"{count} devices asked for, {len(devices)} present")
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"{count} devices do not fill rows of {fsdp} that share parameters")
    names = (AXIS,) if fsdp == 1 else (AXIS, FSDP_AXIS)
    shape = (count,) if fsdp == 1 else (count // fsdp, fsdp)
    grid = np.array(devices[:count]).reshape(shape)
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def split_state(tree: Any, mesh: Mesh) -> Any:
    """Places parameters and what goes with them: large arrays in parts, others whole everywhere.

    An array of ``LEAST_SPLIT`` entries or more is cut along the longest of its axes that the
    devices of a row divide. Without an axis ``fsdp`` this is ``replicate``.
    """
    if FSDP_AXIS not in mesh.shape:
        return replicate(tree, mesh)
    return jax.tree.map(lambda leaf: _put(leaf, _state_sharding(leaf, mesh)), tree)


def whole(tree: Any, mesh: Mesh) -> Any:
    """A state as arrays of this process, however it is placed.

    In a single process those of a mesh without ``fsdp`` are given back as they are.
    """
    if FSDP_AXIS not in mesh.shape:
        return distributed.local(tree)
    collected = jax.jit(lambda each: each, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), collected)


def _state_sharding(leaf: Any, mesh: Mesh) -> NamedSharding:
    parts = mesh.shape[FSDP_AXIS]
    lengths = [length if length % parts == 0 else 0 for length in leaf.shape]
    if leaf.size < LEAST_SPLIT or not any(lengths):
        return NamedSharding(mesh, PartitionSpec())
    longest = int(np.argmax(lengths))
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP_AXIS))


def batch_spec(mesh: Mesh) -> PartitionSpec:
    """How a batch lies: its first axis over all devices."""
    return PartitionSpec(mesh.axis_names)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device; processes must have equal ones."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first axis of every array over the devices.

    Args:
        tree: of arrays; each process has the whole batch, and puts its share of it.
        mesh: devices.

    Raises:
        ValueError: if a first axis does not divide by the number of devices.
    """
    for leaf in jax.tree.leaves(tree):
        _check_split(leaf.shape[0], mesh)
    sharding = NamedSharding(mesh, batch_spec(mesh))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), tree
    )


def split_rows(source: Volumes, rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Splits rows of an array over the devices; each process takes those of its own devices alone.

    Args:
        source: ``(n, ...)``.
        rows: ``(batch,)``, the same in all processes.
        mesh: devices.

    Returns:
        ``(batch, ...)``.

    Raises:
        ValueError: if the rows do not divide by the number of devices.
    """
    _check_split(len(rows), mesh)
    shape, sharding = (len(rows), *source.shape[1:]), NamedSharding(mesh, batch_spec(mesh))
    return jax.make_array_from_callback(shape, sharding, lambda part: source[rows[part[0]]])


def _check_split(num: int, mesh: Mesh) -> None:
    if num % mesh.size:
        raise ValueError(
            f"a batch of {num} cannot be split over {mesh.size} devices; choose a batch_size that"
            f" is a multiple of {mesh.size}"
        )


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    """Keys, too, which JAX does not put on other processes' devices."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.device_put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(leaf, sharding)


def map_batch(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Maps a function of one example over a batch, each device doing its own share.

    Args:
        function: of arrays without a batch axis.
        mesh: devices.

    Returns:
        A function of arrays with the batch first, for use inside a jitted one. Nothing in it is
        left to the partitioner, which on CPU refuses some Fourier transforms of split batches.
    """
    spec = batch_spec(mesh)
    return jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec)


def join_batches(batches: Sequence[jax.Array], mesh: Mesh) -> jax.Array:
    """Inside a jitted function: batches as one; each device has its rows of all of them.

    Args:
        batches: ``(n, ...)`` each, of sizes that divide by the number of devices.
        mesh: devices. With one of them the batches follow each other.
    """
    parts = [each.reshape(mesh.size, len(each) // mesh.size, *each.shape[1:]) for each in batches]
    joined = jnp.concatenate(parts, axis=1)
    return constrain_batch(joined.reshape(-1, *joined.shape[2:]), mesh)


def part_batches(tree: Any, sizes: Sequence[int], mesh: Mesh) -> tuple[Any, ...]:
    """Undoes ``join_batches`` for every array of a tree.

    Args:
        tree: of arrays with as many rows as the batches have together.
        sizes: of the batches.
        mesh: devices.

    Returns:
        A tree for each batch.
    """
    ends = [sum(sizes[: place + 1]) // mesh.size for place in range(len(sizes))]

    def part(leaf: jax.Array, first: int, last: int) -> jax.Array:
        rows = leaf.reshape(mesh.size, ends[-1], *leaf.shape[1:])[:, first:last]
        return rows.reshape((last - first) * mesh.size, *leaf.shape[1:])

    return tuple(
        jax.tree.map(lambda leaf, first=first, last=last: part(leaf, first, last), tree)
        for first, last in itertools.pairwise([0, *ends])
    )


def constrain_batch(tree: Any, mesh: Mesh) -> Any:
    """Inside a jitted function: asks that arrays made there be split like batches."""
    sharding = NamedSharding(mesh, batch_spec(mesh))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)
