"""What a network says of particles, some at a time."""

import functools
from typing import Any

import jax
import numpy as np

from jimjax.data.batches import map_chunks
from jimjax.data.subtomograms import Subtomograms, check_scale, normalize
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.models.weights import Contrast, Weights

BATCH_SIZE = 64  # particles at a time


def describe(network: Network, volumes: np.ndarray, *, batch_size: int = BATCH_SIZE) -> Any:
    """Asks a network about particles; a pytree of ``(n, ...)`` as it answers.

    Args:
        network: of single particles.
        volumes: ``(n, z, y, x)``, normalised.
        batch_size: particles at a time; has no influence on the result.
    """
    num = len(volumes)
    return map_chunks(lambda rows: _describe(network, volumes[rows]), num, min(batch_size, num))


@jax.jit
def _describe(network: Network, volumes: jax.Array) -> Any:
    return functional.describe(network, volumes, train=False)[0]


def prepare(weights: Weights, particles: Subtomograms, contrast: Contrast) -> np.ndarray:
    """Makes of particles what a network wants to see.

    Args:
        weights: of the network.
        particles: of any scale.
        contrast: of the protein in them.

    Returns:
        ``(n, z, y, x)``, normalised, of the network's contrast.

    Raises:
        InputError: if box or voxel size are not those of the weights.
    """
    description = weights.description
    box, voxel_size = description.config.box, description.voxel_size
    check_scale(particles, box=box, voxel_size=voxel_size, whose="the model")
    sign = np.float32(1 if contrast == description.contrast else -1)
    return sign * normalize(particles.volumes)


def num_features(network: Network, box: int) -> int:
    """How many numbers a network describes a particle of a box by."""
    volume = jax.ShapeDtypeStruct((1, box, box, box), jax.numpy.float32)
    return jax.eval_shape(functools.partial(_describe, network), volume).features.shape[1]
