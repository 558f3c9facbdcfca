"""Building blocks shared by the networks: convolutions, dilated stack, extractor."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jimjax.models.compute import Compute
from jimjax.ops.conv import conv3d, conv_transpose3d
from jimjax.ops.fourier import spectral_pool
from jimjax.ops.isotropic import NUM_RADII, SHELL_SIZES, isotropic_conv3d

BATCH_NORM_EPSILON = 1e-3  # Keras' default, which Gum-Net was trained with
DILATIONS = (1, 2, 3)  # hybrid dilation: no voxel of the 13^3 field is skipped
PADDINGS = ("same", "valid")
TIE = 1e-5  # of a maximum and 1 added; closer values share its gradient

Kernel = Literal["full", "isotropic"]
Pool = Literal["max", "mean", "std"]


@dataclass(frozen=True)
class ExtractorConfig:
    """A feature extractor: dilated stacks between spectral poolings, then one convolution.

    Attributes:
        widths: channels of each dilated stack.
        sizes: side of the feature map in each stack, then of the closing convolution's input;
            the first differs from the box only where the input itself is pooled.
        keeps: cosine frequencies kept on the way to each of those sides (at most the side).
        num_features: channels of the closing convolution.
        closing_padding: "same", or "valid" for a result smaller by two voxels.
        kernel: "full" 3^3 kernels, or "isotropic" ones that are radial.
        pools: statistics over the box that describe a whole particle.
        momentum: of the running batch norm statistics.
    """

    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    keeps: tuple[int, ...]
    num_features: int
    closing_padding: str = "same"
    kernel: Kernel = "full"
    pools: tuple[Pool, ...] = ("max",)
    momentum: float = 0.99

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if not len(self.sizes) == len(self.keeps) == len(self.widths) + 1:
            raise ValueError(
                "sizes and keeps need one entry per dilated stack and one for the closing "
                f"convolution, got {len(self.widths)} widths, {len(self.sizes)} sizes and "
                f"{len(self.keeps)} keeps"
            )
        if any(keep > size for keep, size in zip(self.keeps, self.sizes, strict=True)):
            raise ValueError(f"keeps {self.keeps} must not exceed sizes {self.sizes}")
        choices = {
            "closing_padding": ([self.closing_padding], PADDINGS),
            "kernel": ([self.kernel], get_args(Kernel)),
            "pools": (self.pools, get_args(Pool)),
        }
        for name, (values, known) in choices.items():
            if unknown := [value for value in values if value not in known]:
                raise ValueError(f"{name} must be among {known}, got {unknown[0]!r}")

    @property
    def out_size(self) -> int:
        """Side of the resulting feature map in voxels."""
        return self.sizes[-1] - (2 if self.closing_padding == "valid" else 0)


class Conv(nnx.Module):
    """A 3-D convolution of kernel 3 or 1, full or radial; in and result are of its precision."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        size: int = 3,
        dilation: int = 1,
        stride: int = 1,
        padding: str = "same",
        kernel: Kernel = "full",
        kernel_init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        self.compute = Compute()
        self.dilation, self.stride, self.padding = dilation, stride, padding
        self.is_isotropic = kernel == "isotropic" and size == 3
        fans = size**3 * num_in, size**3 * num_out
        if self.is_isotropic:
            if stride != 1:
                raise ValueError(f"isotropic kernels need stride 1, got {stride}")
            shape = (NUM_RADII, num_in, num_out)
        else:
            shape = (size, size, size, num_in, num_out)
        if kernel_init is None:  # Glorot uniform over the taps that a radial kernel shares as well
            limit = (6.0 / sum(fans)) ** 0.5
            values = jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
        else:
            values = kernel_init(rngs.params(), shape)
        if self.is_isotropic:
            # A shell's taps are one number: scaled so that each shell adds equal variance.
            shares = jnp.asarray(SHELL_SIZES, jnp.float32)
            values = values * jnp.sqrt(27.0 / NUM_RADII / shares)[:, None, None]
        self.kernel = nnx.Param(values)
        self.bias = nnx.Param(jnp.zeros(num_out))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves ``(batch, z, y, x, in)`` into ``(batch, z', y', x', out)``."""
        x, kernel, bias = in_precision(self.compute, x, self.kernel[...], self.bias[...])
        if self.is_isotropic:
            out = isotropic_conv3d(x, kernel, dilation=self.dilation) + bias
            return _without_rim(out, self.dilation) if self.padding == "valid" else out
        out = conv3d(x, kernel, stride=self.stride, dilation=self.dilation, padding=self.padding)
        return out + bias


class ConvTranspose(nnx.Module):
    """A transposed 3-D convolution onto a grid ``stride`` times as fine, for a ReLU after it.

    Initial values are He's over the taps that reach a voxel of the result, ``(size / stride)^3``
    on average; a kernel shorter than the stride leaves voxels out.
    """

    def __init__(self, num_in: int, num_out: int, *, size: int, stride: int, rngs: nnx.Rngs):
        self.compute = Compute()
        self.stride = stride
        deviation = (2.0 / ((size / stride) ** 3 * num_in)) ** 0.5
        shape = (size, size, size, num_in, num_out)
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(num_out))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Spreads ``(batch, z, y, x, in)`` into ``(batch, stride z, stride y, stride x, out)``."""
        x, kernel, bias = in_precision(self.compute, x, self.kernel[...], self.bias[...])
        return conv_transpose3d(x, kernel, stride=self.stride) + bias


class DilatedStack(nnx.Module):
    """Three convolutions of dilation 1, 2, 3 with batch norm and ReLU, plus a shortcut."""

    def __init__(
        self, num_in: int, num_out: int, *, kernel: Kernel, momentum: float, rngs: nnx.Rngs
    ):
        widths = (num_in, *[num_out] * len(DILATIONS))
        self.convs = nnx.List(
            [
                Conv(widths[i], num_out, dilation=dilation, kernel=kernel, rngs=rngs)
                for i, dilation in enumerate(DILATIONS)
            ]
        )
        self.norms = nnx.List([batch_norm(num_out, momentum, rngs) for _ in DILATIONS])
        self.shortcut = Conv(num_in, num_out, size=1, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``(batch, z, y, x, in)`` to ``(batch, z, y, x, out)``."""
        hidden = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = nnx.relu(norm(conv(hidden), use_running_average=not train))
        return hidden + self.shortcut(x)


class Extractor(nnx.Module):
    """Turns volumes into feature maps, and into a few numbers that describe each volume."""

    def __init__(self, config: ExtractorConfig, *, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        self.stacks = nnx.List(
            [
                DilatedStack(
                    before, after, kernel=config.kernel, momentum=config.momentum, rngs=rngs
                )
                for before, after in zip((1, *config.widths), config.widths, strict=False)
            ]
        )
        self.closing = Conv(
            config.widths[-1],
            config.num_features,
            padding=config.closing_padding,
            kernel=config.kernel,
            rngs=rngs,
        )

    @property
    def num_pooled(self) -> int:
        """Length of the description of one volume."""
        return len(self.config.pools) * (sum(self.config.widths) + self.config.num_features)

    def __call__(self, volumes: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Extracts features.

        Args:
            volumes: ``(batch, z, y, x)``.
            train: whether batch norm uses this batch.

        Returns:
            Feature maps ``(batch, out_size, out_size, out_size, num_features)`` and
            descriptions ``(batch, num_pooled)``: each statistic of ``pools`` over the box, for
            every stack and the features.
        """
        maps = self.maps(volumes, train=train)
        pooled = [statistic(m, pool) for m in maps for pool in self.config.pools]
        return maps[-1], jnp.concatenate(pooled, axis=-1)

    def maps(self, volumes: jax.Array, *, train: bool) -> list[jax.Array]:
        """Maps ``(batch, n, n, n, c)`` of every stack, then the features; volumes as above.

        The features are float32 in any precision.
        """
        config = self.config
        hidden, maps = volumes[..., None], []
        for size, keep, stack in zip(config.sizes, config.keeps, self.stacks, strict=False):
            run = functools.partial(_pool_and_stack, keep=keep, size=size, train=train)
            hidden = run_block(self.compute, run, stack, hidden)
            maps.append(hidden)
        closed = self.closing(pool_to(hidden, config.keeps[-1], config.sizes[-1]))
        return [*maps, in_full(closed)]


def _pool_and_stack(
    stack: DilatedStack, maps: jax.Array, *, keep: int, size: int, train: bool
) -> jax.Array:
    return stack(pool_to(maps, keep, size), train=train)


def together(*batches: jax.Array) -> jax.Array:
    """Batches of one size as one in which their rows take turns.

    One after the other they would lie on other devices than before, where devices share them.
    """
    return jnp.stack(batches, axis=1).reshape(-1, *batches[0].shape[1:])


def apart(batch: jax.Array, num: int = 2) -> tuple[jax.Array, ...]:
    """Undoes ``together`` of so many batches."""
    parts = batch.reshape(-1, num, *batch.shape[1:])
    return tuple(parts[:, place] for place in range(num))


def in_precision(compute: Compute, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays as a layer computes with them; in "float32" they stay as they are."""
    if compute.precision == "float32":
        return arrays
    return tuple(array.astype(compute.precision) for array in arrays)


def in_full(maps: jax.Array) -> jax.Array:
    """Maps as poses, scores and losses want them: float32."""
    return maps.astype(jnp.promote_types(maps.dtype, jnp.float32))


def run_block(
    compute: Compute, run: Callable[[Any, jax.Array], jax.Array], parts: Any, maps: jax.Array
) -> jax.Array:
    """Runs a block of layers.

    Args:
        compute: says whether what it computes is kept for the gradient.
        run: ``(parts, maps) -> maps``.
        parts: modules; what they hold is given to ``run`` by this way alone.
        maps: what goes in.
    """
    if not compute.rematerialise:
        return run(parts, maps)
    return nnx.remat(lambda parts, maps: run(parts, maps))(parts, maps)


def pool_to(x: jax.Array, keep: int, size: int) -> jax.Array:
    """Spectrally pools ``(batch, z, y, x, c)`` to a side; as it is where nothing would change."""
    if x.shape[1] == size == keep:
        return x
    return jax.vmap(lambda volume: spectral_pool(volume, keep=keep, out=size))(x)


def max_pool(maps: jax.Array) -> jax.Array:
    """The highest of each 2^3 voxels of ``(batch, z, y, x, c)``, whose sides are even."""
    for axis in (1, 2, 3):
        pairs = maps.reshape(*maps.shape[:axis], -1, 2, *maps.shape[axis + 1 :])
        first, second = (lax.index_in_dim(pairs, side, axis + 1, keepdims=False) for side in (0, 1))
        maps = jnp.maximum(first, second)  # not jnp.max, whose gradient divides by counted ties
    return maps


class BatchNorm(nnx.BatchNorm):
    """Batch norm whose statistics are float32, and whose result is as precise as what it got."""

    def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
        """Normalises ``(..., channels)`` over all axes but the last."""
        return super().__call__(x, use_running_average=use_running_average).astype(x.dtype)


def batch_norm(
    num_channels: int, momentum: float, rngs: nnx.Rngs, *, epsilon: float = BATCH_NORM_EPSILON
) -> BatchNorm:
    """Batch norm over batch and space; with Keras' epsilon unless told otherwise."""
    return BatchNorm(num_channels, momentum=momentum, epsilon=epsilon, rngs=rngs)


def statistic(maps: jax.Array, pool: Pool) -> jax.Array:
    """One number per channel of ``(batch, z, y, x, c)``: a statistic over the box, float32."""
    axes, maps = (1, 2, 3), in_full(maps)
    if pool == "max":
        return spatial_max(maps)
    if pool == "mean":
        return jnp.mean(maps, axis=axes)
    variance = jnp.var(maps, axis=axes)
    return jnp.sqrt(variance + BATCH_NORM_EPSILON)


@jax.custom_vjp
def spatial_max(maps: jax.Array) -> jax.Array:
    """The maximum over the box of ``(batch, z, y, x, c)``, with a gradient that stays finite.

    Autodiff shares the gradient among values that equal the maximum. Compiled, these may be
    computed anew and rounded otherwise, so that none is equal and the share is 0 / 0. Here values
    count that are within ``TIE`` of the maximum.
    """
    return jnp.max(maps, axis=(1, 2, 3))


def _max_forward(maps: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    highest = jnp.max(maps, axis=(1, 2, 3), keepdims=True)
    return highest[:, 0, 0, 0], (maps, highest)


def _max_backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    maps, highest = residuals
    is_highest = (maps >= highest - TIE * (1 + jnp.abs(highest))).astype(maps.dtype)
    count = jnp.sum(is_highest, axis=(1, 2, 3))
    share = cotangent / jnp.maximum(count, 1)
    return (is_highest * share[:, None, None, None],)


spatial_max.defvjp(_max_forward, _max_backward)


def _without_rim(maps: jax.Array, rim: int) -> jax.Array:
    return maps[:, rim:-rim, rim:-rim, rim:-rim]
