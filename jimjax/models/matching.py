"""Regressors: from the correlation of two feature maps to the pose between them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jimjax.models.blocks import Conv, batch_norm
from jimjax.ops import matching, rotation
from jimjax.ops.procrustes import paired_procrustes
from jimjax.ops.rotation import Pose

TOWER_KERNEL = 3
FINE_ANGLE = np.pi / 6  # rad; range of the dense fine stage per rotation vector entry
FINE_SHIFT = 0.2  # of half a box; range of the dense fine stage
INITIAL_SHARPNESS = 50.0  # of the softmax over cosines of local matches


class GlobalDense(nnx.Module):
    """Coarse regressor: both correlation directions through towers into dense layers.

    Gum-Net's Siamese matching with two changes that Jim-Net's size calls for: a ReLU between
    the dense layers, and a 6-D rotation instead of Euler angles through a sigmoid.
    """

    def __init__(self, size: int, width: int, momentum: float, *, rngs: nnx.Rngs):
        self.towers = nnx.List([_Tower(size, width, momentum, rngs) for _ in range(2)])
        flat = 2 * width * (size - 2 * (TOWER_KERNEL - 1)) ** 3
        self.hidden = nnx.Linear(flat, 2 * width, rngs=rngs)
        self.out = nnx.Linear(2 * width, 9, rngs=rngs)

    def __call__(
        self, source: jax.Array, target: jax.Array, box: int, *, train: bool
    ) -> tuple[Pose, None]:
        """Estimates poses from feature maps ``(batch, n, n, n, c)``; shifts in box voxels."""
        source, target = matching.l2_normalize(source), matching.l2_normalize(target)
        correlate = jax.vmap(matching.global_correlation)
        pairs = (correlate(source, target), correlate(target, source))
        flat = [tower(pair, train=train) for tower, pair in zip(self.towers, pairs, strict=True)]
        out = self.out(nnx.relu(self.hidden(jnp.concatenate(flat, axis=-1))))
        upright = jnp.array([1.0, 0, 0, 0, 1, 0])
        rotations = jax.vmap(rotation.from_six_d)(out[:, :6] + upright)
        return Pose(rotations, jnp.tanh(out[:, 6:]) * (box / 2)), None


class _Tower(nnx.Module):
    """Two valid convolutions over a global correlation, flattened."""

    def __init__(self, size: int, width: int, momentum: float, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [
                Conv(size**3, width, padding="valid", rngs=rngs),
                Conv(width, width, padding="valid", rngs=rngs),
            ]
        )
        self.norms = nnx.List([batch_norm(width, momentum, rngs) for _ in range(2)])

    def __call__(self, correlation: jax.Array, *, train: bool) -> jax.Array:
        hidden = matching.l2_normalize(correlation)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = nnx.relu(norm(conv(hidden), use_running_average=not train))
        return hidden.reshape(hidden.shape[0], -1)


class LocalDense(nnx.Module):
    """Fine regressor: strided convolutions over a local correlation; starts as the identity."""

    def __init__(self, size: int, width: int, momentum: float, *, radius: int, rngs: nnx.Rngs):
        self.radius = radius
        self.convs = nnx.List(
            [
                Conv((2 * radius + 1) ** 3, width, stride=2, rngs=rngs),
                Conv(width, width, stride=2, rngs=rngs),
            ]
        )
        self.norms = nnx.List([batch_norm(width, momentum, rngs) for _ in range(2)])
        flat = width * (-(-size // 4)) ** 3
        self.hidden = nnx.Linear(flat, 4 * width, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.out = nnx.Linear(4 * width, 6, kernel_init=zeros, rngs=rngs)

    def __call__(self, source: jax.Array, target: jax.Array, box: int, *, train: bool) -> Pose:
        """Estimates small poses from feature maps ``(batch, n, n, n, c)``."""
        hidden = _local_correlation(source, target, self.radius)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = nnx.relu(norm(conv(hidden), use_running_average=not train))
        out = nnx.tanh(self.out(nnx.relu(self.hidden(hidden.reshape(hidden.shape[0], -1)))))
        rotations = jax.vmap(rotation.from_rotation_vector)(out[:, :3] * FINE_ANGLE)
        return Pose(rotations, out[:, 3:] * (FINE_SHIFT * box / 2))


class LocalProcrustes(nnx.Module):
    """Fine regressor: local matches give a displacement field, and it the rigid motion.

    A softmax over the window says where each source voxel went; voxels count by a learned
    function of their features.
    """

    def __init__(self, num_features: int, *, radius: int, rngs: nnx.Rngs):
        self.radius = radius
        self.sharpness = nnx.Param(jnp.log(jnp.full((), INITIAL_SHARPNESS, jnp.float32)))
        self.weight = nnx.Linear(num_features, 1, rngs=rngs)

    def __call__(self, source: jax.Array, target: jax.Array, box: int, *, train: bool) -> Pose:
        """Estimates small poses from feature maps ``(batch, n, n, n, c)``."""
        del train
        size, radius = source.shape[1], self.radius
        points = grid_points(size, box)
        offsets = _cube(np.arange(-radius, radius + 1) * (box / size))
        # Without the mean that all voxels share, neighbours differ enough to tell them apart.
        correlation = _local_correlation(_centred(source), _centred(target), radius)
        # source(p) belongs to target(p - o): the matched point is p minus the mean offset.
        matches = nnx.softmax(correlation * jnp.exp(self.sharpness[...]), axis=-1)
        moved = points - matches.reshape(len(source), -1, len(offsets)) @ offsets
        weights = nnx.softmax(self.weight(source).reshape(len(source), -1), axis=-1)

        return jax.vmap(paired_procrustes, in_axes=(0, None, 0))(weights, points, moved)


def grid_points(size: int, box: int) -> jax.Array:
    """Positions of a feature map's voxels in the particle's box.

    Args:
        size: side of the feature map.
        box: side of the particle in voxels; the map covers it from face to face.

    Returns:
        ``(size^3, 3)``: ``(x, y, z)`` in particle voxels relative to the centre voxel ``n // 2``,
        which lies half a voxel beyond the middle of an even box.
    """
    middle = (box - 1) / 2 - box // 2
    return _cube((np.arange(size) - (size - 1) / 2) * (box / size) + middle)


def _cube(axis: np.ndarray) -> jax.Array:
    """The points of a cubic grid in C order of (z, y, x), as ``(x, y, z)`` rows."""
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return jnp.asarray(np.stack([x, y, z], axis=-1).reshape(-1, 3), jnp.float32)


def _centred(maps: jax.Array) -> jax.Array:
    return maps - jnp.mean(maps, axis=(1, 2, 3), keepdims=True)


def _local_correlation(source: jax.Array, target: jax.Array, radius: int) -> jax.Array:
    def correlate(source: jax.Array, target: jax.Array) -> jax.Array:
        return matching.local_correlation(source, target, radius=radius)

    return jax.vmap(correlate)(matching.l2_normalize(source), matching.l2_normalize(target))
