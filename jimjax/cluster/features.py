"""What a network says of particles, some at a time."""

import functools
from typing import Any

import jax
import numpy as np

from jimjax.data.batches import map_chunks
from jimjax.models import functional
from jimjax.models.functional import Network

BATCH_SIZE = 64  # particles at a time; has no influence on the result


def describe(network: Network, volumes: np.ndarray) -> Any:
    """Asks a network about particles; a pytree of ``(n, ...)`` as it answers.

    Args:
        network: of single particles.
        volumes: ``(n, z, y, x)``, normalised.
    """
    num = len(volumes)
    return map_chunks(lambda rows: _describe(network, volumes[rows]), num, min(BATCH_SIZE, num))


@jax.jit
def _describe(network: Network, volumes: jax.Array) -> Any:
    return functional.apply(network, volumes, train=False)[0]


def num_features(network: Network, box: int) -> int:
    """How many numbers a network describes a particle of a box by."""
    volume = jax.ShapeDtypeStruct((1, box, box, box), jax.numpy.float32)
    return jax.eval_shape(functools.partial(_describe, network), volume).features.shape[1]
