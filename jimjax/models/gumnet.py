"""Gum-Net: unsupervised alignment of subtomogram pairs, the network Jim-Net grew from.

Layers, orders and initial values follow the authors' code. Three things differ: batch norm is
shared between the two branches of the extractor, as the paper says and the code does not (an
option restores the code's way); a correlation's spatial axes belong to the target and its channels
to the source; the second of two consecutive L2 norms is left out.

As published the network needs more pairs than a laptop can show it: 1450 steps on random molecules
without noise left a small one where it began. A second design has the same layers and learns to
tell rotations in about 1000; see ``GumNetConfig.design``.
"""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jimjax.models.blocks import Conv, apart, batch_norm, in_full, pool_to, run_block, together
from jimjax.models.compute import Compute
from jimjax.models.matching import TOWER_DEPTH, VALID_LOSS, CorrelationTower, windowed
from jimjax.ops import matching
from jimjax.ops.procrustes import nearest_rotation
from jimjax.ops.rotation import Pose, from_zyz

INITIAL_BIAS = 0.5  # half width of the last layer's: the first poses are within 0.38 .. 0.62
EPSILON = 1e-6

Design = Literal["published", "radial"]


@dataclass(frozen=True)
class GumNetConfig:
    """Sizes of a Gum-Net.

    Attributes:
        box: side of the particles in voxels.
        widths: channels of the extractor's convolutions.
        sizes: side of the feature map after each spectral pooling, one per convolution but the
            last.
        keeps: cosine frequencies kept on the way to each of those sides.
        tower_width: channels of the convolutions over the correlations.
        dense_width: of the two linear layers before the pose.
        momentum: of the running batch norm statistics; Keras' default.
        design: "published", or "radial". The latter has radial kernels; takes a feature map's mean
            away, fades out its corners and divides it by its deviation, where the published one
            divides each voxel's features by their norm and with it loses where the molecule is;
            has ReLU between the dense layers; and reads the rotation off nine numbers, not off
            Euler angles, which jump.
        is_batch_norm_shared: whether source and target share the extractor's batch norm. False is
            the authors' code: one set of parameters and statistics for each.
    """

    box: int
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    keeps: tuple[int, ...]
    tower_width: int
    dense_width: int
    momentum: float = 0.99
    design: Design = "published"
    is_batch_norm_shared: bool = True

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if not len(self.sizes) == len(self.keeps) == len(self.widths) - 1:
            raise ValueError(
                "sizes and keeps need one entry per convolution but the last, got "
                f"{len(self.widths)} widths, {len(self.sizes)} sizes and {len(self.keeps)} keeps"
            )
        before = self.box
        for size, keep in zip(self.sizes, self.keeps, strict=True):
            if not 1 <= keep <= min(before - VALID_LOSS, size):
                raise ValueError(
                    f"pooling from {before - VALID_LOSS} to {size} voxels keeps at least 1 and at "
                    f"most {min(before - VALID_LOSS, size)} frequencies, got keep {keep}"
                )
            before = size
        if self.tower_size < 1:
            raise ValueError(
                f"the correlation is {self.feature_size} voxels wide, but its convolutions need "
                f"{VALID_LOSS * TOWER_DEPTH + 1}; raise the last of sizes {self.sizes}"
            )

    @property
    def feature_size(self) -> int:
        """Side of the extractor's feature map in voxels."""
        return (self.box, *self.sizes)[-1] - VALID_LOSS

    @property
    def tower_size(self) -> int:
        """Side of what the convolutions leave of a correlation, in voxels."""
        return self.feature_size - VALID_LOSS * TOWER_DEPTH


class Match(NamedTuple):
    """What Gum-Net says about a batch of pairs.

    Attributes:
        pose: rotation ``(batch, 3, 3)`` and shift ``(batch, 3)`` in voxels; carries the source
            onto the target.
        matrix: ``(batch, 3, 3)``, what the rotation was read off. Trained by squared error it
            becomes the mean of the rotations that are possible, shorter the less is certain, and
            learns sooner than the rotation; as published it is the rotation.
    """

    pose: Pose
    matrix: jax.Array


class GumNet(nnx.Module):
    """Estimates the rigid motion that carries a source volume onto a target.

    Reference: Zeng, Xu 2020, Gum-Net: unsupervised geometric matching for fast and accurate 3D
    subtomogram image alignment and averaging, and its published code.
    """

    def __init__(self, config: GumNetConfig, rngs: nnx.Rngs):
        self.config = config
        self.extractor = _Extractor(config, rngs)
        self.towers = nnx.List(
            [
                CorrelationTower(config.feature_size, config.tower_width, config.momentum, rngs)
                for _ in range(2)
            ]
        )
        flat = 2 * config.tower_width * config.tower_size**3
        glorot = nnx.initializers.glorot_uniform()
        self.dense = nnx.List(
            [
                nnx.Linear(before, config.dense_width, kernel_init=glorot, rngs=rngs)
                for before in (flat, config.dense_width)
            ]
        )
        is_published = config.design == "published"
        self.out = nnx.Linear(
            config.dense_width,
            6 if is_published else 12,
            kernel_init=nnx.initializers.zeros_init(),
            bias_init=_uniform_bias if is_published else nnx.initializers.zeros_init(),
            rngs=rngs,
        )

    def __call__(self, source: jax.Array, target: jax.Array, *, train: bool) -> Match:
        """Estimates poses.

        Args:
            source: ``(batch, z, y, x)``, standardised over the whole data set.
            target: same shape.
            train: whether batch norm uses this batch.

        Returns:
            Pose of each pair.

        Raises:
            ValueError: if the volumes do not fit the configured box.
        """
        box = (self.config.box,) * 3
        if source.shape != target.shape or source.shape[1:] != box:
            raise ValueError(
                f"source and target must both be (batch, {', '.join(map(str, box))}), got "
                f"{source.shape} and {target.shape}"
            )
        return self._compare(*self._features(source, target, train=train), train=train)

    def encode(self, volumes: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Features of volumes ``(batch, z, y, x)`` as sources and as targets; batch first."""
        return self._features(volumes, volumes, train=train)

    def match(
        self,
        source_codes: tuple[jax.Array, jax.Array],
        target_codes: tuple[jax.Array, jax.Array],
        *,
        train: bool,
    ) -> Pose:
        """Poses, source onto target, of what ``encode`` gave."""
        return self._compare(source_codes[0], target_codes[1], train=train).pose

    def _features(
        self, source: jax.Array, target: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Normalised feature maps ``(batch, n, n, n, c)`` of both."""
        features = self.extractor(together(source, target), train=train)
        if self.config.design == "published":
            features = matching.l2_normalize(features)
        else:
            features = windowed(features, self.config.box)
            power = jnp.mean(features**2, axis=(1, 2, 3, 4), keepdims=True)
            features = features * lax.rsqrt(power + EPSILON)
        return apart(features)

    def _compare(self, source_map: jax.Array, target_map: jax.Array, *, train: bool) -> Match:
        correlate = jax.vmap(matching.global_correlation)
        pairs = (correlate(source_map, target_map), correlate(target_map, source_map))
        flat = [tower(pair, train=train) for tower, pair in zip(self.towers, pairs, strict=True)]
        hidden = jnp.concatenate(flat, axis=-1)
        box, is_published = self.config.box, self.config.design == "published"
        for dense in self.dense:
            # No activation between them: that is how Gum-Net was published.
            hidden = dense(hidden) if is_published else nnx.relu(dense(hidden))
        numbers = self.out(hidden)
        if is_published:
            pose = jax.vmap(lambda row: pose_from_unit(row, box))(nnx.sigmoid(numbers))
            return Match(pose, pose.rotation)
        matrix = numbers[:, :9].reshape(-1, 3, 3)
        shift = (2 * nnx.sigmoid(numbers[:, 9:]) - 1) * (box / 2)
        return Match(Pose(jax.vmap(nearest_rotation)(matrix), shift), matrix)


def pose_from_unit(numbers: jax.Array, box: int) -> Pose:
    """Reads a pose off six numbers in [0, 1], as Gum-Net's last layer means them.

        angles = 2 pi u - pi  (rot, tilt, psi: ZYZ),   shift = (2 u - 1) box / 2

    The angles are upstream's: its sampling matrix is the transpose of this rotation and its
    forward map is ``p -> R p + t``, as ours. All three cover a full turn, so every rotation has
    two sets. Upstream's resampler scales the shift by (box - 1) / 2 and its evaluation by box / 2;
    here it is box / 2 throughout.

    Args:
        numbers: ``(6,)``: three angles, then the shift along x, y, z.
        box: side of the particle in voxels.

    Returns:
        Pose, shift in voxels; at 0.5 throughout the identity.

    Raises:
        ValueError: if there are not six numbers.
    """
    if numbers.shape != (6,):
        raise ValueError(f"numbers must have shape (6,), got {numbers.shape}; vmap a batch")
    angles = 2 * jnp.pi * numbers[:3] - jnp.pi
    return Pose(from_zyz(angles), (2 * numbers[3:] - 1) * (box / 2))


class _Extractor(nnx.Module):
    """Valid convolutions, each followed by ReLU, batch norm and spectral pooling but the last."""

    def __init__(self, config: GumNetConfig, rngs: nnx.Rngs):
        self.config, self.compute = config, Compute()
        num_norms = 1 if config.is_batch_norm_shared else 2
        kernel = "full" if config.design == "published" else "isotropic"
        self.convs, self.norms = nnx.List([]), nnx.List([])
        for before, after in zip((1, *config.widths), config.widths, strict=False):
            self.convs.append(Conv(before, after, padding="valid", kernel=kernel, rngs=rngs))
            norms = [batch_norm(after, config.momentum, rngs) for _ in range(num_norms)]
            self.norms.append(nnx.List(norms))

    def __call__(self, volumes: jax.Array, *, train: bool) -> jax.Array:
        """Maps sources and targets in turns, ``(2 batch, z, y, x)``, to features."""
        hidden, config = volumes[..., None], self.config
        layers = zip(self.convs, self.norms, strict=True)
        for keep, size, layer in zip(config.keeps, config.sizes, layers, strict=False):
            run = functools.partial(_convolve_and_pool, keep=keep, size=size, train=train)
            hidden = run_block(self.compute, run, layer, hidden)
        return in_full(_normalize(self.norms[-1], self.convs[-1](hidden), train))


def _convolve_and_pool(
    layer: tuple[Conv, nnx.List], maps: jax.Array, *, keep: int, size: int, train: bool
) -> jax.Array:
    conv, norms = layer
    return pool_to(_normalize(norms, nnx.relu(conv(maps)), train), keep, size)


def _normalize(norms: nnx.List, maps: jax.Array, train: bool) -> jax.Array:
    """Applies one batch norm to all, or one each to sources and targets, which take turns."""
    parts = zip(norms, apart(maps, len(norms)), strict=True)
    return together(*(norm(part, use_running_average=not train) for norm, part in parts))


def _uniform_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -INITIAL_BIAS, INITIAL_BIAS)


def paper(box: int) -> GumNetConfig:
    """Sizes Gum-Net as published: 6^3 x 512 features, about 110 million parameters.

    Args:
        box: side of the particles in voxels, 32.

    Returns:
        Its configuration.

    Raises:
        ValueError: for another box.
    """
    if box != 32:
        raise ValueError(f"the paper preset is defined for a box of 32 voxels, got {box}")
    return GumNetConfig(
        box=box,
        widths=(32, 64, 128, 256, 512),
        sizes=(26, 18, 12, 8),
        keeps=(22, 15, 10, 7),
        tower_width=1024,
        dense_width=2000,
    )


def small(box: int) -> GumNetConfig:
    """A Gum-Net that learns on a laptop: three radial convolutions, 6^3 x 32 features.

    Args:
        box: side of the particles in voxels, at least 16.

    Returns:
        Its configuration.

    Raises:
        ValueError: for a smaller box.
    """
    return GumNetConfig(
        box=box,
        widths=(8, 32, 32),
        sizes=(16, 8),
        keeps=(14, 8),
        tower_width=64,
        dense_width=128,
        momentum=0.9,
        design="radial",
    )
