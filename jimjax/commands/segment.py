"""``jimjax segment``: which voxels are the particle's, learned from simulated ones."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jimjax.commands.particles import ParticleOptions, TiltedParticleOptions

if TYPE_CHECKING:
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.models.weights import Weights
    from jimjax.segment.config import SegmentConfig

WEIGHTS, STAR, MASKS, PARTICLES = "weights.safetensors", "segments.star", "masks.mrcs", ".star"
PROBABILITY, MASK = "probability.mrc", "mask.mrc"
ANY_TILT = -90.0, 90.0  # a segmenter does not look at tilts


@dataclass(frozen=True)
class SegmentTrain(TiltedParticleOptions):
    """Learn to find the voxels of particles: from masks of some, for others that have none.

    "source-only" learns from the source alone. "dann" and "pdam" learn features (and masks) that
    do not tell which particles are the source's; "asc" and "le-uda" show particles in the other's
    appearance, too, and let an average of earlier networks teach; "vox-uda" gives the source
    noise like the target's, and takes as labels what such an average says of the target without
    its noise. "supervised" learns from masks of the target, for comparison.

    Writes OUT/weights.safetensors, config.toml, provenance.json, metrics.jsonl and checkpoints/.
    SIGTERM or Ctrl-C ends with exit code 75; go on with --resume.

    Attributes:
        source: STAR file of particles with masks (rlnMaskName), such as jimjax simulate --masks
            writes.
        target: STAR file of the particles to segment, of the same box, voxel size and contrast; or
            a tomogram (MRC) of that voxel size and contrast, whose boxes, those that segment
            predict will look at, are particles without masks (not for supervised).
        out: folder to write.
        method: see above.
        preset: small: trains on a laptop; paper: as published, for an accelerator.
        denoiser: vox-uda: what takes the noise off the target before it is labelled: its highest
            frequencies (ngm), a bilateral filter, or one that looks at gradients; "none" labels
            nothing. That of the preset if not given.
        noise: vox-uda: kind of the noise that the source is given; "none" leaves it as it is. That
            of the preset if not given.
        contrast: of the protein, in all particles.
        config: TOML file with other settings; method, preset, contrast and seed are those given
            here.
        max_boxes: of a tomogram: that many of its boxes are drawn, all if there are fewer.
        seed: of all that is random.
        resume: go on with what OUT holds.
    """

    source: Path
    target: Path
    out: Path
    method: Literal["source-only", "supervised", "dann", "pdam", "asc", "le-uda", "vox-uda"] = (
        "vox-uda"
    )
    preset: Literal["small", "paper"] = "small"
    denoiser: Literal["ngm", "bilateral", "gradient-bilateral", "none"] | None = None
    noise: Literal["gaussian", "poisson", "speckle", "none"] | None = None
    contrast: Literal["dark", "light"] = "dark"
    config: Path | None = None
    max_boxes: int = 1000
    seed: int = 0
    resume: bool = False

    def run(self) -> None:
        """Loads both domains, then trains."""
        from jimjax.commands import files
        from jimjax.commands.progress import open_progress

        config = self._config()
        files.check_output_folder(self.out)
        source = self._load(self.source, with_masks=self.method != "supervised")
        target = self._load_target(source)

        from jimjax.models.weights import save_weights
        from jimjax.segment.training import train_segmenter

        with open_progress() as progress:
            weights = train_segmenter(
                config,
                source,
                target,
                folder=self.out,
                resume=self.resume,
                command=files.command_line(),
                progress=progress,
            )
        save_weights(self.out / WEIGHTS, weights)
        print(f"{self.method} from {len(source)} particles for {len(target)}: {self.out}")

    def _load(self, path: Path, *, with_masks: bool) -> "Subtomograms":
        from jimjax.data.subtomograms import load

        return load(path, with_masks=with_masks, **self.reading)

    def _load_target(self, source: "Subtomograms") -> "Subtomograms":
        if self.target.suffix == PARTICLES:
            return self._load(self.target, with_masks=self.method == "supervised")

        from jimjax.commands import files
        from jimjax.io import mrc
        from jimjax.segment.unlabelled import cut_unlabelled

        with mrc.open_volume(self.target, voxel_size=self.voxel_size) as tomogram:
            size = tomogram.voxel_size
            return cut_unlabelled(
                tomogram,
                self.target,
                box=source.volumes.shape[-1],
                voxel_size=check_voxel_size(self.target, size, source.voxel_size, "source"),
                tilt_range=files.tilt_range(self.tilt_min, self.tilt_max) or ANY_TILT,
                max_boxes=self.max_boxes,
                seed=self.seed,
            )

    def _config(self) -> "SegmentConfig":
        from jimjax.config import read_config
        from jimjax.io.errors import InputError
        from jimjax.segment import config as presets
        from jimjax.segment.config import SegmentConfig

        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {self.seed}")
        if self.max_boxes < 1:
            raise InputError(f"--max-boxes must be 1 or more, got {self.max_boxes}")
        if self.method == "supervised" and self.target.suffix != PARTICLES:
            raise InputError(
                f"{self.target}: method supervised learns from masks of the target, which a"
                f" tomogram does not have; give a STAR file ({PARTICLES}) with masks, or another"
                " --method"
            )
        for name in ("denoiser", "noise"):
            if getattr(self, name) is not None and self.method != "vox-uda":
                raise InputError(f"--{name} is of no use to --method {self.method}; try vox-uda")
        if self.config is not None:
            config = read_config(self.config, SegmentConfig)
        else:
            config = presets.small() if self.preset == "small" else SegmentConfig()
        given = {"method": self.method, "preset": self.preset, "contrast": self.contrast}
        given |= {"denoiser": self.denoiser, "noise": self.noise, "seed": self.seed}
        return replace(config, **{name: v for name, v in given.items() if v is not None})


@dataclass(frozen=True)
class SegmentPredict(ParticleOptions):
    """Segment particles or a whole tomogram with a network of jimjax segment train.

    Of particles (DATA is a STAR file), writes OUT/masks.mrcs (1 where the particle is) and
    OUT/segments.star, a copy of the STAR file with rlnMaskName, the place of each particle's mask,
    and jimSegmentVoxels, its voxels. Where the STAR file names masks already, the Dice coefficient
    and the intersection over union with them are printed and written to OUT/scores.json.

    Of a tomogram (DATA is an MRC file), writes OUT/probability.mrc and OUT/mask.mrc, section by
    section, so that memory does not grow with their number.

    Attributes:
        run_folder: folder that jimjax segment train made.
        data: particle STAR file, or tomogram.
        out: folder to write.
        threshold: probability from which a voxel is the particle's.
        contrast: of the protein in the data; that of the training if not given.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    data: Path
    out: Path
    threshold: float = 0.5
    contrast: Literal["dark", "light"] | None = None

    def run(self) -> None:
        """Loads the network and segments."""
        from jimjax.commands import files
        from jimjax.io.errors import InputError
        from jimjax.models.weights import load_weights
        from jimjax.segment.segmenter import check_segmenter

        if not 0 < self.threshold < 1:
            raise InputError(f"--threshold must be between 0 and 1, got {self.threshold:g}")
        files.check_output_folder(self.out)
        weights = load_weights(self.run_folder / WEIGHTS)
        check_segmenter(weights)
        given = weights.description.contrast
        sign = 1 if self.contrast in (None, given) else -1
        self.out.mkdir(parents=True, exist_ok=True)
        if self.data.suffix == PARTICLES:
            self._segment_particles(weights, sign)
        else:
            self._segment_tomogram(weights, sign)

    def _segment_particles(self, weights: "Weights", sign: int) -> None:
        import numpy as np

        from jimjax.commands import files
        from jimjax.data.subtomograms import load, table_of
        from jimjax.evaluate.segmentation import score_segmentation
        from jimjax.io import mrc, star
        from jimjax.io.star import MASK_COLUMN
        from jimjax.progress import stop_request
        from jimjax.segment.segmenter import segment_particles

        files.check_output_file(self.out / STAR, [self.data])
        has_truth = MASK_COLUMN in star.read_particles(self.data).columns
        particles = load(self.data, tilt_range=ANY_TILT, with_masks=has_truth, **self.reading)
        seen = replace(particles, volumes=sign * particles.volumes)
        masks = segment_particles(weights, seen) >= self.threshold
        table = table_of(particles, self.data)
        # As seen from the table that was read: where it is written, its names are made to fit.
        stack = os.path.relpath((self.out / MASKS).resolve(), self.data.parent.resolve())
        columns = {
            MASK_COLUMN: [f"{n:06d}@{stack}" for n in range(1, len(particles) + 1)],
            "jimSegmentVoxels": np.count_nonzero(masks, axis=(1, 2, 3)),
        }
        with stop_request():  # both or none
            mrc.write_stack(self.out / MASKS, masks, voxel_size=particles.voxel_size)
            table.with_columns(columns).write(self.out / STAR)
        print(f"masks of {len(particles)} particles: {self.out / STAR}")
        if has_truth:
            scores = score_segmentation(masks, particles.masks)
            files.write_json(self.out / "scores.json", scores)
            print(", ".join(f"{name} {value:.3f}" for name, value in scores.items()))

    def _segment_tomogram(self, weights: "Weights", sign: int) -> None:
        from collections.abc import Iterator

        import numpy as np

        from jimjax.commands.progress import open_progress
        from jimjax.io import mrc
        from jimjax.progress import stop_request
        from jimjax.segment.segmenter import segment_tomogram

        wanted = weights.description.voxel_size
        with mrc.open_volume(self.data, voxel_size=self.voxel_size) as tomogram:
            size = check_voxel_size(self.data, tomogram.voxel_size, wanted, "segmenter")

            def read(first: int, last: int) -> np.ndarray:
                return sign * tomogram.read(first, last)

            with open_progress() as progress:
                slabs = segment_tomogram(weights, read, tomogram.shape, progress=progress)
                mrc.write_slabs(self.out / PROBABILITY, slabs, tomogram.shape, voxel_size=size)
            shape = tomogram.shape

        def cut() -> Iterator[np.ndarray]:
            with mrc.open_volume(self.out / PROBABILITY) as found:
                for section in range(shape[0]):
                    yield found.read(section, section + 1) >= self.threshold

        with stop_request():  # belongs to the probabilities
            mrc.write_slabs(self.out / MASK, cut(), shape, voxel_size=size)
        print(f"{shape[2]} x {shape[1]} x {shape[0]} voxels: {self.out / MASK}")


@dataclass(frozen=True)
class Segment:
    """Find the voxels of particles, in subtomograms and whole tomograms.

    Attributes:
        step: train a network, or segment with one.
    """

    step: Annotated[
        Annotated[SegmentTrain, tyro.conf.subcommand("train")]
        | Annotated[SegmentPredict, tyro.conf.subcommand("predict")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Runs the step."""
        self.step.run()


def check_voxel_size(path: Path, size: float | None, wanted: float, whose: str) -> float:
    """Gives back the voxel size of a tomogram if it is known and the one that is wanted.

    Args:
        path: of the tomogram, for messages.
        size: angstrom; None if not known.
        wanted: angstrom.
        whose: that is, for messages.

    Raises:
        InputError: see above.
    """
    from jimjax.data.columns import VOXEL_SIZE_TOLERANCE
    from jimjax.io.errors import InputError

    if size is None:
        raise InputError(f"{path}: does not tell its voxel size; give --voxel-size")
    if abs(size / wanted - 1) > VOXEL_SIZE_TOLERANCE:
        raise InputError(
            f"{path}: is at {size:g} A per voxel, the {whose} is for {wanted:g} A; "
            "rescale it, or correct its voxel size"
        )
    return size
