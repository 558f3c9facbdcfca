"""The devices, as one axis over which batches are split."""

from collections.abc import Callable
from typing import Any

import jax
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
    """Puts a copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(tree: Any, mesh: Mesh) -> Any:
    """Splits the first axis of every array over the devices.

    Raises:
        ValueError: if a first axis does not divide by the number of devices.
    """
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] % mesh.size:
            raise ValueError(
                f"a batch of {leaf.shape[0]} cannot be split over {mesh.size} devices; choose a "
                f"batch_size that is a multiple of {mesh.size}"
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


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
