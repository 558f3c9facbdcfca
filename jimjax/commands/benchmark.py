"""``jimjax benchmark``: every method on the same simulated particles, at every noise."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jimjax.commands.benchmark_methods import METHODS, Case, Preset

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms

SNRS = (100.0, 0.1, 0.05, 0.03, 0.01)
BOX, VOXEL_SIZE, TILT_RANGE, MAX_SHIFT = 32, 12.0, (-60.0, 60.0), 6.0
MTF = 0.4  # of Nyquist, as simulated for data of this kind
NUM_PHANTOMS = 5  # classes where no structures are given
Method = Literal["em", "em-fresh", "true-maps", "jimnet", "jimnet+em", "ht", "fa", "search"]
PRESETS = {"small": Preset(100, 50, None), "paper": Preset(1000, 200, 20000)}


@dataclass(frozen=True)
class Benchmark:
    """Compare methods of alignment and classification on simulated particles.

    For each SNR, particles of every structure are simulated (32 voxels of 12 angstrom, tilts -60
    to 60 degrees, shifts up to 6 voxels along each axis, independent white noise), and others that
    nothing is fitted to. Methods: "em" (classes, poses and averages together, scored on the
    particles it was fitted to; it sees no labels), "em-fresh" (fresh particles posed against the
    averages of the em), "true-maps" (the same against the true densities: what no estimate of
    averages can surpass), "jimnet" (fresh particles posed by a network against references that it
    made of the first; small preset: with the weights that come along, paper preset: trained on
    the first), "jimnet+em" (the em begun from the network's answers), and on pairs of one class:
    "ht" (fast rotational matching), "fa" (the same in a band that is raised, and refined),
    "search" (all rotations and shifts).

    Writes OUT/results.json, OUT/table.md and OUT/curves.png. Results that OUT already holds are
    kept, so that an interrupted benchmark goes on.

    Attributes:
        task: what is compared.
        out: folder to write.
        preset: small: 100 particles of each class, an hour on two cores; paper: 1000, for a GPU.
        structures: .pdb .cif .mrc and so on, one per class; five built-in phantoms if not given.
        snr: variance of signal over variance of noise.
        methods: which to run.
        ctf: simulate with a contrast transfer function at 2 micrometre underfocus, the same for
            all particles, and a detector's envelope. No method is told: averages of the em have
            it too, and maps given as references are fitted shell by shell, signs included.
        seed: of all that is random.
    """

    task: tyro.conf.Positional[Literal["alignment"]]
    out: Path
    preset: Literal["small", "paper"] = "small"
    structures: tuple[Path, ...] = ()
    snr: tuple[float, ...] = SNRS
    methods: tuple[Method, ...] = (
        "em",
        "em-fresh",
        "true-maps",
        "jimnet",
        "jimnet+em",
        "ht",
        "fa",
        "search",
    )
    ctf: bool = False
    seed: int = 0

    def run(self) -> None:
        """Simulates, runs what is missing, and writes the table."""
        from jimjax.commands import files
        from jimjax.commands.train import training_exits
        from jimjax.report.alignment import draw_curves, make_table

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
                self._measure(snr)
        results = self._results()
        files.write_json(self.out / "results.json", {**settings, "results": results})
        table = make_table(results, [path.name.split(".")[0] for path in self.structures])
        (self.out / "table.md").write_text(table, encoding="utf-8")
        draw_curves(results, self.out / "curves.png")
        print(table)

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

    def _results(self) -> list[dict[str, Any]]:
        found = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in self.out.glob("snr_*/result_*.json")
        ]
        order = {method: place for place, method in enumerate(METHODS)}
        return sorted(found, key=lambda result: (-result["snr"], order[result["method"]]))

    def _measure(self, snr: float) -> None:
        """Runs the methods whose results at one noise are not there yet."""
        from jimjax.commands import files
        from jimjax.commands.progress import say

        folder = self.out / f"snr_{snr:g}"
        paths = {method: folder / f"result_{method}.json" for method in self.methods}
        missing = [method for method, path in paths.items() if not path.exists()]
        if not missing:
            return
        folder.mkdir(parents=True, exist_ok=True)
        fitted, fresh, maps = self._particles(snr)
        case = Case(fitted, fresh, maps, folder, MAX_SHIFT, self.seed, PRESETS[self.preset])
        for method in missing:
            say(f"{method} at SNR {snr:g}")
            started = time.monotonic()
            scores, details = METHODS[method](case)
            result = {
                "method": method,
                "snr": snr,
                "noise": "ctf" if self.ctf else "white",
                "seconds": round(time.monotonic() - started, 1),
                **details,
                **scores,
            }
            files.write_json(paths[method], result)

    def _particles(self, snr: float) -> tuple["Subtomograms", "Subtomograms", "np.ndarray"]:
        """Particles to fit, fresh ones, and the densities with the particles' contrast."""
        import jax
        import numpy as np

        from jimjax.data.phantom import demo_phantoms, render
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
                ctf=CtfParameters(defocus=20000.0, mtf=MTF) if self.ctf else None,
            )
            for key, num in zip(keys, (preset.num_per_class, preset.num_fresh), strict=True)
        )
        drawn = densities if self.structures else [render(own, (BOX,) * 3) for own in densities]
        return fitted, fresh, -np.stack(drawn)
