"""Between epochs: cluster what the network makes of the particles (Jim-Net, algorithm 1).

The paper fits a Gaussian mixture to the features F(x, x). Here the alignment branch can have the
last word: the mixture proposes more clusters than wanted, each gives a reference, particles move
to the reference that they correlate with best once aligned, and references that turn out to be
the same molecule are joined. Averages of many particles tell molecules apart where single
particles cannot.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align.centring import centre_particles
from jimjax.align.inference import describe
from jimjax.align.measured import MeasuredVolumes
from jimjax.align.references import (
    MIN_MEMBERS,
    Assignment,
    Particles,
    first_references,
    merge,
    reassign,
)
from jimjax.cluster.assignment import principal_axes
from jimjax.config import PredictSection, RunConfig
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.evaluate.clustering import match_labels
from jimjax.models.functional import Network
from jimjax.ops import mixture


class Memory(NamedTuple):
    """What one epoch hands to the next.

    Attributes:
        labels: ``(n,)`` int32 clusters, -1 before the first clustering.
        references: ``(k, z, y, x)``, normalised; zeros before the first clustering.
    """

    labels: np.ndarray
    references: np.ndarray


def initial_memory(num_particles: int, num_classes: int, box: int) -> Memory:
    """Nothing known yet."""
    labels = np.full(num_particles, -1, np.int32)
    return Memory(labels, np.zeros((num_classes, box, box, box), np.float32))


def prepare(particles: Subtomograms, config: RunConfig) -> Particles:
    """Normalises particles and finds their centres.

    Args:
        particles: only volumes and tilt ranges are looked at.
        config: the run; of its pretrain section the largest displacement.
    """
    volumes = normalize(particles.volumes)
    tilt_ranges = np.asarray(particles.tilt_ranges, np.float32)
    measured = MeasuredVolumes(volumes, tilt_ranges)
    found = centre_particles(measured, max_shift=config.pretrain.max_shift * measured.box)
    return Particles(volumes, tilt_ranges, found.shifts)


def recluster(
    key: jax.Array,
    network: Network,
    particles: Particles,
    memory: Memory,
    config: RunConfig,
) -> tuple[Memory, dict[str, float]]:
    """Clusters the particles anew.

    Args:
        key: seeds the mixture.
        network: as trained so far.
        particles: of ``prepare``.
        memory: of the last epoch.
        config: the run.

    Returns:
        The new memory, and numbers to log.

    Raises:
        ValueError: if there are fewer particles than clusters.
    """
    num_classes = config.network.num_classes
    is_first = bool((memory.labels < 0).all())
    particles = _describe(network, particles, config)
    if config.cluster.method == "features":
        features = particles.description.features
        labels = cluster_features(key, features, num_classes, config)
        if not is_first:
            labels = match_labels(labels, memory.labels, num_classes).astype(np.int32)
        new, correlation = Memory(labels, memory.references), {}
    else:
        if is_first:
            references = _found_references(key, network, particles, num_classes, config)
        else:
            references = memory.references
        assignment = _reassign(network, particles, references, config)
        assignment = _revive(key, network, particles, assignment, config)
        new = Memory(assignment.labels, assignment.references)
        correlation = {"correlation": float(assignment.alignments.correlations.mean())}
    sizes = np.bincount(new.labels, minlength=num_classes)
    kept = 0.0 if is_first else float(np.mean(new.labels == memory.labels))
    return new, {"share_kept": kept, "smallest_cluster": int(sizes.min()), **correlation}


def final_references(
    network: Network,
    particles: Particles,
    memory: Memory,
    config: RunConfig,
) -> np.ndarray:
    """References ``(k, z, y, x)`` made with the trained network, to pose particles against."""
    particles = _describe(network, particles, config)
    references = memory.references
    if config.cluster.method == "features":
        references = first_references(
            particles, memory.labels, len(references), cutoff=config.joint.cutoff
        )
    for _ in range(config.cluster.rounds):
        references = _reassign(network, particles, references, config).references
    return references


def cluster_features(
    key: jax.Array, features: np.ndarray, num_classes: int, config: RunConfig
) -> np.ndarray:
    """Fits a full-covariance Gaussian mixture to the principal components of features.

    Args:
        key: seeds the starts.
        features: ``(n, d)``.
        num_classes: clusters.
        config: the run; its cluster section is used.

    Returns:
        ``(n,)`` int32 labels.

    Raises:
        ValueError: if there are fewer particles than clusters.
    """
    section = config.cluster
    scores = principal_axes(features, section.num_components).project(features)
    fitted, _ = mixture.fit(
        key,
        scores,
        num_components=num_classes,
        num_init=section.num_init,
        regularization=section.regularization,
    )
    posterior = mixture.e_step(scores, fitted)
    return np.asarray(jnp.argmax(posterior.log_responsibilities, axis=1), np.int32)


def _describe(network: Network, particles: Particles, config: RunConfig) -> Particles:
    described = describe(network, particles.volumes, batch_size=config.predict.batch_size)
    return particles._replace(description=described)


def _found_references(
    key: jax.Array, network: Network, particles: Particles, num_classes: int, config: RunConfig
) -> np.ndarray:
    surplus = int(config.cluster.surplus * num_classes)
    num_first = max(num_classes, min(surplus, len(particles.volumes)))
    labels = cluster_features(key, particles.description.features, num_first, config)
    references = first_references(particles, labels, num_first, cutoff=config.joint.cutoff)
    for _ in range(max(1, config.cluster.rounds)):
        assignment = _reassign(network, particles, references, config)
        references = assignment.references
    cutoff = config.joint.cutoff
    return merge(network, assignment, num_classes, cutoff=cutoff, config=_search(config))


def _revive(
    key: jax.Array,
    network: Network,
    particles: Particles,
    assignment: Assignment,
    config: RunConfig,
) -> Assignment:
    """Splits the largest cluster in two for each cluster that lost its particles.

    A cluster without particles means that another holds two kinds, or that there are fewer kinds
    than clusters; then the halves are alike, and no harm is done.
    """
    sizes = np.bincount(assignment.labels, minlength=len(assignment.references))
    dead = np.flatnonzero(sizes < MIN_MEMBERS)
    references = assignment.references.copy()
    for number, label in enumerate(dead):
        largest = int(sizes.argmax())
        if sizes[largest] < 2 * MIN_MEMBERS:
            break
        members = particles.select(np.flatnonzero(assignment.labels == largest))
        number_key = jax.random.fold_in(key, number)
        halves = _found_references(number_key, network, members, 2, config)
        references[[largest, label]] = halves
        sizes[[largest, label]] = 0  # not split again in this round
    return assignment if len(dead) == 0 else _reassign(network, particles, references, config)


def _reassign(
    network: Network, particles: Particles, references: np.ndarray, config: RunConfig
) -> Assignment:
    cutoff = config.joint.cutoff
    return reassign(network, particles, references, cutoff=cutoff, config=_search(config))


def _search(config: RunConfig) -> PredictSection:
    section = config.cluster
    return replace(
        config.predict,
        num_proposals=section.num_proposals,
        num_refinements=section.num_refinements,
    )
