"""YOPO, the network of DISCA: features that do not change when a particle is moved.

Valid convolutions, each followed by a global maximum over the box: what is found counts and not
where. With radial kernels it does not matter either how the particle is turned.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jimjax.models.blocks import Conv, Kernel, Pool, batch_norm, pool_to, run_block, statistic
from jimjax.models.compute import Compute


@dataclass(frozen=True)
class YopoConfig:
    """Sizes of a YOPO.

    Attributes:
        box: side of the particles in voxels.
        size: side that they are spectrally pooled to first; the box leaves them as they are.
        widths: channels of the convolutions, each of which takes two voxels off the side.
        dense_width: length of the features.
        num_classes: of the head; of them, training may use some only.
        kernel: "full" as published, or "isotropic", radial ones.
        pools: statistics over the box, after each convolution; "max" as published.
        momentum: of the running batch norm statistics; Keras' default.
    """

    box: int
    size: int
    widths: tuple[int, ...]
    dense_width: int
    num_classes: int
    kernel: Kernel = "full"
    pools: tuple[Pool, ...] = ("max",)
    momentum: float = 0.99

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if not self.widths or self.num_classes < 1 or self.dense_width < 1:
            raise ValueError("widths, dense_width and num_classes need at least 1")
        if self.size > self.box:
            raise ValueError(f"size {self.size} must not exceed the box of {self.box} voxels")
        if self.size <= 2 * len(self.widths):
            raise ValueError(
                f"{len(self.widths)} valid convolutions need more than {2 * len(self.widths)} "
                f"voxels, got {self.size}; take a larger box or fewer widths"
            )


class Encoded(NamedTuple):
    """What the network says of particles.

    Attributes:
        features: ``(batch, dense_width)``.
        logits: ``(batch, num_classes)``.
    """

    features: jax.Array
    logits: jax.Array


class Yopo(nnx.Module):
    """Describes and classifies particles.

    Reference: Zeng et al. 2023, DISCA, and the layers of its published code: convolution, ELU,
    batch norm, and a global maximum after every one of these blocks, where the text has one.
    """

    def __init__(self, config: YopoConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        orthogonal = nnx.initializers.orthogonal()
        self.convs = nnx.List(
            [
                Conv(
                    before,
                    after,
                    padding="valid",
                    kernel=config.kernel,
                    kernel_init=orthogonal if config.kernel == "full" else None,
                    rngs=rngs,
                )
                for before, after in zip((1, *config.widths), config.widths, strict=False)
            ]
        )
        self.norms = nnx.List([batch_norm(n, config.momentum, rngs) for n in config.widths])
        num_pooled = len(config.pools) * sum(config.widths)
        self.norm = batch_norm(num_pooled, config.momentum, rngs)
        self.dense = nnx.Linear(num_pooled, config.dense_width, kernel_init=orthogonal, rngs=rngs)
        self.head = nnx.Linear(
            config.dense_width, config.num_classes, kernel_init=orthogonal, rngs=rngs
        )

    def __call__(self, volumes: jax.Array, *, train: bool) -> Encoded:
        """Describes and classifies volumes ``(batch, z, y, x)``."""
        hidden = pool_to(volumes[..., None], self.config.size, self.config.size)
        pooled = []

        def run(layer: tuple, maps: jax.Array) -> jax.Array:
            conv, norm = layer
            return norm(nnx.elu(conv(maps)), use_running_average=not train)

        for layer in zip(self.convs, self.norms, strict=True):
            hidden = run_block(self.compute, run, layer, hidden)
            pooled += [statistic(hidden, pool) for pool in self.config.pools]
        flat = self.norm(jnp.concatenate(pooled, axis=-1), use_running_average=not train)
        features = self.dense(flat)
        return Encoded(features, self.head(features))


def paper(box: int, num_classes: int) -> YopoConfig:
    """The published sizes: ten convolutions, 6.3 million parameters; for an accelerator."""
    return YopoConfig(
        box=box,
        size=box,
        widths=tuple(range(64, 209, 16)),
        dense_width=1024,
        num_classes=num_classes,
    )


def small(box: int, num_classes: int) -> YopoConfig:
    """Trains on a laptop: six radial convolutions of particles pooled to 16 voxels."""
    return YopoConfig(
        box=box,
        size=min(box, 16),
        widths=(16, 20, 24, 28, 32, 36),
        dense_width=128,
        num_classes=num_classes,
        kernel="isotropic",
        pools=("max", "mean", "std"),
        momentum=0.9,
    )
