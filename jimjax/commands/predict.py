"""``jimjax predict``: a class and a pose for each particle."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms
    from jimjax.train.run import Prediction

FEATURES_SUFFIX = ".features.npz"


@dataclass(frozen=True)
class Predict:
    """Classify and align particles with a trained run.

    Writes a copy of the STAR file, with every column and block, in which class (rlnClassNumber),
    angles (rlnAngle*, degrees) and origins (rlnOrigin*Angst, angstrom) are the network's, and
    columns jimCorrelation and jimClassProbability are added. The features go to a file beside it,
    classes.features.npz for classes.star.

    Attributes:
        run_folder: folder that jimjax train made.
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

        from jimjax.train.run import load_run, predict

        prediction = predict(load_run(self.run_folder), particles)
        write_prediction(prediction, particles, self.data, self.out)
        counts = np.bincount(prediction.labels, minlength=prediction.probabilities.shape[1])
        sizes = ", ".join(str(count) for count in counts)
        print(f"{len(particles)} particles in classes of {sizes}: {self.out}")


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

    _write_features(out, prediction.features, prediction.labels, prediction.probabilities)
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
    _write_features(out, features, labels, probabilities)
    table = read_particles(data)
    columns = class_columns(particles, table, labels)
    columns["jimClassProbability"] = probabilities.max(axis=1)
    table.with_columns(columns).write(out)


def _write_features(
    out: Path, features: "np.ndarray", labels: "np.ndarray", probabilities: "np.ndarray"
) -> None:
    import numpy as np

    from jimjax.io.files import replace_file

    with replace_file(features_path(out)) as stream:
        np.savez_compressed(stream, features=features, labels=labels, probabilities=probabilities)
