"""``jimjax demo``: the whole pipeline on phantoms, scored on particles it was not fitted to."""

import dataclasses
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jimjax.config import RunConfig
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.train.run import Run

NUM_CLASSES = 4
SNR = 0.1
TILT_RANGE = (-60.0, 60.0)  # degrees
MAX_SHIFT = 3.0 / 32  # of the box: 3 voxels at full size
VOXEL_SIZE = 12.0  # angstrom
CAVEAT = "The particles are simulated from built-in phantoms, without CTF; real data are harder."
QUICK_CAVEAT = "A quick demo shows that everything runs; its scores mean nothing."


class Size(NamedTuple):
    """How much is simulated: particles per class, and voxels of the box."""

    num_train: int
    num_held_out: int
    box: int


FULL = Size(num_train=100, num_held_out=50, box=32)
QUICK = Size(num_train=16, num_held_out=8, box=16)


@dataclass(frozen=True)
class Demo:
    """Simulate phantoms, train, predict held-out particles, average, score and report.

    Four classes, 100 particles of each to train on and 50 of each held out: 32 voxels of 12
    angstrom, SNR 0.1, tilts -60 to 60 degrees, shifts up to 3 voxels. Particles go through STAR
    and MRC files and are loaded without the truth. Writes OUT/metrics.json (scores of the trained
    network on held-out particles; the same of the untrained network and of identity poses in one
    cluster) and OUT/report.html.

    Attributes:
        out: folder to write; must be new or empty.
        seed: of phantoms, poses, noise and training.
        quick: much smaller and briefly trained, to see that everything runs; scores mean nothing.
    """

    out: Path = Path("jimjax-demo")
    seed: int = 0
    quick: bool = False

    def run(self) -> None:
        """Runs all of it."""
        from jimjax.commands.progress import open_progress, say
        from jimjax.data.subtomograms import load

        started = time.monotonic()
        self._check()
        size = QUICK if self.quick else FULL
        say(f"simulating {NUM_CLASSES} classes, SNR {SNR}, tilts {TILT_RANGE} degrees")
        train_star, held_out_star = self._simulate(size)
        particles, held_out = load(train_star), load(held_out_star)  # no poses, no classes

        from jimjax.commands import files
        from jimjax.train.run import train_run, untrained_run

        config = self._config()
        say(f"training on {len(particles)} particles")
        with open_progress() as progress:
            run = train_run(
                config,
                particles,
                self.out / "run",
                progress=progress,
                command=files.command_line(),
            )
        say(f"predicting {len(held_out)} held-out particles")
        scores = self._score(run, held_out, "classes.star")
        say("the same with the untrained network, for comparison")
        untrained = self._score(untrained_run(config, particles), held_out, "untrained.star")
        baselines = {"untrained": untrained, "identity": self._score_identity(held_out)}
        say("averaging and writing the report")
        self._average()
        self._report(baselines)
        seconds = round(time.monotonic() - started, 1)
        record = {**scores, **baselines, "seconds": seconds, "seed": self.seed}
        files.write_json(self.out / "metrics.json", record)
        self._print(scores, baselines, seconds)

    def _check(self) -> None:
        from jimjax.commands import files
        from jimjax.io.errors import InputError

        files.check_output_folder(self.out)
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {self.seed}")
        if self.out.exists() and any(self.out.iterdir()):
            raise InputError(f"{self.out}: is not empty; remove it or give another --out")

    def _config(self) -> "RunConfig":
        from jimjax.config import read_config

        with resources.as_file(resources.files("jimjax") / "presets" / "demo.toml") as path:
            config = dataclasses.replace(read_config(path), seed=self.seed)
        if not self.quick:
            return config
        return dataclasses.replace(
            config,
            pretrain=dataclasses.replace(config.pretrain, steps=20),
            joint=dataclasses.replace(config.joint, epochs=1),
            cluster=dataclasses.replace(config.cluster, rounds=1),
        )

    def _simulate(self, size: Size) -> tuple[Path, Path]:
        """Writes particles to train on and others held out; returns their STAR files."""
        import jax

        from jimjax.commands import files
        from jimjax.commands.simulate import write_particles
        from jimjax.data.phantom import demo_phantoms
        from jimjax.data.simulate import simulate

        shape = (size.box,) * 3
        phantoms = demo_phantoms(NUM_CLASSES, self.seed, shape=shape)
        keys = jax.random.split(jax.random.key(self.seed))
        parts = {"train": size.num_train, "held_out": size.num_held_out}
        paths = []
        for key, (name, num) in zip(keys, parts.items(), strict=True):
            particles = simulate(
                key,
                phantoms,
                num_per_class=num,
                snr=SNR,
                voxel_size=VOXEL_SIZE,
                tilt_range=TILT_RANGE,
                max_shift=MAX_SHIFT * size.box,
                box=size.box,
            )
            record = files.provenance(self.seed, structure_names=["phantom"] * NUM_CLASSES)
            paths.append(write_particles(particles, self.out / name, record))
        return paths[0], paths[1]

    def _score(self, run: "Run", held_out: "Subtomograms", name: str) -> dict[str, float]:
        from jimjax.commands.evaluate import score_files
        from jimjax.commands.predict import write_prediction
        from jimjax.train.run import predict

        truth = self.out / "held_out" / "particles.star"
        write_prediction(predict(run, held_out), held_out, truth, self.out / name)
        return score_files(self.out / name, truth, seed=self.seed)

    def _score_identity(self, held_out: "Subtomograms") -> dict[str, float]:
        """Scores the guess that all particles are of one class and unturned."""
        import numpy as np

        from jimjax.data.columns import read_annotations
        from jimjax.evaluate import evaluate

        true = read_annotations(self.out / "held_out" / "particles.star")
        num = len(held_out)
        return evaluate(
            np.zeros(num, np.int32),
            np.tile(np.eye(3), (num, 1, 1)),
            np.zeros((num, 3)),
            true.labels,
            true.rotations,
            true.shifts,
            seed=self.seed,
        )

    def _average(self) -> None:
        from jimjax.average import write_averages
        from jimjax.data.subtomograms import load

        particles = load(self.out / "classes.star", with_poses=True)
        write_averages(particles, self.out / "averages", num_classes=NUM_CLASSES)

    def _report(self, baselines: dict[str, dict[str, float]]) -> None:
        from jimjax.commands.report import collect
        from jimjax.report.page import write_report

        data = collect(
            self.out / "run",
            self.out / "classes.star",
            averages=self.out / "averages",
            truth=self.out / "held_out" / "particles.star",
            seed=self.seed,
            title="jimjax demo",
            baselines=baselines,
            caveats=(CAVEAT, QUICK_CAVEAT) if self.quick else (CAVEAT,),
        )
        write_report(data, self.out / "report.html")

    def _print(
        self, scores: dict[str, float], baselines: dict[str, dict[str, float]], seconds: float
    ) -> None:
        from rich.console import Console
        from rich.table import Table

        columns = {"trained": scores, **baselines}
        table = Table(title="held-out particles", caption="pose errors: over pairs of one class")
        for name in ("", *columns):
            table.add_column(name, justify="right" if name else "left")
        rows = {
            "clustering accuracy": "clustering_accuracy",
            "adjusted Rand index": "ari",
            "rotation error, median (degrees)": "rotation_error_median_degrees",
            "rotation error, median (Frobenius)": "rotation_error_median",
            "translation error, mean (voxels)": "translation_error_mean",
        }
        for title, key in rows.items():
            table.add_row(title, *(f"{values[key]:.3f}" for values in columns.values()))
        console = Console()
        console.print(table)
        if self.quick:
            console.print(QUICK_CAVEAT)
        print(f"{seconds:.0f} seconds. Look at {self.out / 'report.html'};")
        print(f"numbers: {self.out / 'metrics.json'}, maps: {self.out / 'averages'}")
