"""``jimjax benchmark``: every method on the same simulated particles, at every noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from jimjax.commands import (
    alignment_benchmark,
    alignment_methods,
    clustering_benchmark,
    multitask_benchmark,
    segmentation_benchmark,
)

SETTINGS = "settings.json"
SNRS = (100.0, 0.1, 0.05, 0.03, 0.01)
TASKS = {
    "alignment": alignment_benchmark,
    "clustering": clustering_benchmark,
    "multitask": multitask_benchmark,
    "segmentation": segmentation_benchmark,
    "ablation": segmentation_benchmark,
}
KNOWN = {
    "alignment": tuple(alignment_methods.METHODS),
    "clustering": clustering_benchmark.KNOWN,
    "multitask": multitask_benchmark.KNOWN,
    **{task: tuple(rows) for task, rows in segmentation_benchmark.TASKS.items()},
}
DEFAULT = {
    **KNOWN,
    "clustering": clustering_benchmark.DEFAULT,
    "multitask": multitask_benchmark.DEFAULT,
}


@dataclass(frozen=True)
class Benchmark:
    """Compare methods on simulated particles.

    For each SNR, particles of every structure are simulated (32 voxels of 12 angstrom, tilts -60
    to 60 degrees, shifts up to 6 voxels along each axis, independent white noise), and fresh ones
    that nothing is fitted to.

    "alignment" compares classes and poses. Methods: "em" (classes, poses and averages together,
    scored on the particles it was fitted to; it sees no labels), "em-fresh" (fresh particles posed
    against the averages of the em), "true-maps" (the same against the true densities: what no
    estimate of averages can surpass), "jimnet" (fresh particles posed by a network against
    references that it made of the first; small preset: with the weights that come along, paper
    preset: trained on the first), "jimnet+em" (the em begun from the network's answers), and on
    pairs of one class: "gumnet" (a network's answer to the centred pair, with the weights that
    come along), "ht" (fast rotational matching), "fa" (the same in a band that is raised, and
    refined), "search" (all rotations and shifts).

    "clustering" compares classes alone, of several seeds, and besides the SNRs, at 0.1, among 82 %
    of background ("imbalanced") and without the number of classes ("unknown-k"). Methods are those
    of jimjax cluster, scored on fresh particles ("-random": begun with random weights); "em",
    "jimnet+em" and "disca+em" (classes handed to the em), scored on the particles they were fitted
    to; "distilled" (a Jim-Net that learned from the em, on fresh particles). Three are taught, and
    classify fresh particles: "transfer-taught" learned the same classes, "protonet" and
    "protonet-ce" all but two, which they tell apart by five examples of each (100 episodes).

    "multitask" trains a UMTL for all three of its tasks ("umtl") and for each alone ("umtl-align",
    "umtl-cluster", "umtl-segment"), also without the known masks of random molecules
    ("umtl-no-masks", "umtl-segment-no-masks"), and scores classes, poses and masks of fresh
    particles beside those of an untrained network ("untrained"), the pseudo-labels of masks as they
    are and corrected ("gmm", "gmm-central", "gmm-corrected") and what never changes ("constant").
    Its small preset has 60 particles of each class.

    "segmentation" compares ways from simulated particles with masks (the source, SNR 0.03 and
    0.05) to other structures under another microscope (the target: tilts -50 to 65 degrees,
    underfocus 2.5 to 4.5 micrometre, coloured noise): the methods of jimjax segment train,
    Vox-UDA with each of its denoisers, of several seeds, scored on fresh particles of the target,
    beside voxel-wise mixtures that learn nothing ("gmm", "gmm-corrected"). "ablation" compares
    Vox-UDA with parts left out and other settings, in the same way.

    Writes OUT/results.json, OUT/table.md and, but for multitask, OUT/curves.png. Results that OUT
    already holds are kept, so that an interrupted benchmark goes on.

    Attributes:
        task: what is compared.
        out: folder to write.
        preset: small: for two cores, 100 particles of each class; paper: for a GPU, 1000. Of the
            target, 60 and 344, and of the source 50 and 500 at each SNR.
        structures: .pdb .cif .mrc and so on, one per class; five built-in phantoms if not given.
        source_structures: likewise, of the source of "segmentation" and "ablation", which those of
            the target should not be among.
        symmetries: point group of each structure, such as C1 or D4; all C1 if not given. Poses of
            a symmetric structure are scored modulo its group, which no method is told.
        snr: variance of signal over variance of noise; of the target for "segmentation" and
            "ablation". 100, 0.1, 0.05, 0.03 and 0.01 if not given, or 0.04 for the target.
        methods: which to run; all but the "-random" ones if not given.
        epochs: of "segmentation" and "ablation" with the paper preset, in place of the published
            300, with the schedule in proportion.
        ctf: simulate with a contrast transfer function at 2 micrometre underfocus, the same for
            all particles, and a detector's envelope. No method is told: averages of the em have
            it too, and maps given as references are fitted shell by shell, signs included.
        seed: of all that is random; the first one, where there are several.
        num_seeds: how many seeds; alignment has one.
    """

    task: tyro.conf.Positional[
        Literal["alignment", "clustering", "multitask", "segmentation", "ablation"]
    ]
    out: Path
    preset: Literal["small", "paper"] = "small"
    structures: tuple[Path, ...] = ()
    source_structures: tuple[Path, ...] = ()
    symmetries: tuple[str, ...] = ()
    snr: tuple[float, ...] = ()
    methods: tuple[str, ...] = ()
    epochs: int | None = None
    ctf: bool = False
    seed: int = 0
    num_seeds: int = 3

    goes_on_with: ClassVar[str] = "the same command"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods to run."""
        if self.adapts and not self.methods:
            return segmentation_benchmark.default_rows(self.task, self.preset)
        return self.methods or DEFAULT[self.task]

    @property
    def adapts(self) -> bool:
        """Whether there are a source and a target."""
        return self.task in segmentation_benchmark.TASKS

    @property
    def snrs(self) -> tuple[float, ...]:
        """Noises of the particles, or of the target."""
        return self.snr or (segmentation_benchmark.SNRS if self.adapts else SNRS)

    def run(self) -> None:
        """Simulates, runs what is missing, and writes the table."""
        from jimjax.commands import benchmark_data, files

        self._check()
        settings = {
            "task": self.task,
            "preset": self.preset,
            "structures": [path.name for path in self.structures] or ["phantoms"],
            "symmetries": list(self.symmetries),
            "ctf": self.ctf,
            "seed": self.seed,
        }
        if self.adapts:
            names = [path.name for path in self.source_structures]
            settings["source_structures"] = names or ["phantoms"]
        if self.epochs is not None:
            settings["epochs"] = self.epochs
        densities = benchmark_data.read_densities(self.structures, self.symmetries, self.seed)
        self._remember(settings)
        task = TASKS[self.task]
        task.measure(self, densities)
        results = task.results(self.out)
        files.write_json(self.out / "results.json", {**settings, "results": results})
        self._write_table(results)

    def _write_table(self, results: list[dict[str, Any]]) -> None:
        from jimjax.report import alignment, clustering, multitask, segmentation

        curves = self.out / "curves.png"
        if self.task == "alignment":
            names = [path.name.split(".")[0] for path in self.structures]
            table = alignment.make_table(results, names)
            alignment.draw_curves(results, curves)
        elif self.task == "clustering":
            table = clustering.make_table(results)
            clustering.draw_curves(results, curves)
        elif self.task == "multitask":
            table = multitask.make_table(results)
        else:
            make = segmentation.make_table
            if self.task == "ablation":
                make = segmentation.make_ablation_table
            table = make(results)
            segmentation.draw_bars(results, curves)
        (self.out / "table.md").write_text(table, encoding="utf-8")
        print(table)

    def _check(self) -> None:
        from jimjax.commands import files
        from jimjax.io.errors import InputError
        from jimjax.ops import point_group

        files.check_output_folder(self.out)
        if self.num_seeds < 1:
            raise InputError(f"--num-seeds must be 1 or more, got {self.num_seeds}")
        if not all(snr > 0 for snr in self.snr):
            raise InputError(f"--snr must be positive, got {min(self.snr):g}")
        for name in self.methods:
            if name not in KNOWN[self.task]:
                known = ", ".join(KNOWN[self.task])
                raise InputError(f"--methods: no '{name}' in {self.task}; there are {known}")
        if self.source_structures and not self.adapts:
            raise InputError(f"--source-structures is of no use to {self.task}")
        if self.epochs is not None and not (self.adapts and self.preset == "paper"):
            raise InputError("--epochs is for segmentation and ablation with --preset paper")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"--epochs must be 1 or more, got {self.epochs}")
        if self.adapts and (self.ctf or self.symmetries):
            raise InputError(f"--ctf and --symmetries are of no use to {self.task}; leave them out")
        for path in (*self.structures, *self.source_structures):
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

        path = self.out / SETTINGS
        if path.exists() and files.read_json(path) != settings:
            raise InputError(f"{self.out}: holds a benchmark with other settings; choose another")
        self.out.mkdir(parents=True, exist_ok=True)
        files.write_json(path, settings)
