"""``jimjax average``: classes to maps."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from jimjax.commands.particles import TiltedParticleOptions


@dataclass(frozen=True)
class Average(TiltedParticleOptions):
    """Average the particles of each class in their poses.

    Writes OUT/class_001.mrc, its half maps and its FSC curve for each class, and
    OUT/summary.json. The half sets are rlnRandomSubset.

    Attributes:
        classes: STAR file with class and pose of each particle, from jimjax predict.
        out: folder to write.
        seed: deals the half sets, where the STAR file has no rlnRandomSubset.
        order: of the interpolation: 1 (linear) or 3 (cubic spline).
    """

    classes: tyro.conf.Positional[Path]
    out: Path
    seed: int = 0
    order: int = 3

    def run(self) -> None:
        """Loads the particles and writes the averages."""
        from jimjax.commands import files
        from jimjax.data.subtomograms import load
        from jimjax.io.errors import InputError

        if self.order not in (1, 3):
            raise InputError(f"--order must be 1 or 3, got {self.order}")
        files.check_output_folder(self.out)
        particles = load(self.classes, with_poses=True, seed=self.seed, **self.reading)
        if particles.labels is None:
            raise InputError(f"{self.classes}: has no rlnClassNumber; run jimjax predict first")
        _check_not_inputs(self.out, particles.names)

        from jimjax.average import write_averages

        averages = write_averages(particles, self.out, order=self.order)
        for number, average in enumerate(averages, start=1):
            print(f"class {number}: {describe(average)}")
        print(f"averages: {self.out}")


def describe(average: object | None) -> str:
    """Says how many particles a class has and at which resolution its half maps agree."""
    if average is None:
        return "no particles"
    num = average.num_half1 + average.num_half2
    if average.resolution is None:
        return f"{num} particles, no resolution (a half set is empty)"
    resolution = average.resolution
    # The curve may stay above the threshold up to the last shell.
    relation = "at or below" if resolution.is_at_nyquist else "at"
    end = " (Nyquist)" if resolution.is_at_nyquist else ""
    return f"{num} particles, FSC 0.143 {relation} {resolution.angstrom:.1f} A{end}"


def _check_not_inputs(folder: Path, names: tuple[str, ...]) -> None:
    """Raises if a particle's own file would be replaced by an average."""
    from jimjax.io.errors import InputError
    from jimjax.io.mrc import parse_image_name

    inside = folder.resolve()
    for path in {parse_image_name(name).path for name in names}:
        if path.resolve().parent == inside and path.name.startswith("class_"):
            raise InputError(f"{path}: is a particle that --out {folder} might overwrite")
