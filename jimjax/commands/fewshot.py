"""``jimjax fewshot``: a class for each particle, from a few that were labelled by hand."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jimjax.commands.classes import CLASSES
from jimjax.commands.particles import TiltedParticleOptions

if TYPE_CHECKING:
    from jimjax.data.subtomograms import Subtomograms
    from jimjax.fewshot.classifier import FewShotClassifier
    from jimjax.fewshot.config import FewShotConfig
    from jimjax.models.weights import Weights

PROVENANCE, CONFIG, TRAINING = "provenance.json", "config.toml", "training"
MAX_CLASS = 10_000  # classes.features.npz has a column for every number up to the largest


@dataclass(frozen=True)
class FewShot(TiltedParticleOptions):
    """Find the classes of particles from a few labelled ones; poses are not needed.

    A network puts particles at points; the mean of the labelled ones of a class is its prototype,
    and each particle is of the class of the nearest. "protonet-ce" looks at the particle and all
    prototypes together as well. Labelled particles may be as few as one of each class, and more of
    some classes than of others.

    Writes OUT/classes.star (a copy of the query STAR file with the class, rlnClassNumber, numbered
    as in the support, jimClassProbability and, unless --no-averages, poses), classes.features.npz,
    averages/, embedding.png, report.html, the model for jimjax predict --run OUT, config.toml and
    provenance.json; a training, in OUT/training, metrics.jsonl and checkpoints as well. Classes and
    poses that the query may hold are not read. SIGTERM or Ctrl-C ends a training with exit code 75;
    go on with --resume.

    Attributes:
        support: STAR file of labelled particles, with rlnClassNumber.
        query: STAR file of the particles to classify.
        out: folder to write.
        method: see above.
        train: STAR file of labelled particles of other classes, to learn from first.
        preset: small: a network that works on a laptop; paper: as published, for an accelerator.
        weights: file of a ProtoNet to begin with, "small" for the one that comes with jimjax,
            trained on random molecules, or "none" for random numbers, as published. If not given:
            "small" for the small preset, "none" for the other.
        episodes: how often members of the support are held out, to measure the accuracy; at the
            most 5 of a class then show it, and 15 are asked about.
        averages: pose and average the particles of each class, with the Jim-Net that comes along.
            --no-averages leaves the poses of the STAR file as they are.
        contrast: of the protein, in all particles.
        config: TOML file with other settings of training and episodes; method, preset, contrast
            and seed are those given here.
        seed: of all that is random.
        resume: go on with the training in OUT.
    """

    support: Path
    query: Path
    out: Path
    method: Literal["protonet", "protonet-ce"] = "protonet"
    train: Path | None = None
    preset: Literal["small", "paper"] = "small"
    weights: str | None = None
    episodes: int | None = None
    averages: bool = True
    contrast: Literal["dark", "light"] = "dark"
    config: Path | None = None
    seed: int = 0
    resume: bool = False

    def run(self) -> None:
        """Loads the particles, learns from those that are known, and classifies the others."""
        from jimjax.commands import files

        config = self._config()
        inputs = [path for path in (self.support, self.query, self.train) if path is not None]
        files.check_output_folder(self.out)
        if self.out.is_dir():
            files.check_output_file(self.out / CLASSES, inputs)
        support, query, base = self._load()

        from jimjax.fewshot.classifier import FewShotClassifier

        found = FewShotClassifier(
            config,
            weights=self._weights(support.volumes.shape[-1]),
            command=files.command_line(),
        )
        self.out.mkdir(parents=True, exist_ok=True)
        if base is not None:
            self._train(found, base)
        record = {} if self.episodes is None else self._measure(found, support)
        found.fit(support)
        self._write(found, query, record)

    def _load(self) -> "tuple[Subtomograms, Subtomograms, Subtomograms | None]":
        from jimjax.data.subtomograms import load
        from jimjax.fewshot.support import load_labelled
        from jimjax.io.errors import InputError

        options = {**self.reading, "seed": self.seed}
        support = load_labelled(self.support, **options)
        if support.labels.max() >= MAX_CLASS:
            raise InputError(
                f"{self.support}: rlnClassNumber goes up to {support.labels.max() + 1}, "
                f"{MAX_CLASS} is the most; number the classes from 1"
            )
        base = None if self.train is None else load_labelled(self.train, **options)
        return support, load(self.query, **options), base

    def _train(self, found: "FewShotClassifier", base: "Subtomograms") -> None:
        from jimjax.commands.progress import open_progress

        folder = self.out / TRAINING
        with open_progress() as progress:
            found.train(base, folder=folder, resume=self.resume, progress=progress)

    def _measure(self, found: "FewShotClassifier", support: "Subtomograms") -> dict[str, object]:
        import numpy as np

        from jimjax.io.errors import InputError

        classes, counts = np.unique(support.labels, return_counts=True)
        if len(classes) < 2:
            raise InputError(
                f"{self.support}: --episodes needs two classes or more, these particles are of one"
            )
        fewest = int(counts.min())
        if fewest < 2:
            raise InputError(
                f"{self.support}: class {classes[counts.argmin()] + 1} has a single particle, "
                "--episodes needs one to show the class and another to ask about; label more, or "
                "leave --episodes out"
            )
        shots = min(found.config.shots, fewest - 1)
        queries = min(found.config.queries, fewest - shots)
        accuracy = found.evaluate(
            support,
            ways=len(classes),
            shots=shots,
            queries=queries,
            num_episodes=self.episodes,
            seed=self.seed,
        )
        print(
            f"{len(classes)}-way {shots}-shot accuracy of {self.episodes} episodes of the support: "
            f"{accuracy.mean:.3f} +- {accuracy.half_width:.3f} (95 %)"
        )
        return {
            "episodes": self.episodes,
            "ways": len(classes),
            "shots": shots,
            "queries": queries,
            "accuracy": accuracy.mean,
            "half_width": accuracy.half_width,
        }

    def _write(
        self, found: "FewShotClassifier", query: "Subtomograms", record: dict[str, object]
    ) -> None:
        import numpy as np

        from jimjax.commands import files
        from jimjax.commands.classes import pose, show, write_posed
        from jimjax.commands.predict import write_classes
        from jimjax.config import write_config
        from jimjax.fewshot.model import save_model
        from jimjax.io.files import replace_file

        features, probabilities = found.model_.classify(query)
        labels = probabilities.argmax(axis=1).astype(np.int32)
        num_classes = probabilities.shape[1]
        known = {"features": features, "probabilities": probabilities}
        if self.averages:
            posed = pose(query, labels, contrast=self.contrast, seed=self.seed)
            posed = posed._replace(**known)
            write_posed(posed, query, self.query, self.out, num_classes=num_classes)
        else:
            write_classes(query, self.query, self.out / CLASSES, **known)
        save_model(self.out, found.model_)
        inputs = {"support": str(self.support), "query": str(self.query)}
        inputs["train"] = None if self.train is None else str(self.train)
        inputs["weights"] = self._weights_name
        more = {"method": self.method, "num_particles": len(query), **inputs, **record}
        files.write_json(self.out / PROVENANCE, files.provenance(self.seed, **more))
        counts = np.bincount(labels, minlength=num_classes)[found.classes_]
        named = zip(found.classes_ + 1, counts, strict=True)
        sizes = ", ".join(f"{count} of class {number}" for number, count in named)
        print(f"{len(query)} particles, {sizes}: {self.out / CLASSES}")
        with replace_file(self.out / CONFIG) as stream:
            stream.write(write_config(found.config).encode())
        title = f"jimjax fewshot: {self.method}"
        show(self.out, features, labels, title=title, seed=self.seed)

    def _config(self) -> "FewShotConfig":
        from jimjax.config import read_config
        from jimjax.fewshot import config as configs
        from jimjax.fewshot.config import FewShotConfig
        from jimjax.io.errors import InputError

        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {self.seed}")
        if self.resume and self.train is None:
            raise InputError("--resume goes on with a training; give --train as well")
        if self.config is not None:
            config = read_config(self.config, FewShotConfig)
        else:
            config = configs.small() if self.preset == "small" else FewShotConfig()
        return replace(
            config,
            method=self.method,
            preset=self.preset,
            contrast=self.contrast,
            seed=self.seed,
        )

    @property
    def _weights_name(self) -> str:
        return self.weights or ("small" if self.preset == "small" else "none")

    def _weights(self, box: int) -> "Weights | None":
        from jimjax.commands.align_network import open_weights

        name = self._weights_name
        return None if name == "none" else open_weights(name, "protonet", box)
