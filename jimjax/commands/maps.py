"""Maps that are given as references."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def read_maps(
    paths: tuple[Path, ...], voxel_size: float, *, whose: str, box: int | None = None
) -> list["np.ndarray"]:
    """Reads cubes of a voxel size.

    Args:
        paths: of the maps.
        voxel_size: that they must have, angstrom; one whose header has none passes.
        whose: voxel size and box that is, for messages, such as "the tomogram".
        box: voxels along each axis that they must have; any if None.

    Returns:
        Float32 arrays ``[z, y, x]``.

    Raises:
        InputError: if one is no cube, of another box or voxel size, constant, or not finite.
    """
    import numpy as np

    from jimjax.data.columns import VOXEL_SIZE_TOLERANCE
    from jimjax.io import mrc
    from jimjax.io.errors import InputError

    maps = []
    for path in paths:
        data, size = mrc.read_volume(path)
        shape = " x ".join(map(str, data.shape[::-1]))
        if box is not None and data.shape != (box,) * 3:
            raise InputError(
                f"{path}: has {shape} voxels, {whose} {box} x {box} x {box}; crop or pad it"
            )
        if len(set(data.shape)) != 1:
            raise InputError(f"{path}: has {shape} voxels; crop or pad it to a cube")
        if size and abs(size / voxel_size - 1) > VOXEL_SIZE_TOLERANCE:
            raise InputError(
                f"{path}: has {size:g} A per voxel, {whose} {voxel_size:g} A; rescale it, or "
                "correct the voxel size"
            )
        if not np.all(np.isfinite(data)) or data.min() == data.max():
            raise InputError(f"{path}: is constant or not finite; check the file")
        maps.append(np.asarray(data, np.float32))
    return maps
