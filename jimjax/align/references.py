"""References: what the particles of each cluster look like, aligned and averaged."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from jimjax.align.inference import Alignments, Description, align_to_all, encode, refine
from jimjax.average.class_average import (
    add_sums,
    correlate_half_maps,
    divide_sum,
    soft_sphere,
    sum_particles,
)
from jimjax.config import PredictSection
from jimjax.data.lazy import LazyVolumes, Volumes, select_rows
from jimjax.models.functional import Network
from jimjax.ops import fourier
from jimjax.ops.correlation import standardize
from jimjax.ops.rotation import Pose

MIN_MEMBERS = 4  # particles below which a cluster has no average, only a first particle
MIN_SHARE = 0.3  # of an equal share of particles, below which a surplus cluster is dropped


class Assignment(NamedTuple):
    """Particles sorted by the reference that they correlate with best.

    Attributes:
        labels: ``(n,)`` int32.
        references: ``(k, z, y, x)``, normalised, made from the particles so labelled.
        alignments: ``(n, ...)``, each to its own reference as it was before, refined.
    """

    labels: np.ndarray
    references: np.ndarray
    alignments: Alignments


class Particles(NamedTuple):
    """Particles as the aligner wants them.

    Attributes:
        volumes: ``(n, z, y, x)``, normalised.
        tilt_ranges: ``(n, 2)`` degrees.
        centres: ``(n, 3)``, where each is in its box, voxels (x, y, z) from the middle.
        description: what the network says of them.
    """

    volumes: Volumes
    tilt_ranges: np.ndarray
    centres: np.ndarray
    description: Description | None = None

    def select(self, rows: np.ndarray) -> "Particles":
        """The particles of some rows."""
        return jax.tree.map(lambda each: select_rows(each, rows), self)


def first_references(
    particles: Particles, labels: np.ndarray, num_clusters: int, *, cutoff: float
) -> np.ndarray:
    """Takes from each cluster the particle nearest to its middle, low-passed.

    Args:
        particles: with features.
        labels: ``(n,)`` clusters; one without particles borrows from the largest,
            or from any once that is used up.
        num_clusters: how many references.
        cutoff: of the low-pass, cycles per voxel.

    Returns:
        ``(num_clusters, z, y, x)``, normalised.
    """
    features = particles.description.features
    largest = np.bincount(labels, minlength=num_clusters).argmax()
    chosen = []
    for label in range(num_clusters):
        members = np.flatnonzero(labels == label)
        if len(members) == 0:
            free = np.setdiff1d(np.arange(len(labels)), chosen)
            members = free[labels[free] == largest]
            members = members if len(members) else free
        middle = features[members].mean(0)
        order = np.linalg.norm(features[members] - middle, axis=1)
        chosen.append(members[int(order.argmin())])
    return np.stack([np.asarray(_smooth(particles.volumes[i], cutoff)) for i in chosen])


def reassign(
    network: Network,
    particles: Particles,
    references: np.ndarray,
    *,
    cutoff: float,
    config: PredictSection,
) -> Assignment:
    """Aligns every particle to every reference, keeps the best, and averages anew.

    Args:
        network: a Jim-Net.
        particles: all of them.
        references: ``(k, z, y, x)``, normalised.
        cutoff: low-pass of the correlation that judges poses, cycles per voxel.
        config: batch size, proposals and refinements.

    Returns:
        Labels, and the references that follow from them, moved into the middle of the box; a
        reference that attracts hardly any particle stays as it was.
    """
    everything = align_to_all(
        network,
        references,
        particles.volumes,
        particles.description.codes,
        particles.tilt_ranges,
        num_proposals=config.num_proposals,
        batch_size=config.batch_size,
        cutoff=cutoff,
    )
    labels, found = everything.best()
    own = LazyVolumes(lambda rows: references[labels[rows]], particles.volumes.shape)
    found = refine(
        network,
        own,
        particles.volumes,
        particles.tilt_ranges,
        found,
        num_steps=config.num_refinements,
        batch_size=config.batch_size,
        cutoff=cutoff,
    )
    centred = _centre(found, labels, particles.centres, len(references))
    averages = []
    for label, reference in enumerate(references):
        members = np.flatnonzero(labels == label)
        has_average = len(members) >= MIN_MEMBERS
        averages.append(average_members(particles, centred, members) if has_average else reference)
    return Assignment(labels.astype(np.int32), np.stack(averages), found)


def _centre(
    found: Alignments, labels: np.ndarray, centres: np.ndarray, num_references: int
) -> Alignments:
    """Shifts from where the particles of each reference have their centres, on average."""
    within = np.einsum("nji,nj->ni", found.rotations, centres - found.shifts)
    sums = np.zeros((num_references, 3))
    np.add.at(sums, labels, within)
    means = sums / np.maximum(np.bincount(labels, minlength=num_references), 1)[:, None]
    moved = np.einsum("nij,nj->ni", found.rotations, means[labels])
    return found._replace(shifts=(found.shifts + moved).astype(found.shifts.dtype))


def merge(
    network: Network,
    assignment: Assignment,
    num_clusters: int,
    *,
    cutoff: float,
    config: PredictSection,
) -> np.ndarray:
    """Joins the clusters whose references look most alike, once aligned.

    Clusters with few particles are dropped first: their references are poor, look like nothing
    else, and would count as classes of their own.

    Args:
        network: a Jim-Net.
        assignment: to more clusters than wanted.
        num_clusters: how many to leave.
        cutoff: low-pass of the correlation, cycles per voxel.
        config: batch size and proposals.

    Returns:
        ``(num_clusters, z, y, x)``: of each group the reference with the most particles.
    """
    sizes = np.bincount(assignment.labels, minlength=len(assignment.references))
    order = np.argsort(-sizes, kind="stable")
    is_large = sizes[order] >= MIN_SHARE * sizes.mean()
    chosen = order[: max(num_clusters, int(is_large.sum()))]
    references, sizes = assignment.references[chosen], sizes[chosen]
    num = len(references)
    if num <= num_clusters:
        return references
    likeness = align_to_all(
        network,
        references,
        references,
        encode(network, references),
        np.tile([-90.0, 90.0], (num, 1)).astype(np.float32),
        num_proposals=config.num_proposals,
        batch_size=config.batch_size,
        cutoff=cutoff,
    ).correlations
    distance = 1 - np.maximum(likeness, likeness.T)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(np.clip(distance, 0, None), checks=False), method="average")
    group = fcluster(tree, num_clusters, criterion="maxclust") - 1
    kept = [max(np.flatnonzero(group == g), key=lambda i: sizes[i]) for g in range(group.max() + 1)]
    # Ties can leave fewer groups than asked for: the largest clusters without one fill up.
    spare = [i for i in np.argsort(-sizes) if i not in kept]
    return references[kept + spare[: num_clusters - len(kept)]]


def average_members(particles: Particles, found: Alignments, members: np.ndarray) -> np.ndarray:
    """Averages some particles in their poses, filtered by how far two halves of them agree.

    Args:
        particles: all of them; their description is not looked at.
        found: ``(n, ...)`` poses; correlations are not looked at.
        members: ``(m,)`` rows, at least two.

    Returns:
        ``(z, y, x)``, normalised.
    """
    halves = [
        sum_particles(
            select_rows(particles.volumes, part),
            particles.tilt_ranges[part],
            Pose(found.rotations[part], found.shifts[part]),
            order=1,
        )
        for part in (members[::2], members[1::2])
    ]
    size = particles.volumes.shape[-1]
    agreement = correlate_half_maps(*(divide_sum(half, size) for half in halves))
    return np.asarray(_filtered(divide_sum(add_sums(*halves), size), agreement))


@jax.jit
def _smooth(volume: jax.Array, cutoff: float) -> jax.Array:
    """A single particle as a reference: low-passed, and without what lies in the corners."""
    return standardize(fourier.bandpass(volume, high=cutoff) * soft_sphere(volume.shape))


@jax.jit
def _filtered(average: jax.Array, agreement: jax.Array) -> jax.Array:
    """Weighs the shells of an average by 2 FSC / (1 + FSC), the Wiener filter of two halves."""
    agreement = jnp.clip(agreement, 0.0, 1.0)
    weights = 2 * agreement / (1 + agreement)
    shells = jnp.minimum(fourier.shell_index(average.shape), len(weights) - 1)
    filtered = fourier.irfft(fourier.rfft(average) * weights[shells], average.shape)
    return standardize(filtered * soft_sphere(average.shape))
