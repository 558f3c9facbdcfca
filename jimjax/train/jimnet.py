"""How Jim-Net is trained: random molecules first, then the particles, clustered as it goes."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jimjax.align.references import Particles
from jimjax.config import RunConfig
from jimjax.data import batches
from jimjax.models import jimnet, weights
from jimjax.models.functional import Network
from jimjax.ops import matching
from jimjax.ops.rotation import Pose
from jimjax.train import em, losses, pretraining
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculePairs
from jimjax.train.pretraining import apply_beside, num_beside, num_pretrain, observe
from jimjax.train.state import Optimizer, TrainState, adam, network_of
from jimjax.train.step import LossResult

PRESETS = {"small": jimnet.small, "paper": jimnet.paper}
WARM_UP = 0.1  # share of a stage in which the learning rate rises
FINAL_RATE = 0.02  # of the peak, at the end of a stage


class PairBatch(NamedTuple):
    """Cluster-matched pairs of particles, and tilt ranges for the molecules beside them.

    Attributes:
        source: ``(batch, z, y, x)``.
        target: same shape.
        source_tilt_range: ``(batch, 2)`` degrees.
        target_tilt_range: ``(batch, 2)`` degrees.
        label: ``(batch,)`` cluster of the pair.
        molecule_tilt_range: ``(molecules, 2)`` degrees.
    """

    source: np.ndarray
    target: np.ndarray
    source_tilt_range: np.ndarray
    target_tilt_range: np.ndarray
    label: np.ndarray
    molecule_tilt_range: np.ndarray


def network_config(config: RunConfig, box: int) -> jimnet.JimNetConfig:
    """Sizes of the network of a configuration for particles of a box size."""
    return PRESETS[config.network.preset](box, config.network.num_classes)


def build_network(config: RunConfig, box: int) -> Network:
    """Builds the network of a configuration for particles of a box size."""
    key = jax.random.key(config.seed)
    return weights.build(network_config(config, box), key, config.compute)


def build_optimizer(config: RunConfig, num_particles: int) -> Optimizer:
    """Adam with one cosine per stage."""
    lengths = _stage_lengths(config, num_particles)
    rates = (config.pretrain.learning_rate, config.joint.learning_rate)
    pieces = [
        optax.warmup_cosine_decay_schedule(
            0.0, rate, max(1, int(WARM_UP * length)), max(2, length), FINAL_RATE * rate
        )
        for rate, length in zip(rates, lengths, strict=True)
    ]
    return adam(optax.join_schedules(pieces, [lengths[0]]))


def build_stages(
    config: RunConfig, network: Network, particles: Particles, mesh: Mesh, key: jax.Array
) -> list[Stage]:
    """Lays out training: molecules, then cluster-matched pairs of the particles.

    Args:
        config: the run.
        network: its static structure.
        particles: of ``em.prepare``.
        mesh: devices.
        key: seeds the clustering.

    Returns:
        Stages for ``loop.train``; their memory is an ``em.Memory``.
    """
    volumes, tilt_ranges = particles.volumes, particles.tilt_ranges
    box = volumes.shape[-1]

    def pair_batches(epoch: int, memory: em.Memory) -> Iterator[PairBatch]:
        labels = memory.labels
        size, seed = config.joint.batch_size, config.seed
        partners = batches.draw_partners(labels, seed=seed, epoch=epoch)
        count = num_beside(config, mesh.size)
        for sources in batches.index_batches(len(volumes), size, seed=seed, epoch=epoch):
            targets = partners[sources]
            yield PairBatch(
                batches.Taken(sources, volumes),
                batches.Taken(targets, volumes),
                tilt_ranges[sources],
                tilt_ranges[targets],
                labels[sources],
                np.resize(tilt_ranges[targets], (count, 2)),
            )

    def cluster(
        state: TrainState, epoch: int, memory: em.Memory
    ) -> tuple[TrainState, em.Memory, dict[str, float]]:
        current = network_of(network, state)
        epoch_key = jax.random.fold_in(key, epoch)
        return state, *em.recluster(epoch_key, current, particles, memory, config)

    return [
        molecule_stage(config, tilt_ranges, box, mesh),
        Stage(
            "pairs",
            config.joint.epochs,
            _pair_loss(config, box, mesh),
            pair_batches,
            batches.num_batches(len(volumes), config.joint.batch_size),
            cluster,
        ),
    ]


def molecule_stage(config: RunConfig, tilt_ranges: np.ndarray, box: int, mesh: Mesh) -> Stage:
    """Pre-training on random molecules, observed with tilt ranges ``(n, 2)`` of particles."""
    loss = pretraining.pair_loss(functools.partial(molecule_loss, box=box))
    return pretraining.molecule_stage(config, tilt_ranges, box, mesh, loss)


def molecule_loss(
    aligned: jimnet.Alignment, made: MoleculePairs, box: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pose errors of molecules, and how badly their features tell them apart; and what to log."""
    alignment = losses.supervised_alignment_loss(aligned, made.pose, box=box)
    contrast = losses.contrastive_loss(aligned.features, aligned.target_features)
    metrics = {"alignment": alignment, "contrast": contrast, **pose_errors(aligned, made.pose)}
    return alignment + contrast, metrics


def taught_loss(
    config: RunConfig,
    aligned: jimnet.Alignment,
    true: Pose,
    labels: jax.Array,
    weights: jax.Array,
    box: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Errors against a teacher's poses, each pair's weighted, and classes; and what to log."""
    section = config.joint
    alignment = losses.supervised_alignment_loss(aligned, true, box=box, weights=weights)
    cluster = losses.cross_entropy(aligned.logits, labels)
    metrics = {
        "cluster": cluster,
        "cluster_accuracy": jnp.mean(jnp.argmax(aligned.logits, axis=1) == labels),
        "alignment": alignment,
        **pose_errors(aligned, true),
    }
    return section.cluster_weight * cluster + section.alignment_weight * alignment, metrics


def _stage_lengths(config: RunConfig, num_particles: int) -> tuple[int, int]:
    per_epoch = batches.num_batches(num_particles, config.joint.batch_size)
    num_rounds, num_steps = num_pretrain(config)
    return num_rounds * num_steps, config.joint.epochs * per_epoch


def _pair_loss(config: RunConfig, box: int, mesh: Mesh) -> Any:
    section = config.joint

    def loss(network: Network, batch: PairBatch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        made = observe(key, batch.molecule_tilt_range, config, box=box, mesh=mesh)
        pairs, shown, stats = apply_beside(network, batch.source, batch.target, made, mesh)
        ranges = batch.source_tilt_range, batch.target_tilt_range
        correlation = {
            name: jnp.mean(
                losses.pair_correlations(
                    batch.source, batch.target, poses, *ranges, cutoff=section.cutoff, mesh=mesh
                )
            )
            for name, poses in (("coarse", pairs.coarse), ("fine", pairs.fine))
        }
        cluster = losses.cross_entropy(pairs.logits, batch.label)
        total = section.cluster_weight * cluster
        total += section.alignment_weight * sum(1 - c for c in correlation.values())
        metrics = {
            "cluster": cluster,
            "cluster_accuracy": jnp.mean(jnp.argmax(pairs.logits, axis=1) == batch.label),
            "correlation_coarse": correlation["coarse"],
            "correlation_fine": correlation["fine"],
        }
        if section.regulariser_weight > 0:
            size = functools.partial(matching.transform_regulariser, radius=box / 2)
            regulariser = jnp.mean(jax.vmap(size)(pairs.residual))
            total += section.regulariser_weight * regulariser
            metrics["regulariser"] = regulariser
        if len(made.source):
            of_molecules, more = molecule_loss(shown, made, box)
            total += of_molecules
            metrics |= more
        return total, LossResult(stats, metrics)

    return loss


def pose_errors(aligned: jimnet.Alignment, true: Pose) -> dict[str, jax.Array]:
    """Median rotation errors of both stages, to log."""

    def median(found: Pose) -> jax.Array:
        distance = jnp.sum((found.rotation - true.rotation) ** 2, axis=(1, 2))
        return jnp.median(jnp.sqrt(distance))

    return {
        "rotation_error_coarse": median(aligned.coarse),
        "rotation_error_fine": median(aligned.fine),
    }
