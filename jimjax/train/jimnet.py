"""How Jim-Net is trained: random molecules first, then the particles, clustered as it goes."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jimjax.config import RunConfig
from jimjax.data import batches
from jimjax.data.subtomograms import Subtomograms
from jimjax.mesh import constrain_batch, map_batch
from jimjax.models import functional, jimnet, weights
from jimjax.models.functional import Network
from jimjax.ops import matching
from jimjax.ops.correlation import aligned_correlation
from jimjax.ops.rotation import Pose
from jimjax.train import em, losses
from jimjax.train.loop import Stage
from jimjax.train.molecules import MoleculeConfig, observe_molecules
from jimjax.train.state import Optimizer, TrainState, adam, network_of
from jimjax.train.step import LossResult

PRESETS = {"small": jimnet.small, "paper": jimnet.paper}
SIGNS = {"dark": -1.0, "light": 1.0}
ROUND_STEPS = 50  # of pre-training, between checkpoints
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
    return weights.build(network_config(config, box), jax.random.key(config.seed))


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
    config: RunConfig, network: Network, particles: Subtomograms, mesh: Mesh, key: jax.Array
) -> list[Stage]:
    """Lays out training: molecules, then cluster-matched pairs of the particles.

    Args:
        config: the run.
        network: its static structure.
        particles: without truth; only volumes and tilt ranges are looked at.
        mesh: devices.
        key: seeds the clustering.

    Returns:
        Stages for ``loop.train``; their memory is an ``em.Memory``.
    """
    prepared = em.prepare(particles, config)
    volumes, tilt_ranges = prepared.volumes, prepared.tilt_ranges
    box = volumes.shape[-1]

    def pair_batches(epoch: int, memory: em.Memory) -> Iterator[PairBatch]:
        labels = memory.labels
        size, seed = config.joint.batch_size, config.seed
        partners = batches.draw_partners(labels, seed=seed, epoch=epoch)
        count = num_molecules(config, mesh.size)
        for sources in batches.index_batches(len(volumes), size, seed=seed, epoch=epoch):
            targets = partners[sources]
            yield PairBatch(
                volumes[sources],
                volumes[targets],
                tilt_ranges[sources],
                tilt_ranges[targets],
                labels[sources],
                np.resize(tilt_ranges[targets], (count, 2)),
            )

    def cluster(
        state: TrainState, epoch: int, memory: em.Memory
    ) -> tuple[em.Memory, dict[str, float]]:
        current = network_of(network, state)
        epoch_key = jax.random.fold_in(key, epoch)
        return em.recluster(epoch_key, current, prepared, memory, config)

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
    num_rounds, num_steps = num_pretrain(config)

    def made(epoch: int, memory: Any) -> Iterator[np.ndarray]:
        yield from molecule_batches(config, tilt_ranges, num_steps, epoch)

    loss = _molecule_loss(config, box, mesh)
    return Stage("molecules", num_rounds, loss, made, num_steps)


def _stage_lengths(config: RunConfig, num_particles: int) -> tuple[int, int]:
    per_epoch = batches.num_batches(num_particles, config.joint.batch_size)
    num_rounds, num_steps = num_pretrain(config)
    return num_rounds * num_steps, config.joint.epochs * per_epoch


def num_pretrain(config: RunConfig) -> tuple[int, int]:
    """Rounds of the pre-training, each logged and saved, and steps in each; 0 if there are none."""
    steps = config.pretrain.steps
    num_rounds = min(steps, max(1, steps // ROUND_STEPS))
    return num_rounds, steps // max(1, num_rounds)


def num_molecules(config: RunConfig, num_devices: int) -> int:
    """Molecules beside a batch of pairs, a multiple of the devices."""
    wanted = config.joint.molecule_share * config.joint.batch_size
    return int(np.ceil(wanted / num_devices)) * num_devices


def molecule_batches(
    config: RunConfig, tilt_ranges: np.ndarray, num_steps: int, epoch: int
) -> Iterator[np.ndarray]:
    """Tilt ranges as they occur among the particles, for molecules to be observed with."""
    generator = np.random.default_rng([config.seed, epoch, *b"tilt ranges"])
    for _ in range(num_steps):
        yield tilt_ranges[generator.integers(len(tilt_ranges), size=config.pretrain.batch_size)]


def molecules_of(config: RunConfig) -> MoleculeConfig:
    """The family of molecules of a configuration."""
    section = config.pretrain
    return MoleculeConfig(
        snr_min=section.snr_min, snr_max=section.snr_max, max_shift=section.max_shift
    )


def _molecule_loss(config: RunConfig, box: int, mesh: Mesh) -> Any:
    molecules, sign = molecules_of(config), SIGNS[config.data.contrast]

    def loss(
        network: Network, tilt_ranges: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, LossResult]:
        pairs = observe_molecules(key, tilt_ranges, molecules, box=box, sign=sign, mesh=mesh)
        aligned, stats = functional.apply(network, pairs.source, pairs.target, train=True)
        alignment = losses.supervised_alignment_loss(aligned, pairs.pose, box=box)
        contrast = losses.contrastive_loss(aligned.features, aligned.target_features)
        metrics = {
            "alignment": alignment,
            "contrast": contrast,
            **pose_errors(aligned, pairs.pose),
        }
        return alignment + contrast, LossResult(stats, metrics)

    return loss


def _pair_loss(config: RunConfig, box: int, mesh: Mesh) -> Any:
    section, molecules = config.joint, molecules_of(config)
    sign = SIGNS[config.data.contrast]

    def loss(network: Network, batch: PairBatch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        num = len(batch.source)
        made = observe_molecules(
            key, batch.molecule_tilt_range, molecules, box=box, sign=sign, mesh=mesh
        )
        sources = constrain_batch(jnp.concatenate([batch.source, made.source]), mesh)
        targets = constrain_batch(jnp.concatenate([batch.target, made.target]), mesh)
        aligned, stats = functional.apply(network, sources, targets, train=True)
        pairs = jax.tree.map(lambda leaf: leaf[:num], aligned)
        shown = jax.tree.map(lambda leaf: leaf[num:], aligned)

        correlation = {
            "coarse": _correlation(batch, pairs.coarse, section.cutoff, mesh),
            "fine": _correlation(batch, pairs.fine, section.cutoff, mesh),
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
            alignment = losses.supervised_alignment_loss(shown, made.pose, box=box)
            contrast = losses.contrastive_loss(shown.features, shown.target_features)
            total += alignment + contrast
            metrics |= {"alignment": alignment, "contrast": contrast}
            metrics |= pose_errors(shown, made.pose)
        return total, LossResult(stats, metrics)

    return loss


def _correlation(batch: PairBatch, poses: Pose, cutoff: float, mesh: Mesh) -> jax.Array:
    def correlate(
        source: jax.Array, target: jax.Array, pose: Pose, *ranges: jax.Array
    ) -> jax.Array:
        return aligned_correlation(
            source,
            target,
            pose,
            source_tilt_range=ranges[0],
            target_tilt_range=ranges[1],
            cutoff=cutoff,
        )

    each = map_batch(correlate, mesh)(
        batch.source, batch.target, poses, batch.source_tilt_range, batch.target_tilt_range
    )
    return jnp.mean(each)


def pose_errors(aligned: jimnet.Alignment, true: Pose) -> dict[str, jax.Array]:
    """Median rotation errors of both stages, to log."""

    def median(found: Pose) -> jax.Array:
        distance = jnp.sum((found.rotation - true.rotation) ** 2, axis=(1, 2))
        return jnp.median(jnp.sqrt(distance))

    return {
        "rotation_error_coarse": median(aligned.coarse),
        "rotation_error_fine": median(aligned.fine),
    }
