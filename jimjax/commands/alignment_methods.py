"""What ``jimjax benchmark alignment`` compares: methods that get particles and give scores."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jimjax.commands import alignment_pairs
from jimjax.commands.benchmark_data import Preset

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms


class Case(NamedTuple):
    """What a method is given.

    Attributes:
        fitted: particles to fit or train on.
        fresh: particles of the same classes that nothing is fitted to.
        maps: ``(num_classes, z, y, x)``, the densities that both were made of, as dark as they are.
        groups: of each class the rotations ``(order, 3, 3)`` that leave its density as it is; only
            to score with.
        folder: where it may keep what others use.
        max_shift: of the particles, voxels along each axis.
        seed: of all that is random.
        preset: the benchmark's.
    """

    fitted: "Subtomograms"
    fresh: "Subtomograms"
    maps: "np.ndarray"
    groups: "Sequence[np.ndarray]"
    folder: Path
    max_shift: float
    seed: int
    preset: Preset

    def hide(self, particles: "Subtomograms") -> "Subtomograms":
        """The particles without their truth."""
        return dataclasses.replace(particles, labels=None, rotations=None, shifts=None)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return int(self.fitted.labels.max()) + 1


Measured = tuple[dict[str, Any], dict[str, Any]]


def _score(case: Case, found: Any, truth: "Subtomograms") -> dict[str, Any]:
    import numpy as np

    from jimjax.evaluate import evaluate

    def part(rows: "np.ndarray") -> dict[str, float]:
        own = (field[rows] for field in (found.labels, found.rotations, found.shifts))
        true = (field[rows] for field in (truth.labels, truth.rotations, truth.shifts))
        return evaluate(*own, *true, groups=case.groups)

    scores: dict[str, Any] = part(np.arange(len(truth)))
    names = ("rotation_error_mean", "rotation_error_median", "translation_error_mean")
    each = [part(np.flatnonzero(truth.labels == label)) for label in np.unique(truth.labels)]
    scores["per_class"] = [{name: own[name] for name in names} for own in each]
    return scores


def _em(case: Case, **how: Any) -> Any:
    from jimjax.align.fit import fit
    from jimjax.align.fit_data import Options
    from jimjax.commands.progress import open_progress

    options = Options(case.num_classes, max_shift=case.max_shift, seed=case.seed)
    particles = case.hide(how.pop("particles", case.fitted))
    with open_progress() as progress:
        return fit(particles, options, progress=progress, **how)


def _measure_em(case: Case) -> Measured:
    import numpy as np

    started = time.monotonic()
    found = _em(case)
    seconds = time.monotonic() - started
    np.save(case.folder / "averages.npy", found.volumes)
    details = {"seconds_per_particle": seconds / len(case.fitted), "scored_on": "fitted"}
    return _score(case, found, case.fitted), details


def _measure_em_fresh(case: Case) -> Measured:
    import numpy as np

    path = case.folder / "averages.npy"
    if not path.exists():
        np.save(path, _em(case).volumes)
    return _pose_fresh(case, np.load(path, allow_pickle=False))


def _measure_true_maps(case: Case) -> Measured:
    return _pose_fresh(case, case.maps)


def _pose_fresh(case: Case, references: "np.ndarray") -> Measured:
    started = time.monotonic()
    found = _em(case, particles=case.fresh, references=references)
    seconds = time.monotonic() - started
    details = {"seconds_per_particle": seconds / len(case.fresh), "scored_on": "fresh"}
    return _score(case, found, case.fresh), details


def _open_run(case: Case) -> tuple[Any, dict[str, Any]]:
    """A network with references made of the case's particles, and how long its training took."""
    from jimjax.commands.align_network import open_weights
    from jimjax.train.pretrained import adopt

    particles, steps = case.hide(case.fitted), case.preset.pretrain_steps
    if steps is not None:
        started = time.monotonic()
        run = _train(case, steps)
        return run, {"training_seconds": round(time.monotonic() - started, 1)}
    weights = open_weights(None, "jimnet", particles.volumes.shape[-1])
    return adopt(weights, particles, num_classes=case.num_classes, seed=case.seed), {}


def _train(case: Case, steps: int) -> Any:
    """The network trained on the case's particles; kept in its folder."""
    from jimjax.commands.progress import open_progress
    from jimjax.config import NetworkSection, PretrainSection, RunConfig
    from jimjax.train.run import load_run, train_run

    folder = case.folder / "jimnet"
    if (folder / "references.mrcs").exists():
        return load_run(folder)
    network = NetworkSection(preset="paper", num_classes=case.num_classes)
    config = RunConfig(network=network, pretrain=PretrainSection(steps=steps), seed=case.seed)
    with open_progress() as progress:
        return train_run(
            config,
            case.hide(case.fitted),
            folder,
            resume=(folder / "config.toml").exists(),
            progress=progress,
        )


def _measure_jimnet(case: Case) -> Measured:
    from jimjax.train.run import predict

    run, details = _open_run(case)
    started = time.monotonic()
    found = predict(run, case.hide(case.fresh))
    seconds = time.monotonic() - started
    details |= {"seconds_per_particle": seconds / len(case.fresh), "scored_on": "fresh"}
    return _score(case, found, case.fresh), details


def _measure_jimnet_em(case: Case) -> Measured:
    from jimjax.align.plans import FINISH_PLAN, Start
    from jimjax.train.run import predict

    started = time.monotonic()
    run, details = _open_run(case)
    guess = predict(run, case.hide(case.fitted))
    start = Start(guess.labels, guess.rotations, guess.shifts)
    found = _em(case, start=start, plan=FINISH_PLAN)
    seconds = time.monotonic() - started - details.get("training_seconds", 0)
    details |= {"seconds_per_particle": seconds / len(case.fitted), "scored_on": "fitted"}
    return _score(case, found, case.fitted), details


METHODS: dict[str, Callable[[Case], Measured]] = {
    "em": _measure_em,
    "em-fresh": _measure_em_fresh,
    "true-maps": _measure_true_maps,
    "jimnet": _measure_jimnet,
    "jimnet+em": _measure_jimnet_em,
    **alignment_pairs.METHODS,
}
