"""``jimjax benchmark clustering``: classes alone, by every method that finds some."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jimjax.commands import benchmark_data
from jimjax.commands.benchmark_data import PRESETS
from jimjax.commands.benchmark_results import complete, read_results, seed_paths

if TYPE_CHECKING:
    import numpy as np

    from jimjax.cluster.estimator import Clusterer
    from jimjax.commands.benchmark import Benchmark
    from jimjax.data.subtomograms import Subtomograms

OTHER_SNR = 0.1  # of the data sets that are made at one noise
AUTO = tuple(range(2, 11))  # numbers of classes to choose from, where it is not told
SHOTS, WAYS, QUERIES, EPISODES = 5, 2, 15, 100  # of few-shot classification
EPOCHS = 6  # of a network that learns from the EM


class Dataset(NamedTuple):
    """Particles to find classes of.

    Attributes:
        name: "five", "imbalanced" or "unknown-k".
        snr: of the particles.
    """

    name: str
    snr: float

    @property
    def folder(self) -> str:
        """Where its results are."""
        return f"{self.name}_{self.snr:g}"


class Case(NamedTuple):
    """What a method is given.

    Attributes:
        fitted: particles to fit, without truth.
        fresh: particles of the same classes that nothing is fitted to, without truth.
        candidates: numbers of classes to choose from; one, where it is told.
        preset: "small" or "paper".
        seed: of all that is random.
        folder: where methods may keep what others use.
    """

    fitted: "Subtomograms"
    fresh: "Subtomograms"
    candidates: tuple[int, ...]
    preset: str
    seed: int
    folder: Path


class Prepared(NamedTuple):
    """What methods are given, and the same particles with the truth."""

    case: Case
    fitted: "Subtomograms"
    fresh: "Subtomograms"


class Answer(NamedTuple):
    """What a method says.

    Attributes:
        labels: ``(n,)``, classes.
        is_fresh: whether of the fresh particles; of those it was fitted to if not.
        features: ``(n, d)``, where other numbers of clusters are to be judged as well.
        seconds: of the em, where others led to it.
    """

    labels: "np.ndarray"
    is_fresh: bool = True
    features: "np.ndarray | None" = None
    seconds: float | None = None


def _clusterer(case: Case, method: str, weights: str | None) -> "Clusterer":
    from jimjax.commands.cluster_methods import begin_with, build, configure
    from jimjax.commands.progress import open_progress

    config = configure(
        method, case.preset, None, candidates=case.candidates, contrast="dark", seed=case.seed
    )
    begun = begin_with(method, case.preset, weights, case.fitted.volumes.shape[-1])
    with open_progress() as progress:
        return build(method, config, begun, "").fit(case.fitted, progress=progress)


def _cluster(method: str, weights: str | None = None) -> Callable[[Case], Answer]:
    """A method of ``jimjax cluster``."""
    return lambda case: _classify_fresh(case, _clusterer(case, method, weights))


def _classify_fresh(case: Case, found: "Clusterer", *, is_swept: bool = False) -> Answer:
    known = found.model_.classify(case.fresh)
    features = known.features if is_swept else None
    return Answer(known.probabilities.argmax(axis=1), features=features)


def _transfer(case: Case) -> Answer:
    return _classify_fresh(case, _clusterer(case, "transfer", None), is_swept=True)


def _em(case: Case) -> Answer:
    import numpy as np

    from jimjax.align.fit import fit
    from jimjax.commands.progress import open_progress

    with open_progress() as progress:
        found = fit(case.fitted, _options(case), progress=progress)
    kept = {"labels": found.labels, "rotations": found.rotations, "shifts": found.shifts}
    np.savez(_teacher_path(case), probabilities=found.probabilities, **kept)
    return Answer(found.labels, is_fresh=False)


def _options(case: Case) -> Any:
    from jimjax.align.fit_data import Options

    return Options(max(case.candidates), max_shift=benchmark_data.MAX_SHIFT, seed=case.seed)


def _teacher_path(case: Case) -> Path:
    return case.folder / f"em_{case.seed}.npz"


def _finished(method: str) -> Callable[[Case], Answer]:
    """A method whose classes are handed to the EM."""

    def run(case: Case) -> Answer:
        from jimjax.align.fit import fit
        from jimjax.align.plans import CLASSES_PLAN, Start
        from jimjax.commands.align_network import open_weights
        from jimjax.commands.progress import open_progress
        from jimjax.train.pretrained import pose_classes

        found = _clusterer(case, method, None)
        posed = found.poses_
        if posed is None:
            weights = open_weights(None, "jimnet", case.fitted.volumes.shape[-1])
            posed = pose_classes(weights, case.fitted, found.labels_, seed=case.seed)
        options = dataclasses.replace(_options(case), num_classes=found.model_.num_classes)
        start = Start(found.labels_, posed.rotations, posed.shifts)
        begun = time.monotonic()
        with open_progress() as progress:
            finished = fit(case.fitted, options, start=start, plan=CLASSES_PLAN, progress=progress)
        return Answer(finished.labels, is_fresh=False, seconds=_since(begun))

    return run


def _distilled(case: Case) -> Answer:
    """A Jim-Net that learned the classes and poses of the EM."""
    import tempfile

    import numpy as np

    from jimjax.commands.align_network import open_weights
    from jimjax.commands.progress import open_progress
    from jimjax.config import JointSection, NetworkSection, PretrainSection, RunConfig
    from jimjax.train.run import predict, train_run
    from jimjax.train.teacher import Teacher

    path = _teacher_path(case)
    if not path.exists():
        _em(case)
    with np.load(path, allow_pickle=False) as kept:
        labels = kept["labels"].astype(np.int32)
        sure = kept["probabilities"][np.arange(len(labels)), labels]
        poses = kept["rotations"].astype(np.float32), kept["shifts"].astype(np.float32)
    teacher = Teacher(labels, *poses, (sure / sure.mean()).astype(np.float32))
    config = RunConfig(
        seed=case.seed,
        network=NetworkSection(num_classes=teacher.num_classes),
        pretrain=PretrainSection(steps=0),
        joint=JointSection(epochs=EPOCHS),
    )
    weights = open_weights(None, "jimnet", case.fitted.volumes.shape[-1])
    with tempfile.TemporaryDirectory() as folder, open_progress() as progress:
        run = train_run(
            config,
            case.fitted,
            Path(folder) / "run",
            weights=weights,
            teacher=teacher,
            progress=progress,
        )
        return Answer(predict(run, case.fresh).labels)


def _taught_transfer(case: Case, known: "Subtomograms") -> Answer:
    """The transfer method in its source domain: it has learned the classes that it finds."""
    from jimjax.commands.align_network import SMALL
    from jimjax.commands.cluster_methods import begin_with, build, configure
    from jimjax.train import supervised

    teaching = supervised.small() if case.preset == SMALL else supervised.SupervisedConfig()
    teaching = dataclasses.replace(teaching, seed=case.seed)
    box = known.volumes.shape[-1]
    begun = begin_with("transfer", case.preset, None, box, is_taught=True)
    weights = supervised.train_classifier(teaching, known, weights=begun)
    config = configure(
        "transfer", case.preset, None, candidates=case.candidates, contrast="dark", seed=case.seed
    )
    found = build("transfer", config, weights, "").fit(case.fitted)
    return _classify_fresh(case, found, is_swept=True)


METHODS: dict[str, Callable[[Case], Answer]] = {
    "jimnet": _cluster("jimnet"),
    "jimnet-cluster": _cluster("jimnet-cluster"),
    "disca": _cluster("disca"),
    "transfer": _transfer,
    "deepcluster": _cluster("deepcluster"),
    "pica": _cluster("pica"),
    "autoencoder": _cluster("autoencoder"),
    "jimnet-cluster-random": _cluster("jimnet-cluster", "none"),
    "disca-random": _cluster("disca", "none"),
    "deepcluster-random": _cluster("deepcluster", "none"),
    "pica-random": _cluster("pica", "none"),
    "em": _em,
    "jimnet+em": _finished("jimnet"),
    "disca+em": _finished("disca"),
    "distilled": _distilled,
}
TAUGHT = {"transfer-taught": _taught_transfer}  # with the classes of what they are fitted to
FEW_SHOT = ("protonet", "protonet-ce")
KNOWN = (*METHODS, *TAUGHT, *FEW_SHOT)
DEFAULT = tuple(name for name in KNOWN if not name.endswith("-random"))


def measure(benchmark: "Benchmark", densities: list[Any]) -> None:
    """Runs the methods whose results are not there yet, one seed of everything first."""
    for seed in range(benchmark.seed, benchmark.seed + benchmark.num_seeds):
        for dataset in datasets(benchmark.snrs):
            names = [name for name in benchmark.chosen if _applies(name, dataset)]
            complete(
                seed_paths(benchmark.out / dataset.folder, names, seed),
                {"dataset": dataset.name, "snr": dataset.snr, "seed": seed},
                functools.partial(_prepare, benchmark, dataset, seed, densities),
                _measure_one,
            )


def datasets(snrs: tuple[float, ...]) -> list[Dataset]:
    """All data sets of the benchmark; those beyond the five classes at one noise."""
    made = [Dataset("five", snr) for snr in snrs]
    if OTHER_SNR in snrs:
        made += [Dataset("imbalanced", OTHER_SNR), Dataset("unknown-k", OTHER_SNR)]
    return made


def results(folder: Path) -> list[dict[str, Any]]:
    """What is there, by data set, noise, method and seed."""
    return read_results(folder, KNOWN)


def _applies(name: str, dataset: Dataset) -> bool:
    """Taught classes are of equal size, and some methods have to be told how many there are."""
    if name in FEW_SHOT or name in TAUGHT:
        return dataset.name == "five"
    is_told = name.startswith("pica") or name in ("em", "distilled")
    return not is_told or dataset.name != "unknown-k"


def _prepare(benchmark: "Benchmark", dataset: Dataset, seed: int, densities: list[Any]) -> Prepared:
    make = benchmark_data.simulate_particles
    if dataset.name == "imbalanced":
        make = benchmark_data.simulate_imbalanced
    preset = PRESETS[benchmark.preset]
    fitted, fresh = make(densities, preset, snr=dataset.snr, seed=seed, ctf=benchmark.ctf)
    hidden = (
        dataclasses.replace(own, labels=None, rotations=None, shifts=None)
        for own in (fitted, fresh)
    )
    num_classes = int(fitted.labels.max()) + 1
    candidates = AUTO if dataset.name == "unknown-k" else (num_classes,)
    folder = benchmark.out / dataset.folder
    case = Case(*hidden, candidates, benchmark.preset, seed, folder)
    return Prepared(case, fitted, fresh)


def _measure_one(name: str, prepared: Prepared) -> dict[str, Any]:
    """Scores and seconds; the compilation of whatever was not compiled before is in them."""
    import jax

    from jimjax.evaluate.clustering import score_clustering

    case, fitted, fresh = prepared
    device = jax.devices()[0].device_kind
    started = time.monotonic()
    if name in FEW_SHOT:
        scores = _measure_few_shot(name, case, fitted, fresh)
        return scores | {"seconds": _since(started), "device": device}
    found = TAUGHT[name](case, fitted) if name in TAUGHT else METHODS[name](case)
    seconds = _since(started)
    truth = fresh if found.is_fresh else fitted
    scores = score_clustering(found.labels, truth.labels)
    accuracy = scores.pop("clustering_accuracy")
    more = {} if found.seconds is None else {"em_seconds": found.seconds}
    if found.features is not None:
        from jimjax.cluster.transfer import sweep

        rows = sweep(found.features, truth.labels, AUTO, seed=case.seed)
        more["sweep"] = [row._asdict() for row in rows]
    return {
        "scored_on": "fresh" if found.is_fresh else "fitted",
        "accuracy": accuracy,
        **scores,
        "num_classes_found": len(set(found.labels.tolist())),
        "seconds": seconds,
        "device": device,
        **more,
    }


def _measure_few_shot(
    name: str, case: Case, fitted: "Subtomograms", fresh: "Subtomograms"
) -> dict[str, Any]:
    """Learns from all classes but two, which are then to be told apart by a few examples."""
    import numpy as np

    from jimjax.commands.align_network import SMALL, open_weights
    from jimjax.fewshot import config as presets
    from jimjax.fewshot.classifier import FewShotClassifier

    config = presets.small() if case.preset == SMALL else presets.FewShotConfig()
    order = np.random.default_rng(case.seed).permutation(int(fitted.labels.max()) + 1)
    known, novel = (np.isin(own.labels, part) for own, part in (
        (fitted, order[WAYS:]), (fresh, order[:WAYS])
    ))  # fmt: skip
    config = dataclasses.replace(
        config, method=name, ways=min(config.ways, len(order) - WAYS), seed=case.seed
    )
    box = fitted.volumes.shape[-1]
    weights = open_weights(None, "protonet", box) if case.preset == SMALL else None
    method = FewShotClassifier(config, weights=weights).train(fitted.select(known))
    found = method.evaluate(
        fresh.select(novel), ways=WAYS, shots=SHOTS, queries=QUERIES, num_episodes=EPISODES,
        seed=case.seed,
    )  # fmt: skip
    return {"scored_on": "fresh", "accuracy": found.mean, "half_width": found.half_width}


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
