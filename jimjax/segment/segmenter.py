"""A trained segmentation network applied to particles and to whole tomograms."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from jimjax.data.batches import map_chunks
from jimjax.data.subtomograms import Subtomograms, check_scale, normalize
from jimjax.io.errors import InputError
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.models.weights import Description, Weights
from jimjax.progress import Progress
from jimjax.segment import tiles

CHUNK = 16  # boxes at a time; has no influence on the result


def segment_particles(weights: Weights, particles: Subtomograms) -> np.ndarray:
    """How probably each voxel is the particle's.

    Args:
        weights: of ``train_segmenter``.
        particles: of its box, voxel size and contrast.

    Returns:
        ``(n, z, y, x)`` float32.

    Raises:
        InputError: if the network is another, or box or voxel size differ.
    """
    description = check_segmenter(weights)
    check_scale(
        particles,
        box=description.config.box,
        voxel_size=description.voxel_size,
        whose="the segmenter",
    )
    volumes = normalize(particles.volumes)
    return map_chunks(
        lambda rows: _probability(weights.network, volumes[rows]), len(volumes), CHUNK
    )


def segment_tomogram(
    weights: Weights,
    read: Callable[[int, int], np.ndarray],
    shape: tuple[int, int, int],
    *,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """How probably each voxel of a tomogram is a particle's, slab by slab.

    The network looks at boxes of its own size that overlap by half, each normalised by itself as
    particles are; see ``tiles.blend`` for the memory it takes.

    Args:
        weights: of ``train_segmenter``.
        read: ``(first, last) -> (last - first, y, x)``, sections of the tomogram, of the voxel
            size and contrast of the network.
        shape: of the tomogram.
        progress: told of every batch.

    Yields:
        Sections ``(some, y, x)`` float32, from the first to the last.

    Raises:
        InputError: if the network is another.
    """
    box = check_segmenter(weights).config.box

    def ask(boxes: np.ndarray) -> np.ndarray:
        return np.asarray(_probability(weights.network, normalize(boxes)))

    return tiles.blend(
        ask, read, shape, box=box, stride=box // 2, batch_size=CHUNK, progress=progress
    )


def check_segmenter(weights: Weights) -> Description:
    """The description of a segmenter.

    Raises:
        InputError: if the weights are of another network.
    """
    if weights.description.kind != "voxresnet":
        raise InputError(
            f"segments are made by a voxresnet, these weights are of a {weights.description.kind}"
        )
    return weights.description


@jax.jit
def _probability(network: Network, volumes: jax.Array) -> jax.Array:
    found, _ = functional.apply(network, volumes, train=False)
    return jax.nn.softmax(found.logits)[..., -1]
