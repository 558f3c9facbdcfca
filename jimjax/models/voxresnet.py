"""VoxResNet: residual modules at four resolutions, each of which says of every voxel what it is."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jimjax.models.blocks import (
    Conv,
    ConvTranspose,
    batch_norm,
    in_full,
    in_precision,
    run_block,
)
from jimjax.models.compute import Compute
from jimjax.ops.conv import conv3d

SHRINKAGE = 8  # of the box between input and deepest maps: three halvings
HEADS = ((3, 1), (4, 2), (6, 4), (10, 8))  # kernel and stride of the transposed convolutions
CLOSING_SCALE = 0.01  # of the initial logits: untrained, all classes are nearly equally likely


@dataclass(frozen=True)
class VoxResNetConfig:
    """Sizes of a VoxResNet.

    Attributes:
        box: side of the particles in voxels, a multiple of 8. It has no influence on the arrays.
        num_classes: what voxels are told apart into; the first is background.
        first_width: channels at full resolution.
        width: channels of all maps below it.
        momentum: of the running batch norm statistics.
    """

    box: int
    num_classes: int = 2
    first_width: int = 32
    width: int = 64
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if self.box < SHRINKAGE or self.box % SHRINKAGE:
            raise ValueError(
                f"three halvings need a multiple of {SHRINKAGE} voxels, got {self.box}; crop or "
                "pad the particles"
            )
        if self.num_classes < 2:
            raise ValueError(f"num_classes needs background and one more, got {self.num_classes}")
        if min(self.first_width, self.width) < 1:
            raise ValueError("first_width and width need at least 1")

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the maps at each resolution."""
        return (self.first_width, self.width, self.width, self.width)


class Segmented(NamedTuple):
    """What the network says of particles.

    Attributes:
        logits: ``(batch, z, y, x, num_classes)``, the sum of those of the four resolutions.
        taps: what they are made of, ``(batch, z / s, y / s, x / s, channels)`` for s = 1, 2, 4, 8:
            the second convolution's result, then those of the second, fourth and sixth residual
            module, all before batch norm and ReLU.
    """

    logits: jax.Array
    taps: tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class VoxResNet(nnx.Module):
    """Says of each voxel of normalised particles which class it belongs to.

    ReLU instead of the published code's, which is cut off at 20, and the layers' own logits are
    summed without a loss on each. Convolutions of stride 2 pad at the end, those published at the
    beginning: each is the other's mirror image.

    References: Chen, Dou, Yu, Qin, Heng 2018, NeuroImage 170; Li et al., Vox-UDA, figure 2.
    """

    def __init__(self, config: VoxResNetConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        widths, momentum = config.widths, config.momentum
        self.first = _conv(1, widths[0], rngs)
        self.first_norm = batch_norm(widths[0], momentum, rngs)
        self.second = _conv(widths[0], widths[0], rngs)
        self.stages = nnx.List([Stage(config, num_in, rngs) for num_in in widths[:-1]])
        self.heads = nnx.List(
            [
                Head(num_in, config.num_classes, size, stride, rngs)
                for num_in, (size, stride) in zip(widths, HEADS, strict=True)
            ]
        )

    def __call__(self, volumes: jax.Array, *, train: bool) -> Segmented:
        """Segments volumes ``(batch, z, y, x)`` whose sides are multiples of 8."""

        def begin(layers: tuple, maps: jax.Array) -> jax.Array:
            first, norm, second = layers
            return second(nnx.relu(norm(first(maps), use_running_average=not train)))

        layers = self.first, self.first_norm, self.second
        taps = [run_block(self.compute, begin, layers, volumes[..., None])]
        for stage in self.stages:
            taps.append(stage(taps[-1], train=train))
        logits = run_block(self.compute, self._sum_heads, self.heads, taps)
        return Segmented(logits, tuple(map(in_full, taps)))

    def _sum_heads(self, heads: nnx.List, taps: list[jax.Array]) -> jax.Array:
        """Sums what the heads say, by one convolution that has the kernels of all."""
        spread = [head(maps) for head, maps in zip(heads, taps, strict=True)]
        closings = [head.closing for head in heads]
        kernel = jnp.concatenate([closing.kernel[...] for closing in closings], axis=3)
        bias = sum(closing.bias[...] for closing in closings)
        maps, kernel = in_precision(self.compute, jnp.concatenate(spread, axis=-1), kernel)
        return in_full(conv3d(maps, kernel)) + bias


class Stage(nnx.Module):
    """Halves the resolution; then two residual modules."""

    def __init__(self, config: VoxResNetConfig, num_in: int, rngs: nnx.Rngs):
        self.compute = Compute()
        self.norm = batch_norm(num_in, config.momentum, rngs)
        self.halve = _conv(num_in, config.width, rngs, stride=2)
        self.residuals = nnx.List([Residual(config, rngs) for _ in range(2)])

    def __call__(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``(batch, z, y, x, num_in)`` to ``(batch, z / 2, y / 2, x / 2, width)``."""

        def halve(layers: tuple, maps: jax.Array) -> jax.Array:
            norm, conv = layers
            return conv(nnx.relu(norm(maps, use_running_average=not train)))

        def add(residual: Residual, maps: jax.Array) -> jax.Array:
            return residual(maps, train=train)

        maps = run_block(self.compute, halve, (self.norm, self.halve), maps)
        for residual in self.residuals:
            maps = run_block(self.compute, add, residual, maps)
        return maps


class Residual(nnx.Module):
    """What two convolutions, each after batch norm and ReLU, add to maps."""

    def __init__(self, config: VoxResNetConfig, rngs: nnx.Rngs):
        self.norms = nnx.List([batch_norm(config.width, config.momentum, rngs) for _ in range(2)])
        self.convs = nnx.List([_conv(config.width, config.width, rngs) for _ in range(2)])

    def __call__(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``(batch, z, y, x, width)`` to the same shape."""
        hidden = maps
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(nnx.relu(norm(hidden, use_running_average=not train)))
        return maps + hidden


class Head(nnx.Module):
    """What maps of one resolution say at full resolution, and the convolution that closes it."""

    def __init__(self, num_in: int, num_classes: int, size: int, stride: int, rngs: nnx.Rngs):
        self.spread = ConvTranspose(num_in, num_in, size=size, stride=stride, rngs=rngs)
        self.closing = _conv(num_in, num_classes, rngs, scale=CLOSING_SCALE)

    def __call__(self, maps: jax.Array) -> jax.Array:
        """Maps ``(batch, z, y, x, num_in)`` to ``stride`` times as many voxels a side."""
        return nnx.relu(self.spread(maps))


def paper(box: int, num_classes: int = 2) -> VoxResNetConfig:
    """The published sizes: 6.9 million parameters; for an accelerator."""
    return VoxResNetConfig(box=box, num_classes=num_classes)


def small(box: int, num_classes: int = 2) -> VoxResNetConfig:
    """Trains on a laptop: a quarter of the channels, 435 thousand parameters."""
    return VoxResNetConfig(box=box, num_classes=num_classes, first_width=8, width=16)


def _conv(
    num_in: int, num_out: int, rngs: nnx.Rngs, *, stride: int = 1, scale: float = 1.0
) -> Conv:
    """A convolution with He's initial values, of this scale."""
    he = nnx.initializers.variance_scaling(2.0 * scale**2, "fan_in", "normal")
    return Conv(num_in, num_out, stride=stride, kernel_init=he, rngs=rngs)
