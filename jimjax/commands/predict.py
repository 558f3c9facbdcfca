"""``jimjax predict``: a class for each particle, and a pose and a mask where the run knows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jimjax.commands.particles import TiltedParticleOptions

if TYPE_CHECKING:
    import numpy as np

    from jimjax.cluster.model import Classified
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.train.run import Prediction

FEATURES_SUFFIX, MASKS_SUFFIX = ".features.npz", ".masks.mrcs"


@dataclass(frozen=True)
class Predict(TiltedParticleOptions):
    """Classify particles with a trained run, or a model of jimjax cluster or fewshot.

    A run of jimjax train, and a model of --method jimnet, align them as well. Writes a copy of
    the STAR file, with every column and block, in which class (rlnClassNumber), angles
    (rlnAngle*, degrees) and origins (rlnOrigin*Angst, angstrom) are the network's, and columns
    jimCorrelation and jimClassProbability are added. The features go to a file beside it,
    classes.features.npz for classes.star.

    A run of a UMTL gives what it was trained for: without its task "align" poses stay as they are,
    without "cluster" all particles are of one class. With "segment", masks (1 where the particle
    is) go to a stack beside the STAR file, classes.masks.mrcs, whose rows rlnMaskName then names;
    where the STAR file of the particles named masks already, the overlap with them is printed.

    Attributes:
        run_folder: folder that jimjax train, cluster or fewshot made.
        data: particle STAR file.
        out: STAR file to write.
        seed: deals the half sets, where the STAR file has no rlnRandomSubset.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    data: Path
    out: Path
    seed: int = 0

    def run(self) -> None:
        """Loads the run and the particles, then predicts."""
        import numpy as np

        from jimjax.commands import files
        from jimjax.data.subtomograms import load

        files.check_output_file(self.out, [self.data])
        files.check_output_file(features_path(self.out), [self.data])
        files.check_output_file(masks_path(self.out), [self.data])
        particles = load(self.data, seed=self.seed, **self.reading)

        from jimjax.progress import stop_request
        from jimjax.train import run as runs

        found = self._ask(particles)
        with stop_request():  # what belongs together is written together
            if isinstance(found, runs.Prediction):
                write_prediction(found, particles, self.data, self.out)
            else:
                write_classes(particles, self.data, self.out, found.features, found.probabilities)
        labels = found.probabilities.argmax(axis=1)
        counts = np.bincount(labels, minlength=found.probabilities.shape[1])
        sizes = ", ".join(str(count) for count in counts)
        print(f"{len(particles)} particles in classes of {sizes}: {self.out}")
        if isinstance(found, runs.Prediction) and found.masks is not None:
            self._score_masks(found.masks)

    def _score_masks(self, masks: "np.ndarray") -> None:
        from jimjax.data.subtomograms import load
        from jimjax.evaluate.segmentation import score_segmentation
        from jimjax.io.star import MASK_COLUMN, read_particles

        if MASK_COLUMN not in read_particles(self.data).columns:
            return
        # Read only now, and by nothing that predicts.
        anywhere = (-90.0, 90.0)
        reading = {**self.reading, "tilt_range": anywhere}
        truth = load(self.data, with_masks=True, **reading).masks
        scores = score_segmentation(masks, truth)
        print(
            f"Dice {scores['mean_dice']:.3f}, IoU {scores['mean_iou']:.3f} with the masks of "
            f"{self.data}"
        )

    def _ask(self, particles: "Subtomograms") -> "Prediction | Classified":
        from jimjax.cluster import model as clusters
        from jimjax.fewshot import model as prototypes
        from jimjax.train.run import load_run, predict

        if prototypes.holds_model(self.run_folder):
            return prototypes.load_model(self.run_folder).classify(particles)
        if not clusters.holds_model(self.run_folder):
            return predict(load_run(self.run_folder), particles)
        return clusters.load_model(self.run_folder).classify(particles)


def features_path(out: Path) -> Path:
    """Where the features of the particles in a STAR file are kept."""
    return out.with_name(out.name.removesuffix(".star") + FEATURES_SUFFIX)


def masks_path(out: Path) -> Path:
    """Where the masks of the particles in a STAR file are kept."""
    return out.with_name(out.name.removesuffix(".star") + MASKS_SUFFIX)


def write_prediction(
    prediction: "Prediction", particles: "Subtomograms", data: Path, out: Path
) -> None:
    """Writes the STAR file of a prediction, and features and masks beside it.

    Args:
        prediction: one row per particle.
        particles: as loaded from ``data``.
        data: STAR file whose columns and blocks are kept.
        out: STAR file to write.
    """
    import numpy as np

    from jimjax.commands.poses import write_poses

    masks = {} if prediction.masks is None else _write_masks(prediction, particles, data, out)
    if prediction.rotations is None:
        features, probabilities = prediction.features, prediction.probabilities
        write_classes(particles, data, out, features, probabilities, **masks)
        return
    write_features(out, prediction.features, prediction.labels, prediction.probabilities)
    rows = np.arange(len(prediction.labels))
    write_poses(
        particles,
        data,
        out,
        prediction.labels,
        prediction.rotations,
        prediction.shifts,
        jimCorrelation=prediction.correlations,
        jimClassProbability=prediction.probabilities[rows, prediction.labels],
        **masks,
    )


def _write_masks(
    prediction: "Prediction", particles: "Subtomograms", data: Path, out: Path
) -> dict[str, object]:
    """Writes the stack of masks; returns the columns that name them and count their voxels."""
    import os

    import numpy as np

    from jimjax.io import mrc
    from jimjax.io.star import MASK_COLUMN

    path = masks_path(out)
    mrc.write_stack(path, prediction.masks, voxel_size=particles.voxel_size)
    # As seen from the table that was read: where it is written, its names are made to fit.
    stack = os.path.relpath(path.resolve(), data.parent.resolve())
    return {
        MASK_COLUMN: [f"{number:06d}@{stack}" for number in range(1, len(particles) + 1)],
        "jimSegmentVoxels": np.count_nonzero(prediction.masks, axis=(1, 2, 3)),
    }


def write_classes(
    particles: "Subtomograms",
    data: Path,
    out: Path,
    features: "np.ndarray",
    probabilities: "np.ndarray",
    **more: object,
) -> None:
    """Writes a STAR file with new classes, and the features beside it; poses stay as they are.

    Args:
        particles: as loaded from ``data``.
        data: STAR file whose columns and blocks are kept.
        out: STAR file to write.
        features: ``(n, d)``.
        probabilities: ``(n, k)`` of the classes.
        **more: other columns.
    """
    from jimjax.commands.poses import class_columns
    from jimjax.data.subtomograms import table_of

    labels = probabilities.argmax(axis=1)
    write_features(out, features, labels, probabilities)
    table = table_of(particles, data)
    columns = class_columns(particles, table, labels)
    columns |= {"jimClassProbability": probabilities.max(axis=1), **more}
    table.with_columns(columns).write(out)


def write_features(
    out: Path, features: "np.ndarray", labels: "np.ndarray", probabilities: "np.ndarray"
) -> None:
    """Writes what is known of the particles of a STAR file ``out`` to the file beside it."""
    import numpy as np

    from jimjax.io.files import replace_file

    with replace_file(features_path(out)) as stream:
        np.savez_compressed(stream, features=features, labels=labels, probabilities=probabilities)
