"""``jimjax predict``: a class for each particle, and a pose where the run knows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    import numpy as np

    from jimjax.cluster.model import Classified
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.train.run import Prediction

FEATURES_SUFFIX = ".features.npz"


@dataclass(frozen=True)
class Predict:
    """Classify particles with a trained run, or a model of jimjax cluster or fewshot.

    A run of jimjax train, and a model of --method jimnet, align them as well. Writes a copy of
    the STAR file, with every column and block, in which class (rlnClassNumber), angles
    (rlnAngle*, degrees) and origins (rlnOrigin*Angst, angstrom) are the network's, and columns
    jimCorrelation and jimClassProbability are added. The features go to a file beside it,
    classes.features.npz for classes.star.

    Attributes:
        run_folder: folder that jimjax train, cluster or fewshot made.
        data: particle STAR file.
        out: STAR file to write.
        seed: deals the half sets, where the STAR file has no rlnRandomSubset.
        tilt_min: lowest tilt of all particles, degrees; from the STAR file if not given.
        tilt_max: highest tilt of all particles, degrees; from the STAR file if not given.
        voxel_size: angstrom; from the STAR file or the headers if not given.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    data: Path
    out: Path
    seed: int = 0
    tilt_min: float | None = None
    tilt_max: float | None = None
    voxel_size: float | None = None

    def run(self) -> None:
        """Loads the run and the particles, then predicts."""
        import numpy as np

        from jimjax.commands import files
        from jimjax.data.subtomograms import load

        files.check_output_file(self.out, [self.data])
        files.check_output_file(features_path(self.out), [self.data])
        tilt_range = files.tilt_range(self.tilt_min, self.tilt_max)
        particles = load(
            self.data, tilt_range=tilt_range, voxel_size=self.voxel_size, seed=self.seed
        )

        from jimjax.train import run as runs

        found = self._ask(particles)
        if isinstance(found, runs.Prediction):
            write_prediction(found, particles, self.data, self.out)
        else:
            write_classes(particles, self.data, self.out, found.features, found.probabilities)
        labels = found.probabilities.argmax(axis=1)
        counts = np.bincount(labels, minlength=found.probabilities.shape[1])
        sizes = ", ".join(str(count) for count in counts)
        print(f"{len(particles)} particles in classes of {sizes}: {self.out}")

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


def write_prediction(
    prediction: "Prediction", particles: "Subtomograms", data: Path, out: Path
) -> None:
    """Writes the STAR file of a prediction and the features beside it.

    Args:
        prediction: one row per particle.
        particles: as loaded from ``data``.
        data: STAR file whose columns and blocks are kept.
        out: STAR file to write.
    """
    import numpy as np

    from jimjax.commands.poses import write_poses

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
    )


def write_classes(
    particles: "Subtomograms",
    data: Path,
    out: Path,
    features: "np.ndarray",
    probabilities: "np.ndarray",
) -> None:
    """Writes a STAR file with new classes, and the features beside it; poses stay as they are.

    Args:
        particles: as loaded from ``data``.
        data: STAR file whose columns and blocks are kept.
        out: STAR file to write.
        features: ``(n, d)``.
        probabilities: ``(n, k)`` of the classes.
    """
    from jimjax.commands.poses import class_columns
    from jimjax.io.star import read_particles

    labels = probabilities.argmax(axis=1)
    write_features(out, features, labels, probabilities)
    table = read_particles(data)
    columns = class_columns(particles, table, labels)
    columns["jimClassProbability"] = probabilities.max(axis=1)
    table.with_columns(columns).write(out)


def write_features(
    out: Path, features: "np.ndarray", labels: "np.ndarray", probabilities: "np.ndarray"
) -> None:
    """Writes what is known of the particles of a STAR file ``out`` to the file beside it."""
    import numpy as np

    from jimjax.io.files import replace_file

    with replace_file(features_path(out)) as stream:
        np.savez_compressed(stream, features=features, labels=labels, probabilities=probabilities)
