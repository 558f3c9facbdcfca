"""``jimjax report``: a run and its classes as one page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms
    from jimjax.report.page import ReportData


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about a run and the particles it classified.

    Attributes:
        run_folder: folder that jimjax train made.
        classes: STAR file that jimjax predict made.
        out: HTML file to write.
        averages: folder that jimjax average made; averages are computed anew if not given.
        truth: STAR file with true classes and poses, if they are known.
        seed: of the pairs drawn for the scores.
        title: of the page.
        allow_outside: also accept images that the STAR files name outside of the working directory
            and of the folder around their own.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    classes: Path
    out: Path = Path("report.html")
    averages: Path | None = None
    truth: Path | None = None
    seed: int = 0
    title: str = "jimjax report"
    allow_outside: bool = False

    def run(self) -> None:
        """Collects what there is and writes the page."""
        from jimjax.commands import files
        from jimjax.report.page import write_report

        truth = () if self.truth is None else (self.truth,)
        files.check_output_file(self.out, [self.classes, *truth])
        data = collect(
            self.run_folder,
            self.classes,
            averages=self.averages,
            truth=self.truth,
            seed=self.seed,
            title=self.title,
            allow_outside=self.allow_outside,
        )
        write_report(data, self.out)
        print(f"report: {self.out}")


def collect(
    run_folder: Path,
    classes: Path,
    *,
    averages: Path | None = None,
    truth: Path | None = None,
    seed: int = 0,
    title: str = "jimjax report",
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    caveats: Sequence[str] = (),
    allow_outside: bool = True,
) -> "ReportData":
    """Gathers the contents of a report from files.

    Args:
        run_folder: with config.toml, provenance.json and metrics.jsonl.
        classes: STAR file of a prediction; its features are looked for beside it.
        averages, truth, seed, title: as the options of `Report`.
        baselines: name -> scores, to compare with.
        caveats: sentences to add.
        allow_outside: also read images that are none of the project's, see ``io.places``.

    Raises:
        InputError: if a file is missing or broken.
    """
    from jimjax.data.subtomograms import load
    from jimjax.io.errors import InputError
    from jimjax.report.page import ReportData

    config_text, provenance = _read_run(run_folder)
    particles = load(classes, with_poses=True, allow_outside=allow_outside)
    if particles.labels is None:
        raise InputError(f"{classes}: has no rlnClassNumber; run jimjax predict first")
    maps, curves = _averages(particles, averages)
    scores, true_labels, rotation_errors = _scores(classes, truth, seed, allow_outside)
    return ReportData(
        title=title,
        config_text=config_text,
        provenance=provenance,
        metrics=scores,
        baselines=baselines or {},
        history=_history(run_folder),
        example_volumes=_examples(classes, particles),
        averages=maps,
        fsc=curves,
        features=_features(classes, len(particles)),
        predicted_labels=particles.labels,
        true_labels=true_labels,
        rotation_errors=rotation_errors,
        voxel_size=particles.voxel_size,
        caveats=caveats,
    )


def _read_run(folder: Path) -> tuple[str, dict[str, object]]:
    from jimjax.io.errors import InputError

    try:
        text = (folder / "config.toml").read_text(encoding="utf-8")
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{folder}: is no run of jimjax train: {problem}") from problem
    flat = {}
    for name, value in provenance.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    if "devices" in flat:
        flat["device"] = flat.pop("devices")
    return text, flat


def _history(folder: Path) -> list[dict[str, object]]:
    """The training log in the report's words, if anything was trained; the clock is left out."""
    from jimjax.report.page import read_history
    from jimjax.train.resume import METRICS

    renamed = []
    for entry in read_history(folder / METRICS) if (folder / METRICS).exists() else []:
        kept = {name: value for name, value in entry.items() if name not in ("stage", "seconds")}
        renamed.append({"phase": entry.get("stage", "training"), **kept})
    return renamed


def _examples(classes: Path, particles: "Subtomograms") -> dict[int, "np.ndarray"]:
    """The particle of each class that correlates best with its reference."""
    import numpy as np

    from jimjax.io.star import read_particles

    table = read_particles(classes)
    scores = np.zeros(len(particles))
    if "jimCorrelation" in table.columns:
        scores = table.floats("jimCorrelation")
    examples = {}
    for label in np.unique(particles.labels):
        members = np.flatnonzero(particles.labels == label)
        examples[int(label)] = particles.volumes[members[np.argmax(scores[members])]]
    return examples


def _averages(
    particles: "Subtomograms", folder: Path | None
) -> tuple[list["np.ndarray | None"], list["np.ndarray | None"]]:
    """Maps and FSC curves of all classes."""
    import numpy as np

    from jimjax.average import average_classes
    from jimjax.io.errors import InputError
    from jimjax.io.mrc import read_volume

    if folder is None:
        found = average_classes(particles)
        maps = [None if average is None else average.volume for average in found]
        return maps, [None if average is None else average.fsc for average in found]
    try:
        classes = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["classes"]
        stems = [folder / f"class_{entry['class']:03d}" for entry in classes]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{folder}: has no summary.json of jimjax average: {problem}") from problem
    maps, curves = [], []
    for stem in stems:
        path, curve = stem.with_suffix(".mrc"), stem.with_name(f"{stem.name}_fsc.csv")
        maps.append(read_volume(path).data if path.exists() else None)
        has_curve = curve.exists()
        curves.append(
            np.loadtxt(curve, delimiter=",", skiprows=1, ndmin=2)[:, 3] if has_curve else None
        )
    return maps, curves


def _scores(
    classes: Path, truth: Path | None, seed: int, allow_outside: bool
) -> tuple[dict[str, float], "np.ndarray | None", "np.ndarray | None"]:
    """Scores, true labels and rotation errors; nothing where the truth is not known."""
    if truth is None:
        return {}, None, None
    from jimjax.commands.evaluate import read_matched, score
    from jimjax.evaluate import relative_pose_errors

    predicted, true = read_matched(classes, truth, allow_outside=allow_outside)
    errors = relative_pose_errors(
        predicted.rotations,
        predicted.shifts,
        true.labels,
        true.rotations,
        true.shifts,
        seed=seed,
    )
    return score(predicted, true, seed=seed), true.labels, errors.rotation


def _features(classes: Path, num: int) -> "np.ndarray | None":
    import numpy as np

    from jimjax.commands.predict import features_path
    from jimjax.io.errors import InputError

    path = features_path(classes)
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as archive:
        features = archive["features"]
    if len(features) != num:
        raise InputError(f"{path}: has {len(features)} rows for {num} particles; predict again")
    return features
