"""``jimjax evaluate``: predicted classes and poses against the truth."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from jimjax.data.columns import Annotations

MAX_LISTED = 3  # names in one message


@dataclass(frozen=True)
class Evaluate:
    """Score classes and poses against the truth.

    Particles are matched by the file they lie in. Class numbers and the frame of each class are
    free; poses are compared over pairs of particles of one true class. rotation_error_* are
    Frobenius norms (0 to 2.83, chance 2.40), translation_error_* are voxels.

    Attributes:
        classes: STAR file with predicted classes and poses.
        truth: STAR file with the true ones.
        json: print one JSON object on stdout and nothing else.
        per_class: add the scores of each true class, as "per_class" by its number in TRUTH.
        rounded_shifts: round relative shifts to voxels before they are compared, as Gum-Net's
            published evaluation does.
        symmetry: point group of all true classes, such as D4, its axes as RELION has them in the
            frame of the true poses; of equivalent poses the nearest counts.
        out: also write the JSON object to this file.
        seed: of the pairs drawn when there are more than 200,000.
        voxel_size: angstrom, for both; from the STAR files or the headers if not given.
        allow_outside: also accept images that the STAR files name outside of the working directory
            and of the folder around their own.
    """

    classes: tyro.conf.Positional[Path]
    truth: Path
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    per_class: tyro.conf.FlagCreatePairsOff[bool] = False
    rounded_shifts: tyro.conf.FlagCreatePairsOff[bool] = False
    symmetry: str = "C1"
    out: Path | None = None
    seed: int = 0
    voxel_size: float | None = None
    allow_outside: bool = False

    def run(self) -> None:
        """Reads both files and prints the scores."""
        from jimjax.commands import files

        if self.out is not None:
            files.check_output_file(self.out, [self.classes, self.truth])
        reading = {"voxel_size": self.voxel_size, "allow_outside": self.allow_outside}
        predicted, true = read_matched(self.classes, self.truth, **reading)
        how = {"seed": self.seed, "is_shift_rounded": self.rounded_shifts}
        how["groups"] = _same_group(self.symmetry, true.labels)
        scores: dict[str, Any] = score(predicted, true, **how)
        if self.per_class:
            scores["per_class"] = score_per_class(predicted, true, **how)
        if self.out is not None:
            files.write_json(self.out, scores)
        if self.json:
            print(json.dumps(scores, allow_nan=False))
            return
        each = scores.pop("per_class", {})
        _print_scores(scores)
        for number, of_class in each.items():
            print(f"\nclass {number}")
            _print_scores(of_class)


def _same_group(name: str, labels: "np.ndarray") -> "list[np.ndarray]":
    """The elements of a point group for each class."""
    import numpy as np

    from jimjax.io.errors import InputError
    from jimjax.ops import point_group

    try:
        group = np.asarray(point_group(name))
    except ValueError as problem:
        raise InputError(f"--symmetry: {problem}") from problem
    return [group] * (int(labels.max()) + 1)


def _print_scores(scores: dict[str, float]) -> None:
    for name, value in scores.items():
        print(f"{name:<32} {value:.4f}" if value % 1 else f"{name:<32} {value:.0f}")


def score_files(
    classes: Path, truth: Path, *, seed: int = 0, voxel_size: float | None = None
) -> dict[str, float]:
    """Scores one STAR file against another; see ``jimjax.evaluate.evaluate``.

    Args:
        classes: with predicted classes and poses.
        truth: with the true ones, of the same particles in any order.
        seed: of the pairs, if they are too many.
        voxel_size: angstrom, of both; from the files if None.

    Returns:
        The scores.

    Raises:
        InputError: if particles do not match one to one, or columns are missing.
    """
    return score(*read_matched(classes, truth, voxel_size=voxel_size), seed=seed)


def score(
    predicted: "Annotations",
    true: "Annotations",
    *,
    seed: int = 0,
    is_shift_rounded: bool = False,
    groups: "Sequence[np.ndarray] | None" = None,
) -> dict[str, float]:
    """Scores predictions against the truth in the same order."""
    from jimjax.evaluate import evaluate

    return evaluate(
        predicted.labels,
        predicted.rotations,
        predicted.shifts,
        true.labels,
        true.rotations,
        true.shifts,
        seed=seed,
        is_shift_rounded=is_shift_rounded,
        groups=groups,
    )


def score_per_class(
    predicted: "Annotations",
    true: "Annotations",
    *,
    seed: int = 0,
    is_shift_rounded: bool = False,
    groups: "Sequence[np.ndarray] | None" = None,
) -> dict[str, dict[str, float]]:
    """Scores poses within each true class.

    Args:
        predicted: with poses.
        true: in the same order.
        seed: of the pairs, if they are too many.
        is_shift_rounded: as of ``jimjax.evaluate.evaluate``.
        groups: likewise.

    Returns:
        By class number, from 1: pose scores, and the share of its particles that lie in its most
        frequent predicted class. Classes of a single particle are left out.
    """
    import numpy as np

    from jimjax.evaluate import relative_pose_errors, score_poses

    scores = {}
    for label in np.unique(true.labels):
        rows = np.flatnonzero(true.labels == label)
        if rows.size > 1:
            poses = predicted.rotations[rows], predicted.shifts[rows]
            truth = true.labels[rows], true.rotations[rows], true.shifts[rows]
            how = {"is_shift_rounded": is_shift_rounded, "groups": groups}
            errors = relative_pose_errors(*poses, *truth, seed=seed, **how)
            together = np.bincount(predicted.labels[rows]).max() / rows.size
            scores[str(label + 1)] = {"share_together": float(together), **score_poses(errors)}
    return scores


def read_matched(
    classes: Path, truth: Path, *, voxel_size: float | None = None, allow_outside: bool = True
) -> tuple["Annotations", "Annotations"]:
    """Reads both files, the truth in the order of the prediction.

    Args:
        classes: with predicted classes and poses.
        truth: with the true ones.
        voxel_size: as of ``data.columns.read_annotations``.
        allow_outside: likewise.

    Raises:
        InputError: as `score_files`.
    """
    import numpy as np

    from jimjax.data.columns import CLASS, VOXEL_SIZE_TOLERANCE, read_annotations
    from jimjax.io.errors import InputError

    reading = {"voxel_size": voxel_size, "allow_outside": allow_outside}
    predicted = read_annotations(classes, **reading)
    true = read_annotations(truth, **reading)
    for path, annotations in ((classes, predicted), (truth, true)):
        if annotations.labels is None:
            raise InputError(f"{path}: has no column {CLASS}; evaluation needs classes and poses")
    if abs(predicted.voxel_size / true.voxel_size - 1) > VOXEL_SIZE_TOLERANCE:
        raise InputError(
            f"{classes}: voxel size is {predicted.voxel_size:g} A, but {true.voxel_size:g} A in "
            f"{truth}; pass --voxel-size if one is wrong"
        )
    rows = _matching_rows(predicted, true, classes, truth)
    if np.bincount(true.labels).max() < 2:
        raise InputError(f"{truth}: no two particles share a class, so no poses can be compared")
    return predicted, true._replace(
        names=predicted.names,
        rotations=true.rotations[rows],
        shifts=true.shifts[rows],
        labels=true.labels[rows],
    )


def _matching_rows(
    predicted: "Annotations", true: "Annotations", classes: Path, truth: Path
) -> "np.ndarray":
    import numpy as np

    found, wanted = _row_of_name(predicted, classes), _row_of_name(true, truth)
    _check_none(found.keys() - wanted.keys(), classes, truth)
    _check_none(wanted.keys() - found.keys(), truth, classes)
    return np.array([wanted[name] for name in found])


def _row_of_name(annotations: "Annotations", path: Path) -> dict[tuple[int, str], int]:
    """Maps each particle's resolved place to its row, in order."""
    import os

    from jimjax.io.errors import InputError
    from jimjax.io.mrc import parse_image_name

    rows: dict[tuple[int, str], int] = {}
    for row, name in enumerate(annotations.names):
        reference = parse_image_name(name)
        place = (reference.index or 1, os.path.realpath(reference.path))
        if place in rows:
            raise InputError(f"{path}: particles {rows[place] + 1} and {row + 1} are both {name}")
        rows[place] = row
    return rows


def _check_none(extra: set[tuple[int, str]], path: Path, other: Path) -> None:
    from jimjax.io.errors import InputError

    if extra:
        names = [f"{index}@{place}" for index, place in sorted(extra)[:MAX_LISTED]]
        more = f" and {len(extra) - MAX_LISTED} more" if len(extra) > MAX_LISTED else ""
        raise InputError(
            f"{path}: {len(extra)} particles are not in {other}: {', '.join(names)}{more}"
        )
