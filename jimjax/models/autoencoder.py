"""Autoencoder3D: a few numbers from which a particle can be drawn again."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jimjax.models.blocks import Conv, in_full, max_pool, pool_to, run_block
from jimjax.models.compute import Compute
from jimjax.ops.correlation import standardize
from jimjax.ops.principal_axes import normalize_pose

SHRINKAGE = 4  # of the box between input and code: two halvings


@dataclass(frozen=True)
class Autoencoder3DConfig:
    """Sizes of an Autoencoder3D.

    Attributes:
        box: side of the particles in voxels.
        size: side that they are spectrally pooled to first, a multiple of 4; particles are drawn
            again at that size. The box leaves them as they are.
        width: channels of the convolutions.
        code_length: numbers that describe a particle.
        is_pose_normalized: whether particles are first moved into their principal frame.
    """

    box: int
    size: int
    width: int = 32
    code_length: int = 32
    is_pose_normalized: bool = False

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if min(self.width, self.code_length) < 1:
            raise ValueError("width and code_length need at least 1")
        check_size(self.size, self.box)


class Coded(NamedTuple):
    """What the network says of particles.

    Attributes:
        features: ``(batch, code_length)``, none negative.
    """

    features: jax.Array


class Reconstructed(NamedTuple):
    """What the network makes of particles.

    Attributes:
        features: ``(batch, code_length)``, none negative.
        decoded: ``(batch, size, size, size)``, the particles drawn again.
    """

    features: jax.Array
    decoded: jax.Array


class Autoencoder3D(nnx.Module):
    """Describes particles, in which protein is positive, by what is needed to draw them again.

    Reference: Zeng et al. 2018, J. Struct. Biol. 202, and its published code.
    """

    def __init__(self, config: Autoencoder3DConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        width, num_flat = config.width, (config.size // SHRINKAGE) ** 3 * config.width
        self.encoder = nnx.List([Conv(num_in, width, rngs=rngs) for num_in in (1, width)])
        self.code = _dense(num_flat, config.code_length, rngs)
        self.hidden = _dense(config.code_length, num_flat, rngs)
        self.decoder = nnx.List([Conv(width, width, rngs=rngs) for _ in range(2)])
        self.closing = Conv(width, 1, rngs=rngs)

    def __call__(self, volumes: jax.Array, *, train: bool) -> Coded:
        """Describes volumes ``(batch, z, y, x)``."""
        return Coded(self._encode(self.prepare(volumes, train=train)))

    def prepare(self, volumes: jax.Array, *, train: bool) -> jax.Array:
        """Volumes as they are encoded, and as they are to be drawn again.

        Args:
            volumes: ``(batch, z, y, x)``.
            train: of no influence.

        Returns:
            ``(batch, size, size, size)`` of zero mean and unit deviation each.
        """
        del train
        if self.config.is_pose_normalized:
            volumes = jax.vmap(normalize_pose)(volumes)
        pooled = pool_to(volumes[..., None], self.config.size, self.config.size)[..., 0]
        return jax.vmap(standardize)(pooled)

    def reconstruct(self, prepared: jax.Array, *, train: bool) -> Reconstructed:
        """Describes volumes of ``prepare`` and draws them again.

        Args:
            prepared: ``(batch, size, size, size)``.
            train: of no influence.
        """
        del train
        code = self._encode(prepared)
        side = self.config.size // SHRINKAGE
        flat = nnx.relu(self.hidden(code))
        maps = flat.reshape(len(flat), side, side, side, self.config.width)
        for conv in self.decoder:
            maps = run_block(self.compute, convolve_rectified, conv, upsample(maps))
        return Reconstructed(code, in_full(self.closing(maps))[..., 0])

    def _encode(self, prepared: jax.Array) -> jax.Array:
        maps = prepared[..., None]
        for conv in self.encoder:
            maps = max_pool(run_block(self.compute, convolve_rectified, conv, maps))
        return nnx.relu(self.code(in_full(maps).reshape(len(maps), -1)))


def convolve_rectified(conv: Conv, maps: jax.Array) -> jax.Array:
    """A convolution and ReLU."""
    return nnx.relu(conv(maps))


def check_size(size: int, box: int) -> None:
    """Refuses a side that cannot be halved twice, or is longer than the box.

    Raises:
        ValueError: if so.
    """
    if size > box:
        raise ValueError(f"size {size} must not exceed the box of {box} voxels")
    if size < SHRINKAGE or size % SHRINKAGE:
        raise ValueError(
            f"two halvings need a multiple of {SHRINKAGE} voxels, got {size}; crop or pad the "
            "particles"
        )


def upsample(maps: jax.Array) -> jax.Array:
    """Each voxel of ``(batch, z, y, x, c)`` as 2^3 of its kind."""
    for axis in (1, 2, 3):
        maps = jnp.repeat(maps, 2, axis=axis)
    return maps


def paper(box: int, *, is_pose_normalized: bool = False) -> Autoencoder3DConfig:
    """The published sizes: 1.15 million parameters at 32 voxels; for an accelerator."""
    return Autoencoder3DConfig(box=box, size=box, is_pose_normalized=is_pose_normalized)


def small(box: int, *, is_pose_normalized: bool = False) -> Autoencoder3DConfig:
    """Trains on a laptop: a quarter of the channels, and particles pooled to 16 voxels.

    What it draws again are the pooled particles. Kernels stay full: radial ones, which other small
    networks have, cannot draw shapes.
    """
    return Autoencoder3DConfig(
        box=box, size=small_size(box), width=8, is_pose_normalized=is_pose_normalized
    )


def small_size(box: int) -> int:
    """The side that small networks pool to: 16, or the largest multiple of 4 in the box."""
    return min(box, 16) // SHRINKAGE * SHRINKAGE


def _dense(num_in: int, num_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(num_in, num_out, kernel_init=nnx.initializers.glorot_uniform(), rngs=rngs)
