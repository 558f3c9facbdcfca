"""``jimjax match``: a tomogram and maps to picks, and to subtomograms."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import numpy as np

    from jimjax.tomogram.search import ScoreMaps
    from jimjax.tomogram.template_matching import MatchOptions, Particles, Plan

SCORES, ANGLES, ANGLE_LIST, CLASSES = "scores.mrc", "angles.mrc", "angles.star", "classes.mrc"
PICKS, PARTICLES, STACK, SUMMARY = "picks.star", "particles.star", "particles.mrcs", "match.json"
COORDINATES = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
DIAMETER = 2 / 3  # of the map's box, if not given


@dataclass(frozen=True)
class Match:
    """Find the particles of a tomogram that look like given maps.

    Every rotation of every map is compared with every place of the tomogram (template matching):
    the score is the correlation inside a sphere of the particle's diameter, after whitening by the
    tomogram's spectrum, over what the tilt series has measured. The tomogram has the beam along z
    and the tilt axis along y. Maps must have its contrast: nothing is flipped.

    Writes OUT/scores.mrc (best score of each voxel), OUT/angles.mrc (row of OUT/angles.star,
    counted from 0, that gave it), OUT/classes.mrc (map that gave it, if there are several),
    OUT/picks.star (rlnCoordinateX, Y, Z in voxels of the tomogram, the first being 0; angles;
    rlnClassNumber, the map; rlnAutopickFigureOfMerit, the score; jimScoreDeviations, the score in
    standard deviations above the median) and OUT/match.json. With --extract also
    OUT/particles.star and its stack, for jimjax align, refine and average.

    Attributes:
        tomogram: MRC file.
        reference: maps, cubic, of the tomogram's voxel size and contrast.
        out: folder to write.
        tilt_min: lowest tilt, degrees.
        tilt_max: highest tilt, degrees.
        particle_diameter: angstrom; two thirds of the (largest) map's box if not given.
        angle_step: between rotations, degrees.
        resolution: of the comparison, angstrom; what the angle step allows (particle diameter
            times angle step in radians) if not given.
        binning: whole factor by which the search, and scores.mrc, are coarser than the tomogram;
            the largest that keeps the resolution if not given.
        symmetry: point group of the maps, in RELION's setting: C1, C2, D4, T, O, I and so on.
        threshold: lowest score of a pick, in standard deviations above the median of all scores,
            both robust.
        min_score: lowest score of a pick, from -1 to 1, instead of --threshold.
        max_picks: how many at most.
        min_distance: between picks, angstrom; the particle diameter if not given.
        extract: side of the box of subtomograms to cut out, voxels.
        memory: GiB on each device; the tomogram is searched in tiles that fit. The
            host holds the tomogram, and about 24 bytes for each voxel of the search.
        voxel_size: angstrom; from the tomogram's header if not given.
    """

    tomogram: tyro.conf.Positional[Path]
    reference: tuple[Path, ...]
    out: Path
    tilt_min: float | None = None
    tilt_max: float | None = None
    particle_diameter: float | None = None
    angle_step: float = 15.0
    resolution: float | None = None
    binning: int | None = None
    symmetry: str = "C1"
    threshold: float = 5.0
    min_score: float | None = None
    max_picks: int | None = None
    min_distance: float | None = None
    extract: int | None = None
    memory: float = 2.0
    voxel_size: float | None = None

    def run(self) -> None:
        """Checks the input, searches, picks, and cuts out."""
        from jimjax.commands import files
        from jimjax.commands.maps import read_maps
        from jimjax.commands.progress import open_progress, say
        from jimjax.progress import stop_request
        from jimjax.tomogram.template_matching import pick_particles, plan_search, search

        started = time.monotonic()
        tilt_range = self._checked_tilts()
        tomogram, voxel_size = read_tomogram(self.tomogram, self.voxel_size)
        maps = read_maps(self.reference, voxel_size, whose="the tomogram")
        self._check_extract(tomogram.shape)
        options = self._options(max(map(len, maps)) * voxel_size)
        plan = plan_search(options, voxel_size)
        self.out.mkdir(parents=True, exist_ok=True)
        say(
            f"{len(plan.rotations)} rotations of {len(maps)} map(s) to {plan.resolution:.3g} A, "
            f"voxels of {plan.binning * voxel_size:g} A, sphere of {options.diameter:g} A"
        )
        with open_progress() as progress:
            scores = search(
                tomogram,
                maps,
                plan,
                tilt_range=tilt_range,
                max_bytes=options.max_bytes,
                progress=progress,
            )
        with stop_request():  # what belongs together is written together
            write_maps(scores, plan, self.out, voxel_size)
            found = pick_particles(scores, plan, options)
            num_cut = self._write_particles(found, tomogram, voxel_size, tilt_range)
            summary = {
                "picks": len(found.scores),
                "subtomograms": num_cut,
                "threshold": found.threshold,
                "rotations": len(plan.rotations),
                "resolution": plan.resolution,
                "binning": plan.binning,
                "particle_diameter": options.diameter,
                "seconds": round(time.monotonic() - started, 1),
            }
            files.write_json(self.out / SUMMARY, files.provenance(0, **summary))
        print(_describe(found, scores, self.out, summary))

    def _checked_tilts(self) -> tuple[float, float]:
        from jimjax.commands import files
        from jimjax.io.errors import InputError

        files.check_output_folder(self.out)
        if self.out.is_dir():
            for name in (SCORES, ANGLES, CLASSES, STACK):
                files.check_output_file(self.out / name, [self.tomogram, *self.reference])
        if not self.reference:
            raise InputError("--reference is empty; give one map for each kind of particle")
        limits = files.tilt_range(self.tilt_min, self.tilt_max)
        if limits is None:
            raise InputError(
                "the tilt range is not known; give --tilt-min and --tilt-max (degrees),"
                " -90 and 90 if nothing is missing"
            )
        if not -90 <= limits[0] < limits[1] <= 90:
            raise InputError(
                f"tilt range must be -90 <= lowest < highest <= 90 degrees, got {limits[0]:g} to "
                f"{limits[1]:g}"
            )
        return limits

    def _check_extract(self, shape: tuple[int, ...]) -> None:
        from jimjax.io.errors import InputError

        if self.extract is not None and not 2 <= self.extract <= min(shape):
            raise InputError(
                f"--extract must be 2 to {min(shape)} voxels, the tomogram's smallest side, got "
                f"{self.extract}"
            )

    def _options(self, box_in_angstrom: float) -> "MatchOptions":
        from jimjax.tomogram.template_matching import MatchOptions

        given = self.particle_diameter
        return MatchOptions(
            diameter=DIAMETER * box_in_angstrom if given is None else given,
            angle_step=self.angle_step,
            resolution=self.resolution,
            binning=self.binning,
            symmetry=self.symmetry,
            threshold=self.threshold,
            min_score=self.min_score,
            max_picks=self.max_picks,
            min_distance=self.min_distance,
            max_bytes=self.memory * 2**30,
        )

    def _write_particles(
        self,
        found: "Particles",
        tomogram: "np.ndarray",
        voxel_size: float,
        tilt_range: tuple[float, float],
    ) -> int:
        """Writes picks and subtomograms, and says how many of these there are."""
        for name in (PICKS, PARTICLES, STACK):  # of an earlier search
            (self.out / name).unlink(missing_ok=True)
        if not len(found.scores):
            return 0
        columns = pick_columns(found, self.tomogram)
        write_picks(found, columns, self.out / PICKS, voxel_size)
        if self.extract is None:
            return 0
        return write_subtomograms(
            found, columns, tomogram, self.extract, self.out, voxel_size, tilt_range
        )


def read_tomogram(path: Path, voxel_size: float | None) -> tuple["np.ndarray", float]:
    """Reads a tomogram and its voxel size.

    Raises:
        InputError: if the voxel size is not known, or the tomogram not finite or constant.
    """
    import numpy as np

    from jimjax.io import mrc
    from jimjax.io.errors import InputError

    data, size = mrc.read_volume(path, voxel_size=voxel_size)
    if size is None:
        raise InputError(f"{path}: the header has no voxel size; give --voxel-size (angstrom)")
    num_bad = sum(section.size - int(np.isfinite(section).sum()) for section in data)
    if num_bad:
        raise InputError(f"{path}: has {num_bad} voxels that are NaN or infinite; replace them")
    if data.min() == data.max():
        raise InputError(f"{path}: is constant, so there is nothing to find; check the file")
    return data, size


def write_maps(scores: "ScoreMaps", plan: "Plan", folder: Path, voxel_size: float) -> None:
    """Writes scores, rotations and their list, and classes if there are several."""
    from jimjax.data.columns import ANGLES as ANGLE_COLUMNS
    from jimjax.io import mrc, star
    from jimjax.io.convert import relion_from_rotation

    size = plan.binning * voxel_size
    mrc.write_volume(folder / SCORES, scores.scores, voxel_size=size)
    mrc.write_volume(folder / ANGLES, scores.rotations, voxel_size=size)
    angles = relion_from_rotation(plan.rotations).T
    star.new_table(dict(zip(ANGLE_COLUMNS, angles, strict=True))).write(folder / ANGLE_LIST)
    (folder / CLASSES).unlink(missing_ok=True)
    if scores.references.any():
        mrc.write_volume(folder / CLASSES, scores.references + 1, voxel_size=size)


def pick_columns(found: "Particles", tomogram: Path) -> dict[str, object]:
    """Makes the columns that say where particles are in their tomogram, and how well they fit."""
    columns = dict(zip(COORDINATES, found.positions.T, strict=True))
    columns["rlnTomoName"] = [tomogram.stem] * len(found.scores)
    columns["rlnMicrographName"] = [str(tomogram)] * len(found.scores)
    columns["rlnAutopickFigureOfMerit"] = found.scores
    columns["jimScoreDeviations"] = found.deviations
    return columns


def write_picks(
    found: "Particles", columns: dict[str, object], path: Path, voxel_size: float
) -> None:
    """Writes particles by their places in the tomogram."""
    from jimjax.data.columns import ANGLES as ANGLE_COLUMNS
    from jimjax.data.columns import CLASS
    from jimjax.io import star
    from jimjax.io.convert import relion_from_rotation

    angles = relion_from_rotation(found.rotations).T
    table = star.new_table(
        {
            **columns,
            **dict(zip(ANGLE_COLUMNS, angles, strict=True)),
            CLASS: found.references + 1,
            "rlnOpticsGroup": [1] * len(found.scores),
        },
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["opticsGroup1"],
            "rlnImagePixelSize": [voxel_size],
        },
    )
    table.write(path)


def write_subtomograms(
    found: "Particles",
    columns: dict[str, object],
    tomogram: "np.ndarray",
    box: int,
    folder: Path,
    voxel_size: float,
    tilt_range: tuple[float, float],
) -> int:
    """Cuts boxes around particles, those that lie in the tomogram whole; says how many.

    What is left of a position after rounding to a voxel becomes the particle's origin.
    """
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms, to_star
    from jimjax.io.star import read_particles
    from jimjax.tomogram.extraction import extract_boxes

    centers = np.rint(found.positions).astype(int)
    volumes, rows = extract_boxes(tomogram, centers[:, ::-1], box)
    if not len(rows):
        return 0
    labels, halves = found.references[rows], np.empty(len(rows), np.int32)
    for label in np.unique(labels):  # so that even two particles of a class have two half maps
        members = labels == label
        halves[members] = 1 + np.arange(members.sum()) % 2
    particles = Subtomograms(
        volumes=volumes,
        tilt_ranges=np.tile(np.float32(tilt_range), (len(rows), 1)),
        voxel_size=voxel_size,
        names=tuple(f"{row + 1:06d}@{STACK}" for row in range(len(rows))),
        halves=halves,
        rotations=found.rotations[rows],
        shifts=found.positions[rows] - centers[rows],
        labels=labels,
    )
    to_star(particles, folder / PARTICLES, stack_path=folder / STACK)
    columns = {name: np.asarray(values)[rows] for name, values in columns.items()}
    # The box is cut at whole voxels; the rest of the position is in the origins.
    columns |= dict(zip(COORDINATES, centers[rows].T, strict=True))
    read_particles(folder / PARTICLES).with_columns(columns).write(folder / PARTICLES)
    return len(rows)


def _describe(
    found: "Particles", scores: "ScoreMaps", folder: Path, summary: dict[str, object]
) -> str:
    seconds = f"{summary['seconds']:.0f} seconds"
    if not len(found.scores):
        return (
            f"no pick: no score reaches {found.threshold:.3g}, the highest is "
            f"{scores.scores.max():.3g}; {seconds}: {folder / SCORES}"
        )
    text = f"{len(found.scores)} picks, scores {found.scores[-1]:.3g} to {found.scores[0]:.3g}"
    if summary["subtomograms"]:
        text += f", {summary['subtomograms']} subtomograms in {folder / PARTICLES}"
    return f"{text}; {seconds}: {folder / PICKS}"
