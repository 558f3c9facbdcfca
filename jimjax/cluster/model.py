"""What clustering leaves behind: a network that describes particles, and classes of those."""

import dataclasses
from pathlib import Path
from typing import NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from jimjax.cluster.assignment import Assignment, Axes, Linear, fit_probabilities
from jimjax.cluster.features import describe, num_features, prepare
from jimjax.config import DataSection, NetworkSection, RunConfig
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.io.errors import InputError
from jimjax.io.files import replace_file
from jimjax.models.weights import (
    Contrast,
    Weights,
    digest_arrays,
    load_weights,
    read_arrays,
    save_weights,
)
from jimjax.ops.mixture import Mixture
from jimjax.train.run import Prediction, Run, predict

WEIGHTS, CLASSES = "weights.safetensors", "classes.safetensors"
FORMAT, VERSION = "jimjax-classes", "1"
AXES = {"origin": 1, "directions": 2}  # ranks of what is kept of a mixture along axes
MIXTURE = {"log_weights": 1, "means": 2, "covariances": 3}
LINEAR = {"kernel": 2, "bias": 1}  # of a linear map
REFERENCES = {"references": 4}


class References(NamedTuple):
    """Classes as what particles of them look like.

    Attributes:
        references: ``(k, z, y, x)``, normalised, as dark or light as the network wants them.
    """

    references: np.ndarray

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.references)


class Classified(NamedTuple):
    """What a model says of particles.

    Attributes:
        features: ``(n, d)``.
        probabilities: ``(n, k)``, of the classes.
    """

    features: np.ndarray
    probabilities: np.ndarray


class Model(NamedTuple):
    """A network and the classes of what it says.

    Attributes:
        weights: of a network that describes single particles.
        assignment: of descriptions to classes, or references that a Jim-Net aligns particles to.
        contrast: of the particles; where it is not that of the weights, they are negated.
    """

    weights: Weights
    assignment: Assignment | Linear | References
    contrast: Contrast

    @property
    def num_classes(self) -> int:
        """How many classes it knows."""
        return self.assignment.num_classes

    def classify(self, particles: Subtomograms) -> Classified | Prediction:
        """Describes particles and says which classes they are of; with references, poses as well.

        Raises:
            InputError: if box or voxel size are not those it was made with.
        """
        if isinstance(self.assignment, References):
            return self.align(particles)
        features = self.transform(particles)
        return Classified(features, self.assignment.posterior(features))

    def align(self, particles: Subtomograms) -> Prediction:
        """Classes and poses of particles, of a model whose classes are references.

        Raises:
            InputError: as of ``classify``.
            ValueError: of another model.
        """
        if not isinstance(self.assignment, References):
            raise ValueError("a model without references knows no poses")
        volumes, description = self._volumes(particles), self.weights.description
        config = RunConfig(
            network=NetworkSection(num_classes=self.num_classes),
            data=DataSection(contrast=description.contrast),
        )
        references = self.assignment.references
        run = Run(None, config, self.weights.network, references, description.voxel_size)
        return predict(run, dataclasses.replace(particles, volumes=volumes))

    def transform(self, particles: Subtomograms) -> np.ndarray:
        """Describes particles: ``(n, d)`` features; errors as of ``classify``."""
        return describe(self.weights.network, self._volumes(particles)).features

    def predict_proba(self, particles: Subtomograms) -> np.ndarray:
        """Probabilities of the classes, ``(n, k)``; errors as of ``classify``."""
        return self.classify(particles).probabilities

    def predict(self, particles: Subtomograms) -> np.ndarray:
        """The most probable class of each particle, ``(n,)``; errors as of ``classify``."""
        return self.predict_proba(particles).argmax(axis=1).astype(np.int32)

    def taught(
        self, features: np.ndarray, probabilities: np.ndarray, references: np.ndarray
    ) -> "Model":
        """The model with classes that another method found of the particles it was made with.

        Args:
            features: ``(n, d)``, of ``transform``.
            probabilities: ``(n, k)``, what the other method says of them.
            references: ``(k, z, y, x)``, averages of its classes, with the particles' contrast.

        Returns:
            The same network; of features, classes are a mixture with one covariance for all,
            fitted to the probabilities.
        """
        if isinstance(self.assignment, References):
            sign = np.float32(1 if self.contrast == self.weights.description.contrast else -1)
            return self._replace(assignment=References(sign * normalize(references)))
        return self._replace(assignment=fit_probabilities(features, probabilities))

    def _volumes(self, particles: Subtomograms) -> np.ndarray:
        return prepare(self.weights, particles, self.contrast)


def save_model(folder: str | Path, model: Model) -> None:
    """Writes a model to a folder: two safetensors files.

    Args:
        folder: that exists.
        model: what to write.
    """
    folder = Path(folder)
    assignment = model.assignment
    if isinstance(assignment, Assignment):
        named = assignment.axes._asdict() | assignment.mixture._asdict()
    else:
        named = assignment._asdict()
    arrays = {name: np.ascontiguousarray(array) for name, array in named.items()}
    metadata = {"format": FORMAT, "version": VERSION, "contrast": model.contrast}
    metadata["sha256"] = digest_arrays(metadata["contrast"], arrays)
    save_weights(folder / WEIGHTS, model.weights)
    with replace_file(folder / CLASSES) as stream:
        stream.write(save(arrays, metadata))


def holds_model(folder: str | Path) -> bool:
    """Whether a folder is one of ``save_model``."""
    return (Path(folder) / CLASSES).is_file()


def load_model(folder: str | Path) -> Model:
    """Reads a model; nothing in the files is executed.

    Args:
        folder: of ``save_model``.

    Returns:
        The model.

    Raises:
        InputError: if the folder holds none, or a file is damaged.
    """
    folder = Path(folder)
    if not holds_model(folder):
        raise InputError(f"{folder}: holds no clusters (it has no {CLASSES})")
    weights = load_weights(folder / WEIGHTS)
    path = folder / CLASSES
    metadata, arrays = read_arrays(path)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: not classes of this jimjax; cluster again")
    _check_arrays(path, arrays, weights)
    contrast = metadata.get("contrast", "")
    if metadata.get("sha256") != digest_arrays(contrast, arrays) or contrast not in get_args(
        Contrast
    ):
        raise InputError(f"{path}: damaged, its digest is another; copy it again")
    return Model(weights, _assignment(arrays), contrast)


def _assignment(arrays: dict[str, np.ndarray]) -> Assignment | Linear | References:
    for kind, names in ((Linear, LINEAR), (References, REFERENCES)):
        if set(arrays) == set(names):
            return kind(**arrays)
    mixture = Mixture(**{name: jnp.asarray(arrays[name]) for name in MIXTURE})
    return Assignment(Axes(**{name: arrays[name] for name in AXES}), mixture)


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], weights: Weights) -> None:
    ranks = {name: array.ndim for name, array in arrays.items()}
    box = weights.description.config.box
    num = num_features(weights.network, box)
    if ranks == REFERENCES and weights.description.kind == "jimnet":
        wanted = {"references": (len(arrays["references"]), box, box, box)}
    elif ranks == LINEAR:
        wanted = {"kernel": (num, len(arrays["bias"])), "bias": arrays["bias"].shape}
    elif ranks == AXES | MIXTURE:
        num_axes, num_classes = arrays["directions"].shape[1], len(arrays["means"])
        wanted = {
            "origin": (num,),
            "directions": (num, num_axes),
            "log_weights": (num_classes,),
            "means": (num_classes, num_axes),
            "covariances": (len(arrays["covariances"]), num_axes, num_axes),
        }
        if len(arrays["covariances"]) not in (1, num_classes):
            raise InputError(f"{path}: needs a covariance for each class, or one for all")
    else:
        kinds = (", ".join(kind) for kind in (AXES | MIXTURE, LINEAR, REFERENCES))
        raise InputError(
            f"{path}: needs exactly the arrays {'; or '.join(kinds)}, the last for a Jim-Net"
        )
    for name, shape in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise InputError(f"{path}: '{name}' must be float32 of shape {shape}")
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"{path}: '{name}' is not finite")
