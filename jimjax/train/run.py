"""A run: a folder with all that prediction needs and all that repeats it."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jimjax import distributed
from jimjax.align import inference
from jimjax.config import RunConfig, read_config
from jimjax.data.batches import map_chunks
from jimjax.data.subtomograms import Subtomograms, check_scale, normalize
from jimjax.io import mrc
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh, replicate, split_state, whole
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.models.weights import Description, Weights, load_weights, save_weights, transplant
from jimjax.progress import Progress
from jimjax.segment.pseudo_labels import central_components
from jimjax.train import em, gumnet, jimnet
from jimjax.train import teacher as teaching
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.profile import Profile
from jimjax.train.recipes import recipe_of, settle
from jimjax.train.records import CONFIG, PROVENANCE, Origin, begin_folder, check_folder
from jimjax.train.resume import CHECKPOINTS, train_in_folder
from jimjax.train.state import initial_state, network_of
from jimjax.train.teacher import Teacher

REFERENCES, WEIGHTS = "references.mrcs", "weights.safetensors"
THRESHOLD = 0.5  # probability from which a voxel is the particle's
CONNECTED = 0.25  # and above which voxels must lie between its parts


class Run(NamedTuple):
    """A trained Jim-Net or UMTL, or a network without references: a Gum-Net, or a UMTL that does
    not align.

    Attributes:
        folder: where it is kept; None for one that was never saved.
        config: what it was trained with.
        network: with trained parameters.
        references: ``(k, z, y, x)``, normalised, one per cluster; k is 0 if there are none.
        voxel_size: Angstrom, of the particles it was trained on.
    """

    folder: Path | None
    config: RunConfig
    network: Network
    references: np.ndarray
    voxel_size: float


class Prediction(NamedTuple):
    """Classes and poses of particles, and masks of a UMTL that segments.

    What a UMTL was not trained for is missing: poses are None without "align", and all particles
    are of one class without "cluster".

    Attributes:
        labels: ``(n,)`` clusters from 0.
        probabilities: ``(n, k)``, of the clusters: by how well the particle correlates with their
            references, or, where ``cluster.method`` is "features", of the cluster head.
        features: ``(n, d)``, F(x, x).
        rotations: ``(n, 3, 3)``, carry the cluster's reference into the particle.
        shifts: ``(n, 3)``, ``(x, y, z)`` in voxels.
        correlations: ``(n,)`` with the reference at that pose.
        masks: ``(n, z, y, x)`` boolean, the voxels of each particle; None if not segmented.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    rotations: np.ndarray | None
    shifts: np.ndarray | None
    correlations: np.ndarray | None
    masks: np.ndarray | None = None


def train_run(
    config: RunConfig,
    particles: Subtomograms,
    folder: str | Path,
    *,
    weights: Weights | None = None,
    teacher: Teacher | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    profile: Profile | None = None,
    tensorboard: bool = False,
    command: str = "",
    mesh: Mesh | None = None,
) -> Run:
    """Trains a network and keeps it in a folder.

    Args:
        config: the run.
        particles: without truth.
        folder: new, or with ``resume`` that of a run that was interrupted.
        weights: to begin with instead of random ones; all but the cluster head.
        teacher: classes and poses to learn, of as many classes as the configuration's; without
            one they are found while training.
        resume: go on where the folder's newest checkpoint is; the outcome is that of an
            uninterrupted run.
        progress: told of every step.
        profile: traces some of them.
        tensorboard: also write what is logged as events into ``tensorboard`` in the folder.
        command: as typed, for the record.
        mesh: devices that share a step; all of them if None.

    Returns:
        The trained run.

    Raises:
        InputError: if the folder holds a run and ``resume`` is off; if it holds none, or one of
            another configuration or of other particles, and ``resume`` is on; if there are too
            few particles; if the weights do not fit the configuration; or if there is a teacher
            for a UMTL.
        Interrupted: after SIGTERM or SIGINT, with everything saved.
        loop.TrainingError: if the loss stays non-finite.
    """
    folder = Path(folder)
    _check_particles(config, particles)
    if teacher is not None and config.network.kind == "umtl":
        raise InputError("a UMTL learns without a teacher; leave it out, or train a Jim-Net")
    origin = Origin(config, particles, teacher, weights)
    check_folder(origin, folder, resume)
    network = _initial_network(config, particles.volumes.shape[-1], weights)
    if not resume:
        begin_folder(origin, folder, command)
    mesh, key = mesh or data_mesh(), jax.random.key(config.seed)
    step_key, cluster_key = jax.random.split(key)
    box = particles.volumes.shape[-1]
    settled = settle(config)
    optimizer = jimnet.build_optimizer(settled, len(particles))
    state = split_state(initial_state(network, optimizer), mesh)
    memory = em.initial_memory(len(particles), settled.network.num_classes, box)
    if config.network.kind == "gumnet":
        particles, offsets = gumnet.centre_particles(particles)
        teacher = teacher and teacher.moved(offsets)
    if teacher is not None:
        memory = teaching.initial_memory(particles, teacher)
        stages = teaching.build_stages(config, particles, teacher, mesh)
    elif config.network.kind == "gumnet":
        stages = gumnet.build_stages(config, particles, mesh)
    else:
        prepared = em.prepare(particles, config)
        stages = recipe_of(config).build_stages(settled, network, prepared, mesh, cluster_key)
    state, memory = train_in_folder(
        folder,
        network,
        state,
        memory,
        stages,
        resume=resume,
        key=step_key,
        optimizer=optimizer,
        mesh=mesh,
        progress=progress,
        profile=profile,
        tensorboard=tensorboard,
    )
    trained = network_of(network, whole(state, mesh))
    if not _has_references(config):
        return _finish_without_references(config, trained, particles, folder)
    references = memory.references
    if teacher is None:
        references = em.final_references(trained, prepared, memory, settled)
    if distributed.is_first():
        mrc.write_stack(folder / REFERENCES, references, voxel_size=particles.voxel_size)
    return Run(folder, config, trained, references, particles.voxel_size)


def untrained_run(config: RunConfig, particles: Subtomograms) -> Run:
    """The baseline: the network as initialised, with references built in the same way.

    Args:
        config: the run.
        particles: without truth.

    Returns:
        A run that is kept nowhere.
    """
    _check_particles(config, particles)
    box = particles.volumes.shape[-1]
    network = recipe_of(config).build_network(config, box)
    settled = settle(config)
    memory = em.initial_memory(len(particles), settled.network.num_classes, box)
    references = memory.references[:0]
    if _has_references(config):
        key = jax.random.split(jax.random.key(config.seed))[1]
        prepared = em.prepare(particles, config)
        memory, _ = em.recluster(key, network, prepared, memory, settled)
        references = em.final_references(network, prepared, memory, settled)
    return Run(None, config, network, references, particles.voxel_size)


def load_run(folder: str | Path) -> Run:
    """Loads a trained run.

    Args:
        folder: of ``train_run``.

    Returns:
        The run.

    Raises:
        InputError: if the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: not a run (it has no {CONFIG}); make one with jimjax train")
    config = read_config(folder / CONFIG)
    has_references = _has_references(config)
    if not (folder / (REFERENCES if has_references else WEIGHTS)).is_file():
        raise InputError(f"{folder}: training has not finished; go on with jimjax train --resume")
    if not has_references:
        return _load_without_references(config, folder)
    stack = mrc.read_images(folder / REFERENCES)
    provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    num_particles, box = provenance["num_particles"], provenance["box"]
    network = recipe_of(config).build_network(config, box)
    settled = settle(config)
    state = initial_state(network, jimnet.build_optimizer(settled, num_particles))
    state = replicate(state, data_mesh(1))
    memory = em.initial_memory(num_particles, settled.network.num_classes, box)
    with open_checkpoints(folder / CHECKPOINTS) as checkpoints:
        saved = checkpoints.restore({"state": state, "memory": memory})
    trained = network_of(network, saved["state"])
    return Run(folder, config, trained, np.asarray(stack.data), provenance["voxel_size"])


def weights_of(run: Run) -> Weights:
    """The network of a run, to be saved or applied to other particles."""
    network_config = recipe_of(run.config).network_config(run.config, run.references.shape[-1])
    contrast = run.config.data.contrast
    return Weights(Description(network_config, contrast, run.voxel_size), run.network)


def predict(run: Run, particles: Subtomograms) -> Prediction:
    """Classifies particles and finds their poses; a UMTL also segments them.

    Args:
        run: trained.
        particles: of the box and voxel size that the run was trained on.

    Returns:
        One row per particle.

    Raises:
        InputError: if box or voxel size differ, or the run is that of a Gum-Net.
    """
    if run.config.network.kind == "gumnet":
        raise InputError(
            f"{run.folder}: a Gum-Net has no classes of its own; give it references with "
            "jimjax align --method gumnet"
        )
    box = run.references.shape[-1]
    check_scale(particles, box=box, voxel_size=run.voxel_size, whose="the run")
    volumes, tilt_ranges = _inputs(particles)
    found = _pose(run, volumes, tilt_ranges) if len(run.references) else _classify(run, volumes)
    if run.config.network.kind == "umtl" and "segment" in run.config.umtl.tasks:
        found = found._replace(masks=_segment(run, volumes))
    return found


def _pose(run: Run, volumes: np.ndarray, tilt_ranges: np.ndarray) -> Prediction:
    """Classes and poses by how particles correlate with references."""
    section = run.config.predict
    described = inference.describe(run.network, volumes, batch_size=section.batch_size)
    everything = inference.align_to_all(
        run.network,
        run.references,
        volumes,
        described.codes,
        tilt_ranges,
        num_proposals=section.num_proposals,
        batch_size=section.batch_size,
        cutoff=run.config.joint.cutoff,
    )
    labels, found = everything.best()
    probabilities = inference.class_probabilities(
        everything.correlations,
        tilt_ranges,
        box=volumes.shape[-1],
        cutoff=run.config.joint.cutoff,
    )
    if run.config.cluster.method == "features":
        probabilities = described.probabilities
        labels = probabilities.argmax(axis=1)
        rows = np.arange(len(labels))
        found = inference.Alignments(*(field[rows, labels] for field in everything))
    found = inference.refine(
        run.network,
        run.references[labels],
        volumes,
        tilt_ranges,
        found,
        num_steps=section.num_refinements,
        batch_size=section.batch_size,
        cutoff=run.config.joint.cutoff,
    )
    return Prediction(
        labels.astype(np.int32),
        probabilities,
        described.features,
        found.rotations,
        found.shifts,
        found.correlations,
    )


def _classify(run: Run, volumes: np.ndarray) -> Prediction:
    """Classes alone, by the cluster head; one class where nothing was clustered."""
    batch_size = run.config.predict.batch_size
    described = inference.describe(run.network, volumes, batch_size=batch_size)
    probabilities = described.probabilities
    if "cluster" not in run.config.umtl.tasks:
        probabilities = np.ones((len(volumes), 1), np.float32)
    labels = probabilities.argmax(axis=1).astype(np.int32)
    return Prediction(labels, probabilities, described.features, None, None, None)


def _segment(run: Run, volumes: np.ndarray) -> np.ndarray:
    """Masks of particles: where both stages find them probable on average, in or near one part."""
    probability = map_chunks(
        lambda rows: _mask_chunk(run.network, volumes[rows]),
        len(volumes),
        run.config.predict.batch_size,
    )
    return (probability >= THRESHOLD) & central_components(probability >= CONNECTED)


@jax.jit
def _mask_chunk(network: Network, volumes: jax.Array) -> jax.Array:
    found, _ = functional.apply(network, volumes, train=False, method="segment")
    return (jax.nn.sigmoid(found.coarse) + jax.nn.sigmoid(found.fine)) / 2


def _has_references(config: RunConfig) -> bool:
    kind = config.network.kind
    return kind == "jimnet" or (kind == "umtl" and "align" in config.umtl.tasks)


def _finish_without_references(
    config: RunConfig, network: Network, particles: Subtomograms, folder: Path
) -> Run:
    box = particles.volumes.shape[-1]
    nothing = np.zeros((0, box, box, box), np.float32)
    run = Run(folder, config, network, nothing, particles.voxel_size)
    if distributed.is_first():
        save_weights(folder / WEIGHTS, weights_of(run))
    return run


def _load_without_references(config: RunConfig, folder: Path) -> Run:
    loaded = load_weights(folder / WEIGHTS)
    box = loaded.description.config.box
    nothing = np.zeros((0, box, box, box), np.float32)
    return Run(folder, config, loaded.network, nothing, loaded.description.voxel_size)


def _initial_network(config: RunConfig, box: int, weights: Weights | None) -> Network:
    try:
        network = recipe_of(config).build_network(config, box)
    except ValueError as problem:
        raise InputError(f"particles of {box} voxels: {problem}") from problem
    if weights is None:
        return network
    if weights.description.contrast != config.data.contrast:
        raise InputError(
            f"the weights are for {weights.description.contrast} protein, data.contrast is "
            f"{config.data.contrast}"
        )
    return transplant(weights, network)


def _inputs(particles: Subtomograms) -> tuple[np.ndarray, np.ndarray]:
    return normalize(particles.volumes), np.asarray(particles.tilt_ranges, np.float32)


def _check_particles(config: RunConfig, particles: Subtomograms) -> None:
    is_gumnet = config.network.kind == "gumnet"
    needed = 2 if is_gumnet else 2 * config.network.num_classes
    if len(particles) < needed:
        raise InputError(
            f"{len(particles)} particles are too few for {config.network.num_classes} classes; "
            f"give at least {needed}, or lower network.num_classes"
        )
    box = particles.volumes.shape[-1]
    if config.network.preset == "paper" and box != 32:
        raise InputError(f"the paper preset needs a box of 32 voxels, the particles have {box}")
