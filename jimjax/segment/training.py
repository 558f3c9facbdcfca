"""Training of a segmenter on particles with masks, for others without."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.data.batches import index_batches, num_batches
from jimjax.data.subtomograms import Subtomograms, check_scale, normalize
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh, replicate
from jimjax.models import functional, voxresnet
from jimjax.models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    SemanticDiscriminator,
    SemanticDiscriminatorConfig,
    small_semantic,
)
from jimjax.models.voxresnet import VoxResNetConfig
from jimjax.models.weights import Description, Weights, build
from jimjax.progress import Progress
from jimjax.segment.adaptation import JUDGES, build_loss, build_optimizer
from jimjax.segment.config import SegmentConfig
from jimjax.segment.view import Batch, Parts
from jimjax.train.loop import Stage
from jimjax.train.records import Known, Origin, Record
from jimjax.train.resume import train_recorded
from jimjax.train.state import initial_state

PRESETS: dict[str, Callable[[int], VoxResNetConfig]] = {
    "small": voxresnet.small,
    "paper": voxresnet.paper,
}


def train_segmenter(
    config: SegmentConfig,
    source: Subtomograms,
    target: Subtomograms,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Weights:
    """Trains a network to find the voxels of particles.

    Args:
        config: how.
        source: particles with masks; only "supervised" does not look at them.
        target: of the same box and voxel size. Only "supervised" looks at their masks, and
            "source-only" at nothing of them.
        folder: where checkpoints and a log are kept; nowhere if None.
        resume: go on with what the folder holds; the outcome is that of an uninterrupted training.
        command: as typed, for the record in the folder.
        progress: told of every step.
        mesh: devices that share the particles of a step; all of them if None.

    Returns:
        The network, whose last channel is the particle.

    Raises:
        InputError: if masks are missing or empty, boxes or voxel sizes differ, or the folder holds
            another training.
        loop.TrainingError: if the loss stays non-finite.
        Interrupted: after SIGTERM or SIGINT, with everything saved.
    """
    box = source.volumes.shape[-1]
    check_scale(target, box=box, voxel_size=source.voxel_size, whose="the source")
    taught = target if config.method == "supervised" else source
    if taught.masks is None or not taught.masks.any():
        which = "target" if config.method == "supervised" else "source"
        raise InputError(
            f"the {which} has no masks to learn from; method {config.method} needs them"
        )
    try:
        sizes = PRESETS[config.preset](box)
    except ValueError as problem:
        raise InputError(f"particles of {box} voxels: {problem}") from problem
    description = Description(sizes, config.contrast, float(source.voxel_size))
    parts, mesh = build_parts(config, sizes), mesh or data_mesh()
    together = parts.together(has_teacher=config.has_teacher)
    steps = num_batches(len(taught), config.batch_size)
    stage = _build_stage(config, parts, taught, target, mesh)
    optimizer = build_optimizer(config, steps)
    state = replicate(jax.tree.map(jnp.copy, initial_state(together, optimizer)), mesh)
    memory = {"none": np.zeros(1)}
    options = {
        "key": jax.random.key(config.seed),
        "optimizer": optimizer,
        "mesh": mesh,
        "progress": progress,
    }
    record = None
    if folder is not None:
        masks = np.packbits(taught.masks)
        origin = Origin(config, source, Known.of(masks, target.volumes, target.tilt_ranges))
        record = Record(Path(folder), origin, command, resume)
    state, _ = train_recorded(record, together, state, memory, [stage], **options)
    return Weights(description, parts.trained(state.params, state.stats))


def build_parts(config: SegmentConfig, sizes: VoxResNetConfig) -> Parts:
    """The networks of a method, untrained."""
    segmenter_key, *keys = jax.random.split(jax.random.key(config.seed), 3)
    semantic = small_semantic if config.preset == "small" else SemanticDiscriminatorConfig
    kinds: dict[str, Callable[..., Any]] = {
        "features": partial(Discriminator, DiscriminatorConfig(sizes.width)),
        "doubt": partial(SemanticDiscriminator, semantic(sizes.num_classes)),
        "masks": partial(SemanticDiscriminator, semantic(sizes.num_classes)),
    }
    names = JUDGES.get(config.method, ())
    judges = {
        name: functional.create(kinds[name], key) for name, key in zip(names, keys, strict=False)
    }
    segmenter = build(sizes, segmenter_key, config.compute)
    return Parts(segmenter, judges)


def _build_stage(
    config: SegmentConfig, parts: Parts, taught: Subtomograms, target: Subtomograms, mesh: Mesh
) -> Stage:
    steps = num_batches(len(taught), config.batch_size)
    known, unknown = normalize(taught.volumes), normalize(target.volumes)
    masks = taught.masks.astype(np.int8)
    num_sampled = min(config.num_sampled, len(unknown))
    loss = build_loss(config, parts, mesh, num_steps=config.epochs * steps, steps_per_epoch=steps)

    def draw(epoch: int, memory: Any) -> Iterator[Batch]:
        del memory
        generator = np.random.default_rng([config.seed, epoch, *b"target"])
        for rows in index_batches(len(known), config.batch_size, seed=config.seed, epoch=epoch):
            others = _draw_rows(generator, len(unknown), config.batch_size)
            sampled = unknown[_draw_rows(generator, len(unknown), num_sampled)]
            copies = np.broadcast_to(sampled, (mesh.size, *sampled.shape))
            yield Batch(known[rows], masks[rows], unknown[others], copies)

    return Stage(config.method, config.epochs, loss, draw, steps)


def _draw_rows(generator: np.random.Generator, num: int, count: int) -> np.ndarray:
    """Different rows as far as there are."""
    return np.resize(generator.permutation(num), count)
