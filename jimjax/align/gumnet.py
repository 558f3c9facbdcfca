"""A trained Gum-Net applied to particles: pairs, and poses against references.

Its features fade out towards the corners of the box. Particles are therefore moved to the middle
first, by whole voxels and as ``centring`` finds them, and the network is left with the rest of the
shift.
"""

from typing import NamedTuple

import jax
import numpy as np

from jimjax.align import inference
from jimjax.align.centring import centre_particles
from jimjax.align.inference import FULL_TILT, Alignments
from jimjax.align.measured import MeasuredVolumes
from jimjax.data.batches import map_chunks
from jimjax.data.lazy import LazyVolumes, Volumes
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.ops.rotation import Pose

BATCH_SIZE = 32  # particles at a time; has no influence on the result


class Centred(NamedTuple):
    """Particles in the middle of their boxes.

    Attributes:
        volumes: ``(n, z, y, x)``, moved back cyclically.
        offsets: ``(n, 3)``, (x, y, z) in whole voxels; where they were.
    """

    volumes: Volumes
    offsets: np.ndarray


def centre(volumes: Volumes, tilt_ranges: np.ndarray, *, max_shift: float) -> Centred:
    """Moves particles to the middle of their boxes.

    Args:
        volumes: ``(n, z, y, x)``, normalised; lazy ones are moved when they are read.
        tilt_ranges: ``(n, 2)`` degrees.
        max_shift: that they may have along each axis, voxels.

    Returns:
        The particles there.
    """
    found = centre_particles(MeasuredVolumes(volumes, tilt_ranges), max_shift=max_shift)
    offsets = np.round(found.shifts).astype(int)

    def move(rows: np.ndarray) -> np.ndarray:
        moved = volumes[rows]
        for volume, offset in zip(moved, offsets[rows], strict=True):
            volume[...] = np.roll(volume, tuple(-offset[::-1]), axis=(0, 1, 2))
        return moved

    if isinstance(volumes, LazyVolumes):
        return Centred(LazyVolumes(move, volumes.shape), offsets)
    return Centred(move(np.arange(len(volumes))), offsets)


def align_pairs(network: Network, sources: Centred, targets: Centred) -> Pose:
    """Asks the network once about each pair.

    Args:
        network: a Gum-Net.
        sources: ``n`` particles.
        targets: as many.

    Returns:
        Poses ``(n,)`` that carry sources onto targets as both were before they were moved.
    """
    found = map_chunks(
        lambda rows: _match(network, sources.volumes[rows], targets.volumes[rows]),
        len(sources.volumes),
        BATCH_SIZE,
    )
    shift = _moved_back(found.rotation, found.shift, sources.offsets, targets.offsets)
    return found._replace(shift=shift)


def align_to_references(
    network: Network,
    references: np.ndarray,
    volumes: np.ndarray,
    tilt_ranges: np.ndarray,
    *,
    max_shift: float,
    num_proposals: int,
    cutoff: float,
) -> Alignments:
    """Poses of particles against every reference.

    The network sees every reference in several orientations, and of its answers the one that
    correlates best is kept.

    Args:
        network: a Gum-Net.
        references: ``(k, z, y, x)``, normalised.
        volumes: ``(n, z, y, x)``, normalised.
        tilt_ranges: ``(n, 2)`` degrees.
        max_shift: of particles and references along each axis, voxels.
        num_proposals: orientations of a reference.
        cutoff: low-pass of the correlation, cycles per voxel.

    Returns:
        Alignments with fields ``(n, k, ...)``.
    """
    whole = np.tile(np.float32(FULL_TILT), (len(references), 1))
    # One at a time: centring assumes particles of few sizes, and a map is its own average.
    maps = [
        centre(references[rows], whole[rows], max_shift=max_shift)
        for rows in np.arange(len(references))[:, None]
    ]
    particles = centre(volumes, tilt_ranges, max_shift=max_shift)
    found = inference.align_to_all(
        network,
        np.concatenate([each.volumes for each in maps]),
        particles.volumes,
        inference.encode_all(network, particles.volumes, batch_size=BATCH_SIZE),
        tilt_ranges,
        num_proposals=num_proposals,
        batch_size=BATCH_SIZE,
        cutoff=cutoff,
    )
    offsets = np.concatenate([each.offsets for each in maps])
    shifts = _moved_back(found.rotations, found.shifts, offsets, particles.offsets[:, None])
    return found._replace(shifts=shifts)


@jax.jit
def _match(network: Network, sources: jax.Array, targets: jax.Array) -> Pose:
    return functional.apply(network, sources, targets, train=False)[0].pose


def _moved_back(
    rotations: np.ndarray, shifts: np.ndarray, sources: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Shifts ``(..., 3)`` between particles, from those between what was moved by offsets."""
    turned = np.einsum("...ij,...j->...i", rotations, np.asarray(sources, np.float32))
    return (shifts + targets - turned).astype(np.float32)
