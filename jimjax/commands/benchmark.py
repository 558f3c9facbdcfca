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
LEAST_SIMILARITY = 0.98  # of a symmetric structure and its copies
NUM_PHANTOMS = 5  # classes where no structures are given
Method = Literal[
    "em", "em-fresh", "true-maps", "jimnet", "jimnet+em", "gumnet", "ht", "fa", "search"
]
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
    "gumnet" (a network's answer to the centred pair, with the weights that come along), "ht"
    (fast rotational matching), "fa" (the same in a band that is raised, and refined),
    "search" (all rotations and shifts).

    Writes OUT/results.json, OUT/table.md and OUT/curves.png. Results that OUT already holds are
    kept, so that an interrupted benchmark goes on.

    Attributes:
        task: what is compared.
        out: folder to write.
        preset: small: 100 particles of each class, an hour on two cores; paper: 1000, for a GPU.
        structures: .pdb .cif .mrc and so on, one per class; five built-in phantoms if not given.
        symmetries: point group of each structure, such as C1 or D4; all C1 if not given. Poses of
            a symmetric structure are scored modulo its group, which no method is told.
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
    symmetries: tuple[str, ...] = ()
    snr: tuple[float, ...] = SNRS
    methods: tuple[Method, ...] = (
        "em",
        "em-fresh",
        "true-maps",
        "jimnet",
        "jimnet+em",
        "gumnet",
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
            "symmetries": list(self.symmetries),
            "ctf": self.ctf,
            "seed": self.seed,
        }
        densities = self._densities()
        self._remember(settings)
        with training_exits(self.out, "the same command"):
            for snr in self.snr:
                self._measure(snr, densities)
        results = self._results()
        files.write_json(self.out / "results.json", {**settings, "results": results})
        table = make_table(results, [path.name.split(".")[0] for path in self.structures])
        (self.out / "table.md").write_text(table, encoding="utf-8")
        draw_curves(results, self.out / "curves.png")
        print(table)

    def _check(self) -> None:
        from jimjax.commands import files
        from jimjax.io.errors import InputError
        from jimjax.ops import point_group

        files.check_output_folder(self.out)
        if not all(snr > 0 for snr in self.snr):
            raise InputError(f"--snr must be positive, got {min(self.snr):g}")
        if not self.snr or not self.methods:
            raise InputError("--snr and --methods need at least one value each")
        for path in self.structures:
            if not path.is_file():
                raise InputError(f"{path}: no such file")
        if self.symmetries and len(self.symmetries) != len(self.structures):
            raise InputError(
                f"--symmetries names {len(self.symmetries)} point groups for "
                f"{len(self.structures)} structures; give one of each"
            )
        for name in self.symmetries:
            try:
                point_group(name)
            except ValueError as problem:
                raise InputError(f"--symmetries: {problem}") from problem

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

    def _measure(self, snr: float, densities: list) -> None:
        """Runs the methods whose results at one noise are not there yet."""
        from jimjax.commands import files
        from jimjax.commands.progress import say

        folder = self.out / f"snr_{snr:g}"
        paths = {method: folder / f"result_{method}.json" for method in self.methods}
        missing = [method for method, path in paths.items() if not path.exists()]
        if not missing:
            return
        folder.mkdir(parents=True, exist_ok=True)
        fitted, fresh, maps = self._particles(snr, densities)
        groups = self._groups(len(maps))
        case = Case(fitted, fresh, maps, groups, folder, MAX_SHIFT, self.seed, PRESETS[self.preset])
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

    def _groups(self, num_classes: int) -> "list[np.ndarray]":
        import numpy as np

        from jimjax.ops import point_group

        return [np.asarray(point_group(name)) for name in self.symmetries or ["C1"] * num_classes]

    def _densities(self) -> list:
        """Arrays of the structures, or phantoms; symmetric ones in the setting of their group."""
        from jimjax.data.phantom import demo_phantoms
        from jimjax.data.structures import density_from_file

        if not self.structures:
            return demo_phantoms(NUM_PHANTOMS, self.seed, shape=(BOX,) * 3)
        grid = {"voxel_size": VOXEL_SIZE, "resolution": 2 * VOXEL_SIZE, "box": BOX}
        densities = [density_from_file(path, **grid) for path in self.structures]
        for number, name in enumerate(self.symmetries):
            densities[number] = _turn(densities[number], name, self.structures[number])
        return densities

    def _particles(
        self, snr: float, densities: list
    ) -> tuple["Subtomograms", "Subtomograms", "np.ndarray"]:
        """Particles to fit, fresh ones, and the densities with the particles' contrast."""
        import jax
        import numpy as np

        from jimjax.data.phantom import render
        from jimjax.data.simulate import CtfParameters, simulate

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


def _turn(density: "np.ndarray", group: str, path: Path) -> "np.ndarray":
    """Turns a density into the setting of its point group.

    Raises:
        InputError: if it does not have that symmetry.
    """
    import jax.numpy as jnp
    import numpy as np

    from jimjax.align.symmetry_axes import find_setting
    from jimjax.io.errors import InputError
    from jimjax.ops import resample

    rotation, similarity = find_setting(density, group)
    if similarity < LEAST_SIMILARITY:
        raise InputError(
            f"{path}: is not {group}: copies of it correlate by {similarity:.2f} with it at best"
        )
    if np.array_equal(rotation, np.eye(3)):
        return density
    turned = resample.rotate(jnp.asarray(density), jnp.asarray(rotation, jnp.float32), order=3)
    return np.asarray(turned)
