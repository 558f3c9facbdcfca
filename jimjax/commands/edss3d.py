"""``jimjax edss3d``: which voxels of the particles are the protein's, learned from clusters."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jimjax.commands.particles import TiltedParticleOptions

if TYPE_CHECKING:
    from jimjax.segment.edss3d_config import Edss3dTraining

SEGMENTS, STAR, WEIGHTS = "segments.mrcs", "segments.star", "weights.safetensors"


@dataclass(frozen=True)
class Edss3d(TiltedParticleOptions):
    """Segment particles, from nothing but the clusters that you select.

    Look at the classes that jimjax cluster --method autoencoder found, and name those to segment.
    What the autoencoder draws of their particles, cut at a level, teaches a network which voxels
    are theirs; as many other particles teach it what is background.

    Writes OUT/segments.mrcs (a volume for each particle: 0 is background, other numbers are those
    of the clusters), OUT/segments.star (a copy of the particle STAR file with rlnClassNumber, and
    jimSegmentName and jimSegmentVoxels, the particle's place in the stack and its voxels that are
    not background), weights.safetensors, config.toml, provenance.json and metrics.jsonl. SIGTERM
    or Ctrl-C ends with exit code 75; go on with --resume.

    Attributes:
        run_folder: folder that jimjax cluster --method autoencoder made.
        data: particle STAR file, of the same kind of particles.
        clusters: numbers of those to segment, as in rlnClassNumber, from 1.
        out: folder to write.
        preset: small: trains on a laptop; paper: as published, for an accelerator.
        config: TOML file with other settings; clusters, preset and seed are those given here.
        seed: of all that is random.
        resume: go on with what OUT holds.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    data: Path
    clusters: tuple[int, ...]
    out: Path
    preset: Literal["small", "paper"] = "small"
    config: Path | None = None
    seed: int = 0
    resume: bool = False

    def run(self) -> None:
        """Loads clusters and particles, then teaches and segments."""
        import numpy as np

        from jimjax.commands import files
        from jimjax.commands.poses import class_columns
        from jimjax.commands.progress import open_progress
        from jimjax.data.subtomograms import load, table_of
        from jimjax.io import mrc

        training = self._training()
        files.check_output_folder(self.out)
        if self.out.is_dir():
            files.check_output_file(self.out / STAR, [self.data])
        particles = load(self.data, seed=self.seed, **self.reading)

        from jimjax.cluster.model import load_model
        from jimjax.models.weights import save_weights
        from jimjax.segment.edss3d import teach

        model = load_model(self.run_folder)
        with open_progress() as progress:
            segmenter = teach(
                model,
                particles,
                training,
                folder=self.out,
                resume=self.resume,
                command=files.command_line(),
                progress=progress,
            )
        save_weights(self.out / WEIGHTS, segmenter.weights)
        segments = segmenter.predict(particles)
        mrc.write_stack(self.out / SEGMENTS, segments, voxel_size=particles.voxel_size)
        table = table_of(particles, self.data)
        columns = class_columns(particles, table, model.predict(particles))
        columns["jimSegmentName"] = [f"{n:06d}@{SEGMENTS}" for n in range(1, len(particles) + 1)]
        voxels = np.count_nonzero(segments, axis=(1, 2, 3))
        columns["jimSegmentVoxels"] = voxels
        table.with_columns(columns).write(self.out / STAR)
        num = np.count_nonzero(voxels)
        print(f"segments in {num} of {len(particles)} particles: {self.out / STAR}")

    def _training(self) -> "Edss3dTraining":
        from jimjax.config import read_config
        from jimjax.io.errors import InputError
        from jimjax.segment import edss3d_config
        from jimjax.segment.edss3d_config import Edss3dTraining

        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {self.seed}")
        if self.config is not None:
            training = read_config(self.config, Edss3dTraining)
        else:
            training = edss3d_config.small() if self.preset == "small" else Edss3dTraining()
        return replace(training, clusters=self.clusters, preset=self.preset, seed=self.seed)
