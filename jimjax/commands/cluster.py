"""``jimjax cluster``: a class for each particle, from nothing but the particles."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jimjax.commands.classes import CLASSES
from jimjax.commands.particles import TiltedParticleOptions

if TYPE_CHECKING:
    from jimjax.cluster.estimator import Clusterer
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.models.weights import Weights
    from jimjax.progress import Progress
    from jimjax.train.run import Prediction

SUMMARY, TRAINING = "summary.json", "training"
AUTO = tuple(range(2, 11))  # numbers of classes to choose from


@dataclass(frozen=True)
class Cluster(TiltedParticleOptions):
    """Find classes of particles, without labels and without poses.

    "jimnet" aligns particles to references that it makes of them; "jimnet-cluster" is the same
    network's features alone, taught what a mixture of them proposes; "disca", "deepcluster" and
    "pica" describe particles by a YOPO that teaches itself; "autoencoder" by the code from which
    each particle can be drawn again; "transfer" by a network that learned simulated classes.

    Writes OUT/classes.star (a copy of the particle STAR file with class, jimClassProbability and,
    unless --no-averages, poses), classes.features.npz, averages/, embedding.png, report.html, the
    model for jimjax predict --run OUT, config.toml, provenance.json and what training logs. Poses
    and classes that the STAR file may hold are not read. SIGTERM or Ctrl-C ends with exit code
    75; go on with --resume.

    Attributes:
        data: particle STAR file.
        out: folder to write.
        method: see above.
        num_classes: how many classes, or "auto" for 2 to 10: as many as the method finds likeliest.
        preset: small: trains on a laptop; paper: as published, for an accelerator.
        weights: file to begin with, "small" for those that come with jimjax, trained on random
            molecules, or "none" for random numbers, as published. If not given: "small" for the
            small preset where there are some, "none" for the other. For transfer with --preset
            paper also a DeepFinder that Keras has saved (.h5), with --train.
        train: STAR file of labelled particles, such as jimjax simulate makes, of classes that
            "transfer" learns to tell apart before it looks at the particles.
        contrast: of the protein, for weights and what is made of them.
        finish: em: hand the classes to the joint EM of jimjax align, which finds poses and averages
            and corrects the classes; the model then knows the corrected ones. Poses of each class
            to begin with, and without it the averages, are of the Jim-Net that comes along.
        averages: pose and average the particles of each class. --no-averages leaves the poses of
            the STAR file as they are.
        max_shift: largest displacement of a particle along each axis, voxels; for the EM.
        particle_diameter: angstrom, for the EM; two thirds of the box if not given.
        config: TOML file with other settings of the method; num_classes, preset, contrast and
            seed are those given here.
        seed: of all that is random.
        resume: go on with what OUT holds.
    """

    data: tyro.conf.Positional[Path]
    out: Path
    method: Literal[
        "jimnet", "jimnet-cluster", "disca", "autoencoder", "transfer", "deepcluster", "pica"
    ] = "jimnet"
    num_classes: int | Literal["auto"] = "auto"
    preset: Literal["small", "paper"] = "small"
    weights: str | None = None
    train: Path | None = None
    contrast: Literal["dark", "light"] = "dark"
    finish: Literal["none", "em"] = "none"
    averages: bool = True
    max_shift: float = 6.0
    particle_diameter: float | None = None
    config: Path | None = None
    seed: int = 0
    resume: bool = False

    def run(self) -> None:
        """Loads the particles, clusters them, and shows what was found."""
        from jimjax.cluster.model import save_model
        from jimjax.commands import files
        from jimjax.commands.classes import show
        from jimjax.commands.cluster_methods import begin_with, build
        from jimjax.commands.progress import open_progress
        from jimjax.data.subtomograms import load

        started = time.monotonic()
        config = self._config()
        files.check_output_folder(self.out)
        if self.out.is_dir():
            files.check_output_file(self.out / CLASSES, [self.data])
        particles = load(self.data, seed=self.seed, **self.reading)
        box = particles.volumes.shape[-1]
        is_taught = self.train is not None
        weights = begin_with(self.method, self.preset, self.weights, box, is_taught=is_taught)
        with open_progress() as progress:
            if is_taught:
                weights = self._learn(weights, progress)
            method = build(self.method, config, weights, files.command_line())
            method.fit(particles, folder=self.out, resume=self.resume, progress=progress)
        if self.finish == "em":
            self._finish(method, particles, started)
        else:
            self._write(method, particles)
        save_model(self.out, method.model_)
        self._sum_up(method, particles, started)
        title = f"jimjax cluster: {self.method}"
        show(self.out, method.features_, method.labels_, title=title, seed=self.seed)

    def _learn(self, weights: "Weights | None", progress: "Progress | None") -> "Weights":
        """What is learned of labelled particles."""
        from jimjax.commands import files
        from jimjax.fewshot.support import load_labelled
        from jimjax.train import supervised

        config = supervised.small() if self.preset == "small" else supervised.SupervisedConfig()
        known = load_labelled(self.train, **self.reading)
        folder = self.out / TRAINING
        return supervised.train_classifier(
            dataclasses.replace(config, contrast=self.contrast, seed=self.seed),
            known,
            weights=weights,
            folder=folder,
            resume=self.resume and folder.exists(),
            command=files.command_line(),
            progress=progress,
        )

    def _config(self) -> Any:
        from jimjax.commands.cluster_methods import configure
        from jimjax.io.errors import InputError

        if self.train is not None and self.method != "transfer":
            raise InputError(f"--train is of no use to --method {self.method}; try transfer")

        if self.num_classes != "auto" and self.num_classes < 1:
            raise InputError(f"--num-classes must be 1 or more, got {self.num_classes}")
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {self.seed}")
        if self.finish == "em" and not self.averages:
            raise InputError("--finish em makes averages; leave out --no-averages")
        return configure(
            self.method,
            self.preset,
            self.config,
            candidates=AUTO if self.num_classes == "auto" else (self.num_classes,),
            contrast=self.contrast,
            seed=self.seed,
        )

    def _pose(self, method: "Clusterer", particles: "Subtomograms") -> "Prediction":
        """Poses of the particles within their classes."""
        from jimjax.commands.classes import pose

        if method.poses_ is not None:
            return method.poses_
        return pose(particles, method.labels_, contrast=self.contrast, seed=self.seed)

    def _write(self, method: "Clusterer", particles: "Subtomograms") -> None:
        """Writes classes and, if wanted, poses and averages."""
        from jimjax.commands.classes import write_posed
        from jimjax.commands.predict import write_classes

        known = {"features": method.features_, "probabilities": method.probabilities_}
        if not self.averages:
            write_classes(particles, self.data, self.out / CLASSES, **known)
            return
        posed = self._pose(method, particles)._replace(**known)
        num_classes = method.model_.num_classes
        write_posed(posed, particles, self.data, self.out, num_classes=num_classes)

    def _sum_up(self, method: "Clusterer", particles: "Subtomograms", started: float) -> None:
        import numpy as np

        from jimjax.commands import files

        seconds = round(time.monotonic() - started, 1)
        sizes = np.bincount(method.labels_, minlength=method.model_.num_classes).tolist()
        summary = {"method": self.method, "finish": self.finish, "particles": len(particles)}
        summary |= {"classes": sizes, "seconds": seconds}
        files.write_json(self.out / SUMMARY, files.provenance(self.seed, **summary))
        print(
            f"{len(particles)} particles in classes of {', '.join(map(str, sizes))}, "
            f"{seconds:.0f} seconds: {self.out / CLASSES}"
        )

    def _finish(self, method: "Clusterer", particles: "Subtomograms", started: float) -> None:
        """Hands the classes to the EM, and what it makes of them back to the method."""
        from jimjax.align.fit_data import Options
        from jimjax.align.plans import CLASSES_PLAN, Start
        from jimjax.commands.align import finish, run_fit
        from jimjax.commands.predict import write_features

        posed = self._pose(method, particles)
        options = Options(
            num_classes=method.model_.num_classes,
            max_shift=self.max_shift,
            diameter=self.particle_diameter,
            seed=self.seed,
        )
        start = Start(method.labels_, posed.rotations, posed.shifts)
        found = run_fit(
            particles, options, self.out, start=start, plan=CLASSES_PLAN, resume=self.resume
        )
        more = {"method": f"{self.method}+em", "seconds": round(time.monotonic() - started, 1)}
        finish(
            particles, found, options, self.data, self.out, half_maps="joint", more=more
        )  # fmt: skip
        method.learn(found.probabilities, found.volumes)
        write_features(self.out / CLASSES, method.features_, method.labels_, method.probabilities_)
