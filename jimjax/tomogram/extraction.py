"""Subtomograms cut out of a tomogram."""

from typing import NamedTuple

import numpy as np


class Extracted(NamedTuple):
    """Boxes that lie in a tomogram whole.

    Attributes:
        volumes: ``(n, box, box, box)`` float32.
        rows: ``(n,)``, which of the centres they belong to.
    """

    volumes: np.ndarray
    rows: np.ndarray


def extract_boxes(tomogram: np.ndarray, centers: np.ndarray, box: int) -> Extracted:
    """Cuts cubes out of a tomogram, leaving out those that reach beyond it.

    Args:
        tomogram: ``(z, y, x)``.
        centers: ``(n, 3)`` int, (z, y, x) of the voxels that become voxel ``box // 2``.
        box: side of a cube, voxels.

    Returns:
        The cubes, and which they are.
    """
    first = np.asarray(centers) - box // 2
    is_inside = np.all((first >= 0) & (first + box <= np.array(tomogram.shape)), axis=1)
    rows = np.flatnonzero(is_inside)
    volumes = np.empty((len(rows), box, box, box), np.float32)
    for volume, start in zip(volumes, first[rows], strict=True):
        volume[...] = tomogram[tuple(slice(a, a + box) for a in start)]
    return Extracted(volumes, rows)
