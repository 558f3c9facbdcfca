"""Jim-Net in three dimensions: joint alignment and clustering of subtomograms.

Zeng, Howe, Xu 2021 fix the parts: a coarse and a fine stage, spectral pooling, dilated stacks,
global then local correlation, a layer that composes the stages' poses, a cluster head on the
features of both stages. Layer sizes were in a supplement that is not public; ours are
configuration, and two regressors are offered per stage: "dense" learns the pose from the
correlation as Gum-Net does, "procrustes" solves for it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jimjax.models.blocks import Extractor, ExtractorConfig
from jimjax.models.matching import (
    GlobalDense,
    GlobalProcrustes,
    LocalDense,
    LocalProcrustes,
    Regressor,
)
from jimjax.ops import resample
from jimjax.ops.rotation import Pose, compose


@dataclass(frozen=True)
class JimNetConfig:
    """Sizes of a Jim-Net.

    Attributes:
        box: side of the particles in voxels.
        num_classes: clusters of the head.
        coarse: extractor of the coarse stage.
        fine: extractor of the fine stage.
        regressor: how correlations become poses.
        regressor_width: channels of the dense regressors.
        local_radius: half width of the fine stage's search window, feature voxels.
        embedding: features per stage that describe a particle for clustering.
    """

    box: int
    num_classes: int
    coarse: ExtractorConfig
    fine: ExtractorConfig
    regressor: Regressor = "dense"
    regressor_width: int = 256
    local_radius: int = 2
    embedding: int = 256


class Alignment(NamedTuple):
    """What Jim-Net says about a batch of pairs.

    Attributes:
        coarse: pose of the coarse stage, source onto target.
        fine: coarse and fine poses composed; the answer.
        residual: pose of the fine stage alone.
        features: ``(batch, 2 embedding)``, F(s, t) of the source.
        logits: ``(batch, num_classes)`` of the source.
    """

    coarse: Pose
    fine: Pose
    residual: Pose
    features: jax.Array
    logits: jax.Array


class FeatureMaps(NamedTuple):
    """A stage's view of volumes.

    Attributes:
        maps: ``(batch, n, n, n, channels)``.
        pooled: ``(batch, num_pooled)``.
    """

    maps: jax.Array
    pooled: jax.Array


class JimNet(nnx.Module):
    """Aligns source volumes to targets and assigns the sources to clusters."""

    def __init__(self, config: JimNetConfig, rngs: nnx.Rngs):
        self.config = config
        is_dense = config.regressor == "dense"
        self.coarse = Extractor(config.coarse, rngs=rngs)
        self.fine = Extractor(config.fine, rngs=rngs)
        self.match_globally = (GlobalDense if is_dense else GlobalProcrustes)(
            config.coarse.out_size,
            config.coarse.num_features,
            config.regressor_width,
            config.coarse.momentum,
            rngs=rngs,
        )
        self.match_locally = (LocalDense if is_dense else LocalProcrustes)(
            config.fine.out_size,
            config.fine.num_features,
            config.regressor_width,
            config.fine.momentum,
            radius=config.local_radius,
            rngs=rngs,
        )
        self.embed_coarse = nnx.Linear(self.coarse.num_pooled, config.embedding, rngs=rngs)
        self.embed_fine = nnx.Linear(self.fine.num_pooled, config.embedding, rngs=rngs)
        self.head = nnx.Linear(2 * config.embedding, config.num_classes, rngs=rngs)

    def __call__(self, source: jax.Array, target: jax.Array, *, train: bool) -> Alignment:
        """Aligns and clusters.

        Args:
            source: ``(batch, z, y, x)``, each of zero mean and unit deviation.
            target: same shape.
            train: whether batch norm uses this batch.

        Returns:
            Alignment of each pair.
        """
        sources, targets = _halves(*self.coarse(jnp.concatenate([source, target]), train=train))
        coarse = self.match_globally(sources.maps, targets.maps, self.config.box, train=train)
        # One interpolation of the original, with the pose found so far.
        moved = jax.vmap(resample.transform)(source, coarse)
        fine_sources, fine_targets = _halves(
            *self.fine(jnp.concatenate([moved, target]), train=train)
        )
        residual = self.match_locally(
            fine_sources.maps, fine_targets.maps, self.config.box, train=train
        )
        features = self._embed(sources.pooled, fine_sources.pooled)
        return Alignment(
            coarse, jax.vmap(compose)(residual, coarse), residual, features, self.head(features)
        )

    def cluster(self, volumes: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Describes volumes for clustering: F(x, x), in which no pose is needed.

        Args:
            volumes: ``(batch, z, y, x)``.
            train: whether batch norm uses this batch.

        Returns:
            Features ``(batch, 2 embedding)`` and logits ``(batch, num_classes)``.
        """
        _, coarse = self.coarse(volumes, train=train)
        _, fine = self.fine(volumes, train=train)
        features = self._embed(coarse, fine)
        return features, self.head(features)

    def _embed(self, coarse: jax.Array, fine: jax.Array) -> jax.Array:
        return jnp.concatenate([self.embed_coarse(coarse), self.embed_fine(fine)], axis=-1)


def _halves(maps: jax.Array, pooled: jax.Array) -> tuple[FeatureMaps, FeatureMaps]:
    """Parts what went through a shared extractor together."""
    half = len(maps) // 2
    return FeatureMaps(maps[:half], pooled[:half]), FeatureMaps(maps[half:], pooled[half:])


def small(box: int, num_classes: int) -> JimNetConfig:
    """A Jim-Net that trains on a laptop in minutes: radial kernels, solved poses."""
    coarse = ExtractorConfig(
        widths=(16, 32),
        sizes=(12, 8, 8),
        keeps=(11, 8, 8),
        num_features=32,
        kernel="isotropic",
        pools=("max", "mean", "std"),
        momentum=0.95,
    )
    fine = ExtractorConfig(
        widths=(16, 16),
        sizes=(12, 12, 12),
        keeps=(12, 12, 12),
        num_features=16,
        kernel="isotropic",
        pools=("max", "mean", "std"),
        momentum=0.95,
    )
    return JimNetConfig(
        box=box,
        num_classes=num_classes,
        coarse=coarse,
        fine=fine,
        regressor="procrustes",
        embedding=64,
    )


def paper(box: int, num_classes: int) -> JimNetConfig:
    """A Jim-Net of Gum-Net's size: four dilated stacks, 6^3 x 512 features at box 32."""
    if box != 32:
        raise ValueError(f"the paper preset is defined for a box of 32 voxels, got {box}")
    coarse = ExtractorConfig(
        widths=(32, 64, 128, 256),
        sizes=(32, 26, 18, 12, 8),
        keeps=(32, 22, 15, 10, 7),
        num_features=512,
        closing_padding="valid",
    )
    fine = ExtractorConfig(
        widths=(32, 64, 128), sizes=(32, 24, 16, 16), keeps=(32, 20, 14, 16), num_features=128
    )
    return JimNetConfig(box=box, num_classes=num_classes, coarse=coarse, fine=fine)
