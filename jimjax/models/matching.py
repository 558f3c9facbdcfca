"""Regressors: from the correlation of two feature maps to the pose between them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jimjax.models.blocks import Conv, batch_norm, in_full
from jimjax.ops import matching, rotation
from jimjax.ops.rotation import Pose

VALID_LOSS = 2  # voxels a valid 3^3 convolution takes off each side length
TOWER_DEPTH = 2  # convolutions over a correlation
FINE_ANGLE = np.pi / 6  # rad; range of the fine stages
FINE_SHIFT = 0.2  # of half a box; range of the fine stages
WINDOW_START, WINDOW_END = 0.38, 0.5  # of the box: radii between which features fade out
LEVER = 0.25  # of the box: where turning by an angle moves as far as shifting by it
INITIAL_DAMPING = 0.03  # of the mean stiffness
MIN_COSINE = 0.1  # between source and target features, below which a match is not believed
EPSILON = 1e-6
_HIGHEST = jax.lax.Precision.HIGHEST


class GlobalDense(nnx.Module):
    """Coarse regressor: both correlation directions through towers into dense layers.

    Gum-Net's Siamese matching with two changes that Jim-Net's size calls for: a ReLU between
    the dense layers, and a 6-D rotation instead of Euler angles through a sigmoid.
    """

    def __init__(self, size: int, width: int, momentum: float, *, rngs: nnx.Rngs):
        self.towers = nnx.List([CorrelationTower(size, width, momentum, rngs) for _ in range(2)])
        flat = 2 * width * (size - TOWER_DEPTH * VALID_LOSS) ** 3
        self.hidden = nnx.Linear(flat, 2 * width, rngs=rngs)
        self.out = nnx.Linear(2 * width, 9, rngs=rngs)

    def __call__(
        self, source: jax.Array, target: jax.Array, box: int, *, train: bool
    ) -> tuple[Pose, None]:
        """Estimates poses from feature maps ``(batch, n, n, n, c)``; shifts in box voxels."""
        return self.compare(self.prepare(source, box), self.prepare(target, box), box, train=train)

    def prepare(self, features: jax.Array, box: int) -> jax.Array:
        """Normalises feature maps ``(batch, n, n, n, c)`` voxel by voxel."""
        del box
        return matching.l2_normalize(features)

    def compare(
        self, source: jax.Array, target: jax.Array, box: int, *, train: bool
    ) -> tuple[Pose, None]:
        """Does the same from what ``prepare`` made of the feature maps."""
        correlate = jax.vmap(matching.global_correlation)
        pairs = (correlate(source, target), correlate(target, source))
        flat = [tower(pair, train=train) for tower, pair in zip(self.towers, pairs, strict=True)]
        out = self.out(nnx.relu(self.hidden(jnp.concatenate(flat, axis=-1))))
        return any_pose(out, box), None


class CorrelationTower(nnx.Module):
    """Two valid convolutions over a global correlation, each with batch norm and ReLU; flattened.

    Gum-Net's order: its extractor has ReLU before batch norm, this has it after.
    """

    def __init__(
        self,
        size: int,
        width: int,
        momentum: float,
        rngs: nnx.Rngs,
        *,
        num_correlations: int = 1,
    ):
        widths = (num_correlations * size**3, *[width] * TOWER_DEPTH)
        self.convs = nnx.List(
            [Conv(*pair, padding="valid", rngs=rngs) for pair in itertools.pairwise(widths)]
        )
        self.norms = nnx.List([batch_norm(width, momentum, rngs) for _ in self.convs])

    def __call__(self, correlation: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``(batch, n, n, n, num_correlations n^3)`` to ``(batch, features)``."""
        hidden = matching.l2_normalize(correlation)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = nnx.relu(norm(conv(hidden), use_running_average=not train))
        return in_full(hidden).reshape(hidden.shape[0], -1)


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
        hidden = _local_correlation(*map(matching.l2_normalize, (source, target)), self.radius)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = nnx.relu(norm(conv(hidden), use_running_average=not train))
        out = self.out(nnx.relu(self.hidden(in_full(hidden).reshape(hidden.shape[0], -1))))
        return small_pose(out, box)


def any_pose(out: jax.Array, box: int) -> Pose:
    """Poses of any size from nine numbers ``(batch, 9)``; zeros are the identity."""
    upright = jnp.array([1.0, 0, 0, 0, 1, 0])
    rotations = jax.vmap(rotation.from_six_d)(out[:, :6] + upright)
    return Pose(rotations, jnp.tanh(out[:, 6:]) * (box / 2))


def small_pose(out: jax.Array, box: int) -> Pose:
    """Poses within a fine stage's range from six numbers ``(batch, 6)``; zeros are the identity."""
    small = jnp.tanh(out)
    rotations = jax.vmap(rotation.from_rotation_vector)(small[:, :3] * FINE_ANGLE)
    return Pose(rotations, small[:, 3:] * (FINE_SHIFT * box / 2))


class LocalNewton(nnx.Module):
    """Fine regressor: one Newton step uphill on the local correlation.

    The slope of the local correlation at each voxel pulls on it; all voxels together are a force
    and a torque on the particle. Divided by how steeply the source's own features change under
    small motions, they are the motion that brings source and target together. Sums over the
    particle come before anything nonlinear, so that noise averages out. What is learned, besides
    the features: a gain and a damping.
    """

    def __init__(self, *, radius: int):
        self.radius = radius
        self.log_gain = nnx.Param(jnp.zeros(()))
        self.log_damping = nnx.Param(jnp.log(jnp.full((), INITIAL_DAMPING, jnp.float32)))

    def __call__(self, source: jax.Array, target: jax.Array, box: int, *, train: bool) -> Pose:
        """Estimates small poses from feature maps ``(batch, n, n, n, c)``."""
        del train
        size = source.shape[1]
        unit = LEVER * box  # voxels; makes turning and shifting alike in size
        points = grid_points(size, box) / unit
        source, target = (windowed(maps, box) for maps in (source, target))
        correlation = _local_correlation(source, target, self.radius)
        pull = _slopes_of_correlation(correlation, self.radius) * (unit * size / box)
        force = jnp.sum(_wrench(points, pull), axis=1)
        slopes = _slopes_of_maps(source, self.radius) * (unit * size / box)
        wrenches = _wrench(points[:, None], slopes)
        stiffness = jnp.einsum("bnci,bncj->bij", wrenches, wrenches, precision=_HIGHEST)
        # The target shows the source's features at some scale, and noise besides.
        scale = _matched_scale(source, target)
        damping = jnp.exp(self.log_damping[...]) * jnp.trace(stiffness, axis1=1, axis2=2) / 6
        damped = stiffness + (damping + EPSILON)[:, None, None] * jnp.eye(6)
        motion = jnp.linalg.solve(damped, force[..., None])[..., 0] / scale[:, None]
        motion = motion * jnp.exp(self.log_gain[...])
        turn = _bounded(motion[:, :3], FINE_ANGLE)
        shift = _bounded(motion[:, 3:] * unit, FINE_SHIFT * box / 2)
        return Pose(jax.vmap(rotation.from_rotation_vector)(turn), shift)


def windowed(maps: jax.Array, box: int) -> jax.Array:
    """Takes off what is constant and fades out the corners, which would look like a cube.

    Args:
        maps: ``(batch, n, n, n, c)``.
        box: side of the particle in voxels.

    Returns:
        Same shape.
    """
    size = maps.shape[1]
    radius = jnp.linalg.norm(grid_points(size, box), axis=-1) / box
    ramp = jnp.clip((WINDOW_END - radius) / (WINDOW_END - WINDOW_START), 0.0, 1.0)
    window = (0.5 - 0.5 * jnp.cos(jnp.pi * ramp)).reshape(size, size, size, 1)
    mean = jnp.sum(window * maps, axis=(1, 2, 3), keepdims=True) / jnp.sum(window)
    return (maps - mean) * window


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


def _local_correlation(source: jax.Array, target: jax.Array, radius: int) -> jax.Array:
    def correlate(source: jax.Array, target: jax.Array) -> jax.Array:
        return matching.local_correlation(source, target, radius=radius)

    return jax.vmap(correlate)(source, target)


def _slopes_of_correlation(correlation: jax.Array, radius: int) -> jax.Array:
    """Fits planes over the window: ``(batch, n^3, 3)``, per voxel of displacement (x, y, z)."""
    # source(p) meets target(p - o): the offset o is a displacement by -o.
    displacement = -_cube(np.arange(-radius, radius + 1))
    weights = displacement / jnp.sum(displacement**2, axis=0)
    flat = correlation.reshape(len(correlation), -1, len(displacement))
    return jnp.matmul(flat, weights, precision=_HIGHEST)


def _slopes_of_maps(maps: jax.Array, radius: int) -> jax.Array:
    """Fits planes over the same window to the maps themselves: ``(batch, n^3, c, 3)``."""
    batch, size, channels = len(maps), maps.shape[1], maps.shape[-1]
    offsets = np.arange(size)[None, :] - np.arange(size)[:, None]
    is_near = (np.abs(offsets) <= radius).astype(np.float32)
    width = 2 * radius + 1
    mean, slope = is_near / width, offsets * is_near / (width * (width**2 - 1) / 12)
    slopes = [
        jnp.einsum("zk,yj,xi,bkjic->bzyxc", *matrices, maps, precision=_HIGHEST)
        for matrices in ((mean, mean, slope), (mean, slope, mean), (slope, mean, mean))
    ]
    return jnp.stack(slopes, axis=-1).reshape(batch, size**3, channels, 3)


def _wrench(points: jax.Array, force: jax.Array) -> jax.Array:
    """Torque and force ``(..., 6)`` of forces acting at points, both ``(..., 3)``."""
    return jnp.concatenate([jnp.cross(points, force), force], axis=-1)


def _matched_scale(source: jax.Array, target: jax.Array) -> jax.Array:
    """How large the source's features are in the target, ``(batch,)``; never near zero."""
    axes = (1, 2, 3, 4)
    own, other = jnp.sum(source**2, axis=axes), jnp.sum(target**2, axis=axes)
    shared = jnp.sum(source * target, axis=axes)
    return (jnp.maximum(shared, MIN_COSINE * jnp.sqrt(own * other + EPSILON)) + EPSILON) / (
        own + EPSILON
    )


def _bounded(vectors: jax.Array, limit: float) -> jax.Array:
    """Shortens ``(batch, 3)`` vectors smoothly to at most a length."""
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(1 + squared / limit**2)
