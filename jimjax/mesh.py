"""The devices, as one axis over which batches are split."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def data_mesh(num_devices: int | None = None) -> Mesh:
    """Lines up devices along the axis ``data``.

    Args:
        num_devices: how many; all if None.

    Returns:
        The mesh.

    Raises:
        ValueError: if there are fewer devices.
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ValueError(f"{count} devices asked for, {len(devices)} present")
    return Mesh(np.array(devices[:count]), (AXIS,), axis_types=(AxisType.Auto,))


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
        if leaf.shape[0] % mesh.size:
            raise ValueError(
                f"a batch of {leaf.shape[0]} cannot be split over {mesh.size} devices; choose a "
                f"batch_size that is a multiple of {mesh.size}"
            )
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), tree
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
    spec = PartitionSpec(AXIS)
    return jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec)


def constrain_batch(tree: Any, mesh: Mesh) -> Any:
    """Inside a jitted function: asks that arrays made there be split like batches."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)
