"""What clustering leaves behind: a network that describes particles, and classes of those."""

from pathlib import Path
from typing import NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jimjax.cluster.assignment import Assignment, Axes, Linear
from jimjax.cluster.features import describe, num_features
from jimjax.data.columns import VOXEL_SIZE_TOLERANCE
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.io.errors import InputError
from jimjax.io.files import open_input, replace_file
from jimjax.models.weights import (
    Contrast,
    Weights,
    digest_arrays,
    load_weights,
    save_weights,
)
from jimjax.ops.mixture import Mixture

WEIGHTS, CLASSES = "weights.safetensors", "classes.safetensors"
FORMAT, VERSION = "jimjax-classes", "1"
AXES = {"origin": 1, "directions": 2}  # ranks of what is kept of a mixture along axes
MIXTURE = {"log_weights": 1, "means": 2, "covariances": 3}
LINEAR = {"kernel": 2, "bias": 1}  # of a linear map


class Model(NamedTuple):
    """A network and the classes of what it says.

    Attributes:
        weights: of a network that describes single particles.
        assignment: of descriptions to classes.
        contrast: of the particles; where it is not that of the weights, they are negated.
    """

    weights: Weights
    assignment: Assignment | Linear
    contrast: Contrast

    @property
    def num_classes(self) -> int:
        """How many classes it knows."""
        return self.assignment.num_classes

    def transform(self, particles: Subtomograms) -> np.ndarray:
        """Describes particles: ``(n, d)`` features.

        Raises:
            InputError: if box or voxel size are not those it was made with.
        """
        description = self.weights.description
        box, wanted = particles.volumes.shape[-1], description.config.box
        if box != wanted:
            raise InputError(f"the model is for boxes of {wanted} voxels, these have {box}")
        if abs(particles.voxel_size / description.voxel_size - 1) > VOXEL_SIZE_TOLERANCE:
            raise InputError(
                f"the model is for {description.voxel_size:g} A per voxel, these particles are "
                f"at {particles.voxel_size:g} A; rescale them, or correct their voxel size"
            )
        sign = 1 if self.contrast == description.contrast else -1
        return describe(self.weights.network, sign * normalize(particles.volumes)).features

    def predict_proba(self, particles: Subtomograms) -> np.ndarray:
        """Probabilities of the classes, ``(n, k)``; errors as of ``transform``."""
        return self.assignment.posterior(self.transform(particles))

    def predict(self, particles: Subtomograms) -> np.ndarray:
        """The most probable class of each particle, ``(n,)``; errors as of ``transform``."""
        return self.predict_proba(particles).argmax(axis=1).astype(np.int32)


def save_model(folder: str | Path, model: Model) -> None:
    """Writes a model to a folder: two safetensors files.

    Args:
        folder: that exists.
        model: what to write.
    """
    folder = Path(folder)
    if isinstance(model.assignment, Linear):
        named = model.assignment._asdict()
    else:
        named = model.assignment.axes._asdict() | model.assignment.mixture._asdict()
    arrays = {name: np.ascontiguousarray(array) for name, array in named.items()}
    metadata = {"format": FORMAT, "version": VERSION, "contrast": model.contrast}
    metadata["sha256"] = digest_arrays(metadata["contrast"], arrays)
    save_weights(folder / WEIGHTS, model.weights)
    with replace_file(folder / CLASSES) as stream:
        stream.write(save(arrays, metadata))


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
    if not (folder / CLASSES).is_file():
        raise InputError(f"{folder}: holds no clusters (it has no {CLASSES})")
    weights = load_weights(folder / WEIGHTS)
    path = folder / CLASSES
    with open_input(path):  # a regular file that may be read
        pass
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        reason = str(problem).splitlines()[0]
        raise InputError(f"{path}: not a whole safetensors file ({reason})") from problem
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: not classes of this jimjax; cluster again")
    _check_arrays(path, arrays, weights)
    contrast = metadata.get("contrast", "")
    if metadata.get("sha256") != digest_arrays(contrast, arrays) or contrast not in get_args(
        Contrast
    ):
        raise InputError(f"{path}: damaged, its digest is another; copy it again")
    return Model(weights, _assignment(arrays), contrast)


def _assignment(arrays: dict[str, np.ndarray]) -> Assignment | Linear:
    if set(arrays) == set(LINEAR):
        return Linear(**arrays)
    mixture = Mixture(**{name: jnp.asarray(arrays[name]) for name in MIXTURE})
    return Assignment(Axes(**{name: arrays[name] for name in AXES}), mixture)


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], weights: Weights) -> None:
    ranks = {name: array.ndim for name, array in arrays.items()}
    num = num_features(weights.network, weights.description.config.box)
    if ranks == LINEAR:
        wanted = {"kernel": (num, len(arrays["bias"])), "bias": arrays["bias"].shape}
    elif ranks == AXES | MIXTURE:
        num_axes, num_classes = arrays["directions"].shape[1], len(arrays["means"])
        wanted = {
            "origin": (num,),
            "directions": (num, num_axes),
            "log_weights": (num_classes,),
            "means": (num_classes, num_axes),
            "covariances": (num_classes, num_axes, num_axes),
        }
    else:
        kinds = (", ".join(kind) for kind in (AXES | MIXTURE, LINEAR))
        raise InputError(f"{path}: needs exactly the arrays {' or '.join(kinds)}")
    for name, shape in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise InputError(f"{path}: '{name}' must be float32 of shape {shape}")
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"{path}: '{name}' is not finite")
