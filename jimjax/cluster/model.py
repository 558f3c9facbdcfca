"""What clustering leaves behind: a network that describes particles, and classes of those."""

from pathlib import Path
from typing import NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jimjax.cluster.assignment import Assignment, Axes
from jimjax.cluster.features import describe
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
RANKS = {
    "origin": 1,
    "directions": 2,
    "log_weights": 1,
    "means": 2,
    "covariances": 3,
}


class Model(NamedTuple):
    """A network and the classes of what it says.

    Attributes:
        weights: of a network that describes single particles.
        assignment: of descriptions to classes.
        contrast: of the particles; where it is not that of the weights, they are negated.
    """

    weights: Weights
    assignment: Assignment
    contrast: Contrast

    @property
    def num_classes(self) -> int:
        """How many classes it knows."""
        return len(self.assignment.mixture.means)

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
    axes, mixture = model.assignment
    named = axes._asdict() | mixture._asdict()
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
    axes = Axes(arrays["origin"], arrays["directions"])
    mixture = Mixture(*(jnp.asarray(arrays[name]) for name in Mixture._fields))
    return Model(weights, Assignment(axes, mixture), contrast)


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], weights: Weights) -> None:
    if {name: array.ndim for name, array in arrays.items()} != RANKS:
        raise InputError(f"{path}: needs exactly the arrays {', '.join(RANKS)}")
    num_axes, num_classes = arrays["directions"].shape[1], len(arrays["means"])
    wanted = {
        "origin": (weights.description.config.dense_width,),
        "directions": (len(arrays["origin"]), num_axes),
        "log_weights": (num_classes,),
        "means": (num_classes, num_axes),
        "covariances": (num_classes, num_axes, num_axes),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise InputError(f"{path}: '{name}' must be float32 of shape {shape}")
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"{path}: '{name}' is not finite")
