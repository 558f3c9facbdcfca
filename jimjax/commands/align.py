"""``jimjax align`` and ``jimjax refine``: particles to classes, poses and averages."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jimjax.commands.particles import TiltedParticleOptions

if TYPE_CHECKING:
    import numpy as np

    from jimjax.align.fit import Found
    from jimjax.align.fit_data import Options
    from jimjax.align.plans import Start
    from jimjax.data.subtomograms import Subtomograms

CLASSES, AVERAGES, SUMMARY = "classes.star", "averages", "alignment.json"


@dataclass(frozen=True)
class Align(TiltedParticleOptions):
    """Find class and pose of every particle, and average.

    Methods: "em" estimates classes, poses and averages together, from nothing but the particles;
    with --reference it begins from poses against those. "search" finds poses against the
    references and leaves them as they are; so do "ht" (fast rotational matching of every particle
    by itself), "fa" (the same in a band that is raised, and refined) and "gumnet" (a Gum-Net, of a
    --run or --weights). "jimnet" asks a network: that of a --run, which knows its classes, or one
    that was trained on other particles (--weights), which finds them; "jimnet+em" begins the em
    from its answers.

    Writes OUT/classes.star (a copy of the particle STAR file with class, angles and origins, and
    columns jimAngleDeviation in degrees, jimShiftDeviation in angstrom, jimClassProbability and
    jimEvidence, the log-likelihood ratio to noise alone), OUT/averages/ (maps, half maps, FSC) and
    OUT/alignment.json. Poses and classes that the STAR file may hold are not read. SIGTERM or
    Ctrl-C ends with exit code 75; go on with --resume.

    Attributes:
        data: particle STAR file.
        out: folder to write.
        method: see above.
        num_classes: how many classes; as many as references, if any are given.
        reference: maps of the particles' box, voxel size and contrast, one for each class.
        run_folder: folder that jimjax train made.
        weights: file of jimjax export, or "small": the weights that come with jimjax, which are
            used where there is no --run.
        contrast: of the protein, for --weights, "dark" if not given; nothing else depends on it.
        particle_diameter: angstrom; two thirds of the box if not given.
        max_shift: largest displacement along each axis, voxels.
        symmetry: point group of all classes, in RELION's setting: C1, C2, D4, T, O, I and so on.
        half_maps: "independent": each half set is aligned by itself from references low-passed
            at two cycles and a third per particle diameter, so that the FSC is not inflated beyond
            that; "joint": half maps of the poses in classes.star.
        resume: go on where an interrupted run in OUT stopped.
        seed: of the random start, and of the half sets, where the STAR file has no
            rlnRandomSubset.
    """

    data: tyro.conf.Positional[Path]
    out: Path
    method: Literal["em", "search", "ht", "fa", "jimnet", "jimnet+em", "gumnet"] = "em"
    num_classes: int | None = None
    reference: tuple[Path, ...] = ()
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    weights: str | None = None
    contrast: Literal["dark", "light"] | None = None
    particle_diameter: float | None = None
    max_shift: float = 6.0
    symmetry: str = "C1"
    half_maps: Literal["independent", "joint"] = "independent"
    resume: bool = False
    seed: int = 0

    def run(self) -> None:
        """Checks the input, aligns and averages."""
        from jimjax.data.subtomograms import load

        started = time.monotonic()
        self._check()
        particles = load(self.data, seed=self.seed, **self.reading)
        references = read_references(self.reference, particles)
        self.out.mkdir(parents=True, exist_ok=True)
        options = self._options()
        found = self._find(particles, references, options)
        options = dataclasses.replace(options, num_classes=len(found.volumes))
        more = {"method": self.method, "seconds": round(time.monotonic() - started, 1)}
        finish(
            particles, found, options, self.data, self.out, half_maps=self.half_maps, more=more
        )  # fmt: skip

    def _check(self) -> None:
        from jimjax.commands import align_network
        from jimjax.io.errors import InputError

        check_door(self.data, self.out, self.seed)
        if self.method in ("search", "ht", "fa", "gumnet") and not self.reference:
            raise InputError(
                f"--method {self.method} needs --reference MAP.mrc, one map for each class"
            )
        align_network.check_options(self.method, self.run_folder, self.weights, self.contrast)
        if "jimnet" in self.method and self.reference:
            raise InputError(f"--reference is of no use to --method {self.method}; try em")
        if self.resume and self.method in ("ht", "fa", "jimnet", "gumnet"):
            raise InputError(f"--method {self.method} has nothing to resume; leave out --resume")
        if self.reference and self.num_classes not in (None, len(self.reference)):
            raise InputError(
                f"--num-classes {self.num_classes} and {len(self.reference)} references do not "
                "fit; give one map for each class"
            )

    def _options(self) -> "Options":
        from jimjax.align.fit_data import Options

        given = self.num_classes
        return Options(
            num_classes=max(1, len(self.reference)) if given is None else given,
            max_shift=self.max_shift,
            diameter=self.particle_diameter,
            symmetry=self.symmetry,
            seed=self.seed,
        )

    def _find(
        self, particles: "Subtomograms", references: "np.ndarray | None", options: "Options"
    ) -> "Found":
        from jimjax.align.plans import FINISH_PLAN, REFINE_PLAN, Start
        from jimjax.commands.align_network import ask_gumnet, ask_jimnet, found_by

        if references is not None and self.method in ("ht", "fa"):
            from jimjax.commands.align_pairwise import match_references

            return match_references(particles, references, self.method, options)
        network = {"run_folder": self.run_folder, "weights": self.weights}
        network["contrast"] = self.contrast or "dark"
        if self.method == "gumnet":
            found = ask_gumnet(particles, references, max_shift=self.max_shift, **network)
            return found_by(found, references)
        if references is not None:
            is_search = self.method == "search"
            # Each of two fits has its own state to resume.
            folder = self.out if is_search else self.out / "search"
            folder.mkdir(exist_ok=True)
            found = run_fit(particles, options, folder, references=references, resume=self.resume)
            if is_search:
                return found
            start = Start(found.labels, found.rotations, found.shifts)
            return run_fit(
                particles, options, self.out, start=start, plan=REFINE_PLAN, resume=self.resume
            )
        if "jimnet" not in self.method:
            return run_fit(particles, options, self.out, resume=self.resume)

        run, guess = ask_jimnet(particles, num_classes=self.num_classes, seed=self.seed, **network)
        if self.method == "jimnet":
            return found_by(guess, run.references)
        start = Start(guess.labels, guess.rotations, guess.shifts)
        options = dataclasses.replace(options, num_classes=len(run.references))
        return run_fit(
            particles, options, self.out, start=start, plan=FINISH_PLAN, resume=self.resume
        )


@dataclass(frozen=True)
class Refine(TiltedParticleOptions):
    """Improve poses that are known already.

    Begins from the classes and poses of the STAR file and looks around each pose, and at its
    twins by near symmetry, with references made of the particles themselves. With --reference
    those maps are the references and stay as they are; each pose moves to the nearest maximum of
    its likelihood by Gauss-Newton steps, classes are kept, and the deviations are what the maps
    and the noise allow. Writes what jimjax align does.

    Attributes:
        data: particle STAR file with poses, and classes if there are several.
        out: folder to write.
        reference: maps of the particles' box, voxel size and contrast, one for each class.
        particle_diameter: angstrom; two thirds of the box if not given.
        symmetry: point group of all classes, whose axes must lie so in these poses.
        half_maps: as of jimjax align.
        resume: go on where an interrupted run in OUT stopped.
        seed: of the half sets, where the STAR file has no rlnRandomSubset.
    """

    data: tyro.conf.Positional[Path]
    out: Path
    reference: tuple[Path, ...] = ()
    particle_diameter: float | None = None
    symmetry: str = "C1"
    half_maps: Literal["independent", "joint"] = "independent"
    resume: bool = False
    seed: int = 0

    def run(self) -> None:
        """Loads particles with poses and refines them."""
        import numpy as np

        from jimjax.align.fit_data import Options
        from jimjax.align.plans import REFINE_PLAN, Start
        from jimjax.commands.align_pairwise import climb_to_references
        from jimjax.data.subtomograms import load

        started = time.monotonic()
        check_door(self.data, self.out, self.seed)
        particles = load(self.data, with_poses=True, seed=self.seed, **self.reading)
        labels = particles.labels
        labels = np.zeros(len(particles), np.int32) if labels is None else labels
        farthest = float(np.abs(particles.shifts).max())
        references = read_references(self.reference, particles)
        options = Options(
            num_classes=len(self.reference) or int(labels.max()) + 1,
            max_shift=min(farthest + 1, particles.volumes.shape[-1] / 2 - 1),
            diameter=self.particle_diameter,
            symmetry=self.symmetry,
            seed=self.seed,
        )
        self.out.mkdir(parents=True, exist_ok=True)
        start = Start(labels, particles.rotations, particles.shifts)
        if references is not None:
            found = climb_to_references(particles, references, start, options)
        else:
            found = run_fit(
                particles, options, self.out, start=start, plan=REFINE_PLAN, resume=self.resume
            )
        more = {
            "method": "refine" if references is None else "gradient",
            "seconds": round(time.monotonic() - started, 1),
        }
        finish(
            particles, found, options, self.data, self.out, half_maps=self.half_maps, more=more
        )  # fmt: skip


def check_door(data: Path, out: Path, seed: int) -> None:
    """Raises if the output cannot be written, or would replace the input.

    Raises:
        InputError: also if the seed is negative.
    """
    from jimjax.commands import files
    from jimjax.io.errors import InputError

    files.check_output_folder(out)
    if out.is_dir():
        files.check_output_file(out / CLASSES, [data])
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, got {seed}")


def read_references(paths: tuple[Path, ...], particles: "Subtomograms") -> "np.ndarray | None":
    """Reads maps that fit the particles; None if there are no paths.

    Raises:
        InputError: if box or voxel size differ, or a map is constant or not finite.
    """
    import numpy as np

    from jimjax.commands.maps import read_maps

    if not paths:
        return None
    box = particles.volumes.shape[-1]
    return np.stack(read_maps(paths, particles.voxel_size, whose="the particles", box=box))


def run_fit(particles: "Subtomograms", options: "Options", folder: Path, **how: Any) -> "Found":
    """Runs the joint EM with a progress bar."""
    from jimjax.align.fit import fit
    from jimjax.commands.progress import open_progress

    with open_progress() as progress:
        return fit(particles, options, folder=folder, progress=progress, **how)


def finish(
    particles: "Subtomograms",
    found: "Found",
    options: "Options",
    data: Path,
    out: Path,
    *,
    half_maps: str,
    more: dict[str, Any],
) -> None:
    """Writes classes, averages and the summary."""
    import numpy as np

    from jimjax.align.fit import STATE
    from jimjax.align.plans import Start
    from jimjax.average import write_averages
    from jimjax.commands import files
    from jimjax.commands.average import describe
    from jimjax.commands.poses import write_poses

    rows = np.arange(len(particles))
    write_poses(
        particles,
        data,
        out / CLASSES,
        found.labels,
        found.rotations,
        found.shifts,
        jimClassProbability=found.probabilities[rows, found.labels],
        **_uncertainties(particles, found),
    )
    own = Start(found.labels, found.rotations, found.shifts)
    if half_maps == "independent":
        own = _align_halves(particles, options, own, out)
    posed = dataclasses.replace(
        particles, labels=own.labels, rotations=own.rotations, shifts=own.shifts
    )
    num_classes = len(found.volumes)
    averages = write_averages(posed, out / AVERAGES, num_classes=num_classes)
    counts = np.bincount(found.labels, minlength=num_classes).tolist()
    summary = {"particles": len(particles), "classes": counts, "half_maps": half_maps, **more}
    files.write_json(out / SUMMARY, files.provenance(options.seed, **summary))
    for state in (out / STATE, out / "search" / STATE):
        state.unlink(missing_ok=True)
    for number, average in enumerate(averages, start=1):
        print(f"class {number}: {describe(average)}")
    print(f"{len(particles)} particles, {more['seconds']:.0f} seconds: {out / CLASSES}")


def _uncertainties(particles: "Subtomograms", found: "Found") -> dict[str, "np.ndarray"]:
    """Columns of what is uncertain; none from a network."""
    import numpy as np

    if not np.all(np.isfinite(found.angle_deviations)):
        return {"jimCorrelation": found.evidence}
    return {
        "jimAngleDeviation": np.rad2deg(found.angle_deviations),
        "jimShiftDeviation": found.shift_deviations * particles.voxel_size,
        "jimEvidence": found.evidence,
    }


def _align_halves(
    particles: "Subtomograms", options: "Options", start: "Start", folder: Path
) -> "Start":
    from jimjax.align.halves import fit_halves
    from jimjax.commands.progress import open_progress, say

    say("aligning each half set by itself, for the resolution")
    with open_progress() as progress:
        return fit_halves(particles, options, start, progress=progress)
