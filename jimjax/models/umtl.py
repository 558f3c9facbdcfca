"""UMTL: one network that aligns, clusters and segments subtomograms without labels.

The topology is that of the authors' figure (ICIP 2022): a stage-1 and a stage-2 extractor, each
shared by source and target; two correlations, each of which feeds both towers of convolutions,
whose joined results are multiplied by what skip correlation attention makes of the correlations
themselves; fully connected layers that give a pose; a second stage that looks at the coarsely
aligned volume; a clustering branch on the source's features of both stages; one decoder of masks
for each stage, shared by source and target. The paper gives no sizes and no formulas: all that is
inside the blocks is ours.

The two dense regressors are what the figure shows. ``regressor = "steerable"`` puts Jim-Net's
solved ones in their place, which learn from a thousandth of the pairs; then there are no towers
and no attention.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jimjax.models import jimnet
from jimjax.models.blocks import (
    Conv,
    Extractor,
    ExtractorConfig,
    apart,
    batch_norm,
    in_full,
    pool_to,
    run_block,
    statistic,
    together,
)
from jimjax.models.compute import Compute
from jimjax.models.jimnet import Described, Regressor
from jimjax.models.matching import (
    TOWER_DEPTH,
    VALID_LOSS,
    CorrelationTower,
    LocalNewton,
    any_pose,
    small_pose,
)
from jimjax.models.steerable import GlobalHarmonic
from jimjax.ops import matching, resample
from jimjax.ops.rotation import Pose, compose

Task = Literal["align", "cluster", "segment"]

TASKS: tuple[Task, ...] = ("align", "cluster", "segment")
INITIAL_SHARE = 0.03  # of a box that a particle fills: what masks begin with


@dataclass(frozen=True)
class UMTLConfig:
    """Sizes of a UMTL.

    Attributes:
        box: side of the particles in voxels.
        num_classes: clusters of the head.
        coarse: extractor of stage 1.
        fine: extractor of stage 2.
        tasks: what it is for. All branches are there in any case, so that the arrays are the same;
            without "align" every pose is the identity, and stage 2 sees the source as it is.
        regressor: how correlations become poses.
        regressor_width: channels of the towers.
        local_radius: half width of a steerable stage 2's window, feature voxels.
        embedding: features per stage that describe a particle for clustering.
        degree: highest harmonic of a steerable stage 1.
        num_rotations: grid of a steerable stage 1.
        mask_size: side at which masks are drawn, voxels; they are then interpolated to the box.
        mask_width: channels at that size.
    """

    box: int
    num_classes: int
    coarse: ExtractorConfig
    fine: ExtractorConfig
    tasks: tuple[Task, ...] = TASKS
    regressor: Regressor = "dense"
    regressor_width: int = 256
    local_radius: int = 2
    embedding: int = 256
    degree: int = 4
    num_rotations: int = 2304
    mask_size: int = 32
    mask_width: int = 32


class Masks(NamedTuple):
    """Logits of particle against background in each voxel; see ``Answer`` for the frames.

    Attributes:
        coarse: ``(batch, z, y, x)`` of stage 1.
        fine: same shape, of stage 2.
    """

    coarse: jax.Array
    fine: jax.Array


class Answer(NamedTuple):
    """What UMTL says about a batch of pairs.

    Attributes:
        coarse: pose of stage 1, source onto target.
        fine: poses of stage 1 and 2 composed; the answer.
        residual: pose of stage 2 alone.
        features: ``(batch, 2 embedding)`` of the source.
        target_features: the same of the target, by the same branch.
        logits: ``(batch, num_classes)`` of the source.
        rotation_logits: ``(batch, num_rotations)`` of a steerable stage 1 over its grid; None from
            a dense one.
        source_masks: that of stage 1 where the source lies, that of stage 2 where the source lies
            once it is moved by ``coarse``.
        target_masks: both where the target lies.
    """

    coarse: Pose
    fine: Pose
    residual: Pose
    features: jax.Array
    target_features: jax.Array
    logits: jax.Array
    rotation_logits: jax.Array | None
    source_masks: Masks
    target_masks: Masks


class UMTL(nnx.Module):
    """Aligns source volumes to targets, assigns sources to clusters, segments both."""

    def __init__(self, config: UMTLConfig, rngs: nnx.Rngs):
        self.config = config
        coarse, fine, width = config.coarse, config.fine, config.regressor_width
        self.coarse = Extractor(coarse, rngs=rngs)
        self.fine = Extractor(fine, rngs=rngs)
        if config.regressor == "dense":
            self.match_globally = SiameseMatching(
                coarse.out_size, width, coarse.momentum, rngs=rngs
            )
            self.match_locally = SiameseMatching(
                fine.out_size, width, fine.momentum, is_residual=True, rngs=rngs
            )
        else:
            self.match_globally = GlobalHarmonic(
                coarse.num_features,
                degree=config.degree,
                num_rotations=config.num_rotations,
                rngs=rngs,
            )
            self.match_locally = LocalNewton(radius=config.local_radius)
        self.cluster_coarse = ClusterBranch(coarse, config.embedding, rngs=rngs)
        self.cluster_fine = ClusterBranch(fine, config.embedding, rngs=rngs)
        self.head = nnx.Linear(2 * config.embedding, config.num_classes, rngs=rngs)
        self.segment_coarse = Decoder(coarse, config, rngs=rngs)
        self.segment_fine = Decoder(fine, config, rngs=rngs)

    def __call__(self, source: jax.Array, target: jax.Array, *, train: bool) -> Answer:
        """Aligns, clusters and segments.

        Args:
            source: ``(batch, z, y, x)``, each of zero mean and unit deviation.
            target: same shape.
            train: whether batch norm uses this batch.

        Returns:
            The answer for each pair.
        """
        box, is_aligning = self.config.box, "align" in self.config.tasks
        both = together(source, target)
        maps = self.coarse.maps(both, train=train)
        sources, targets = apart(maps[-1])
        rotation_logits = None
        if is_aligning:
            codes = (self.match_globally.prepare(each, box) for each in (sources, targets))
            coarse, rotation_logits = self.match_globally.compare(*codes, box, train=train)
            # The gradient reaches stage 1 through composed poses, not through the image.
            moved = jax.vmap(resample.transform)(source, lax.stop_gradient(coarse))
        else:
            coarse, moved = _identity(len(source)), source
        moved_both = together(moved, target)
        fine_maps = self.fine.maps(moved_both, train=train)
        fine_sources, fine_targets = apart(fine_maps[-1])
        residual = _identity(len(source))
        if is_aligning:
            residual = self.match_locally(fine_sources, fine_targets, box, train=train)
        features = self._embed(maps[-1], fine_maps[-1], train=train)
        source_features, target_features = apart(features)
        masks = self.segment_coarse(both, maps), self.segment_fine(moved_both, fine_maps)
        source_masks, target_masks = zip(*map(apart, masks), strict=True)
        return Answer(
            coarse=coarse,
            fine=jax.vmap(compose)(residual, coarse),
            residual=residual,
            features=source_features,
            target_features=target_features,
            logits=self.head(source_features),
            rotation_logits=rotation_logits,
            source_masks=Masks(*source_masks),
            target_masks=Masks(*target_masks),
        )

    def describe(self, volumes: jax.Array, *, train: bool) -> Described:
        """Describes volumes ``(batch, z, y, x)`` for clustering, which needs no pose."""
        coarse = self.coarse.maps(volumes, train=train)[-1]
        fine = self.fine.maps(volumes, train=train)[-1]
        features = self._embed(coarse, fine, train=train)
        return Described(features, self.head(features))

    def segment(self, volumes: jax.Array, *, train: bool) -> Masks:
        """Segments volumes ``(batch, z, y, x)``, where they lie, by both stages."""
        return Masks(
            self.segment_coarse(volumes, self.coarse.maps(volumes, train=train)),
            self.segment_fine(volumes, self.fine.maps(volumes, train=train)),
        )

    def encode(self, volumes: jax.Array, *, train: bool) -> Any:
        """What stage 1 compares of volumes ``(batch, z, y, x)``; batch first."""
        if "align" not in self.config.tasks:
            return ()
        return self.match_globally.prepare(
            self.coarse.maps(volumes, train=train)[-1], self.config.box
        )

    def match(self, source_codes: Any, target_codes: Any, *, train: bool) -> Pose:
        """Poses of stage 1, source onto target, of what ``encode`` gave."""
        box = self.config.box
        return self.match_globally.compare(source_codes, target_codes, box, train=train)[0]

    def refine(self, source: jax.Array, target: jax.Array, pose: Pose, *, train: bool) -> Pose:
        """Poses of stage 2, begun at ``pose``; volumes ``(batch, z, y, x)``."""
        moved = jax.vmap(resample.transform)(source, pose)
        maps = self.fine.maps(together(moved, target), train=train)[-1]
        residual = self.match_locally(*apart(maps), self.config.box, train=train)
        return jax.vmap(compose)(residual, pose)

    def _embed(self, coarse: jax.Array, fine: jax.Array, *, train: bool) -> jax.Array:
        stages = self.cluster_coarse(coarse, train=train), self.cluster_fine(fine, train=train)
        return jnp.concatenate(stages, axis=-1)


class SiameseMatching(nnx.Module):
    """From two feature maps to the pose between them, with skip correlation attention.

    Both correlations, the source's voxels with the target's and the other way round, go into both
    towers. A residual block begins with the identity and stays near it: rotations up to 30
    degrees, shifts up to a tenth of the box.
    """

    def __init__(
        self,
        size: int,
        width: int,
        momentum: float,
        *,
        is_residual: bool = False,
        rngs: nnx.Rngs,
    ):
        self.is_residual = is_residual
        self.towers = nnx.List(
            [CorrelationTower(size, width, momentum, rngs, num_correlations=2) for _ in range(2)]
        )
        self.attention = SkipCorrelationAttention(2 * size**3, width, 2 * width, rngs=rngs)
        flat = 2 * width * (size - TOWER_DEPTH * VALID_LOSS) ** 3
        self.hidden = nnx.Linear(flat, 2 * width, rngs=rngs)
        zeros = {"kernel_init": nnx.initializers.zeros_init()} if is_residual else {}
        self.out = nnx.Linear(2 * width, 6 if is_residual else 9, rngs=rngs, **zeros)

    def __call__(self, source: jax.Array, target: jax.Array, box: int, *, train: bool) -> Pose:
        """Estimates poses from feature maps ``(batch, n, n, n, c)``; shifts in box voxels."""
        codes = self.prepare(source, box), self.prepare(target, box)
        return self.compare(*codes, box, train=train)[0]

    def prepare(self, features: jax.Array, box: int) -> jax.Array:
        """Normalises feature maps ``(batch, n, n, n, c)`` voxel by voxel."""
        del box
        return matching.l2_normalize(features)

    def compare(
        self, source: jax.Array, target: jax.Array, box: int, *, train: bool
    ) -> tuple[Pose, None]:
        """Does the same from what ``prepare`` made of the feature maps."""
        correlate = jax.vmap(matching.global_correlation)
        pair = correlate(source, target), correlate(target, source)
        crossed = jnp.concatenate([matching.l2_normalize(each) for each in pair], axis=-1)
        joined = jnp.stack([tower(crossed, train=train) for tower in self.towers], axis=1)
        gates = self.attention(crossed).reshape(len(source), 2, 1, -1)
        gated = joined.reshape(*joined.shape[:2], -1, gates.shape[-1]) * gates
        out = self.out(nnx.relu(self.hidden(gated.reshape(len(source), -1))))
        return (small_pose if self.is_residual else any_pose)(out, box), None


class SkipCorrelationAttention(nnx.Module):
    """How much each channel of the towers counts, read off the correlations without them."""

    def __init__(self, num_in: int, width: int, num_gates: int, *, rngs: nnx.Rngs):
        self.squeeze = Conv(num_in, width, size=1, rngs=rngs)
        self.hidden = nnx.Linear(2 * width, width, rngs=rngs)
        self.out = nnx.Linear(width, num_gates, rngs=rngs)

    def __call__(self, correlations: jax.Array) -> jax.Array:
        """Maps ``(batch, n, n, n, num_in)`` to gates ``(batch, num_gates)`` in (0, 1)."""
        squeezed = nnx.relu(self.squeeze(correlations))
        pooled = [statistic(squeezed, pool) for pool in ("mean", "max")]
        return nnx.sigmoid(self.out(nnx.relu(self.hidden(jnp.concatenate(pooled, axis=-1)))))


class ClusterBranch(nnx.Module):
    """One stage's description of a particle: a convolution of its own, statistics, a linear map."""

    def __init__(self, stage: ExtractorConfig, embedding: int, *, rngs: nnx.Rngs):
        self.pools = stage.pools
        width = stage.num_features
        self.conv = Conv(width, width, kernel=stage.kernel, rngs=rngs)
        self.norm = batch_norm(width, stage.momentum, rngs)
        self.pooled_norm = batch_norm(len(self.pools) * width, stage.momentum, rngs)
        self.linear = nnx.Linear(len(self.pools) * width, embedding, rngs=rngs)

    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``(batch, n, n, n, c)`` to ``(batch, embedding)``."""
        hidden = nnx.relu(self.norm(self.conv(features), use_running_average=not train))
        pooled = jnp.concatenate([statistic(hidden, pool) for pool in self.pools], axis=-1)
        return self.linear(self.pooled_norm(pooled, use_running_average=not train))


class Decoder(nnx.Module):
    """Draws a mask from an extractor's maps: its mirror image, with a skip from every stack.

    At the end the volume itself comes in once more, in as many voxels as the mask is drawn with.
    There is no batch norm, so that nothing is computed of a mask that nobody asks for.
    """

    def __init__(self, stage: ExtractorConfig, config: UMTLConfig, *, rngs: nnx.Rngs):
        self.box, self.size = config.box, min(config.mask_size, config.box)
        self.compute = Compute()
        skips = (*reversed(stage.widths), 1)
        widths = (*reversed(stage.widths), config.mask_width)
        self.convs = nnx.List(
            [
                Conv(before + skip, after, rngs=rngs)
                for before, skip, after in zip(
                    (stage.num_features, *widths), skips, widths, strict=False
                )
            ]
        )
        self.out = Conv(config.mask_width, 1, rngs=rngs)

    def __call__(self, volumes: jax.Array, maps: list[jax.Array]) -> jax.Array:
        """Logits ``(batch, z, y, x)`` of volumes of that shape, from the extractor's maps."""

        def run(conv: Conv, maps: tuple[jax.Array, jax.Array]) -> jax.Array:
            hidden, skip = maps
            return nnx.relu(conv(jnp.concatenate([_interpolated(hidden, skip.shape[1]), skip], -1)))

        seen = pool_to(volumes[..., None], self.size, self.size)
        hidden = maps[-1]
        for conv, skip in zip(self.convs, (*reversed(maps[:-1]), seen), strict=True):
            hidden = run_block(self.compute, run, conv, (hidden, skip))
        prior = jnp.log(INITIAL_SHARE / (1 - INITIAL_SHARE))
        return _interpolated(in_full(self.out(hidden)), self.box)[..., 0] + prior


def _interpolated(maps: jax.Array, size: int) -> jax.Array:
    """Interpolates ``(batch, n, n, n, c)`` linearly to another side, from face to face."""
    shape = (maps.shape[0], size, size, size, maps.shape[-1])
    return maps if maps.shape == shape else jax.image.resize(maps, shape, "linear")


def _identity(num: int) -> Pose:
    return Pose(jnp.tile(jnp.eye(3), (num, 1, 1)), jnp.zeros((num, 3)))


def small(box: int, num_classes: int, tasks: tuple[Task, ...] = TASKS) -> UMTLConfig:
    """A UMTL that trains on a laptop in minutes: radial kernels, solved poses."""
    stages = jimnet.small(box, num_classes)
    return UMTLConfig(
        box=box,
        num_classes=num_classes,
        coarse=stages.coarse,
        fine=stages.fine,
        tasks=tasks,
        regressor="steerable",
        local_radius=stages.local_radius,
        embedding=stages.embedding,
        mask_size=16,
        mask_width=8,
    )


def paper(box: int, num_classes: int, tasks: tuple[Task, ...] = TASKS) -> UMTLConfig:
    """A UMTL of Gum-Net's size with the figure's regressors in both stages, for a box of 32."""
    stage = jimnet.paper(box, num_classes).coarse
    return UMTLConfig(box=box, num_classes=num_classes, coarse=stage, fine=stage, tasks=tasks)
