"""The contracting half of DeepFinder, made a network that describes and classifies particles.

Convolutions in three stages, with the maximum of each 2^3 voxels kept between them, then dense
layers down to 32 features, from which a head tells the classes. The head is for training only.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jimjax.models.blocks import (
    Conv,
    Kernel,
    Pool,
    batch_norm,
    in_full,
    max_pool,
    pool_to,
    run_block,
    statistic,
)
from jimjax.models.compute import Compute

PAPER_WIDTHS = (32, 32), (48, 48), (64, 64, 64, 64)


@dataclass(frozen=True)
class DeepFinderConfig:
    """Sizes of the network.

    Attributes:
        box: side of the particles in voxels.
        size: side that they are spectrally pooled to first; the box leaves them as they are.
        widths: channels of the convolutions of each stage.
        hidden_width: of the dense layer between the maps and the features.
        dense_width: length of the features.
        num_classes: of the head.
        kernel: "full" as published, or "isotropic", radial ones.
        pools: statistics over the box, of the maps at the end of each stage; if there are none,
            the last maps are flattened, as published.
        has_norm: whether batch norm follows each convolution, and what the dense layers are given;
            as published it does not.
        momentum: of its running statistics.
    """

    box: int
    size: int
    widths: tuple[tuple[int, ...], ...]
    hidden_width: int
    dense_width: int
    num_classes: int
    kernel: Kernel = "full"
    pools: tuple[Pool, ...] = ()
    has_norm: bool = False
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if not self.widths or not all(self.widths):
            raise ValueError("each stage needs a convolution at least")
        if min(self.num_classes, self.dense_width, self.hidden_width) < 1:
            raise ValueError("hidden_width, dense_width and num_classes need at least 1")
        if self.size > self.box:
            raise ValueError(f"size {self.size} must not exceed the box of {self.box} voxels")
        if self.size % self.shrinkage or self.size < self.shrinkage:
            raise ValueError(
                f"{len(self.widths)} stages need a multiple of {self.shrinkage} voxels, got "
                f"{self.size}; crop or pad the particles"
            )

    @property
    def shrinkage(self) -> int:
        """How much longer the side of the first maps is than that of the last."""
        return 2 ** (len(self.widths) - 1)

    @property
    def num_described(self) -> int:
        """Numbers that the dense layers are given."""
        if self.pools:
            return len(self.pools) * sum(stage[-1] for stage in self.widths)
        return (self.size // self.shrinkage) ** 3 * self.widths[-1][-1]


class Classified(NamedTuple):
    """What the network says of particles.

    Attributes:
        features: ``(batch, dense_width)``, none negative.
        logits: ``(batch, num_classes)``.
    """

    features: jax.Array
    logits: jax.Array


class DeepFinder(nnx.Module):
    """Describes and classifies particles.

    The paper says neither how many dense layers there are nor how wide they are, but for the 32
    features; here one of 128 is before them.

    References: Moebel and Kervrann 2022, figure 1; Moebel et al. 2021, DeepFinder.
    """

    def __init__(self, config: DeepFinderConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        widths = [width for stage in config.widths for width in stage]
        self.convs = nnx.List(
            [
                Conv(before, after, kernel=config.kernel, rngs=rngs)
                for before, after in zip((1, *widths), widths, strict=False)
            ]
        )
        kept = widths if config.has_norm else []
        self.norms = nnx.List([batch_norm(width, config.momentum, rngs) for width in kept])
        if config.has_norm:
            self.norm = batch_norm(config.num_described, config.momentum, rngs)
        sizes = config.num_described, config.hidden_width, config.dense_width, config.num_classes
        self.hidden, self.dense, self.head = (
            nnx.Linear(before, after, kernel_init=nnx.initializers.glorot_uniform(), rngs=rngs)
            for before, after in itertools.pairwise(sizes)
        )

    def __call__(self, volumes: jax.Array, *, train: bool) -> Classified:
        """Describes and classifies volumes ``(batch, z, y, x)``."""
        flat = self._describe(volumes, train)
        if self.config.has_norm:
            flat = self.norm(flat, use_running_average=not train)
        hidden = nnx.relu(self.hidden(flat))
        features = nnx.relu(self.dense(hidden))
        return Classified(features, self.head(features))

    def _describe(self, volumes: jax.Array, train: bool) -> jax.Array:
        config = self.config

        def run(layers: tuple, maps: jax.Array) -> jax.Array:
            convs, norms = layers
            for place, conv in enumerate(convs):
                maps = conv(maps)
                if norms:
                    maps = norms[place](maps, use_running_average=not train)
                maps = nnx.relu(maps)
            return maps

        maps, pooled, first = pool_to(volumes[..., None], config.size, config.size), [], 0
        for number, stage in enumerate(config.widths):
            maps = max_pool(maps) if number else maps
            last = first + len(stage)
            layers = tuple(self.convs[first:last]), tuple(self.norms[first:last])
            maps = run_block(self.compute, run, layers, maps)
            pooled += [statistic(maps, pool) for pool in config.pools]
            first = last
        return jnp.concatenate(pooled, axis=-1) if pooled else in_full(maps).reshape(len(maps), -1)


def paper(box: int, num_classes: int) -> DeepFinderConfig:
    """The published sizes: 547 thousand parameters in convolutions, 8.2 million at 40 voxels."""
    return DeepFinderConfig(
        box=box,
        size=box,
        widths=PAPER_WIDTHS,
        hidden_width=128,
        dense_width=32,
        num_classes=num_classes,
    )


def small(box: int, num_classes: int) -> DeepFinderConfig:
    """Trains on a laptop, and any box of 16 voxels or more has the same arrays."""
    return DeepFinderConfig(
        box=box,
        size=min(box, 16),
        widths=((16, 16), (24, 24), (32, 32, 32, 32)),
        hidden_width=128,
        dense_width=32,
        num_classes=num_classes,
        kernel="isotropic",
        pools=("max", "mean", "std"),
        has_norm=True,
    )
