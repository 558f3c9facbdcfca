"""Overlapping tiles of one shape that cover a tomogram, for transforms of bounded size."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.fft import next_fast_len

MAX_TILES = 64  # along one axis

Triple = tuple[int, int, int]


class Tiling(NamedTuple):
    """Tiles whose cores cover a tomogram; cores may overlap, all shapes are the same.

    Attributes:
        core: ``(z, y, x)``, the part of a tile whose result is kept.
        shape: ``(z, y, x)`` of the transforms: core, kernel less one voxel, and a little more to
            reach a length that transforms fast.
        starts: first voxel ``(z, y, x)`` of each core.
    """

    core: Triple
    shape: Triple
    starts: tuple[Triple, ...]


def plan_tiles(size: Triple, kernel: int, *, max_bytes: float, voxel_bytes: int) -> Tiling:
    """Chooses the tiles that transform the fewest voxels in all.

    Args:
        size: ``(z, y, x)`` of the tomogram.
        kernel: side of the cube it is correlated with, voxels.
        max_bytes: of memory for one tile.
        voxel_bytes: that each voxel of a tile takes.

    Returns:
        The tiling.

    Raises:
        ValueError: if no tile that holds the kernel is so small.
    """
    choices = [_along_axis(length, kernel) for length in size]
    fitting = [
        combination
        for combination in itertools.product(*choices)
        if voxel_bytes * np.prod([tile for _, tile, _ in combination]) <= max_bytes
    ]
    if not fitting:
        smallest = np.prod([min(tile for _, tile, _ in choice) for choice in choices])
        raise ValueError(
            f"the memory must be {smallest * voxel_bytes / 2**20:.2g} MiB or more for a tile that "
            f"holds {kernel} voxels each way, got {max_bytes / 2**20:.2g}"
        )
    best = min(fitting, key=lambda axes: np.prod([tile * len(starts) for _, tile, starts in axes]))
    cores, tiles, starts = zip(*best, strict=True)
    return Tiling(cores, tiles, tuple(itertools.product(*starts)))


def _along_axis(length: int, kernel: int) -> list[tuple[int, int, list[int]]]:
    """Core, tile and starts for each number of tiles that makes them smaller."""
    choices: list[tuple[int, int, list[int]]] = []
    for count in range(1, min(length, MAX_TILES) + 1):
        tile = next_fast_len(-(-length // count) + kernel - 1, real=True)
        if choices and tile >= choices[-1][1]:
            continue
        core = min(length, tile - kernel + 1)
        starts = range(0, length, core)
        choices.append((core, tile, [min(start, length - core) for start in starts]))
    return choices


def read_tiles(tomogram: np.ndarray, tiling: Tiling, *, before: int, after: int) -> Iterator:
    """Cuts the tiles out of a tomogram, which goes on as its mirror image beyond its border.

    Args:
        tomogram: ``(z, y, x)``.
        tiling: cores and shapes.
        before: voxels by which a tile begins before its core.
        after: voxels by which it is longer than ``tiling.shape``.

    Yields:
        ``tiling.shape`` and ``after`` along each axis, for each core.
    """
    for start in tiling.starts:
        rows = [
            _mirrored(np.arange(first - before, first - before + side + after), length)
            for first, side, length in zip(start, tiling.shape, tomogram.shape, strict=True)
        ]
        yield tomogram[np.ix_(*rows)]


def _mirrored(numbers: np.ndarray, length: int) -> np.ndarray:
    """Folds positions into 0 .. length - 1; the border voxel is seen twice."""
    folded = numbers % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)
