"""Boxes of a tomogram to adapt to: those that prediction looks at, drawn within a bound."""

import itertools
import tracemalloc

import numpy as np
import pytest

from jimjax.io import mrc
from jimjax.io.errors import InputError
from jimjax.segment.tiles import blend, draw_cubes
from jimjax.segment.unlabelled import cut_unlabelled

BOX = 8
TILTS = (-50.0, 62.0)


def volume_of(shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def drawn_of(volume, *, box=BOX, stride=BOX // 2, max_cubes=10**6, seed=0):
    def read(first, last):
        return volume[first:last]

    options = {"box": box, "stride": stride, "max_cubes": max_cubes, "seed": seed}
    return draw_cubes(read, volume.shape, **options)


def twin_of(volume, box, stride):
    """All cubes in order, cut out of the whole volume with its mirror image."""
    missing = [max(box - length, 0) for length in volume.shape]
    padded = np.pad(volume, [(n // 2, n - n // 2) for n in missing], mode="symmetric")
    starts = [sorted({*range(0, n - box, stride), n - box}) for n in padded.shape]
    return [padded[z : z + box, y : y + box, x : x + box] for z, y, x in itertools.product(*starts)]


@pytest.mark.parametrize(
    ("shape", "box", "stride"),
    [
        ((20, 23, 31), 10, 5),
        ((9, 30, 24), 10, 7),  # flat: shorter than the box along z
        ((25, 8, 3), 10, 4),  # shorter along y and x
        ((10, 10, 10), 10, 5),  # one cube
        ((21, 16, 16), 8, 8),  # no overlap
    ],
)
def test_all_cubes_are_those_of_the_twin(shape, box, stride):
    volume = volume_of(shape)
    found = drawn_of(volume, box=box, stride=stride)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, twin_of(volume, box, stride))


@pytest.mark.parametrize("shape", [(13, 21, 18), (5, 17, 30)])
def test_all_cubes_are_those_that_blend_asks_about(shape):
    volume, asked = volume_of(shape), []

    def ask(cubes):
        asked.extend(cubes.copy())
        return cubes

    options = {"box": BOX, "stride": BOX // 2, "batch_size": 1}
    list(blend(ask, lambda first, last: volume[first:last], shape, **options))
    np.testing.assert_array_equal(drawn_of(volume), asked)


def test_some_are_different_cubes_in_order_and_the_seed_chooses_them():
    volume = volume_of((16, 20, 24))
    everything = [cube.tobytes() for cube in twin_of(volume, BOX, BOX // 2)]
    draws = [
        [everything.index(cube.tobytes()) for cube in drawn_of(volume, max_cubes=7, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    for rows in draws:
        assert len(set(rows)) == 7
        assert rows == sorted(rows)


def test_every_cube_is_drawn_as_often():
    volume = volume_of((12, 12, 16))  # 12 cubes
    everything = [cube.tobytes() for cube in twin_of(volume, BOX, BOX // 2)]
    counts = np.zeros(len(everything))
    for seed in range(200):
        for cube in drawn_of(volume, max_cubes=3, seed=seed):
            counts[everything.index(cube.tobytes())] += 1
    assert counts.sum() == 600
    # 50 expected of each, deviation sqrt(200 * 1/4 * 3/4) = 6.1: within five of those.
    assert np.all(np.abs(counts - 50) < 31)


def test_memory_does_not_grow_with_the_sections(tmp_path):
    shape, num = (400, 40, 40), 20
    mrc.write_volume(tmp_path / "long.mrc", volume_of(shape), voxel_size=10.0)
    with mrc.open_volume(tmp_path / "long.mrc") as tomogram:
        tracemalloc.start()
        options = {"box": BOX, "stride": BOX // 2, "max_cubes": num, "seed": 0}
        cubes = draw_cubes(tomogram.read, shape, **options)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(cubes) == num
    # The cubes, and a layer that is read, padded and held while the next one comes.
    assert peak < cubes.nbytes + 4 * (4 * 40 * 40 * BOX)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cubes": 0}, "max_cubes must be 1 or more, got 0"),
        ({"stride": 9}, "stride must be from 1 to the box of 8 voxels, got 9"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        drawn_of(volume_of((9, 9, 9)), **options)


def cut(path, **more):
    options = {"box": BOX, "voxel_size": 10.0, "tilt_range": TILTS, "max_boxes": 100, "seed": 3}
    with mrc.open_volume(path) as tomogram:
        return cut_unlabelled(tomogram, path, **options | more)


def test_boxes_are_particles_of_which_nothing_is_known(tmp_path):
    volume = volume_of((12, 16, 9))
    path = tmp_path / "tomogram.mrc"
    mrc.write_volume(path, volume, voxel_size=10.0)
    found = cut(path)
    np.testing.assert_array_equal(found.volumes, twin_of(volume, BOX, BOX // 2))
    np.testing.assert_array_equal(found.tilt_ranges, np.tile(np.float32(TILTS), (12, 1)))
    assert found.voxel_size == 10.0
    assert found.names[0] == f"000001@{path}"
    assert len(set(found.names)) == len(found) == 12
    np.testing.assert_array_equal(np.bincount(found.halves), [0, 6, 6])
    assert found.masks is found.rotations is found.labels is None
    np.testing.assert_array_equal(cut(path, max_boxes=4).volumes.shape, (4, BOX, BOX, BOX))


def test_boxes_without_contrast_are_left_out(tmp_path):
    volume = volume_of((8, 8, 32))
    volume[:, :, 12:] = 5.0
    mrc.write_volume(tmp_path / "half.mrc", volume, voxel_size=10.0)
    np.testing.assert_array_equal(
        cut(tmp_path / "half.mrc").volumes, twin_of(volume, BOX, BOX // 2)[:3]
    )
    mrc.write_volume(tmp_path / "flat.mrc", np.full((8, 8, 12), 5.0), voxel_size=10.0)
    with pytest.raises(InputError, match=r"flat\.mrc: all 2 boxes that were drawn are constant"):
        cut(tmp_path / "flat.mrc")
