"""``jimjax benchmark``: every method on the same simulated particles, at every noise."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tyro

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms

SNRS = (100.0, 0.1, 0.05, 0.03, 0.01)
BOX, VOXEL_SIZE, TILT_RANGE, MAX_SHIFT = 32, 12.0, (-60.0, 60.0), 6.0
NUM_PHANTOMS = 5  # classes where no structures are given
NUM_PAIRS = 100  # of pairwise methods
PUBLISHED = {  # Jim-Net: rotation and translation error, accuracy; other structures and simulator
    100.0: (0.29, 1.28, 1.0),
    0.1: (0.51, 2.12, 0.997),
    0.05: (0.80, 3.20, 0.961),
    0.03: (1.02, 4.12, 0.855),
    0.01: (1.58, 6.78, 0.481),
}


class Preset(NamedTuple):
    """How much there is.

    Attributes:
        num_per_class: particles of each class to fit or train on.
        num_fresh: particles of each class that nothing was fitted to.
        network: preset of Jim-Net.
        pretrain_steps: of Jim-Net.
    """

    num_per_class: int
    num_fresh: int
    network: Literal["small", "paper"]
    pretrain_steps: int


PRESETS = {"small": Preset(100, 50, "small", 500), "paper": Preset(1000, 200, "paper", 20000)}


@dataclass(frozen=True)
class Benchmark:
    """Compare methods of alignment and classification on simulated particles.

    For each SNR, particles of every structure are simulated (32 voxels of 12 angstrom, tilts -60
    to 60 degrees, shifts up to 6 voxels along each axis, independent white noise), and others that
    nothing is fitted to. Methods: "em" (classes, poses and averages together, scored on the
    particles it was fitted to; it sees no labels), "em-fresh" (fresh particles posed against the
    averages of the em), "jimnet" (trained on the first, scored on the fresh particles),
    "jimnet+em" (the em begun from the network's answers), "ht" (fast rotational matching of pairs
    of one class).

    Writes OUT/results.json, OUT/table.md and OUT/curves.png. Results that OUT already holds are
    kept, so that an interrupted benchmark goes on.

    Attributes:
        task: what is compared.
        out: folder to write.
        preset: small: 100 particles of each class, an hour on two cores; paper: 1000, for a GPU.
        structures: .pdb .cif .mrc and so on, one per class; five built-in phantoms if not given.
        snr: variance of signal over variance of noise.
        methods: which to run.
        ctf: simulate with a contrast transfer function at 2 micrometre underfocus.
        seed: of all that is random.
    """

    task: tyro.conf.Positional[Literal["alignment"]]
    out: Path
    preset: Literal["small", "paper"] = "small"
    structures: tuple[Path, ...] = ()
    snr: tuple[float, ...] = SNRS
    methods: tuple[Literal["em", "em-fresh", "jimnet", "jimnet+em", "ht"], ...] = (
        "em",
        "em-fresh",
        "jimnet",
        "ht",
    )
    ctf: bool = False
    seed: int = 0

    def run(self) -> None:
        """Simulates, runs what is missing, and writes the table."""
        from jimjax.commands import files
        from jimjax.commands.train import training_exits

        self._check()
        settings = {
            "preset": self.preset,
            "structures": [path.name for path in self.structures] or ["phantoms"],
            "ctf": self.ctf,
            "seed": self.seed,
        }
        self._remember(settings)
        with training_exits(self.out, "the same command"):
            for snr in self.snr:
                for method in self.methods:
                    self._measure(method, snr)
        results = self._results()
        files.write_json(self.out / "results.json", {**settings, "results": results})
        names = [path.name.split(".")[0] for path in self.structures]
        (self.out / "table.md").write_text(make_table(results, names), encoding="utf-8")
        draw_curves(results, self.out / "curves.png")
        print(make_table(results, names))

    def _check(self) -> None:
        from jimjax.commands import files
        from jimjax.io.errors import InputError

        files.check_output_folder(self.out)
        if not all(snr > 0 for snr in self.snr):
            raise InputError(f"--snr must be positive, got {min(self.snr):g}")
        if not self.snr or not self.methods:
            raise InputError("--snr and --methods need at least one value each")
        for path in self.structures:
            if not path.is_file():
                raise InputError(f"{path}: no such file")

    def _remember(self, settings: dict[str, Any]) -> None:
        """Keeps what was asked for; a folder of another benchmark is not mixed with this one."""
        from jimjax.commands import files
        from jimjax.io.errors import InputError

        path = self.out / "settings.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
            raise InputError(f"{self.out}: holds a benchmark with other settings; choose another")
        self.out.mkdir(parents=True, exist_ok=True)
        files.write_json(path, settings)

    def _folder(self, snr: float) -> Path:
        return self.out / f"snr_{snr:g}"

    def _results(self) -> list[dict[str, Any]]:
        found = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in self.out.glob("snr_*/result_*.json")
        ]
        order = {method: place for place, method in enumerate(METHODS)}
        return sorted(found, key=lambda result: (-result["snr"], order[result["method"]]))

    def _measure(self, method: str, snr: float) -> None:
        """Runs one method at one noise, unless its result is there."""
        from jimjax.commands import files
        from jimjax.commands.progress import say

        folder = self._folder(snr)
        path = folder / f"result_{method}.json"
        if path.exists():
            return
        fitted, fresh = self._particles(snr)
        say(f"{method} at SNR {snr:g}")
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        case = Case(fitted, fresh, folder, self.seed, PRESETS[self.preset])
        scores, details = METHODS[method](case)
        result = {
            "method": method,
            "snr": snr,
            "noise": "ctf" if self.ctf else "white",
            "seconds": round(time.monotonic() - started, 1),
            **details,
            **scores,
        }
        files.write_json(path, result)

    def _particles(self, snr: float) -> tuple["Subtomograms", "Subtomograms"]:
        import jax

        from jimjax.data.phantom import demo_phantoms
        from jimjax.data.simulate import CtfParameters, simulate
        from jimjax.data.structures import density_from_file

        grid = {"voxel_size": VOXEL_SIZE, "resolution": 2 * VOXEL_SIZE, "box": BOX}
        if self.structures:
            densities = [density_from_file(path, **grid) for path in self.structures]
        else:
            densities = demo_phantoms(NUM_PHANTOMS, self.seed, shape=(BOX,) * 3)
        preset = PRESETS[self.preset]
        keys = jax.random.split(jax.random.key(self.seed))
        fitted, fresh = (
            simulate(
                key,
                densities,
                num_per_class=num,
                snr=snr,
                voxel_size=VOXEL_SIZE,
                tilt_range=TILT_RANGE,
                max_shift=MAX_SHIFT,
                box=BOX,
                ctf=CtfParameters(defocus=20000.0) if self.ctf else None,
            )
            for key, num in zip(keys, (preset.num_per_class, preset.num_fresh), strict=True)
        )
        return fitted, fresh


class Case(NamedTuple):
    """What a method is given.

    Attributes:
        fitted: particles to fit or train on.
        fresh: particles of the same classes that nothing is fitted to.
        folder: where it may keep what others use.
        seed: of all that is random.
        preset: the benchmark's.
    """

    fitted: "Subtomograms"
    fresh: "Subtomograms"
    folder: Path
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


def _score(found: Any, truth: "Subtomograms") -> dict[str, Any]:
    import numpy as np

    from jimjax.evaluate import evaluate

    def part(rows: "np.ndarray") -> dict[str, float]:
        own = (field[rows] for field in (found.labels, found.rotations, found.shifts))
        true = (field[rows] for field in (truth.labels, truth.rotations, truth.shifts))
        return evaluate(*own, *true)

    scores: dict[str, Any] = part(np.arange(len(truth)))
    names = ("rotation_error_mean", "rotation_error_median", "translation_error_mean")
    each = [part(np.flatnonzero(truth.labels == label)) for label in np.unique(truth.labels)]
    scores["per_class"] = [{name: own[name] for name in names} for own in each]
    return scores


def _em(case: Case, **how: Any) -> Any:
    from jimjax.align.fit import fit
    from jimjax.align.fit_data import Options
    from jimjax.commands.progress import open_progress

    options = Options(case.num_classes, max_shift=MAX_SHIFT, seed=case.seed)
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
    return _score(found, case.fitted), details


def _measure_em_fresh(case: Case) -> Measured:
    import numpy as np

    path = case.folder / "averages.npy"
    if not path.exists():
        np.save(path, _em(case).volumes)
    references = np.load(path, allow_pickle=False)
    started = time.monotonic()
    found = _em(case, particles=case.fresh, references=references)
    seconds = time.monotonic() - started
    details = {"seconds_per_particle": seconds / len(case.fresh), "scored_on": "fresh"}
    return _score(found, case.fresh), details


def _train(case: Case) -> Any:
    """The network trained on the case's particles; kept in its folder."""
    from jimjax.commands.progress import open_progress
    from jimjax.config import NetworkSection, PretrainSection, RunConfig
    from jimjax.train.run import load_run, train_run

    folder = case.folder / "jimnet"
    if (folder / "references.mrcs").exists():
        return load_run(folder)
    network = NetworkSection(preset=case.preset.network, num_classes=case.num_classes)
    pretrain = PretrainSection(steps=case.preset.pretrain_steps)
    config = RunConfig(network=network, pretrain=pretrain, seed=case.seed)
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

    started = time.monotonic()
    run = _train(case)
    trained = time.monotonic()
    found = predict(run, case.hide(case.fresh))
    details = {
        "seconds_per_particle": (time.monotonic() - trained) / len(case.fresh),
        "training_seconds": round(trained - started, 1),
        "scored_on": "fresh",
    }
    return _score(found, case.fresh), details


def _measure_jimnet_em(case: Case) -> Measured:
    from jimjax.align.fit_steps import FINISH_PLAN, Start
    from jimjax.train.run import predict

    run = _train(case)
    started = time.monotonic()
    guess = predict(run, case.hide(case.fitted))
    start = Start(guess.labels, guess.rotations, guess.shifts)
    found = _em(case, start=start, plan=FINISH_PLAN)
    seconds = time.monotonic() - started
    details = {"seconds_per_particle": seconds / len(case.fitted), "scored_on": "fitted"}
    return _score(found, case.fitted), details


def _measure_ht(case: Case) -> Measured:
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from jimjax import ops
    from jimjax.evaluate.pose import PoseErrors, sample_pairs, score_poses

    truth = case.fresh
    first, second = sample_pairs(truth.labels, max_pairs=NUM_PAIRS, seed=case.seed)
    match = jax.jit(
        functools.partial(ops.fast_rotational_matching, max_shift=2 * MAX_SHIFT, cutoff=0.25)
    )
    started, rotations, shifts = time.monotonic(), [], []
    for a, b in zip(first, second, strict=True):
        wedges = {
            "template_wedge": jnp.asarray(truth.tilt_ranges[a]),
            "volume_wedge": jnp.asarray(truth.tilt_ranges[b]),
        }
        best = match(jnp.asarray(truth.volumes[a]), jnp.asarray(truth.volumes[b]), **wedges)
        rotations.append(np.asarray(best.pose.rotation[0]))
        shifts.append(np.asarray(best.pose.shift[0]))
    seconds = time.monotonic() - started
    relative = truth.rotations[second] @ np.swapaxes(truth.rotations[first], 1, 2)
    moved = truth.shifts[second] - np.einsum("pij,pj->pi", relative, truth.shifts[first])
    errors = PoseErrors(
        np.linalg.norm(np.array(rotations) - relative, axis=(1, 2)),
        np.linalg.norm(np.array(shifts) - moved, axis=1),
    )
    details = {"seconds_per_particle": seconds / len(first), "scored_on": "fresh"}
    return score_poses(errors), details


METHODS: dict[str, Callable[[Case], Measured]] = {
    "em": _measure_em,
    "em-fresh": _measure_em_fresh,
    "jimnet": _measure_jimnet,
    "jimnet+em": _measure_jimnet_em,
    "ht": _measure_ht,
}


def make_table(results: list[dict[str, Any]], names: list[str]) -> str:
    """The results as Markdown, beside Jim-Net's published ones.

    Args:
        results: of the benchmark.
        names: of the structures, in order of class.

    Returns:
        Two tables: all classes together, and the errors of each.
    """
    lines = [
        "| SNR | method | scored on | accuracy | rotation error mean / std / median | below 10, "
        "20 degrees | translation error mean / std (voxels) | s per particle |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for snr in sorted({result["snr"] for result in results}, reverse=True):
        for own in (result for result in results if result["snr"] == snr):
            accuracy = own.get("clustering_accuracy")
            shares = [own[f"rotation_share_below_{angle}_degrees"] for angle in (10, 20)]
            cells = [
                f"{snr:g}",
                own["method"],
                own["scored_on"],
                "-" if accuracy is None else f"{accuracy:.3f}",
                f"{own['rotation_error_mean']:.2f} / {own['rotation_error_std']:.2f} / "
                f"{own['rotation_error_median']:.2f}",
                ", ".join(f"{share:.0%}" for share in shares),
                f"{own['translation_error_mean']:.2f} / {own['translation_error_std']:.2f}",
                f"{own['seconds_per_particle']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        if snr in PUBLISHED:
            rotation, translation, accuracy = PUBLISHED[snr]
            lines.append(
                f"| {snr:g} | Jim-Net as published | other data | {accuracy:.3f} | "
                f"{rotation:.2f} / - / - | - | {translation:.2f} / - | - |"
            )
    each = [result for result in results if "per_class" in result]
    if each:
        count = len(each[0]["per_class"])
        heads = names if len(names) == count else [f"class {n + 1}" for n in range(count)]
        lines += ["", f"| SNR | method | {' | '.join(heads)} |", "|---|---" + "|---" * count + "|"]
        lines += [
            f"| {own['snr']:g} | {own['method']} | "
            + " | ".join(
                f"{one['rotation_error_mean']:.2f} / {one['rotation_error_median']:.2f}"
                for one in own["per_class"]
            )
            + " |"
            for own in each
        ]
        lines.append("")
        lines.append("The second table: rotation error within each class, mean / median.")
    return "\n".join(lines) + "\n"


def draw_curves(results: list[dict[str, Any]], path: Path) -> None:
    """Draws accuracy and errors of every method over the SNR."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "clustering_accuracy": "clustering accuracy",
        "rotation_error_mean": "rotation error, mean",
        "translation_error_mean": "translation error, mean (voxels)",
    }
    published = dict(zip(panels, (2, 0, 1), strict=True))
    for axes, (name, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for method in METHODS:
            own = [r for r in results if r["method"] == method and name in r]
            if own:
                values = [result[name] for result in own]
                axes.plot([result["snr"] for result in own], values, "o-", label=method)
        snrs = sorted({result["snr"] for result in results} & set(PUBLISHED))
        values = [PUBLISHED[snr][published[name]] for snr in snrs]
        axes.plot(snrs, values, "k:", label="Jim-Net as published")
        axes.set(xscale="log", xlabel="SNR", title=title)
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
