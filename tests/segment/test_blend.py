"""A function of boxes over a whole volume: what comes out, what is asked for, what it holds."""

import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jimjax.io import mrc
from jimjax.segment.tiles import blend

ROUNDING = 1e-6  # relative: a few roundings of float32
GEOMETRIES = [  # shape, box, stride
    ((20, 23, 31), 10, 5),
    ((9, 30, 24), 10, 7),  # flat: shorter than the box along z
    ((25, 8, 3), 10, 4),  # shorter along y and x
    ((2, 2, 2), 9, 3),  # continued several times over
    ((21, 16, 16), 8, 8),  # no overlap
    ((17, 12, 13), 8, 2),  # five deep
    ((11, 10, 10), 10, 5),  # pulled back by nearly all
]


def volume_of(shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def reader(volume):
    return lambda first, last: volume[first:last]


def blended(function, volume, box, stride, *, batch_size=3):
    options = {"box": box, "stride": stride, "batch_size": batch_size}
    slabs = list(blend(function, reader(volume), volume.shape, **options))
    return np.concatenate(slabs)


def odd(cubes):
    """Neither linear nor the same everywhere: each voxel of a cube is told from the others."""
    places = np.arange(cubes[0].size, dtype=np.float32).reshape(cubes[0].shape)
    return np.cumsum(np.abs(cubes), axis=3) + np.sin(places)


# --- the twin: one cube after another over the whole volume, sums of weights, float64


def twin_starts(length, box, stride):
    starts = []
    while not starts or starts[-1] + box < length:
        starts.append(min(len(starts) * stride, max(length - box, 0)))
    return starts


def twin_window(start, length, box, stride):
    margin = (box - stride) // 4
    width = max(box - stride - 2 * margin, 1)
    window = []
    for place in range(box):
        from_left, from_right = place + 0.5 - margin, box - place - 0.5 - margin
        weight = 1.0
        for distance, is_border in ((from_left, start == 0), (from_right, start + box >= length)):
            if not is_border:
                weight *= np.sin(np.pi / 2 * min(max(distance / width, 0), 1)) ** 2
        window.append(weight)
    return np.array(window)


def twin(function, volume, box, stride):
    short = [max(box - length, 0) for length in volume.shape]
    widths = [(lack // 2, lack - lack // 2) for lack in short]
    padded = np.pad(volume, widths, mode="symmetric")
    sums, weights = np.zeros(padded.shape), np.zeros(padded.shape)
    for corner in itertools.product(*(twin_starts(n, box, stride) for n in padded.shape)):
        place = tuple(slice(start, start + box) for start in corner)
        windows = [
            twin_window(start, length, box, stride)
            for start, length in zip(corner, padded.shape, strict=True)
        ]
        weight = np.einsum("i,j,k->ijk", *windows)
        sums[place] += weight * function(padded[place][None])[0]
        weights[place] += weight
    assert weights.min() > 0
    inner = tuple(slice(a, a + n) for (a, _), n in zip(widths, volume.shape, strict=True))
    return (sums / weights)[inner]


@pytest.mark.parametrize(("shape", "box", "stride"), GEOMETRIES)
def test_slabs_are_the_weighted_mean_of_all_cubes(shape, box, stride):
    volume = volume_of(shape)
    expected = twin(odd, volume, box, stride)
    found = blended(odd, volume, box, stride)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=ROUNDING * expected.max())


# --- laws


@given(
    shape=st.tuples(*[st.integers(1, 24)] * 3),
    box=st.integers(1, 12),
    part=st.floats(0, 1),
    batch_size=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None, database=None)
def test_identity_gives_the_volume(shape, box, part, batch_size):
    stride = (box + 1) // 2 + int(part * (box // 2))
    volume = volume_of(shape)
    found = blended(lambda cubes: cubes, volume, box, stride, batch_size=batch_size)
    np.testing.assert_allclose(found, volume, rtol=4 * ROUNDING)  # up to 27 cubes are added


@pytest.mark.parametrize("mode", ["constant", "reflect"])  # what a convolution takes the border for
@pytest.mark.parametrize(
    ("shape", "box", "stride"), [((30, 40, 26), 18, 10), ((19, 18, 31), 18, 8)]
)
def test_convolution_within_the_margin_is_that_of_the_whole(mode, shape, box, stride):
    radius = (box - stride) // 4
    kernel = np.random.default_rng(1).normal(size=(2 * radius + 1,) * 3)
    volume = volume_of(shape)

    def convolve(cubes):
        return np.stack([ndimage.convolve(cube.astype(float), kernel, mode=mode) for cube in cubes])

    expected = ndimage.convolve(volume.astype(float), kernel, mode=mode)
    scale = np.abs(expected).max()
    found = blended(convolve, volume, box, stride)
    np.testing.assert_allclose(found, expected, atol=ROUNDING * scale)
    seams = np.abs(blended(convolve, volume, box, box) - expected)
    assert seams.max() > 0.05 * scale  # the test sees cubes that end where they count


def test_cubes_pass_into_each_other_without_a_seam():
    box, stride = 16, 8
    levels = itertools.cycle([0.0, 1.0])
    volume = np.zeros((16, 16, 60), np.float32)  # one row of cubes along x
    found = blended(lambda cubes: cubes + next(levels), volume, box, stride, batch_size=1)
    assert found.min() == 0
    assert found.max() == 1
    width = box - stride - 2 * ((box - stride) // 4)
    steepest = np.pi / 2 / width  # of sin^2
    assert np.abs(np.diff(found, axis=2)).max() <= steepest


def test_result_does_not_depend_on_the_batch_size():
    volume = volume_of((13, 17, 20))
    expected = blended(odd, volume, 8, 5, batch_size=1)
    for batch_size in (2, 5, 12, 100):
        found = blended(odd, volume, 8, 5, batch_size=batch_size)
        np.testing.assert_array_equal(found, expected)


def test_function_is_compiled_once():
    traced = []

    @jax.jit
    def function(cubes):
        traced.append((cubes.shape, cubes.dtype))
        return jnp.tanh(cubes)

    volume = volume_of((23, 20, 15))
    found = blended(function, volume, 8, 6, batch_size=5)
    assert traced == [((5, 8, 8, 8), jnp.float32)]
    np.testing.assert_allclose(found, np.tanh(volume), atol=1e-5)


def test_slabs_may_be_changed_and_the_volume_is_left_as_it_is():
    volume = volume_of((20, 12, 12))
    before = volume.copy()
    expected = blended(odd, volume, 8, 4)
    done = 0
    for slab in blend(odd, reader(volume), volume.shape, box=8, stride=4, batch_size=3):
        np.testing.assert_array_equal(slab, expected[done : done + len(slab)])
        done += len(slab)
        slab[...] = np.nan
    np.testing.assert_array_equal(volume, before)


# --- what is read, and held


@pytest.mark.parametrize(
    ("depth", "box", "stride", "asked", "given_after"),
    [
        (26, 8, 4, [(0, 8), (8, 12), (12, 16), (16, 20), (20, 24), (24, 26)], [4, 4, 4, 4, 2, 8]),
        (16, 8, 8, [(0, 8), (8, 16)], [8, 8]),
        (8, 8, 3, [(0, 8)], [8]),
        (5, 8, 3, [(0, 5)], [5]),
    ],
)
def test_each_section_is_read_once_and_each_slab_comes_at_once(
    depth, box, stride, asked, given_after
):
    volume = volume_of((depth, 10, 9))
    ranges = []

    def read(first, last):
        ranges.append((first, last))
        return volume[first:last]

    options = {"box": box, "stride": stride, "batch_size": 2}
    slabs = blend(lambda cubes: cubes, read, volume.shape, **options)
    for number, (slab, length) in enumerate(zip(slabs, given_after, strict=True)):
        assert len(slab) == length
        assert ranges == asked[: number + 1]  # nothing is read before it is needed


@pytest.mark.parametrize(
    ("plane", "box", "stride", "batch_size"), [(90, 16, 8, 2), (90, 16, 16, 1), (12, 24, 8, 4)]
)
@pytest.mark.parametrize("depth", [60, 240])
def test_memory_is_that_of_one_layer(plane, box, stride, batch_size, depth):
    def read(first, last):
        return np.ones((last - first, plane, plane), np.float32)

    shape = (depth, plane, plane)
    options = {"box": box, "stride": stride, "batch_size": batch_size}
    tracemalloc.start()
    for slab in blend(lambda cubes: 2 * cubes, read, shape, **options):
        assert slab[0, 0, 0] == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    side = max(plane, box)
    bound = 4 * side**2 * (2 * box + 3 * stride) + 16 * batch_size * box**3
    assert peak < bound + 100_000  # the interpreter's own


def test_file_is_blended_into_a_file(tmp_path):
    data = volume_of((20, 12, 14))
    mrc.write_volume(tmp_path / "in.mrc", data, voxel_size=7.0)
    with mrc.open_volume(tmp_path / "in.mrc") as volume:
        slabs = blend(
            lambda cubes: 2 * cubes, volume.read, volume.shape, box=8, stride=5, batch_size=4
        )
        mrc.write_slabs(tmp_path / "out.mrc", slabs, volume.shape, voxel_size=volume.voxel_size)
    found = mrc.read_volume(tmp_path / "out.mrc")
    np.testing.assert_allclose(found.data, 2 * data, rtol=ROUNDING)
    assert found.voxel_size == pytest.approx(7.0)


# --- progress and errors


class Told:
    def __init__(self):
        self.updates = []

    def update(self, stage, step, num_steps, metrics):
        self.updates.append((stage, step, num_steps, metrics))


def test_progress_is_told_of_every_batch():
    told, volume = Told(), volume_of((12, 12, 8))
    options = {"box": 8, "stride": 4, "batch_size": 1, "progress": told}
    list(blend(lambda cubes: cubes, reader(volume), volume.shape, **options))
    assert told.updates == [
        ("segmenting", 1, 4, {"sections": 0.0}),
        ("segmenting", 2, 4, {"sections": 0.0}),
        ("segmenting", 3, 4, {"sections": 4.0}),
        ("segmenting", 4, 4, {"sections": 4.0}),
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"shape": (8, 8)}, r"shape must be \(z, y, x\) of 1 voxel or more, got \(8, 8\)"),
        ({"shape": (8, 0, 8)}, "of 1 voxel or more"),
        ({"stride": 0}, "stride must be from 1 to the box of 8 voxels, got 0"),
        ({"stride": 9}, "got 9"),
        ({"box": 0}, "stride must be from 1 to the box of 0 voxels"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ],
)
def test_options_out_of_range_are_refused_at_once(change, problem):
    options = {"shape": (8, 8, 8), "box": 8, "stride": 4, "batch_size": 1} | change
    with pytest.raises(ValueError, match=problem):
        blend(lambda cubes: cubes, reader(np.zeros((8, 8, 8))), **options)


def test_function_must_keep_the_shape():
    slabs = blend(
        lambda cubes: cubes[..., None],
        reader(np.zeros((8, 8, 8))),
        (8, 8, 8),
        box=8,
        stride=4,
        batch_size=2,
    )
    with pytest.raises(ValueError, match=r"keep the shape \(2, 8, 8, 8\), it gave \(2, 8, 8, 8, 1"):
        next(slabs)


def test_sections_must_have_the_shape_that_was_told():
    slabs = blend(
        lambda cubes: cubes, reader(np.zeros((9, 8, 8))), (12, 8, 8), box=8, stride=4, batch_size=1
    )
    next_shape = r"sections 8 to 11 must have shape \(4, 8, 8\), read gave \(1, 8, 8\)"
    with pytest.raises(ValueError, match=next_shape):
        list(slabs)
