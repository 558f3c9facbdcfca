import itertools

import numpy as np
import pytest

from jimjax.tomogram.tiles import plan_tiles, read_tiles

SIZES = [(20, 38, 41), (7, 7, 7), (16, 100, 30)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("max_voxels", [4000, 30000, 10**9])
def test_cores_cover_every_voxel(size, max_voxels):
    tiling = plan_tiles(size, 7, max_bytes=10 * max_voxels, voxel_bytes=10)
    covered = np.zeros(size, int)
    for start in tiling.starts:
        assert min(start) >= 0
        place = tuple(slice(a, a + n) for a, n in zip(start, tiling.core, strict=True))
        assert covered[place].shape == tiling.core
        covered[place] += 1
    assert covered.min() == 1


@pytest.mark.parametrize("size", SIZES)
def test_tiles_hold_core_and_kernel_within_the_limit(size):
    tiling = plan_tiles(size, 7, max_bytes=10 * 4000, voxel_bytes=10)
    assert np.prod(tiling.shape) <= 4000
    assert all(t >= c + 6 for t, c in zip(tiling.shape, tiling.core, strict=True))


def test_one_tile_where_there_is_room():
    assert len(plan_tiles((20, 30, 30), 5, max_bytes=10**7, voxel_bytes=10).starts) == 1


def test_less_memory_than_the_kernel_needs_are_an_error():
    with pytest.raises(ValueError, match=r"memory must be 0\.0049 MiB or more"):
        plan_tiles((20, 20, 20), 7, max_bytes=10 * 100, voxel_bytes=10)


def test_tiles_are_the_tomogram_and_its_mirror_image():
    tomogram = np.random.default_rng(0).normal(size=(6, 9, 5)).astype(np.float32)
    tiling = plan_tiles(tomogram.shape, 3, max_bytes=10 * 200, voxel_bytes=10)
    assert len(tiling.starts) > 1
    around = np.pad(tomogram, 20, mode="symmetric")
    for start, tile in zip(
        tiling.starts, read_tiles(tomogram, tiling, before=2, after=4), strict=True
    ):
        sides = [(a + 18, a + 18 + n + 4) for a, n in zip(start, tiling.shape, strict=True)]
        expected = around[tuple(itertools.starmap(slice, sides))]
        np.testing.assert_array_equal(tile, expected)
