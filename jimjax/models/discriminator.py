"""Discriminators: which of two data sets maps come from, and gradients that teach the opposite.

A network between whose maps and a discriminator gradients are reversed learns maps that do not
tell the data sets apart.

Reference: Ganin et al. 2016, Domain-adversarial training of neural networks.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jimjax.models.blocks import Conv, in_full

SLOPE = 0.2  # of the leaky ReLU below 0; Radford et al. 2016, DCGAN
STEEPNESS = 10.0  # of the ramp of the reversal; Ganin et al., section 5.2


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator of feature maps.

    Attributes:
        width: channels of the maps, and of the first convolution; the second has half as many.
    """

    width: int = 64

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if self.width < 2:
            raise ValueError(f"width needs at least 2, got {self.width}")


class Discriminator(nnx.Module):
    """Says of each voxel of feature maps which data set it comes from.

    Two convolutions of kernel 3 with leaky ReLU, then one of kernel 1. Vox-UDA does not describe
    its own.
    """

    def __init__(self, config: DiscriminatorConfig, rngs: nnx.Rngs):
        self.config = config
        self.convs = nnx.List(
            [
                _conv(config.width, config.width, 3, rngs),
                _conv(config.width, config.width // 2, 3, rngs),
            ]
        )
        self.closing = _conv(config.width // 2, 1, 1, rngs)

    def __call__(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Logits ``(batch, z, y, x)`` of maps ``(batch, z, y, x, width)``; positive is source."""
        del train  # of no influence
        for conv in self.convs:
            maps = nnx.leaky_relu(conv(maps), SLOPE)
        return in_full(self.closing(maps))[..., 0]


@dataclass(frozen=True)
class SemanticDiscriminatorConfig:
    """Sizes of a discriminator of segmentations; the defaults are PDAM's, for images.

    Attributes:
        num_classes: channels of the segmentations.
        widths: channels after each halving.
        sizes: of the kernels that halve.
    """

    num_classes: int = 2
    widths: tuple[int, ...] = (64, 128, 256, 512)
    sizes: tuple[int, ...] = (7, 5, 5, 5)

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if not self.widths or len(self.widths) != len(self.sizes):
            raise ValueError(
                "widths and sizes need one entry per halving, one or more, got "
                f"{len(self.widths)} and {len(self.sizes)}"
            )
        if min(self.num_classes, *self.widths, *self.sizes) < 1:
            raise ValueError("num_classes, widths and sizes need at least 1")


class SemanticDiscriminator(nnx.Module):
    """Says of each part of a segmentation which data set it comes from.

    Convolutions of stride 2, each followed by ReLU and a residual block.

    Reference: Liu et al. 2020, PDAM, and its published code: semantic level, one dimension more,
    one logit instead of two.
    """

    def __init__(self, config: SemanticDiscriminatorConfig, rngs: nnx.Rngs):
        self.config = config
        befores = (config.num_classes, *config.widths)
        self.halvings = nnx.List(
            [
                _conv(before, after, size, rngs, stride=2)
                for before, after, size in zip(befores, config.widths, config.sizes, strict=False)
            ]
        )
        self.firsts, self.seconds = (
            nnx.List([_conv(width, width, 3, rngs) for width in config.widths]) for _ in range(2)
        )
        self.closing = _conv(config.widths[-1], 1, 1, rngs)

    def __call__(self, probabilities: jax.Array, *, train: bool) -> jax.Array:
        """Judges segmentations.

        Args:
            probabilities: ``(batch, z, y, x, num_classes)``, at full size.
            train: of no influence.

        Returns:
            Logits ``(batch, z', y', x')``, positive is source; every halving rounds sides up.
        """
        del train
        maps = probabilities
        layers = zip(self.halvings, self.firsts, self.seconds, strict=True)
        for halve, first, second in layers:
            maps = nnx.relu(halve(maps))
            maps = nnx.relu(maps + second(nnx.relu(first(maps))))
        return in_full(self.closing(maps))[..., 0]


def small_semantic(num_classes: int = 2) -> SemanticDiscriminatorConfig:
    """Trains on a laptop: kernels of 3, and an eighth of the channels, at most 32."""
    return SemanticDiscriminatorConfig(
        num_classes=num_classes, widths=(8, 16, 32, 32), sizes=(3, 3, 3, 3)
    )


def reverse_gradient(x: jax.Array, strength: jax.Array | float) -> jax.Array:
    """Returns an array as it is; its gradient is multiplied by minus the strength.

    Args:
        x: any shape, float.
        strength: scalar, >= 0. May be traced; it has no gradient.

    Returns:
        ``x``. There is no forward mode.
    """
    return _reverse(x, jnp.asarray(strength, x.dtype))


@jax.custom_vjp
def _reverse(x: jax.Array, strength: jax.Array) -> jax.Array:
    del strength
    return x


def _reverse_forward(x: jax.Array, strength: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, strength


def _reverse_backward(strength: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return -strength * cotangent, jnp.zeros_like(strength)


_reverse.defvjp(_reverse_forward, _reverse_backward)


def reversal_ramp(progress: jax.Array | float) -> jax.Array:
    """How strongly gradients are reversed in the course of training.

        2 / (1 + exp(-10 p)) - 1 = tanh(5 p)

    Args:
        progress: share of the training that is done, in [0, 1]. May be traced.

    Returns:
        From 0 to nearly 1.

    Reference: Ganin et al. 2016, section 5.2.
    """
    return jnp.tanh(STEEPNESS / 2 * jnp.asarray(progress))


def _conv(num_in: int, num_out: int, size: int, rngs: nnx.Rngs, *, stride: int = 1) -> Conv:
    he = nnx.initializers.he_normal()
    return Conv(num_in, num_out, size=size, stride=stride, kernel_init=he, rngs=rngs)
