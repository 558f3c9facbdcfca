"""What ``jimjax align`` asks of networks: of a run, or of weights trained on other particles."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from jimjax.align.fit import Found
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.models.weights import Weights
    from jimjax.train.run import Prediction, Run

NUM_PROPOSALS = 16  # orientations of a reference that a Gum-Net sees
SMALL = "small"  # names the weights that come along; no file


def check_options(
    method: str, run_folder: Path | None, weights: str | None, contrast: str | None
) -> None:
    """Raises if options of networks contradict the method or each other.

    Raises:
        InputError: in one line.
    """
    from jimjax.io.errors import InputError

    is_network = "net" in method
    given = {"--run": run_folder, "--weights": weights, "--contrast": contrast}
    for name, value in given.items():
        if value is not None and not is_network:
            raise InputError(f"{name} is of no use to --method {method}; try jimnet+em")
    for name in ("--weights", "--contrast"):
        if run_folder is not None and given[name] is not None:
            raise InputError(f"--run and {name} exclude each other; leave one of them out")


def open_weights(name: str | None, kind: str, box: int) -> "Weights":
    """Loads weights from a file, or those that come along.

    Args:
        name: path, or None or "small" for those that come along.
        kind: "jimnet" or "gumnet".
        box: of the particles, voxels.

    Raises:
        InputError: also if they are of another kind of network.
    """
    from jimjax.io.errors import InputError
    from jimjax.models.weights import load_shipped, load_weights

    if name in (None, SMALL):
        return load_shipped(f"{kind}_{SMALL}", box=box)
    weights = load_weights(name, box=box)
    if weights.description.kind != kind:
        raise InputError(f"{name}: weights of {weights.description.kind}, {kind} is asked for")
    return weights


def ask_jimnet(
    particles: "Subtomograms",
    *,
    run_folder: Path | None,
    weights: str | None,
    contrast: str,
    num_classes: int | None,
    seed: int,
) -> tuple["Run", "Prediction"]:
    """Classes and poses of a Jim-Net.

    Args:
        particles: without truth.
        run_folder: of a run; its own references are used.
        weights: as of ``open_weights``, where there is no run; references are made.
        contrast: of the protein, for weights.
        num_classes: for weights, 1 if None; for a run that of its classes, or None.
        seed: likewise.

    Returns:
        The run, or what stands for it, and its prediction; references and particles in it are
        of the contrast that the network was trained for.

    Raises:
        InputError: if weights or run do not fit the particles.
    """
    from jimjax.io.errors import InputError
    from jimjax.train.pretrained import adopt
    from jimjax.train.run import load_run, predict

    if run_folder is not None:
        run = load_run(run_folder)
        if not len(run.references) and run.config.network.kind == "umtl":
            raise InputError(f"{run_folder}: a UMTL that does not align; train it for that, too")
        if num_classes not in (None, len(run.references)):
            raise InputError(
                f"--num-classes {num_classes} does not fit {run_folder}, a run of "
                f"{len(run.references)} classes; leave it out"
            )
        return run, predict(run, particles)
    loaded = open_weights(weights, "jimnet", particles.volumes.shape[-1])
    if contrast != loaded.description.contrast:
        particles = dataclasses.replace(particles, volumes=-particles.volumes)
    num_classes = 1 if num_classes is None else num_classes
    run = adopt(loaded, particles, num_classes=num_classes, seed=seed)
    return run, predict(run, particles)


def found_by(prediction: "Prediction", references: "np.ndarray") -> "Found":
    """A prediction as what ``align`` writes; a network does not say how sure it is of a pose."""
    from jimjax.align.fit import Found

    unknown = prediction.correlations * float("nan")
    return Found(
        prediction.labels,
        prediction.probabilities,
        prediction.rotations,
        prediction.shifts,
        unknown,
        unknown,
        prediction.correlations,
        references,
        unknown[:0],
    )


def ask_gumnet(
    particles: "Subtomograms",
    references: "np.ndarray",
    *,
    run_folder: Path | None,
    weights: str | None,
    contrast: str,
    max_shift: float,
) -> "Prediction":
    """Poses of a Gum-Net against references; the class is the one that correlates best.

    Args:
        particles: without truth.
        references: ``(k, z, y, x)`` of the particles' box and contrast.
        run_folder: of a Gum-Net run.
        weights: as of ``open_weights``, where there is no run.
        contrast: of the protein, for weights.
        max_shift: of the particles along each axis, voxels.

    Returns:
        One row per particle, without features.

    Raises:
        InputError: if weights or run do not fit the particles.
    """
    import numpy as np

    from jimjax.align.gumnet import align_to_references
    from jimjax.config import JointSection
    from jimjax.data.subtomograms import normalize
    from jimjax.train.run import Prediction

    box = particles.volumes.shape[-1]
    if run_folder is None:
        loaded = open_weights(weights, "gumnet", box)
    else:
        loaded = _weights_of_gumnet(run_folder, box)
        contrast = loaded.description.contrast
    sign = 1.0 if contrast == loaded.description.contrast else -1.0
    volumes, maps = sign * normalize(particles.volumes), sign * normalize(references)
    everything = align_to_references(
        loaded.network,
        maps,
        volumes,
        np.asarray(particles.tilt_ranges, np.float32),
        max_shift=max_shift,
        num_proposals=NUM_PROPOSALS,
        cutoff=JointSection().cutoff,
    )
    labels, found = everything.best()
    certain = np.eye(len(maps), dtype=np.float32)[labels]
    return Prediction(labels.astype(np.int32), certain, np.zeros((len(labels), 0)), *found)


def _weights_of_gumnet(run_folder: Path, box: int) -> "Weights":
    from jimjax.io.errors import InputError
    from jimjax.train.run import load_run, weights_of

    loaded = weights_of(load_run(run_folder))
    if loaded.description.kind != "gumnet":
        raise InputError(f"{run_folder}: a run of jimnet, gumnet is asked for")
    if loaded.description.config.box != box:
        raise InputError(
            f"{run_folder}: was trained on boxes of {loaded.description.config.box} voxels, these "
            f"have {box}"
        )
    return loaded
