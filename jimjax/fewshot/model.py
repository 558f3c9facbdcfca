"""What few-shot classification leaves behind: a network, and the prototypes of classes."""

import functools
from pathlib import Path
from typing import NamedTuple, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from jimjax.cluster.features import describe, prepare
from jimjax.cluster.model import Classified
from jimjax.data.batches import map_chunks
from jimjax.data.subtomograms import Subtomograms
from jimjax.fewshot import losses
from jimjax.fewshot.losses import Method
from jimjax.io.errors import InputError
from jimjax.io.files import replace_file
from jimjax.models.functional import Network
from jimjax.models.weights import (
    Contrast,
    Weights,
    digest_arrays,
    load_weights,
    read_arrays,
    save_weights,
)

WEIGHTS, PROTOTYPES = "weights.safetensors", "prototypes.safetensors"
FORMAT, VERSION = "jimjax-prototypes", "1"
BATCH_SIZE = 256  # queries at a time; has no influence on the result


class Model(NamedTuple):
    """A network, and the classes that it was shown.

    Attributes:
        weights: of a ProtoNet; of the voxel size of the particles that it was shown.
        prototypes: ``(k, d)``, the mean embedding of each class.
        classes: ``(k,)`` int32, their numbers from 0, ascending; some may be missing.
        method: how particles are classified.
        contrast: of the particles; where it is not that of the weights, they are negated.
    """

    weights: Weights
    prototypes: np.ndarray
    classes: np.ndarray
    method: Method
    contrast: Contrast

    @classmethod
    def from_support(
        cls, weights: Weights, support: Subtomograms, *, method: Method, contrast: Contrast
    ) -> Self:
        """Makes prototypes of labelled particles.

        Args:
            weights: of a ProtoNet for their box and voxel size.
            support: one particle of each class at least; classes may differ in size.
            method: how particles are to be classified.
            contrast: of the protein in the particles.

        Raises:
            InputError: if the particles have no classes, or box or voxel size do not fit.
        """
        if support.labels is None:
            raise InputError(
                "the labelled particles have no classes; give a STAR file with rlnClassNumber"
            )
        features = embed(weights, support, contrast).astype(np.float64)
        classes, members = np.unique(support.labels, return_inverse=True)
        sums = np.zeros((len(classes), features.shape[1]))
        np.add.at(sums, members, features)
        prototypes = (sums / np.bincount(members)[:, None]).astype(np.float32)
        return cls(weights, prototypes, classes.astype(np.int32), method, contrast)

    def transform(self, particles: Subtomograms) -> np.ndarray:
        """Embeds particles: ``(n, d)`` features; errors as of ``prepare``."""
        return embed(self.weights, particles, self.contrast)

    def posterior(self, features: np.ndarray) -> np.ndarray:
        """Probabilities ``(n, k)`` of the classes, in the order of ``classes``."""
        num = len(features)
        prototypes = jnp.asarray(self.prototypes)

        def ask(rows: np.ndarray) -> jax.Array:
            queries = jnp.asarray(features[rows])
            return _posterior(self.weights.network, prototypes, queries, method=self.method)

        return map_chunks(ask, num, min(BATCH_SIZE, num))

    def classify(self, particles: Subtomograms) -> Classified:
        """Describes particles, and says how probable every number up to the largest class is."""
        features = self.transform(particles)
        probabilities = np.zeros((len(features), int(self.classes.max()) + 1), np.float32)
        probabilities[:, self.classes] = self.posterior(features)
        return Classified(features, probabilities)

    def predict_proba(self, particles: Subtomograms) -> np.ndarray:
        """Probabilities ``(n, k)`` of the classes; errors as of ``prepare``."""
        return self.posterior(self.transform(particles))

    def predict(self, particles: Subtomograms) -> np.ndarray:
        """The number of the likeliest class of each particle, ``(n,)`` int32, from 0."""
        return self.classes[self.predict_proba(particles).argmax(axis=1)]


def embed(weights: Weights, particles: Subtomograms, contrast: Contrast) -> np.ndarray:
    """Embeds particles: ``(n, d)``; arguments and errors as of ``prepare``."""
    return describe(weights.network, prepare(weights, particles, contrast)).features


def save_model(folder: str | Path, model: Model) -> None:
    """Writes a model to a folder: two safetensors files.

    Args:
        folder: that exists.
        model: what to write.
    """
    folder = Path(folder)
    arrays = {
        "prototypes": np.ascontiguousarray(model.prototypes, np.float32),
        "classes": np.ascontiguousarray(model.classes, np.int32),
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "method": model.method,
        "contrast": model.contrast,
    }
    metadata["sha256"] = digest_arrays(_described(metadata), arrays)
    save_weights(folder / WEIGHTS, model.weights)
    with replace_file(folder / PROTOTYPES) as stream:
        stream.write(save(arrays, metadata))


def holds_model(folder: str | Path) -> bool:
    """Whether a folder is one of ``save_model``."""
    return (Path(folder) / PROTOTYPES).is_file()


def load_model(folder: str | Path) -> Model:
    """Reads a model; nothing in the files is executed.

    Args:
        folder: of ``save_model``.

    Returns:
        The model.

    Raises:
        InputError: if the folder holds none, or a file is damaged.
    """
    path = Path(folder) / PROTOTYPES
    if not holds_model(folder):
        raise InputError(f"{folder}: holds no few-shot model (it has no {PROTOTYPES})")
    weights = load_weights(Path(folder) / WEIGHTS)
    if weights.description.kind != "protonet":
        raise InputError(f"{folder}: its weights are of {weights.description.kind}, not protonet")
    metadata, arrays = read_arrays(path)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: not prototypes of this jimjax; show it the particles again")
    _check_arrays(path, arrays, weights.description.config.num_features)
    method, contrast = metadata.get("method"), metadata.get("contrast")
    is_known = method in get_args(Method) and contrast in get_args(Contrast)
    if not is_known or metadata.get("sha256") != digest_arrays(_described(metadata), arrays):
        raise InputError(f"{path}: damaged, its digest is another; copy it again")
    return Model(weights, arrays["prototypes"], arrays["classes"], method, contrast)


@functools.partial(jax.jit, static_argnames="method")
def _posterior(
    network: Network, prototypes: jax.Array, queries: jax.Array, *, method: Method
) -> jax.Array:
    return jax.nn.softmax(losses.class_logits(network, prototypes, queries, method))


def _described(metadata: dict[str, str]) -> str:
    return f"{metadata['method']} {metadata['contrast']}"


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], num_features: int) -> None:
    if set(arrays) != {"prototypes", "classes"}:
        raise InputError(f"{path}: needs exactly the arrays prototypes and classes")
    classes = arrays["classes"]
    wanted = {
        "prototypes": ((classes.size, num_features), np.float32),
        "classes": ((classes.size,), np.int32),
    }
    for name, (shape, kind) in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != kind:
            raise InputError(f"{path}: '{name}' must be {kind.__name__} of shape {shape}")
    if classes.size == 0 or classes.min() < 0 or np.any(np.diff(classes) <= 0):
        raise InputError(f"{path}: 'classes' must be numbers from 0, ascending, at least one")
    if not np.isfinite(arrays["prototypes"]).all():
        raise InputError(f"{path}: 'prototypes' is not finite")
