"""How UMTL is trained: random molecules first, then the particles, without labels.

Of the abstract: self-supervised pre-training, then constrained unsupervised training; image-wise
Gaussian mixtures make pseudo-labels of clusters, voxel-wise ones rough pseudo-labels of masks,
which are corrected under prior knowledge. Its formulas are not public, and these are ours. Labels
of masks are the mixture's, of which the central part above half height is kept, and more and more
the network's own: what it says of the particle and of its partner, moved onto it.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from jimjax.align.references import Particles
from jimjax.config import RunConfig, UMTLSection
from jimjax.data import batches
from jimjax.data.lazy import LazyVolumes, Volumes
from jimjax.mesh import map_batch
from jimjax.models import umtl, weights
from jimjax.models.functional import Network
from jimjax.models.umtl import Answer, Masks
from jimjax.ops import matching, resample
from jimjax.ops.rotation import Pose
from jimjax.segment import priors
from jimjax.segment.pseudo_labels import corrected_labels, pseudo_labels
from jimjax.train import em, losses, pretraining
from jimjax.train.jimnet import pose_errors
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculePairs
from jimjax.train.pretraining import SIGNS, apply_beside, num_beside, observe
from jimjax.train.state import TrainState, network_of
from jimjax.train.step import LossResult

PRESETS = {"small": umtl.small, "paper": umtl.paper}

Terms = dict[str, jax.Array]


class PairBatch(NamedTuple):
    """Cluster-matched pairs of particles, their rough masks, and tilt ranges for molecules.

    Attributes:
        source: ``(batch, z, y, x)``.
        target: same shape.
        source_tilt_range: ``(batch, 2)`` degrees.
        target_tilt_range: ``(batch, 2)`` degrees.
        label: ``(batch,)`` cluster of the pair.
        source_rough: ``(batch, z, y, x)`` pseudo-labels in [0, 1]; without voxels where nothing
            is segmented.
        target_rough: likewise.
        bootstrap: ``(batch,)``, share of the network's own masks in the labels; all alike.
        molecule_tilt_range: ``(molecules, 2)`` degrees.
    """

    source: np.ndarray
    target: np.ndarray
    source_tilt_range: np.ndarray
    target_tilt_range: np.ndarray
    label: np.ndarray
    source_rough: np.ndarray
    target_rough: np.ndarray
    bootstrap: np.ndarray
    molecule_tilt_range: np.ndarray


def settle(config: RunConfig) -> RunConfig:
    """What the tasks of a configuration make of its other sections.

    Without "cluster" there is one class, without "align" classes come from features, and random
    molecules are left out where they have nothing to teach.
    """
    section, network, cluster = config.umtl, config.network, config.cluster
    pretrain, joint = config.pretrain, config.joint
    if "cluster" not in section.tasks:
        network = dataclasses.replace(network, num_classes=1)
    if "align" not in section.tasks:
        cluster = dataclasses.replace(cluster, method="features")
    if section.tasks == ("segment",) and not section.molecule_masks:
        pretrain = dataclasses.replace(pretrain, steps=0)
        joint = dataclasses.replace(joint, molecule_share=0.0)
    return dataclasses.replace(
        config, network=network, cluster=cluster, pretrain=pretrain, joint=joint
    )


def network_config(config: RunConfig, box: int) -> umtl.UMTLConfig:
    """Sizes of the network of a configuration for particles of a box size."""
    preset, num_classes = PRESETS[config.network.preset], config.network.num_classes
    return preset(box, num_classes, config.umtl.tasks)


def build_network(config: RunConfig, box: int) -> Network:
    """Builds the network of a configuration for particles of a box size."""
    key = jax.random.key(config.seed)
    return weights.build(network_config(config, box), key, config.compute)


def build_stages(
    config: RunConfig, network: Network, particles: Particles, mesh: Mesh, key: jax.Array
) -> list[Stage]:
    """Lays out training: molecules, then cluster-matched pairs of the particles.

    Args:
        config: the run, settled.
        network: its static structure.
        particles: of ``em.prepare``.
        mesh: devices.
        key: seeds the clustering.

    Returns:
        Stages for ``loop.train``; their memory is an ``em.Memory``.
    """
    volumes, tilt_ranges = particles.volumes, particles.tilt_ranges
    num, box, joint = len(volumes), volumes.shape[-1], config.joint
    rough = rough_masks(config, volumes)

    def pair_batches(epoch: int, memory: em.Memory) -> Iterator[PairBatch]:
        labels = np.maximum(memory.labels, 0)  # one class where nothing is clustered
        partners = batches.draw_partners(labels, seed=config.seed, epoch=epoch)
        share = config.umtl.bootstrap * epoch / max(1, joint.epochs - 1)
        count = num_beside(config, mesh.size)
        for sources in batches.index_batches(num, joint.batch_size, seed=config.seed, epoch=epoch):
            targets = partners[sources]
            yield PairBatch(
                batches.Taken(sources, volumes),
                batches.Taken(targets, volumes),
                tilt_ranges[sources],
                tilt_ranges[targets],
                labels[sources],
                batches.Taken(sources, rough),
                batches.Taken(targets, rough),
                np.full(len(sources), share, np.float32),
                np.resize(tilt_ranges[targets], (count, 2)),
            )

    def cluster(
        state: TrainState, epoch: int, memory: em.Memory
    ) -> tuple[TrainState, em.Memory, dict[str, float]]:
        current = network_of(network, state)
        epoch_key = jax.random.fold_in(key, epoch)
        return state, *em.recluster(epoch_key, current, particles, memory, config)

    is_clustered = config.umtl.tasks != ("segment",)
    return [
        molecule_stage(config, tilt_ranges, box, mesh),
        Stage(
            "pairs",
            joint.epochs,
            _pair_loss(config, box, mesh),
            pair_batches,
            batches.num_batches(num, joint.batch_size),
            cluster if is_clustered else None,
        ),
    ]


def molecule_stage(config: RunConfig, tilt_ranges: np.ndarray, box: int, mesh: Mesh) -> Stage:
    """Pre-training on random molecules, observed with tilt ranges ``(n, 2)`` of particles."""
    score = functools.partial(molecule_loss, box=box, section=config.umtl)
    loss = pretraining.pair_loss(score)
    with_masks = _has_masks(config.umtl)
    return pretraining.molecule_stage(config, tilt_ranges, box, mesh, loss, with_masks=with_masks)


def molecule_loss(
    answer: Answer, made: MoleculePairs, box: int, *, section: UMTLSection | None = None
) -> tuple[jax.Array, Terms]:
    """What molecules teach of each task, and what to log.

    Args:
        answer: of the network about them.
        made: molecules, with masks if these are to teach.
        box: side in voxels.
        section: tasks and weights; the defaults if None.
    """
    section = section or UMTLSection()
    total, metrics = jnp.zeros(()), {}
    if "align" in section.tasks:
        alignment = losses.supervised_alignment_loss(answer, made.pose, box=box)
        total += alignment
        metrics |= {"alignment": alignment, **pose_errors(answer, made.pose)}
    if "cluster" in section.tasks:
        contrast = losses.contrastive_loss(answer.features, answer.target_features)
        total += contrast
        metrics["contrast"] = contrast
    if "segment" in section.tasks and made.source_mask is not None:
        masks = taught_masks_loss(answer, made)
        total += section.segment_weight * masks
        metrics["masks"] = masks
    return total, metrics


def taught_masks_loss(answer: Answer, made: MoleculePairs) -> jax.Array:
    """Cross entropy and overlap of both stages' masks with those of molecules; a scalar."""
    source = made.source_mask.astype(answer.source_masks.coarse.dtype)
    target = made.target_mask.astype(source.dtype)
    moved = jax.vmap(resample.transform)(source, lax.stop_gradient(answer.coarse))
    wanted = Masks(source, moved), Masks(target, target)
    each = [
        jnp.mean(jax.vmap(mask_loss)(logits, labels))
        for found, true in zip((answer.source_masks, answer.target_masks), wanted, strict=True)
        for logits, labels in zip(found, true, strict=True)
    ]
    return sum(each) / len(each)


def mask_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of one mask ``(z, y, x)`` to soft labels, and how little the two overlap."""
    entropy = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))
    return entropy + priors.disagreement(jax.nn.sigmoid(logits), labels)


def rough_masks(config: RunConfig, volumes: Volumes, *, is_shared: bool = True) -> Volumes:
    """Pseudo-labels of particles: the voxel-wise mixture's, corrected by what is known of masks.

    Args:
        config: the run; its contrast, and of its umtl section tasks, smoothing and height.
        volumes: ``(n, z, y, x)``, normalised; of lazy ones, labels are made when they are read.
        is_shared: as of ``batches.map_chunks``.

    Returns:
        ``(n, z, y, x)`` in [0, 1]; ``(n, 0, 0, 0)`` if nothing is to be segmented.
    """
    section = config.umtl
    if "segment" not in section.tasks:
        return np.zeros((len(volumes), 0, 0, 0), np.float32)
    if isinstance(volumes, LazyVolumes):
        return volumes.map(functools.partial(rough_masks, config, is_shared=False))
    how = {"sigma": section.smoothing, "sign": SIGNS[config.data.contrast], "is_shared": is_shared}
    labels = pseudo_labels(volumes, **how)
    return corrected_labels(volumes, labels, height=section.height, **how)


def segment_terms(
    answer: Answer, batch: PairBatch, section: UMTLSection, mesh: Mesh
) -> dict[str, jax.Array]:
    """What the masks of pairs cost: by their labels, and by each prior; means over the batch.

    A label is the rough one and, by the share ``bootstrap``, what the network believes: the mean
    of what both stages say of a particle and of its partner, once that is moved onto it, above
    half of its maximum. A network that is sure of no voxel yet thus does not unlearn all of them.

    Args:
        answer: about the pairs.
        batch: the pairs.
        section: tasks and interval of sizes.
        mesh: devices that share the batch.

    Returns:
        "labels", "size", "smoothness", and with the task "align" "agreement"; none is weighted.
    """
    is_aligned = "align" in section.tasks
    terms = functools.partial(_terms_of_pair, section=section, is_aligned=is_aligned)
    poses = answer.coarse, answer.residual, answer.fine
    rough = batch.source_rough, batch.target_rough, batch.bootstrap
    found = map_batch(terms, mesh)(*rough, answer.source_masks, answer.target_masks, *poses)
    return jax.tree.map(jnp.mean, found)


def _terms_of_pair(
    source_rough: jax.Array,
    target_rough: jax.Array,
    bootstrap: jax.Array,
    source_logits: Masks,
    target_logits: Masks,
    coarse: Pose,
    residual: Pose,
    fine: Pose,
    *,
    section: UMTLSection,
    is_aligned: bool,
) -> Terms:
    source, target = (jax.tree.map(jax.nn.sigmoid, each) for each in (source_logits, target_logits))
    own = (target.coarse + target.fine) / 2
    moved_rough, moved_source, terms, belief = source_rough, source.coarse, {}, own
    if is_aligned:
        at_rest = lax.stop_gradient(coarse)
        moved_rough, moved_source = (
            resample.transform(each, at_rest) for each in (source_rough, source.coarse)
        )
        partner = resample.transform(source.coarse, fine) / 2
        partner += resample.transform(source.fine, residual) / 2
        terms["agreement"] = priors.disagreement(partner, own)
        belief = (own + partner) / 2
    beliefs = source.coarse, (moved_source + source.fine) / 2, belief, belief
    rough = source_rough, moved_rough, target_rough, target_rough
    probabilities = *source, *target
    total = 0.0
    for logits, label, believed in zip(
        (*source_logits, *target_logits), rough, beliefs, strict=True
    ):
        corrected = (1 - bootstrap) * label + bootstrap * (believed > jnp.max(believed) / 2)
        total += mask_loss(logits, lax.stop_gradient(corrected))
    limits = {"smallest": section.size_min, "largest": section.size_max}
    sizes = [priors.size_penalty(each, **limits) for each in probabilities]
    edges = [priors.total_variation(each) for each in probabilities]
    num = len(probabilities)
    return terms | {"labels": total / num, "size": sum(sizes) / num, "smoothness": sum(edges) / num}


def _has_masks(section: UMTLSection) -> bool:
    return "segment" in section.tasks and section.molecule_masks


def _pair_loss(config: RunConfig, box: int, mesh: Mesh) -> Any:
    section, joint = config.umtl, config.joint

    def loss(network: Network, batch: PairBatch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        made = observe(
            key,
            batch.molecule_tilt_range,
            config,
            box=box,
            mesh=mesh,
            with_masks=_has_masks(section),
        )
        pairs, shown, stats = apply_beside(network, batch.source, batch.target, made, mesh)
        total, metrics = jnp.zeros(()), {}
        if "align" in section.tasks:
            aligned, metrics = _alignment_terms(pairs, batch, config, box, mesh)
            total += aligned
        if "cluster" in section.tasks:
            cluster = losses.cross_entropy(pairs.logits, batch.label)
            total += joint.cluster_weight * cluster
            is_right = jnp.argmax(pairs.logits, axis=1) == batch.label
            metrics |= {"cluster": cluster, "cluster_accuracy": jnp.mean(is_right)}
        if "segment" in section.tasks:
            terms = segment_terms(pairs, batch, section, mesh)
            factors = {
                "labels": 1.0,
                "size": section.size_weight,
                "smoothness": section.smoothness_weight,
                "agreement": section.agreement_weight,
            }
            weighted = sum(factors[name] * term for name, term in terms.items())
            total += section.segment_weight * weighted
            metrics |= {f"mask_{name}": term for name, term in terms.items()}
        if len(made.source):
            of_molecules, more = molecule_loss(shown, made, box, section=section)
            total += of_molecules
            metrics |= more
        return total, LossResult(stats, metrics)

    return loss


def _alignment_terms(
    pairs: Answer, batch: PairBatch, config: RunConfig, box: int, mesh: Mesh
) -> tuple[jax.Array, Terms]:
    """The constrained loss: both stages' correlations where both particles were measured, and how
    far the second departs from the identity."""
    joint = config.joint
    ranges = batch.source_tilt_range, batch.target_tilt_range
    correlate = functools.partial(
        losses.pair_correlations, batch.source, batch.target, cutoff=joint.cutoff, mesh=mesh
    )
    coarse, fine = (jnp.mean(correlate(poses, *ranges)) for poses in (pairs.coarse, pairs.fine))
    size = functools.partial(matching.transform_regulariser, radius=box / 2)
    regulariser = jnp.mean(jax.vmap(size)(pairs.residual))
    total = joint.alignment_weight * (2 - coarse - fine) + joint.regulariser_weight * regulariser
    metrics = {"correlation_coarse": coarse, "correlation_fine": fine, "regulariser": regulariser}
    return total, metrics
