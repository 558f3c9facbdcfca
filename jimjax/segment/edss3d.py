"""Segmentation learned from clusters: what an autoencoder draws of them, cut at a level.

A user selects clusters of particles. What the autoencoder drew of each of their members says
which voxels are the particle's; as many particles of other clusters are background altogether.
An EDSS3D learns to say so from the particles themselves.

Reference: Zeng et al. 2018, J. Struct. Biol. 202. Of its published code the form is followed that
labels all members of each selected cluster; the one in force takes clusters' numbers for
particles'. Drawn particles are normalised before they are cut, so that one level suits any noise.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.cluster.autoencoder import prepare
from jimjax.cluster.features import prepare as prepare_particles
from jimjax.cluster.model import Model
from jimjax.data.batches import map_chunks
from jimjax.data.subtomograms import Subtomograms, hash_arrays, normalize
from jimjax.io.errors import InputError
from jimjax.models import edss3d, functional
from jimjax.models.functional import Network
from jimjax.models.weights import Contrast, Description, Weights, build
from jimjax.ops import resample
from jimjax.ops.correlation import standardize
from jimjax.ops.principal_axes import principal_pose
from jimjax.progress import Progress
from jimjax.segment.edss3d_config import Edss3dTraining
from jimjax.train.patience import Errors, train_best
from jimjax.train.records import Origin, Record

PRESETS = {"small": edss3d.small, "paper": edss3d.paper}
CHUNK = 32  # particles at a time; has no influence on the result


class Lesson(NamedTuple):
    """What is taught.

    Attributes:
        rows: ``(m,)`` particles, members of the selected clusters and then background.
        channels: ``(m, size, size, size)`` int8, the place of each voxel's cluster among those
            selected, from 1, and 0 for background.
    """

    rows: np.ndarray
    channels: np.ndarray

    @property
    def fingerprint(self) -> str:
        """A hash that tells one lesson from another."""
        return hash_arrays(self.rows, self.channels)


class Example(NamedTuple):
    """Particles as the network takes them, and what it is to say.

    Attributes:
        volumes: ``(n, size, size, size)``.
        channels: likewise, int8.
    """

    volumes: np.ndarray
    channels: np.ndarray


class Segmenter(NamedTuple):
    """A trained EDSS3D.

    Attributes:
        weights: of the network.
        contrast: of the particles; where it is not that of the weights, they are negated.
    """

    weights: Weights
    contrast: Contrast

    def predict_proba(self, particles: Subtomograms) -> np.ndarray:
        """Probabilities ``(n, z, y, x, 1 + clusters)`` of background and of each cluster.

        Raises:
            InputError: if box or voxel size are not those it was made with.
        """
        return self._ask(_probabilities, particles)

    def predict(self, particles: Subtomograms) -> np.ndarray:
        """The number of each voxel's cluster, ``(n, z, y, x)`` int8; 0 for background.

        Raises:
            InputError: as of ``predict_proba``.
        """
        numbers = np.array([0, *self.weights.description.config.classes], np.int8)
        return numbers[self._ask(_choose, particles)]

    def _ask(self, question: Callable[..., jax.Array], particles: Subtomograms) -> np.ndarray:
        box = self.weights.description.config.box
        volumes = prepare_particles(self.weights, particles, self.contrast)

        def ask(rows: np.ndarray) -> jax.Array:
            return question(self.weights.network, volumes[rows], box)

        return map_chunks(ask, len(volumes), min(CHUNK, len(volumes)))


def teach(
    model: Model,
    particles: Subtomograms,
    training: Edss3dTraining,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Segmenter:
    """Trains an EDSS3D to find selected clusters' particles.

    Args:
        model: of ``cluster.autoencoder``.
        particles: like those it was made of; only volumes are looked at.
        training: which clusters, and how.
        folder: where checkpoints and a log are kept; nowhere if None.
        resume: go on with what the folder holds; the outcome is that of an uninterrupted run.
        command: as typed, for the record in the folder.
        progress: told of every step.

    Returns:
        The trained network.

    Raises:
        InputError: if the model is of another method or other particles, a cluster does not exist
            or has no members, the box does not suit the network, or the folder holds another run.
        Interrupted: after SIGTERM or SIGINT, with everything saved.
    """
    given = model.weights.description
    if given.kind != "autoencoder":
        raise InputError(
            f"segmentation needs clusters of an autoencoder, these are of a {given.kind}; "
            "cluster with --method autoencoder"
        )
    labels = model.predict(particles)
    check_clusters(labels, model.num_classes, training.clusters)
    try:
        sizes = PRESETS[training.preset](given.config.box, training.clusters)
    except ValueError as problem:
        raise InputError(f"particles of {given.config.box} voxels: {problem}") from problem
    sign = 1 if model.contrast == given.contrast else -1
    volumes = sign * normalize(particles.volumes)
    lesson = prepare_lesson(model.weights, volumes, labels, training, sizes.size)
    description = Description(sizes, given.contrast, given.voxel_size)
    network = build(sizes, jax.random.key(training.seed), training.compute)
    examples = Example(prepare(network, volumes[lesson.rows]), lesson.channels)
    errors = _make_errors(_weights_of(lesson.channels, training))
    record = None
    if folder is not None:
        record = Record(Path(folder), Origin(training, particles, lesson), command, resume)
    network = train_best(
        "edss3d", network, examples, errors, training, record=record, progress=progress
    )
    return Segmenter(Weights(description, network), model.contrast)


def check_clusters(labels: np.ndarray, num_clusters: int, clusters: tuple[int, ...]) -> None:
    """Refuses clusters that there are not.

    Args:
        labels: ``(n,)`` of particles, from 0.
        num_clusters: how many there are.
        clusters: numbers from 1.

    Raises:
        InputError: if one does not exist or no particle is in it.
    """
    for number in clusters:
        if number > num_clusters:
            raise InputError(
                f"there is no cluster {number}; choose from 1 to {num_clusters}, as in "
                "rlnClassNumber"
            )
        if not np.any(labels == number - 1):
            raise InputError(f"no particle is in cluster {number}; choose another one")


def prepare_lesson(
    autoencoder: Weights,
    volumes: np.ndarray,
    labels: np.ndarray,
    training: Edss3dTraining,
    size: int,
) -> Lesson:
    """Labels the voxels of all members of the selected clusters, and as many other particles.

    Args:
        autoencoder: that draws the members.
        volumes: ``(n, z, y, x)``, normalised, protein positive.
        labels: ``(n,)`` clusters from 0.
        training: which clusters, the level, and the seed of the choice of background.
        size: side of the labelled volumes in voxels.

    Returns:
        The lesson; there is less background where other clusters have fewer particles.

    Raises:
        InputError: if nothing of the members reaches the level.
    """
    places = np.zeros(1 + max(labels.max(), max(training.clusters)), np.int8)
    places[np.array(training.clusters) - 1] = np.arange(1, len(training.clusters) + 1)
    members, others = (np.flatnonzero((places[labels] > 0) == wanted) for wanted in (True, False))
    generator = np.random.default_rng([training.seed, *b"background"])
    background = generator.permutation(others)[: len(members)]
    drawn = draw(autoencoder, volumes[members], size)
    is_particle = drawn > training.threshold
    if not is_particle.any():
        raise InputError(
            f"nothing that the autoencoder draws of the clusters reaches {training.threshold:g}; "
            "lower the threshold, or cluster again with another seed"
        )
    channels = is_particle * places[labels[members]][:, None, None, None]
    empty = np.zeros((len(background), *channels.shape[1:]), np.int8)
    return Lesson(np.concatenate([members, background]), np.concatenate([channels, empty]))


def draw(autoencoder: Weights, volumes: np.ndarray, size: int) -> np.ndarray:
    """Particles as an autoencoder draws them, in the poses that they have.

    Args:
        autoencoder: of an Autoencoder3D.
        volumes: ``(n, z, y, x)``, normalised, protein positive.
        size: side of what is drawn, in voxels.

    Returns:
        ``(n, size, size, size)``, normalised.
    """
    network, config = autoencoder.network, autoencoder.description.config
    prepared = prepare(network, volumes)

    def ask(rows: np.ndarray) -> jax.Array:
        return _draw(network, prepared[rows], volumes[rows], size, config.is_pose_normalized)

    return map_chunks(ask, len(volumes), min(CHUNK, len(volumes)))


@functools.partial(jax.jit, static_argnames=("size", "is_moved"))
def _draw(
    autoencoder: Network, prepared: jax.Array, volumes: jax.Array, size: int, is_moved: bool
) -> jax.Array:
    found, _ = functional.apply(autoencoder, prepared, train=False, method="reconstruct")

    def place(decoded: jax.Array, volume: jax.Array) -> jax.Array:
        if is_moved:
            decoded = jax.image.resize(decoded, volume.shape, "linear")
            pose = principal_pose(volume)
            decoded = resample.transform(decoded, pose, fill=jnp.mean(decoded))
        return standardize(jax.image.resize(decoded, (size,) * 3, "linear"))

    return jax.vmap(place)(found.decoded, volumes)


@functools.partial(jax.jit, static_argnames="box")
def _probabilities(network: Network, volumes: jax.Array, box: int) -> jax.Array:
    logits, _ = functional.apply(network, volumes, train=False)
    found = jax.nn.softmax(logits)
    return jax.image.resize(found, (len(found), box, box, box, found.shape[-1]), "linear")


@functools.partial(jax.jit, static_argnames="box")
def _choose(network: Network, volumes: jax.Array, box: int) -> jax.Array:
    return jnp.argmax(_probabilities(network, volumes, box), axis=-1).astype(jnp.int8)


def _weights_of(channels: np.ndarray, training: Edss3dTraining) -> np.ndarray:
    """What a voxel of each channel counts; 1 on average over all voxels."""
    counts = np.bincount(channels.ravel(), minlength=1 + len(training.clusters))
    if not training.balance_voxels:
        return np.ones(len(counts), np.float32)
    share = channels.size / np.count_nonzero(counts)
    return np.where(counts > 0, share / np.maximum(counts, 1), 0).astype(np.float32)


def _make_errors(weights: np.ndarray) -> Errors:
    def errors(network: Network, examples: Example) -> jax.Array:
        """Weighted cross entropy of each particle, the mean over its voxels."""
        logits, _ = functional.apply(network, examples.volumes, train=True, method="segment")
        channels = examples.channels.astype(jnp.int32)
        log = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(log, channels[..., None], axis=-1)[..., 0]
        return -jnp.mean(jnp.asarray(weights)[channels] * right, axis=(1, 2, 3))

    return errors
