"""A volume read by ranges of sections, and one written slab by slab."""

import gzip
import io
import struct
import warnings
import weakref

import mrcfile
import numpy as np
import pytest

from jimjax.io import InputError, MrcFormatError, mrc, mrc_header

NX, MODE, MX, CELL, MAPC, NSYMBT = 0, 12, 28, 40, 64, 92
SHAPE = (7, 5, 6)
SECTION_BYTES = 4 * 5 * 6
RANGES = [(0, 1), (2, 5), (6, 7), (0, 7)]


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def path(tmp_path, data):
    mrc.write_volume(tmp_path / "volume.mrc", data, voxel_size=2.5)
    return tmp_path / "volume.mrc"


def patch(path, offset, form, *values):
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(raw)


def as_integers(path):
    values = np.arange(np.prod(SHAPE), dtype="<i2")
    patch(path, MODE, "<i", 1)
    path.write_bytes(path.read_bytes()[:1024] + values.tobytes())


def with_extended_header(path):
    patch(path, NSYMBT, "<i", 80)
    raw = path.read_bytes()
    path.write_bytes(raw[:1024] + b"\xff" * 80 + raw[1024:])


def compressed(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


def with_axes(*axes):
    return lambda path: patch(path, MAPC, "<3i", *axes)


class Spy(io.BufferedReader):
    """Remembers the place and length of all that is read."""

    def __init__(self, path):
        super().__init__(io.FileIO(path))
        self.asked = []

    def read(self, size=-1):
        self.asked.append((self.tell(), size))
        return super().read(size)


@pytest.fixture
def spied(monkeypatch):
    """Opens files through a spy, and gives the list of spies."""
    spies = []

    def open_input(path, error):
        spies.append(Spy(path))
        return spies[-1]

    monkeypatch.setattr(mrc_header, "open_input", open_input)
    return spies


# --- reading


@pytest.mark.parametrize(
    "change",
    [
        lambda path: None,
        as_integers,
        with_extended_header,
        compressed,
        with_axes(2, 1, 3),
        with_axes(3, 2, 1),
        with_axes(2, 3, 1),
        with_axes(1, 3, 2),
    ],
)
def test_ranges_are_those_of_the_whole_volume(path, change):
    change(path)
    whole = mrc.read_volume(path)
    with mrc.open_volume(path) as volume:
        assert volume.shape == whole.data.shape
        assert volume.voxel_size == whole.voxel_size
        for first, last in [*RANGES, (3, 4)]:
            last = min(last, len(whole.data))
            first = min(first, last - 1)
            sections = volume.read(first, last)
            np.testing.assert_array_equal(sections, whole.data[first:last])
            assert sections.dtype == np.float32
            sections[...] = 0  # a copy: what is read next is not touched


@pytest.mark.parametrize("axes", [(1, 2, 3), (0, 0, 0), (2, 1, 3)])
def test_only_the_bytes_of_the_range_are_read(path, spied, axes):
    patch(path, MAPC, "<3i", *axes)
    with mrc.open_volume(path) as volume:
        (spy,) = spied
        spy.asked.clear()
        volume.read(2, 5)
        volume.read(5, 6)
    assert spy.asked == [
        (1024 + 2 * SECTION_BYTES, 3 * SECTION_BYTES),
        (1024 + 5 * SECTION_BYTES, SECTION_BYTES),
    ]


def test_sections_along_x_are_read_once(path, spied):
    patch(path, MAPC, "<3i", 3, 2, 1)
    with mrc.open_volume(path) as volume:
        (spy,) = spied
        spy.asked.clear()
        volume.read(0, 2)
        volume.read(2, 6)
    assert spy.asked == [(1024, 7 * SECTION_BYTES)]


def test_range_is_read_in_pieces_of_bounded_size(path, data, spied, monkeypatch):
    monkeypatch.setattr(mrc_header, "_SLAB_VOXELS", 65)
    with mrc.open_volume(path) as volume:
        np.testing.assert_array_equal(volume.read(1, 6), data[1:6])
    assert max(size for _, size in spied[0].asked[2:]) == 2 * SECTION_BYTES


def test_voxels_that_are_not_finite_are_counted_and_the_first_is_named(path, data):
    data[3, 1, 2], data[3, 4, 0], data[5, 0, 0] = np.nan, np.inf, np.nan
    path.write_bytes(path.read_bytes()[:1024] + data.tobytes())
    with mrc.open_volume(path) as volume:
        np.testing.assert_array_equal(volume.read(0, 3), data[:3])
        problem = r"volume.mrc: 2 voxels are not finite .* at \(3, 1, 2\) in sections 2 to 4; "
        with pytest.raises(InputError, match=problem):
            volume.read(2, 5)
        with pytest.raises(InputError, match=r"1 voxels .* at \(5, 0, 0\)"):
            volume.read(4, 7)


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (3, 3), (4, 3), (0, 8), (7, 8)])
def test_range_outside_the_volume_is_an_error(path, first, last):
    with (
        mrc.open_volume(path) as volume,
        pytest.raises(ValueError, match=f"within 0 to 7, got {first} to {last}"),
    ):
        volume.read(first, last)


def test_stack_is_not_opened_as_one_volume(tmp_path):
    mrc.write_stack(tmp_path / "s.mrcs", np.zeros((3, 2, 2, 2)), voxel_size=2.0)
    with (
        pytest.raises(MrcFormatError, match="found a stack of 3; name one of them"),
        mrc.open_volume(tmp_path / "s.mrcs"),
    ):
        pass


def test_anisotropic_voxels_are_refused_unless_the_size_is_given(path):
    patch(path, CELL, "<3f", 6 * 2.5, 5 * 2.6, 7 * 2.5)
    with (
        pytest.raises(MrcFormatError, match=r"2.5 x 2.6 x 2.5 A; give the voxel size"),
        mrc.open_volume(path),
    ):
        pass
    with mrc.open_volume(path, voxel_size=2.6) as volume:
        assert volume.voxel_size == 2.6


def test_cut_file_is_refused_when_it_is_opened(path):
    path.write_bytes(path.read_bytes()[:-3])
    with (
        pytest.raises(MrcFormatError, match=r"expected 1864 bytes .* has 1861"),
        mrc.open_volume(path),
    ):
        pass


def test_file_cut_after_it_was_opened_is_an_error(path):
    mrc.write_volume(path, np.zeros((30, 30, 30)), voxel_size=2.5)  # beyond the stream's buffer
    with mrc.open_volume(path) as volume:
        with open(path, "r+b") as opened:
            opened.truncate(1024 + 20 * 3600)
        np.testing.assert_array_equal(volume.read(10, 20), 0)
        with pytest.raises(MrcFormatError, match=r"volume.mrc: expected .* was cut while it was"):
            volume.read(19, 22)


def test_disk_that_fails_is_an_error_that_names_the_file(path, spied, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with mrc.open_volume(path) as volume:
        monkeypatch.setattr(Spy, "read", fail)
        with pytest.raises(MrcFormatError, match=r"volume.mrc: cannot be read: Input/output error"):
            volume.read(2, 5)


# --- writing


def cut(data, *lengths):
    return np.split(data, np.cumsum(lengths)[:-1])


def test_slabs_make_the_volume_however_it_is_cut(tmp_path, data):
    cuts = [(7,), (1,) * 7, (3, 4), (2, 4, 1)]
    written = []
    for number, lengths in enumerate(cuts):
        target = tmp_path / f"{number}.mrc"
        mrc.write_slabs(target, cut(data, *lengths), SHAPE, voxel_size=2.5)
        np.testing.assert_array_equal(mrc.read_volume(target).data, data)
        written.append(target.read_bytes())
    assert len(set(written)) == 1


def test_slabs_are_written_as_a_whole_volume_is(path, tmp_path, data):
    target = tmp_path / "slabs.mrc"
    mrc.write_slabs(target, iter(cut(data, 3, 4)), np.array(SHAPE), voxel_size=2.5)
    expected, written = path.read_bytes(), target.read_bytes()
    statistics = slice(76, 88), slice(216, 220)  # dmin, dmax, dmean; rms
    for place in statistics:  # sums in another order: the last digit of float32
        values = (np.frombuffer(raw[place], "<f4") for raw in (written, expected))
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-7)
    rest = (slice(0, 76), slice(88, 216), slice(220, None))
    assert [written[place] for place in rest] == [expected[place] for place in rest]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert mrcfile.validate(target, print_file=None)


def test_statistics_do_not_suffer_from_a_large_mean(tmp_path):
    data = (1e6 + np.random.default_rng(1).normal(size=SHAPE)).astype(np.float32)
    data += np.arange(7, dtype=np.float32).reshape(7, 1, 1)
    mrc.write_slabs(tmp_path / "v.mrc", cut(data, 3, 4), SHAPE, voxel_size=2.5)
    with mrcfile.open(tmp_path / "v.mrc") as opened:
        header = opened.header
        assert (header.dmin, header.dmax) == (data.min(), data.max())
        assert header.dmean == np.float32(data.astype(float).mean())
        np.testing.assert_allclose(header.rms, data.astype(float).std(), rtol=1e-6)


def test_strided_and_integer_slabs_are_written(tmp_path):
    data = np.arange(60).reshape(3, 4, 5).transpose(2, 0, 1)
    mrc.write_slabs(tmp_path / "v.mrc", cut(data, 2, 3), data.shape, voxel_size=2.0)
    np.testing.assert_array_equal(mrc.read_volume(tmp_path / "v.mrc").data, data)


def test_slabs_are_asked_for_one_by_one_and_not_kept(tmp_path):
    target, made = tmp_path / "v.mrc", []

    def slabs():
        for number in range(5):
            assert all(slab() is None for slab in made[:-1])
            assert not target.exists()
            slab = np.full((2, 3, 3), number, np.float32)
            made.append(weakref.ref(slab))
            yield slab
            del slab

    mrc.write_slabs(target, slabs(), (10, 3, 3), voxel_size=2.0)
    np.testing.assert_array_equal(mrc.read_volume(target).data[:, 0, 0], np.arange(10) // 2)


def test_volume_is_replaced_while_it_is_read(path, data):
    with mrc.open_volume(path) as volume:
        slabs = (volume.read(first, first + 1) + 1 for first in range(7))
        mrc.write_slabs(path, slabs, volume.shape, voxel_size=volume.voxel_size)
    np.testing.assert_array_equal(mrc.read_volume(path).data, data + 1)


def with_nan(section):
    data = np.zeros(SHAPE)
    data[section, 1, 2], data[section, 4, 4] = np.nan, 1e300
    return data


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"slabs": cut(np.zeros(SHAPE), 3, 2, 2)[:2]}, "v.mrc: expected 7 sections, got 5"),
        ({"slabs": []}, "expected 7 sections, got 0"),
        ({"slabs": [np.zeros((8, 5, 6))]}, r"shape \(8, 5, 6\) after 0 sections .* \(7, 5, 6\)"),
        ({"slabs": cut(np.zeros((8, 5, 6)), 7, 1)}, r"shape \(1, 5, 6\) after 7 sections"),
        ({"slabs": [np.zeros((2, 6, 5))]}, r"a slab of shape \(2, 6, 5\) after 0 sections"),
        ({"slabs": np.zeros(SHAPE)}, r"\(z, y, x\) array, got shape \(5, 6\)"),
        ({"slabs": [np.zeros((0, 5, 6))]}, "non-empty"),
        ({"slabs": [np.zeros(SHAPE, complex)]}, "complex128; take the real part"),
        ({"slabs": cut(with_nan(4), 3, 4)}, r"2 voxels are not finite in float32.*\(4, 1, 2\)"),
        ({"shape": (5, 6)}, r"shape must be \(z, y, x\) of 1 voxel or more, got \(5, 6\)"),
        ({"shape": (0, 5, 6)}, "of 1 voxel or more"),
        ({"voxel_size": 0.0}, "voxel_size must be positive"),
        ({"path": "missing/v.mrc"}, "the folder .*missing does not exist"),
        ({"path": "v.mrc.bz2"}, "written uncompressed"),
    ],
)
def test_slabs_that_make_no_volume_leave_everything_as_it_was(tmp_path, change, problem):
    (tmp_path / "v.mrc").write_bytes(b"old")
    wanted = {"path": "v.mrc", "slabs": [np.zeros(SHAPE)], "shape": SHAPE, "voxel_size": 1.5}
    wanted |= change
    target = tmp_path / wanted.pop("path")
    voxel_size = wanted.pop("voxel_size")
    with pytest.raises(InputError, match=problem):
        mrc.write_slabs(target, *wanted.values(), voxel_size=voxel_size)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_slabs_that_end_in_an_error_leave_everything_as_it_was(path):
    before = path.read_bytes()

    def slabs():
        yield np.zeros((2, 5, 6))
        raise RuntimeError("the device was lost")

    with pytest.raises(RuntimeError, match="device was lost"):
        mrc.write_slabs(path, slabs(), SHAPE, voxel_size=2.5)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_boolean_slabs_take_a_byte_a_voxel_and_are_not_mixed_with_others(tmp_path):
    path = tmp_path / "mask.mrc"
    mask = np.arange(2 * 3 * 4).reshape(2, 3, 4) % 3 == 0
    mrc.write_slabs(path, [mask[:1], mask[1:]], mask.shape, voxel_size=2.0)
    assert path.stat().st_size == 1024 + mask.size
    np.testing.assert_array_equal(mrc.read_volume(path).data, mask)
    with pytest.raises(InputError, match="slabs are boolean and not"):
        mrc.write_slabs(path, [mask[:1], mask[1:].astype(float)], mask.shape, voxel_size=2.0)
    np.testing.assert_array_equal(mrc.read_volume(path).data, mask)
