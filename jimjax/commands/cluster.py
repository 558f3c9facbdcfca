"""``jimjax cluster``: a class for each particle, from nothing but the particles."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from jimjax.cluster.disca_config import DiscaConfig
    from jimjax.models.weights import Weights

CLASSES = "classes.star"
AUTO = tuple(range(2, 11))  # numbers of classes to choose from


@dataclass(frozen=True)
class Cluster:
    """Find classes of particles; poses are neither needed nor found.

    "disca" (the only method yet) lets a network describe the particles, fits mixtures to the
    descriptions, and trains the network on the classes that these propose, again and again.

    Writes OUT/classes.star (a copy of the particle STAR file with the class, rlnClassNumber, and
    jimClassProbability), classes.features.npz beside it, the model (weights.safetensors and
    classes.safetensors), config.toml, provenance.json and metrics.jsonl. Poses and classes that
    the STAR file may hold are not read. SIGTERM or Ctrl-C ends with exit code 75; go on with
    --resume.

    Attributes:
        data: particle STAR file.
        out: folder to write.
        method: see above.
        num_classes: how many classes, or "auto" for 2 to 10, by the Bayesian information criterion.
        preset: small: a YOPO that trains on a laptop; paper: as published, for an accelerator.
        weights: file of a YOPO to begin with, "small" for the one that comes with jimjax, trained
            on random molecules, or "none" for random numbers, as published. If not given: "small"
            for the small preset, "none" for the other.
        contrast: of the protein, for weights and what is made of them.
        config: TOML file with other settings of the method; num_classes, preset, contrast and
            seed are those given here.
        seed: of all that is random.
        resume: go on with what OUT holds.
        tilt_min: lowest tilt of all particles, degrees; from the STAR file if not given.
        tilt_max: highest tilt of all particles, degrees; from the STAR file if not given.
        voxel_size: angstrom; from the STAR file or the headers if not given.
    """

    data: tyro.conf.Positional[Path]
    out: Path
    method: Literal["disca"] = "disca"
    num_classes: int | Literal["auto"] = "auto"
    preset: Literal["small", "paper"] = "small"
    weights: str | None = None
    contrast: Literal["dark", "light"] = "dark"
    config: Path | None = None
    seed: int = 0
    resume: bool = False
    tilt_min: float | None = None
    tilt_max: float | None = None
    voxel_size: float | None = None

    def run(self) -> None:
        """Loads the particles, then clusters them."""
        import numpy as np

        from jimjax.commands import files
        from jimjax.commands.progress import open_progress
        from jimjax.commands.train import training_exits
        from jimjax.data.subtomograms import load

        config = self._config()
        files.check_output_folder(self.out)
        particles = load(
            self.data,
            tilt_range=files.tilt_range(self.tilt_min, self.tilt_max),
            voxel_size=self.voxel_size,
            seed=self.seed,
        )

        from jimjax.cluster.disca import Disca
        from jimjax.cluster.model import save_model
        from jimjax.commands.predict import write_classes

        method = Disca(
            config,
            weights=self._weights(particles.volumes.shape[-1]),
            command=files.command_line(),
        )
        with training_exits(self.out), open_progress() as progress:
            method.fit(particles, folder=self.out, resume=self.resume, progress=progress)
        save_model(self.out, method.model_)
        out = self.out / CLASSES
        write_classes(particles, self.data, out, method.features_, method.probabilities_)
        sizes = np.bincount(method.labels_, minlength=method.model_.num_classes)
        print(f"{len(particles)} particles in classes of {', '.join(map(str, sizes))}: {out}")

    def _config(self) -> "DiscaConfig":
        from jimjax.cluster import disca_config
        from jimjax.cluster.disca_config import DiscaConfig
        from jimjax.config import read_config
        from jimjax.io.errors import InputError

        if self.num_classes != "auto" and self.num_classes < 1:
            raise InputError(f"--num-classes must be 1 or more, got {self.num_classes}")
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {self.seed}")
        if self.config is not None:
            config = read_config(self.config, DiscaConfig)
        else:
            config = disca_config.small() if self.preset == "small" else DiscaConfig()
        return replace(
            config,
            preset=self.preset,
            contrast=self.contrast,
            candidates=AUTO if self.num_classes == "auto" else (self.num_classes,),
            seed=self.seed,
        )

    def _weights(self, box: int) -> "Weights | None":
        from jimjax.commands.align_network import open_weights

        name = self.weights or ("small" if self.preset == "small" else "none")
        return None if name == "none" else open_weights(name, "yopo", box)
