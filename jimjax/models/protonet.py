"""ProtoNet3D and ProtoNet-CE: particles as points, near each other if they show the same molecule.

An encoder puts each particle at a point. ProtoNet-CE adds an attention that moves the prototypes
of some classes and one particle to be classified, once it has seen all of them.
"""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from jimjax.models.blocks import (
    Conv,
    Kernel,
    Pool,
    batch_norm,
    in_full,
    pool_to,
    run_block,
    statistic,
)
from jimjax.models.compute import Compute

FIRST_SPREAD = 5.0  # summed variance of untrained embeddings; a softmax of distances learns from it
EPSILON = 1e-5  # of batch norm and layer norm; PyTorch's default, which it was trained with


@dataclass(frozen=True)
class ProtoNetConfig:
    """Sizes of a ProtoNet.

    Attributes:
        box: side of the particles in voxels.
        size: side that they are spectrally pooled to first; the box leaves them as they are.
        widths: channels of the convolutions, each followed by batch norm and ReLU.
        num_halvings: of these, how many are followed by a maximum over 2^3 voxels: the last ones.
        kernel: "full" as published, or "isotropic", radial ones.
        pools: statistics over the box, of each convolution's map, that the embedding is made of;
            none flattens the last map, as published.
        dense_width: length of an embedding made of statistics, after a batch norm and a linear
            map; not used without pools.
        momentum: of the running batch norm statistics; PyTorch's default.
    """

    box: int
    size: int
    widths: tuple[int, ...]
    num_halvings: int
    kernel: Kernel = "full"
    pools: tuple[Pool, ...] = ()
    dense_width: int = 64
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if not 1 <= self.num_halvings <= len(self.widths):
            raise ValueError(
                f"num_halvings must be from 1 to the number of widths, got {self.num_halvings} "
                f"and {len(self.widths)}"
            )
        if self.size > self.box:
            raise ValueError(f"size {self.size} must not exceed the box of {self.box} voxels")
        if self.size < 2**self.num_halvings:
            raise ValueError(
                f"{self.num_halvings} halvings need {2**self.num_halvings} voxels, got {self.size}"
            )
        if unknown := [pool for pool in self.pools if pool not in get_args(Pool)]:
            raise ValueError(f"pools must be among {get_args(Pool)}, got {unknown[0]!r}")

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        if self.pools:
            return self.dense_width
        return (self.size // 2**self.num_halvings) ** 3 * self.widths[-1]


class Embedded(NamedTuple):
    """What the network says of particles.

    Attributes:
        features: ``(batch, num_features)``, where they are.
    """

    features: jax.Array


class Adapted(NamedTuple):
    """What the network makes of sets of points.

    Attributes:
        refined: ``(batch, m, num_features)``, where they are in view of each other.
        log_attention: ``(batch, m, m)``, log of how much of each last the one before it takes.
    """

    refined: jax.Array
    log_attention: jax.Array


class ProtoNet(nnx.Module):
    """Embeds particles, and adapts embeddings to each other.

    Reference: Li et al. 2020, PLOS Computational Biology, few-shot learning, as described by Uddin
    et al. 2022 and in its published code, whose attention is that of Ye et al. 2019, FEAT, with
    the query in the set. Initial values are PyTorch's.
    """

    def __init__(self, config: ProtoNetConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.convs = nnx.List(
            [
                Conv(
                    before,
                    after,
                    kernel=config.kernel,
                    kernel_init=uniform if config.kernel == "full" else None,
                    rngs=rngs,
                )
                for before, after in zip((1, *config.widths), config.widths, strict=False)
            ]
        )
        self.norms = nnx.List(
            [batch_norm(n, config.momentum, rngs, epsilon=EPSILON) for n in config.widths]
        )
        if config.pools:
            num_pooled = len(config.pools) * sum(config.widths)
            self.norm = batch_norm(num_pooled, config.momentum, rngs, epsilon=EPSILON)
            spread = nnx.initializers.normal(
                (FIRST_SPREAD / num_pooled / config.dense_width) ** 0.5
            )
            self.dense = nnx.Linear(num_pooled, config.dense_width, kernel_init=spread, rngs=rngs)
        self.attention = Attention(config.num_features, rngs)

    def __call__(self, volumes: jax.Array, *, train: bool) -> Embedded:
        """Embeds volumes ``(batch, z, y, x)``."""
        config = self.config
        hidden = pool_to(volumes[..., None], config.size, config.size)
        first_halved = len(config.widths) - config.num_halvings
        pooled = []

        def run(layer: tuple, maps: jax.Array) -> jax.Array:
            conv, norm = layer
            return nnx.relu(norm(conv(maps), use_running_average=not train))

        for place, layer in enumerate(zip(self.convs, self.norms, strict=True)):
            hidden = run_block(self.compute, run, layer, hidden)
            pooled += [statistic(hidden, pool) for pool in config.pools]
            if place >= first_halved:
                hidden = halve(hidden)
        if not config.pools:
            return Embedded(in_full(hidden).reshape(len(hidden), -1))
        flat = self.norm(jnp.concatenate(pooled, axis=-1), use_running_average=not train)
        return Embedded(self.dense(flat))

    def adapt(self, points: jax.Array, *, train: bool) -> Adapted:
        """Moves points ``(batch, m, num_features)`` in view of the others of their set."""
        del train  # the same, without dropout
        return self.attention(points)


class Attention(nnx.Module):
    """Attention of one head among the points of a set, added to them, then normalised.

    The order of the points decides nothing but the order of the result.
    """

    def __init__(self, num_features: int, rngs: nnx.Rngs):
        spread = nnx.initializers.normal((2 / (num_features + num_features)) ** 0.5)

        def linear(init: nnx.Initializer) -> nnx.Linear:
            return nnx.Linear(num_features, num_features, kernel_init=init, rngs=rngs)

        self.query, self.key, self.value = linear(spread), linear(spread), linear(spread)
        self.out = linear(nnx.initializers.glorot_normal())
        self.norm = nnx.LayerNorm(num_features, epsilon=EPSILON, rngs=rngs)

    def __call__(self, points: jax.Array) -> Adapted:
        """Adapts ``(batch, m, num_features)``."""
        scale = points.shape[-1] ** -0.5
        scores = jnp.einsum("bmd,bnd->bmn", self.query(points), self.key(points)) * scale
        log_attention = jax.nn.log_softmax(scores)
        taken = jnp.einsum("bmn,bnd->bmd", jnp.exp(log_attention), self.value(points))
        return Adapted(self.norm(points + self.out(taken)), log_attention)


def halve(maps: jax.Array) -> jax.Array:
    """Maxima over 2^3 voxels of ``(batch, z, y, x, c)``; an odd last voxel is left out."""
    for axis in (1, 2, 3):
        even = 2 * (maps.shape[axis] // 2)
        first, second = (jax.lax.slice_in_dim(maps, start, even, 2, axis=axis) for start in (0, 1))
        maps = jnp.maximum(first, second)
    return maps


def paper(box: int) -> ProtoNetConfig:
    """The published sizes: 334 272 parameters of the encoder; for an accelerator."""
    return ProtoNetConfig(box=box, size=box, widths=(64,) * 4, num_halvings=4)


def small(box: int) -> ProtoNetConfig:
    """Trains on a laptop.

    It departs from the published network: kernels are radial, particles are pooled to 16 voxels,
    and the embedding is made of statistics of every map over the box, so that it hardly depends on
    where a particle is and how it is turned.
    """
    return ProtoNetConfig(
        box=box,
        size=min(box, 16),
        widths=(16, 24, 32, 48),
        num_halvings=3,
        kernel="isotropic",
        pools=("max", "mean", "std"),
        dense_width=64,
    )
