"""``jimjax benchmark multitask``: what a UMTL's tasks gain from being learned together."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jimjax.commands import benchmark_data
from jimjax.commands.benchmark_data import Preset
from jimjax.commands.benchmark_results import complete, read_results, seed_paths

if TYPE_CHECKING:
    import numpy as np

    from jimjax.config import RunConfig
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.train.run import Run

# Smaller than those of the other benchmarks: a method is five minutes of training on one core.
PRESETS = {"small": Preset(60, 30, 150), "paper": Preset(1000, 200, 20000)}
MASK_THRESHOLD = 0.5  # of a class's highest density: about the volume of the protein
ALL = ("align", "cluster", "segment")
EPOCHS, REGULARISER = 3, 0.05
NUM_PAIRS = 200  # of fresh particles of one class, about which the network is asked once
BALL = 5.0  # voxels, radius of the constant mask: 520 voxels, the size of a 0.7 MDa complex


class Case(NamedTuple):
    """What a method is given.

    Attributes:
        fitted: particles to train on, without truth.
        fresh: particles of the same classes that nothing is trained on, without truth.
        pairs: rows ``(num_pairs,)`` of fresh particles to align to each other, first onto second.
        num_classes: how many classes there are.
        preset: "small" or "paper".
        seed: of all that is random.
        folder: where runs are kept.
    """

    fitted: "Subtomograms"
    fresh: "Subtomograms"
    pairs: tuple["np.ndarray", "np.ndarray"]
    num_classes: int
    preset: str
    seed: int
    folder: Path


class Answer(NamedTuple):
    """What a method says of the fresh particles; None of what it does not do.

    Attributes:
        labels: ``(n,)`` classes.
        poses: ``(n, 3, 3)`` rotations and ``(n, 3)`` shifts, against references.
        pair_poses: the same of each pair, asked once.
        masks: ``(n, z, y, x)`` boolean.
    """

    labels: "np.ndarray | None" = None
    poses: "tuple[np.ndarray, np.ndarray] | None" = None
    pair_poses: "tuple[np.ndarray, np.ndarray] | None" = None
    masks: "np.ndarray | None" = None


def _configure(case: Case, tasks: tuple[str, ...], molecule_masks: bool) -> "RunConfig":
    from jimjax.config import (
        JointSection,
        NetworkSection,
        PretrainSection,
        RunConfig,
        UMTLSection,
    )

    return RunConfig(
        seed=case.seed,
        network=NetworkSection(kind="umtl", preset=case.preset, num_classes=case.num_classes),
        pretrain=PretrainSection(steps=PRESETS[case.preset].pretrain_steps),
        joint=JointSection(epochs=EPOCHS, regulariser_weight=REGULARISER),
        umtl=UMTLSection(tasks=tasks, molecule_masks=molecule_masks),
    )


def _train(name: str, tasks: tuple[str, ...], molecule_masks: bool, case: Case) -> Answer:
    """A UMTL trained for some tasks; its run is kept, and resumed if it was interrupted."""
    from jimjax.commands.progress import open_progress
    from jimjax.train.run import train_run

    folder = case.folder / f"run_{name}_{case.seed}"
    config = _configure(case, tasks, molecule_masks)
    with open_progress() as progress:
        run = train_run(
            config,
            case.fitted,
            folder,
            resume=(folder / "config.toml").exists(),
            progress=progress,
        )
    return _ask(run, tasks, case)


def _untrained(case: Case) -> Answer:
    from jimjax.train.run import untrained_run

    return _ask(untrained_run(_configure(case, ALL, True), case.fitted), ALL, case)


def _ask(run: "Run", tasks: tuple[str, ...], case: Case) -> Answer:
    from jimjax.train.run import predict

    found = predict(run, case.fresh)
    is_aligned = "align" in tasks
    return Answer(
        labels=found.labels if "cluster" in tasks else None,
        poses=(found.rotations, found.shifts) if is_aligned else None,
        pair_poses=_pair_poses(run, case) if is_aligned else None,
        masks=found.masks,
    )


def _pair_poses(run: "Run", case: Case) -> tuple["np.ndarray", "np.ndarray"]:
    """Poses of pairs, the first particle onto the second, by one look at both."""
    import jax
    import numpy as np

    from jimjax.data.batches import map_chunks
    from jimjax.data.subtomograms import normalize
    from jimjax.models import functional

    @jax.jit
    def align(network: Any, source: jax.Array, target: jax.Array) -> Any:
        return functional.apply(network, source, target, train=False)[0].fine

    volumes = normalize(case.fresh.volumes)
    first, second = (np.asarray(rows) for rows in case.pairs)
    found = map_chunks(
        lambda rows: align(run.network, volumes[first[rows]], volumes[second[rows]]),
        len(first),
        run.config.predict.batch_size,
    )
    return found.rotation, found.shift


def _rough(case: Case, height: float | None) -> Answer:
    """The pseudo-labels as the mixture gives them, or corrected as a UMTL learns from them."""
    return Answer(masks=benchmark_data.label_voxels(case.fresh, height))


def _constant(case: Case) -> Answer:
    """One class, no turn, no shift, and a ball in the middle of the box."""
    import numpy as np

    num, box = len(case.fresh), case.fresh.volumes.shape[-1]
    radius = np.linalg.norm(np.indices((box,) * 3).T - box // 2, axis=-1)

    def still(count: int) -> tuple["np.ndarray", "np.ndarray"]:
        return np.tile(np.eye(3), (count, 1, 1)), np.zeros((count, 3))

    return Answer(
        labels=np.zeros(num, int),
        poses=still(num),
        pair_poses=still(len(case.pairs[0])),
        masks=np.tile(radius <= BALL, (num, 1, 1, 1)),
    )


def _trained(
    name: str, tasks: tuple[str, ...], *, molecule_masks: bool = True
) -> Callable[[Case], Answer]:
    return functools.partial(_train, name, tasks, molecule_masks)


METHODS: dict[str, Callable[[Case], Answer]] = {
    "umtl": _trained("umtl", ALL),
    "umtl-align": _trained("umtl-align", ("align",)),
    "umtl-cluster": _trained("umtl-cluster", ("cluster",)),
    "umtl-segment": _trained("umtl-segment", ("segment",)),
    "umtl-no-masks": _trained("umtl-no-masks", ALL, molecule_masks=False),
    "umtl-segment-no-masks": _trained("umtl-segment-no-masks", ("segment",), molecule_masks=False),
    "untrained": _untrained,
    "gmm": functools.partial(_rough, height=None),
    "gmm-central": functools.partial(_rough, height=0.0),
    "gmm-corrected": functools.partial(_rough, height=0.5),
    "constant": _constant,
}
KNOWN = DEFAULT = tuple(METHODS)


def measure(benchmark: Any, densities: list[Any]) -> None:
    """Runs the methods whose results are not there yet, one seed of everything first."""
    for seed in range(benchmark.seed, benchmark.seed + benchmark.num_seeds):
        for snr in benchmark.snrs:
            folder = benchmark.out / f"snr_{snr:g}"
            complete(
                seed_paths(folder, benchmark.chosen, seed),
                {"snr": snr, "seed": seed},
                functools.partial(_prepare, benchmark, densities, snr, seed, folder),
                _measure_one,
            )


def results(folder: Path) -> list[dict[str, Any]]:
    """What is there, by noise, method and seed."""
    return read_results(folder, KNOWN)


def _prepare(
    benchmark: Any, densities: list[Any], snr: float, seed: int, folder: Path
) -> tuple[Case, "Subtomograms"]:
    """What methods are given, and the truth about the fresh particles."""
    fitted, fresh = benchmark_data.simulate_particles(
        densities,
        PRESETS[benchmark.preset],
        snr=snr,
        seed=seed,
        ctf=benchmark.ctf,
        mask_threshold=MASK_THRESHOLD,
    )
    return _case(benchmark.preset, seed, fitted, fresh, folder), fresh


def _case(
    preset: str, seed: int, fitted: "Subtomograms", fresh: "Subtomograms", folder: Path
) -> Case:
    from jimjax.evaluate.pose import sample_pairs

    hidden = (
        dataclasses.replace(own, labels=None, rotations=None, shifts=None, masks=None)
        for own in (fitted, fresh)
    )
    pairs = sample_pairs(fresh.labels, max_pairs=NUM_PAIRS, seed=seed)
    return Case(*hidden, pairs, int(fitted.labels.max()) + 1, preset, seed, folder)


def _measure_one(name: str, prepared: tuple[Case, "Subtomograms"]) -> dict[str, Any]:
    """Scores and seconds; the compilation of whatever was not compiled before is in them."""
    import jax

    case, truth = prepared
    started = time.monotonic()
    found = METHODS[name](case)
    seconds = round(time.monotonic() - started, 1)
    return score(found, truth, case.pairs) | {
        "seconds": seconds,
        "device": jax.devices()[0].device_kind,
    }


def score(
    found: Answer, truth: "Subtomograms", pairs: tuple["np.ndarray", "np.ndarray"]
) -> dict[str, float]:
    """Scores what a method says; of what it does not do there are none.

    Args:
        found: of the fresh particles.
        truth: the same particles, with classes, poses and masks.
        pairs: as given to the method.
    """
    from jimjax.evaluate.clustering import score_clustering
    from jimjax.evaluate.pose import compare_relative, relative_pose_errors, score_poses
    from jimjax.evaluate.segmentation import score_segmentation

    scores: dict[str, float] = {}
    true = truth.labels, truth.rotations, truth.shifts
    if found.labels is not None:
        scores |= score_clustering(found.labels, truth.labels)
    if found.poses is not None:
        scores |= score_poses(relative_pose_errors(*found.poses, *true))
    if found.pair_poses is not None:
        own = score_poses(compare_relative(*found.pair_poses, *true, pairs))
        scores |= {f"pair_{name}": value for name, value in own.items()}
    if found.masks is not None:
        scores |= score_segmentation(found.masks, truth.masks, truth.labels)
    return scores
