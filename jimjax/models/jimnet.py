"""Jim-Net in three dimensions: joint alignment and clustering of subtomograms.

Zeng, Howe, Xu 2021 fix the parts: a coarse and a fine stage, spectral pooling, dilated stacks,
global then local correlation, a layer that composes the stages' poses, a cluster head on the
features of both stages. Layer sizes were in a supplement that is not public; ours are
configuration, and so are the regressors: "dense" ones learn the pose from the correlation as
Gum-Net does; "steerable" ones solve for it, by harmonic correlation over SO(3) at the coarse
stage and by a Newton step on the local correlation at the fine one.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jimjax.models.blocks import Extractor, ExtractorConfig, apart, batch_norm, together
from jimjax.models.matching import GlobalDense, LocalDense, LocalNewton
from jimjax.models.steerable import GlobalHarmonic
from jimjax.ops import resample
from jimjax.ops.rotation import Pose, compose

Regressor = Literal["dense", "steerable"]


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
        degree: highest harmonic of the steerable coarse stage; 4 resolves about 45 degrees.
        num_rotations: grid of the steerable coarse stage; 2304 are 15 degrees apart.
    """

    box: int
    num_classes: int
    coarse: ExtractorConfig
    fine: ExtractorConfig
    regressor: Regressor = "dense"
    regressor_width: int = 256
    local_radius: int = 2
    embedding: int = 256
    degree: int = 4
    num_rotations: int = 2304


class Alignment(NamedTuple):
    """What Jim-Net says about a batch of pairs.

    Attributes:
        coarse: pose of the coarse stage, source onto target.
        fine: coarse and fine poses composed; the answer.
        residual: pose of the fine stage alone.
        features: ``(batch, 2 embedding)``, F(s, t) of the source.
        target_features: the same of the target, by the same extractors.
        logits: ``(batch, num_classes)`` of the source.
        rotation_logits: ``(batch, num_rotations)`` of a steerable coarse stage over its grid,
            ``super_fibonacci(num_rotations)``; None from a dense one.
    """

    coarse: Pose
    fine: Pose
    residual: Pose
    features: jax.Array
    target_features: jax.Array
    logits: jax.Array
    rotation_logits: jax.Array | None


class FeatureMaps(NamedTuple):
    """A stage's view of volumes.

    Attributes:
        maps: ``(batch, n, n, n, channels)``.
        pooled: ``(batch, num_pooled)``.
    """

    maps: jax.Array
    pooled: jax.Array


class Described(NamedTuple):
    """What Jim-Net says about single particles.

    Attributes:
        features: ``(batch, 2 embedding)``, F(x, x).
        logits: ``(batch, num_classes)``.
    """

    features: jax.Array
    logits: jax.Array


class JimNet(nnx.Module):
    """Aligns source volumes to targets and assigns the sources to clusters."""

    def __init__(self, config: JimNetConfig, rngs: nnx.Rngs):
        self.config = config
        coarse, fine, width = config.coarse, config.fine, config.regressor_width
        self.coarse = Extractor(coarse, rngs=rngs)
        self.fine = Extractor(fine, rngs=rngs)
        if config.regressor == "dense":
            self.match_globally = GlobalDense(coarse.out_size, width, coarse.momentum, rngs=rngs)
            self.match_locally = LocalDense(
                fine.out_size, width, fine.momentum, radius=config.local_radius, rngs=rngs
            )
        else:
            self.match_globally = GlobalHarmonic(
                coarse.num_features,
                degree=config.degree,
                num_rotations=config.num_rotations,
                rngs=rngs,
            )
            self.match_locally = LocalNewton(radius=config.local_radius)
        self.embed_coarse = _Embedding(self.coarse.num_pooled, config, rngs)
        self.embed_fine = _Embedding(self.fine.num_pooled, config, rngs)
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
        sources, targets = _pairs(*self.coarse(together(source, target), train=train))
        coarse, rotation_logits = self.match_globally(
            sources.maps, targets.maps, self.config.box, train=train
        )
        # One interpolation of the original, with the pose found so far.
        # Its gradient reaches the coarse stage through the composition, not through the image.
        moved = jax.vmap(resample.transform)(source, lax.stop_gradient(coarse))
        fine_sources, fine_targets = _pairs(*self.fine(together(moved, target), train=train))
        residual = self.match_locally(
            fine_sources.maps, fine_targets.maps, self.config.box, train=train
        )
        features, target_features = apart(
            self._embed(
                together(sources.pooled, targets.pooled),
                together(fine_sources.pooled, fine_targets.pooled),
                train=train,
            )
        )
        return Alignment(
            coarse=coarse,
            fine=jax.vmap(compose)(residual, coarse),
            residual=residual,
            features=features,
            target_features=target_features,
            logits=self.head(features),
            rotation_logits=rotation_logits,
        )

    def describe(self, volumes: jax.Array, *, train: bool) -> Described:
        """Describes volumes for clustering: F(x, x), in which no pose is needed.

        Args:
            volumes: ``(batch, z, y, x)``.
            train: whether batch norm uses this batch.

        Returns:
            Features and logits of each.
        """
        _, coarse = self.coarse(volumes, train=train)
        _, fine = self.fine(volumes, train=train)
        features = self._embed(coarse, fine, train=train)
        return Described(features, self.head(features))

    def encode(self, volumes: jax.Array, *, train: bool) -> Any:
        """What the coarse stage compares of volumes ``(batch, z, y, x)``; batch first."""
        maps, _ = self.coarse(volumes, train=train)
        return self.match_globally.prepare(maps, self.config.box)

    def match(self, source_codes: Any, target_codes: Any, *, train: bool) -> Pose:
        """Coarse poses, source onto target, of what ``encode`` gave."""
        box = self.config.box
        return self.match_globally.compare(source_codes, target_codes, box, train=train)[0]

    def refine(self, source: jax.Array, target: jax.Array, pose: Pose, *, train: bool) -> Pose:
        """Poses of the fine stage, begun at ``pose``; volumes ``(batch, z, y, x)``."""
        moved = jax.vmap(resample.transform)(source, pose)
        maps, _ = self.fine(together(moved, target), train=train)
        sources, targets = apart(maps)
        residual = self.match_locally(sources, targets, self.config.box, train=train)
        return jax.vmap(compose)(residual, pose)

    def _embed(self, coarse: jax.Array, fine: jax.Array, *, train: bool) -> jax.Array:
        stages = [self.embed_coarse(coarse, train=train), self.embed_fine(fine, train=train)]
        return jnp.concatenate(stages, axis=-1)


class _Embedding(nnx.Module):
    """One stage's description of a particle: standardised statistics through a linear map."""

    def __init__(self, num_pooled: int, config: JimNetConfig, rngs: nnx.Rngs):
        self.norm = batch_norm(num_pooled, config.coarse.momentum, rngs)
        self.linear = nnx.Linear(num_pooled, config.embedding, rngs=rngs)

    def __call__(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        return self.linear(self.norm(pooled, use_running_average=not train))


def _pairs(maps: jax.Array, pooled: jax.Array) -> tuple[FeatureMaps, FeatureMaps]:
    """Parts what went through a shared extractor together."""
    sources, targets = zip(apart(maps), apart(pooled), strict=True)
    return FeatureMaps(*sources), FeatureMaps(*targets)


def small(box: int, num_classes: int) -> JimNetConfig:
    """A Jim-Net that trains on a laptop in minutes: radial kernels, solved poses."""
    coarse = ExtractorConfig(
        widths=(16, 32),
        sizes=(12, 8, 8),
        keeps=(11, 8, 8),
        num_features=32,
        kernel="isotropic",
        pools=("max", "mean", "std"),
        momentum=0.9,
    )
    fine = ExtractorConfig(
        widths=(8,),
        sizes=(12, 12),
        keeps=(12, 12),
        num_features=16,
        kernel="isotropic",
        pools=("max", "mean", "std"),
        momentum=0.9,
    )
    return JimNetConfig(
        box=box,
        num_classes=num_classes,
        coarse=coarse,
        fine=fine,
        regressor="steerable",
        local_radius=1,
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
