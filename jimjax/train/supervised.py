"""Training a classifier on particles whose classes are known, such as simulated ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jimjax.data.batches import Taken, num_batches
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh, map_batch, replicate
from jimjax.models import deepfinder, functional
from jimjax.models.compute import PLAIN, Compute
from jimjax.models.functional import Network
from jimjax.models.weights import Contrast, Description, Weights, build, transplant
from jimjax.progress import Progress
from jimjax.train import losses
from jimjax.train.loop import Stage
from jimjax.train.records import Known, Origin, Record
from jimjax.train.resume import train_recorded
from jimjax.train.state import Optimizer, initial_state, network_of
from jimjax.train.step import LossResult

PRESETS = {"small": deepfinder.small, "paper": deepfinder.paper}
DENSE = "hidden.", "dense.", "head."  # layers that are learned anew


@dataclass(frozen=True)
class SupervisedConfig:
    """How a classifier is trained; the defaults are the published values where there are any.

    Attributes:
        preset: sizes of the network, see ``models.deepfinder``.
        contrast: of the protein in the particles, "dark" or "light".
        epochs: of as many particles as there are; not published (training took two hours).
        batch_size: particles per step, equally many of each class.
        learning_rate: of Adam, at first.
        final_share: of it, at the end of a cosine; 1, as published, leaves it as it is.
        max_shift: largest shift of a particle along each axis, as a share of the box. Published
            are 13 of 40 voxels of a tomogram; here what leaves the box comes in again opposite.
        turn_share: share of the particles that are turned by 180 degrees about the tilt axis.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    preset: Literal["small", "paper"] = "paper"
    contrast: Contrast = "dark"
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-4
    final_share: float = 1.0
    max_shift: float = 13 / 40
    turn_share: float = 0.5
    seed: int = 0
    compute: Compute = PLAIN

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        if min(self.epochs, self.batch_size) < 1:
            raise ValueError("epochs and batch_size must be 1 or more")
        if not (0 <= self.max_shift <= 0.5 and 0 <= self.turn_share <= 1):
            raise ValueError("max_shift must be from 0 to 0.5 and turn_share from 0 to 1")
        if not (self.learning_rate >= 0 and 0 <= self.final_share <= 1):
            raise ValueError("learning_rate must not be negative and final_share from 0 to 1")


def small() -> SupervisedConfig:
    """For the small network, that begins with weights: a minute for 500 particles."""
    return SupervisedConfig(
        preset="small", epochs=20, learning_rate=2e-3, final_share=0.01, max_shift=0.125
    )


class Batch(NamedTuple):
    """Particles and their classes.

    Attributes:
        volumes: ``(batch, z, y, x)``, normalised.
        labels: ``(batch,)`` from 0.
    """

    volumes: np.ndarray
    labels: np.ndarray


def train_classifier(
    config: SupervisedConfig,
    particles: Subtomograms,
    *,
    weights: Weights | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Weights:
    """Trains a DeepFinder encoder and its head to tell labelled particles apart.

    Args:
        config: how.
        particles: with labels; every class is seen equally often, however many particles it has.
        weights: to begin with, all but the dense layers, as published; random ones if None. What
            others needed to know of their particles would spread the features of a class.
        folder: where checkpoints and a log are kept; nowhere if None.
        resume: go on with what the folder holds; the outcome is that of an uninterrupted training.
        command: as typed, for the record in the folder.
        progress: told of every step.

    Returns:
        The encoder, with a head for as many classes as there are, in the order of their numbers.

    Raises:
        InputError: if particles have no labels or are all of one class, the box does not suit the
            network, the weights do not fit it, or the folder holds another training.
        loop.TrainingError: if the loss stays non-finite.
        Interrupted: after SIGTERM or SIGINT, with everything saved.
    """
    labels = _checked_labels(particles)
    given = config.contrast if weights is None else weights.description.contrast
    sign = 1 if given == config.contrast else -1
    box = particles.volumes.shape[-1]
    try:
        sizes = PRESETS[config.preset](box, int(labels.max()) + 1)
    except ValueError as problem:
        raise InputError(f"particles of {box} voxels: {problem}") from problem
    description = Description(sizes, given, particles.voxel_size)
    network = build(sizes, jax.random.key(config.seed), config.compute)
    if weights is not None:
        network = _with_encoder(weights, network)
    mesh, optimizer = data_mesh(), build_optimizer(config, len(particles))
    # A step consumes the state that it is given, and the weights are not ours.
    state = jax.tree.map(jnp.copy, initial_state(network, optimizer))
    state, memory = replicate(state, mesh), {"none": np.zeros(1)}
    stages = [build_stage(config, Batch(sign * normalize(particles.volumes), labels), mesh)]
    options = {
        "key": jax.random.key(config.seed),
        "optimizer": optimizer,
        "mesh": mesh,
        "progress": progress,
    }
    record = None
    if folder is not None:
        origin = Origin(config, particles, Known.of(labels), weights)
        record = Record(Path(folder), origin, command, resume)
    state, _ = train_recorded(record, network, state, memory, stages, **options)
    return Weights(description, network_of(network, state))


def build_optimizer(config: SupervisedConfig, num_particles: int) -> Optimizer:
    """Adam, whose learning rate stays or falls."""
    num_steps = config.epochs * num_batches(num_particles, config.batch_size)
    schedule = optax.cosine_decay_schedule(config.learning_rate, num_steps, config.final_share)
    return Optimizer(optax.adam(schedule), schedule)


def build_stage(config: SupervisedConfig, known: Batch, mesh: Mesh) -> Stage:
    """Lays out the epochs.

    Args:
        config: how.
        known: all particles and their classes.
        mesh: devices.
    """
    num_steps = num_batches(len(known.labels), config.batch_size)

    def change(volume: jax.Array, key: jax.Array) -> jax.Array:
        return augment(key, volume, max_shift=config.max_shift, turn_share=config.turn_share)

    def loss(network: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        keys = jax.random.split(key, len(batch.labels))
        return score(network, map_batch(change, mesh)(batch.volumes, keys), batch.labels)

    def draw(epoch: int, memory: Any) -> Iterator[Batch]:
        del memory
        num = num_steps * config.batch_size
        order = draw_balanced(known.labels, num, seed=config.seed, epoch=epoch)
        for rows in order.reshape(num_steps, config.batch_size):
            yield Batch(Taken(rows, known.volumes), known.labels[rows])

    return Stage("classify", config.epochs, loss, draw, num_steps)


def score(network: Network, volumes: jax.Array, labels: jax.Array) -> tuple[jax.Array, LossResult]:
    """Cross entropy of a classifier in training, and its accuracy.

    Args:
        network: a classifier.
        volumes: ``(batch, z, y, x)``.
        labels: ``(batch,)``.
    """
    found, stats = functional.apply(network, volumes, train=True)
    value = losses.cross_entropy(found.logits, labels)
    accuracy = jnp.mean(jnp.argmax(found.logits, axis=1) == labels)
    return value, LossResult(stats, {"accuracy": accuracy})


def augment(key: jax.Array, volume: jax.Array, *, max_shift: float, turn_share: float) -> jax.Array:
    """Moves a particle as its missing wedge allows: shifts, and a half turn about the tilt axis.

    The half turn takes a direction of Fourier space from (kx, kz) to (-kx, -kz), which is the same
    line: every tilt range stays what it is, an asymmetric one as well.

    Args:
        key: seeds both.
        volume: ``(z, y, x)``.
        max_shift: along each axis, as a share of the box; whole voxels, round the box's edges.
        turn_share: how probable the half turn is.
    """
    turn_key, shift_key = jax.random.split(key)
    turned = jax.random.uniform(turn_key) < turn_share
    volume = jnp.where(turned, half_turn(volume), volume)
    limit = int(max_shift * volume.shape[0])
    shift = jax.random.randint(shift_key, (3,), -limit, limit + 1)
    return jnp.roll(volume, shift, axis=(0, 1, 2))


def half_turn(volume: jax.Array) -> jax.Array:
    """Turns ``(z, y, x)`` by 180 degrees about y, exactly, round voxel ``n // 2``."""
    even = [1 - side % 2 for side in (volume.shape[0], volume.shape[2])]
    return jnp.roll(volume[::-1, :, ::-1], even, axis=(0, 2))


def draw_balanced(labels: np.ndarray, num: int, *, seed: int, epoch: int) -> np.ndarray:
    """Draws examples, of each class as often as of the others.

    Args:
        labels: ``(n,)`` classes from 0, none empty.
        num: how many to draw.
        seed: of the run.
        epoch: draws differently each time.

    Returns:
        ``(num,)`` indices. Any run of as many of them as there are classes that begins at a
        multiple of that has one of each class; a class's members are seen in turn, in an order that
        is shuffled anew each time round.
    """
    generator = np.random.default_rng([seed, epoch, *b"balanced"])
    num_classes = int(labels.max()) + 1
    num_rounds = num_batches(num, num_classes)
    drawn = np.empty((num_rounds, num_classes), np.intp)
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        times = num_batches(num_rounds, len(members))
        turns = np.concatenate([generator.permutation(members) for _ in range(times)])
        drawn[:, label] = turns[:num_rounds]
    return generator.permuted(drawn, axis=1).ravel()[:num]


def _with_encoder(weights: Weights, network: Network) -> Network:
    """The network with all arrays of the weights but those of its own dense layers."""
    dense = {
        name: array
        for name, array in functional.name_arrays(network.params).items()
        if name.startswith(DENSE)
    }
    given = transplant(weights, network)
    return given._replace(params=functional.replace_arrays(given.params, dense))


def _checked_labels(particles: Subtomograms) -> np.ndarray:
    if particles.labels is None:
        raise InputError(
            "the particles have no classes to learn; give a STAR file with rlnClassNumber"
        )
    classes, labels = np.unique(particles.labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError("all particles are of one class; give particles of two classes or more")
    return labels.astype(np.int32)
