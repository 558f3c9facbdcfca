"""Particles without masks to adapt a segmenter to: the boxes of a tomogram."""

from pathlib import Path

import numpy as np

from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.io.files import PathLike
from jimjax.io.mrc import VolumeReader
from jimjax.segment.tiles import draw_cubes


def cut_unlabelled(
    tomogram: VolumeReader,
    path: PathLike,
    *,
    box: int,
    voxel_size: float,
    tilt_range: tuple[float, float],
    max_boxes: int,
    seed: int,
) -> Subtomograms:
    """Draws boxes of a tomogram, wherever they lie, as particles of which nothing is known.

    They are boxes that ``segmenter.segment_tomogram`` would look at: they overlap by half, the
    last ones end with the tomogram, and along an axis shorter than the box the tomogram goes on as
    its mirror image. Boxes without any contrast are left out after the draw. Memory beside the
    boxes is that of ``box`` sections, see ``tiles.draw_cubes``.

    Args:
        tomogram: opened.
        path: of its file, for names and messages.
        box: side of the boxes, voxels, 2 or more.
        voxel_size: angstrom.
        tilt_range: lowest and highest tilt, degrees.
        max_boxes: to draw, 1 or more; all if there are fewer.
        seed: of the draw.

    Returns:
        ``(n, box, box, box)``, without poses, classes and masks; half sets alternate. Names are
        the number of a box among those kept, and the file.

    Raises:
        InputError: if every box that was drawn is constant, or a voxel is not finite.
    """
    cubes = draw_cubes(
        tomogram.read, tomogram.shape, box=box, stride=box // 2, max_cubes=max_boxes, seed=seed
    )
    volumes = cubes[cubes.min(axis=(1, 2, 3)) < cubes.max(axis=(1, 2, 3))]
    num = len(volumes)
    if not num:
        raise InputError(
            f"{path}: all {len(cubes)} boxes that were drawn are constant; check the file"
        )
    return Subtomograms(
        volumes=volumes,
        tilt_ranges=np.tile(np.float32(tilt_range), (num, 1)),
        voxel_size=float(voxel_size),
        names=tuple(f"{number:06d}@{Path(path).absolute()}" for number in range(1, num + 1)),
        halves=1 + np.arange(num, dtype=np.int32) % 2,
    )
