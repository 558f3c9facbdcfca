"""Distillation: classes and poses that are known of particles, as labels for a network.

What ``jimjax align`` finds with all particles at once, a network learns to say of each by itself.
Sources are averages of a class as often as particles: prediction poses particles against
averages. Nothing is clustered; the references of the run are the teacher's averages.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.align.inference import Alignments
from jimjax.align.references import Particles, average_members
from jimjax.config import RunConfig
from jimjax.data import batches
from jimjax.data.subtomograms import Subtomograms, hash_arrays, normalize, table_of
from jimjax.io import star
from jimjax.io.errors import InputError
from jimjax.io.files import PathLike
from jimjax.models.functional import Network
from jimjax.ops.rotation import Pose, compose, invert
from jimjax.train import em
from jimjax.train.loop import Stage
from jimjax.train.pretraining import apply_beside, num_beside, observe
from jimjax.train.recipes import recipe_of
from jimjax.train.step import LossResult

ANGLE, PROBABILITY = "jimAngleDeviation", "jimClassProbability"  # written by jimjax align
ANGLE_UNIT = 10.0  # degrees of deviation that halve a pose's weight
AVERAGE_SHARE = 0.5  # of the sources, that are averages instead of particles


class Teacher(NamedTuple):
    """What is known of particles.

    Attributes:
        labels: ``(n,)`` int32 classes from 0, each of two particles or more.
        rotations: ``(n, 3, 3)``, reference into particle.
        shifts: ``(n, 3)``, (x, y, z), voxels.
        weights: ``(n,)``, how far each particle is to be believed; 1 on average.
    """

    labels: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    weights: np.ndarray

    @property
    def num_classes(self) -> int:
        """How many classes it knows."""
        return int(self.labels.max()) + 1

    @property
    def fingerprint(self) -> str:
        """A hash of all that it says."""
        return hash_arrays(*self)

    def moved(self, offsets: np.ndarray) -> "Teacher":
        """What it says of the particles once they are moved back by ``(n, 3)`` voxels."""
        return self._replace(shifts=(self.shifts - offsets).astype(np.float32))


class TaughtBatch(NamedTuple):
    """Pairs of one class with the pose that carries source onto target.

    Attributes:
        source: ``(batch, z, y, x)``, particles.
        average: same shape, of their classes.
        is_average: ``(batch,)``, where the average is the source, and not the particle.
        target: ``(batch, z, y, x)``, particles.
        pose: ``(batch,)``.
        label: ``(batch,)`` classes.
        weight: ``(batch,)``.
        molecule_tilt_range: ``(molecules, 2)`` degrees.
    """

    source: np.ndarray
    average: np.ndarray
    is_average: np.ndarray
    target: np.ndarray
    pose: Pose
    label: np.ndarray
    weight: np.ndarray
    molecule_tilt_range: np.ndarray


def read_teacher(path: PathLike, particles: Subtomograms) -> Teacher:
    """Takes classes and poses of a STAR file as labels.

    A particle weighs ``p / (1 + (d / 10)^2)`` with ``p`` its jimClassProbability and ``d`` its
    jimAngleDeviation in degrees, where the file has these columns.

    Args:
        path: the file.
        particles: loaded from it with poses.

    Returns:
        One row per particle.

    Raises:
        InputError: if there are no classes, one has no particles, or a column is out of range.
    """
    table = table_of(particles, path)
    labels = particles.labels
    if labels is None:
        raise InputError(f"{path}: a teacher needs classes and poses, as jimjax align writes them")
    counts = np.bincount(labels)
    if counts.min() < 2:
        least = int(np.argmin(counts))
        raise InputError(
            f"{path}: class {least + 1} has {counts[least]} particles, a teacher needs 2 of each"
        )
    weights = np.ones(len(labels))
    if PROBABILITY in table.columns:
        weights *= np.clip(_positive(table, PROBABILITY), 0.0, 1.0)
    if ANGLE in table.columns:
        weights /= 1 + (_positive(table, ANGLE) / ANGLE_UNIT) ** 2
    if not weights.sum() > 0:
        raise InputError(f"{path}: {PROBABILITY} is zero throughout; nothing can be learned")
    return Teacher(
        labels.astype(np.int32),
        np.asarray(particles.rotations, np.float32),
        np.asarray(particles.shifts, np.float32),
        (weights / weights.mean()).astype(np.float32),
    )


def initial_memory(particles: Subtomograms, teacher: Teacher) -> em.Memory:
    """Labels and averages of the teacher, instead of those that ``em.recluster`` finds."""
    tilt_ranges = np.asarray(particles.tilt_ranges, np.float32)
    seen = Particles(normalize(particles.volumes), tilt_ranges, teacher.shifts)
    found = Alignments(teacher.rotations, teacher.shifts, np.zeros(len(particles)))
    members = [np.flatnonzero(teacher.labels == label) for label in range(teacher.num_classes)]
    references = np.stack([average_members(seen, found, each) for each in members])
    return em.Memory(teacher.labels, references)


def build_stages(
    config: RunConfig, particles: Subtomograms, teacher: Teacher, mesh: Mesh
) -> list[Stage]:
    """Lays out training: molecules, then pairs that the teacher has posed.

    Args:
        config: the run; of its joint section epochs, batch size, learning rate, weights and the
            share of molecules.
        particles: volumes and tilt ranges.
        teacher: labels.
        mesh: devices.

    Returns:
        Stages for ``loop.train``; their memory is an ``em.Memory``, which they do not change.
    """
    volumes = normalize(particles.volumes)
    tilt_ranges = np.asarray(particles.tilt_ranges, np.float32)
    box = volumes.shape[-1]
    poses = Pose(teacher.rotations, teacher.shifts)
    size, seed = config.joint.batch_size, config.seed

    def taught(epoch: int, memory: em.Memory) -> Iterator[TaughtBatch]:
        generator = np.random.default_rng([seed, epoch, *b"averages"])
        partners = batches.draw_partners(teacher.labels, seed=seed, epoch=epoch)
        for targets in batches.index_batches(len(volumes), size, seed=seed, epoch=epoch):
            sources, labels = partners[targets], teacher.labels[targets]
            is_average = generator.random(size) < AVERAGE_SHARE
            relative = _relative(
                *(jax.tree.map(lambda each, rows=rows: each[rows], poses)
                  for rows in (sources, targets))
            )  # fmt: skip
            pose = jax.tree.map(
                lambda own, between, flags=is_average: np.where(
                    flags.reshape(-1, *[1] * (own.ndim - 1)), own, between
                ),
                jax.tree.map(lambda each, rows=targets: each[rows], poses),
                relative,
            )
            weight = teacher.weights[targets]
            weight = weight * np.where(is_average, 1.0, teacher.weights[sources])
            molecules = np.resize(tilt_ranges[targets], (num_beside(config, mesh.size), 2))
            yield TaughtBatch(
                batches.Taken(sources, volumes),
                batches.Taken(labels, memory.references),
                is_average,
                batches.Taken(targets, volumes),
                pose,
                labels,
                weight.astype(np.float32),
                molecules,
            )

    return [
        recipe_of(config).molecule_stage(config, tilt_ranges, box, mesh),
        Stage(
            "teacher",
            config.joint.epochs,
            _taught_loss(config, box, mesh),
            taught,
            batches.num_batches(len(volumes), size),
        ),
    ]


@jax.jit
@jax.vmap
def _relative(source: Pose, target: Pose) -> Pose:
    """Carries what is posed as the source onto the target."""
    return compose(target, invert(source))


def _taught_loss(config: RunConfig, box: int, mesh: Mesh) -> Any:
    recipe = recipe_of(config)

    def loss(network: Network, batch: TaughtBatch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        made = observe(key, batch.molecule_tilt_range, config, box=box, mesh=mesh)
        source = jnp.where(batch.is_average[:, None, None, None], batch.average, batch.source)
        pairs, shown, stats = apply_beside(network, source, batch.target, made, mesh)
        taught = batch.pose, batch.label, batch.weight
        total, metrics = recipe.taught_loss(config, pairs, *taught, box)
        if len(made.source):
            total += recipe.molecule_loss(shown, made, box)[0]
        return total, LossResult(stats, metrics)

    return loss


def _positive(table: star.ParticleTable, name: str) -> np.ndarray:
    values = table.floats(name)
    if not np.all(values >= 0):
        row = int(np.argmin(values >= 0))
        raise table.error(row, f"{name} must not be negative, got {values[row]:g}")
    return values
