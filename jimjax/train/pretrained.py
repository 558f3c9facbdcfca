"""A pre-trained Jim-Net on particles that it has never seen, without training.

Pre-training on random molecules teaches how to describe and how to align any molecule; what is
left to find of new particles are the references. A part of the particles is clustered by their
features, aligned and averaged (``em.recluster``); then all of them are.
"""

import jax
import numpy as np

from jimjax.align.references import Particles
from jimjax.config import ClusterSection, DataSection, NetworkSection, RunConfig
from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.models.functional import Network
from jimjax.models.weights import Weights
from jimjax.train import em
from jimjax.train.run import Prediction, Run, predict

NUM_PER_CLASS = 50  # particles that references are begun with: as many as a first average needs
ROUNDS = 2  # alignments and averages of that part, and of all particles after
NUM_PROPOSALS = 4  # turns of a reference in these rounds


def adopt(weights: Weights, particles: Subtomograms, *, num_classes: int, seed: int = 0) -> Run:
    """Makes references for particles with a network that was trained on others.

    Args:
        weights: of a Jim-Net for the box of the particles; its own number of classes does not
            matter.
        particles: of the contrast it was trained for; poses and classes are not read.
        num_classes: how many references.
        seed: of the clustering.

    Returns:
        A run that is kept nowhere, to ``predict`` with.

    Raises:
        InputError: if there are too few particles.
    """
    if len(particles) < 2 * num_classes:
        raise InputError(
            f"{len(particles)} particles are too few for {num_classes} classes; "
            f"give at least {2 * num_classes}"
        )
    config = _configure(weights, num_classes, seed)
    references = _find_references(weights.network, em.prepare(particles, config), config)
    return Run(None, config, weights.network, references, particles.voxel_size)


def pose_classes(
    weights: Weights, particles: Subtomograms, labels: np.ndarray, *, seed: int = 0
) -> Prediction:
    """Poses of particles whose classes are known, each against the average of its own class.

    Args:
        weights: of a Jim-Net, as of ``adopt``.
        particles: likewise.
        labels: ``(n,)`` classes from 0.
        seed: of which particles references are begun with.

    Returns:
        One row per particle; the particle of a class of one is where it is.
    """
    rows = np.arange(len(particles))
    found = Prediction(
        np.asarray(labels, np.int32),
        np.eye(int(labels.max()) + 1, dtype=np.float32)[labels],
        np.zeros((len(rows), 0), np.float32),
        np.tile(np.eye(3, dtype=np.float32), (len(rows), 1, 1)),
        np.zeros((len(rows), 3), np.float32),
        np.ones(len(rows), np.float32),
    )
    config = _configure(weights, 1, seed)
    prepared = em.prepare(particles, config)
    for label in np.unique(labels):
        members = rows[labels == label]
        if len(members) < 2:
            continue
        references = _find_references(weights.network, prepared.select(members), config)
        run = Run(None, config, weights.network, references, particles.voxel_size)
        posed = predict(run, particles.select(members))
        for name in ("rotations", "shifts", "correlations"):
            getattr(found, name)[members] = getattr(posed, name)
    return found


def _find_references(network: Network, particles: Particles, config: RunConfig) -> np.ndarray:
    num, num_classes = len(particles.volumes), config.network.num_classes
    order = np.random.default_rng(config.seed).permutation(num)
    part = np.sort(order[: NUM_PER_CLASS * num_classes])
    memory = em.initial_memory(len(part), num_classes, particles.volumes.shape[-1])
    key = jax.random.key(config.seed)
    memory, _ = em.recluster(key, network, particles.select(part), memory, config)
    return em.final_references(network, particles, memory, config)


def _configure(weights: Weights, num_classes: int, seed: int) -> RunConfig:
    return RunConfig(
        seed=seed,
        network=NetworkSection(num_classes=num_classes),
        data=DataSection(contrast=weights.description.contrast),
        cluster=ClusterSection(rounds=ROUNDS, num_proposals=NUM_PROPOSALS),
    )
