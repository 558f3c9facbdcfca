import bz2
import gzip
import os
import struct
import tracemalloc
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jimjax
from jimjax.io import InputError, InputWarning, MrcFormatError, mrc

NX, MODE, MX, CELL, MAPC, ISPG, NSYMBT = 0, 12, 28, 40, 64, 88, 92
IMOD_STAMP, IMOD_FLAGS, MAP, MACHINE = 152, 156, 208, 212


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


@pytest.fixture
def path(tmp_path, data):
    mrc.write_volume(tmp_path / "volume.mrc", data, voxel_size=2.5)
    return tmp_path / "volume.mrc"


def patch(path, offset, form, *values):
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(raw)


def with_mode(path, mode, code, values):
    """A 1 x 1 x n file of another mode."""
    patch(path, NX, "<4i", len(values), 1, 1, mode)
    path.write_bytes(path.read_bytes()[:1024] + np.asarray(values, code).tobytes())


# --- what is written


def test_volume_comes_back_as_written(path, data):
    volume = mrc.read_volume(path)
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype == np.float32
    assert volume.voxel_size == pytest.approx(2.5, rel=1e-6)


def test_mrcfile_reads_what_is_written(path, data):
    with mrcfile.open(path) as opened:
        np.testing.assert_array_equal(opened.data, data)
        assert opened.voxel_size.x == pytest.approx(2.5, rel=1e-6)
        assert opened.header.label[0] == f"jimjax {jimjax.__version__}".encode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert mrcfile.validate(path, print_file=None)


def test_mrcfile_sees_a_stack_of_volumes(tmp_path):
    data = np.random.default_rng(1).normal(size=(3, 4, 5, 6)).astype(np.float32)
    mrc.write_stack(tmp_path / "s.mrcs", data, voxel_size=3.0)
    with mrcfile.open(tmp_path / "s.mrcs") as opened:
        assert opened.is_volume_stack()
        np.testing.assert_array_equal(opened.data, data)


def test_same_data_gives_the_same_bytes(tmp_path, data):
    for name in ("a.mrc", "b.mrc"):
        mrc.write_volume(tmp_path / name, data, voxel_size=2.5)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


def test_strided_and_integer_data_are_written(tmp_path):
    data = np.arange(60).reshape(3, 4, 5).transpose(2, 0, 1)
    mrc.write_volume(tmp_path / "v.mrc", data, voxel_size=2.0)
    np.testing.assert_array_equal(mrc.read_volume(tmp_path / "v.mrc").data, data)


def test_booleans_are_written_as_bytes_that_any_program_reads_as_0_and_1(tmp_path):
    data = np.random.default_rng(2).random((3, 4, 5, 6)) > 0.5
    mrc.write_stack(tmp_path / "s.mrcs", data, voxel_size=3.0)
    assert (tmp_path / "s.mrcs").stat().st_size == 1024 + data.size
    with mrcfile.open(tmp_path / "s.mrcs") as opened:
        assert (opened.header.mode, opened.is_volume_stack()) == (0, True)
        assert opened.header.dmean == pytest.approx(data.mean(), rel=1e-6)
        np.testing.assert_array_equal(opened.data, data)
    patch(tmp_path / "s.mrcs", IMOD_STAMP, "<2i", 1146047817, 0)  # bytes are unsigned
    np.testing.assert_array_equal(mrc.read_images(tmp_path / "s.mrcs").data, data)


def test_reader_of_the_old_file_keeps_it(path, data):
    with open(path, "rb") as opened:
        mrc.write_volume(path, data + 1, voxel_size=2.5)
        assert opened.read()[1024:] == data.tobytes()


def test_failed_write_leaves_the_old_file_and_nothing_else(path, data, monkeypatch):
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device.*volume.mrc"):
        mrc.write_volume(path, data + 1, voxel_size=2.5)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"data": np.full((2, 2, 2), np.nan)}, r"8 voxels are not finite.*\(0, 0, 0\)"),
        ({"data": np.full((2, 2, 2), 1e300)}, "8 voxels are not finite in float32"),
        ({"data": np.zeros((2, 2))}, r"\(z, y, x\) array, got shape \(2, 2\)"),
        ({"data": np.zeros((0, 2, 2))}, "non-empty"),
        ({"data": np.zeros((2, 2, 2), complex)}, "complex128; take the real part"),
        ({"voxel_size": 0.0}, "voxel_size must be positive"),
        ({"voxel_size": np.nan}, "voxel_size must be positive"),
        ({"path": "missing/v.mrc"}, "the folder .*missing does not exist"),
        ({"path": "v.mrc.gz"}, "written uncompressed"),
        ({"path": "."}, "is a folder"),
    ],
)
def test_unwritable_volume_is_refused(tmp_path, change, problem):
    wanted = {"path": "v.mrc", "data": np.zeros((2, 2, 2)), "voxel_size": 1.5} | change
    with pytest.raises(InputError, match=problem):
        mrc.write_volume(tmp_path / wanted["path"], wanted["data"], voxel_size=wanted["voxel_size"])
    assert list(tmp_path.iterdir()) == []


def test_voxel_size_of_a_writer_has_no_default(tmp_path):
    with pytest.raises(TypeError, match="voxel_size"):
        mrc.write_volume(tmp_path / "v.mrc", np.zeros((2, 2, 2)))


# --- stacks and names


@pytest.fixture
def stack(tmp_path):
    data = np.arange(3 * 4 * 4 * 4, dtype=np.float32).reshape(3, 4, 4, 4)
    mrc.write_stack(tmp_path / "s.mrcs", data, voxel_size=3.0)
    return tmp_path / "s.mrcs", data


def test_stack_image_counts_from_one(stack):
    path, data = stack
    np.testing.assert_array_equal(mrc.read_stack_image(path, 1).data, data[0])
    np.testing.assert_array_equal(mrc.read_particle(f"000003@{path}").data, data[2])


def test_images_come_in_the_order_asked_for(stack):
    path, data = stack
    np.testing.assert_array_equal(mrc.read_images(path, [3, 1, 3]).data, data[[2, 0, 2]])
    np.testing.assert_array_equal(mrc.read_images(path).data, data)


def test_stack_of_one_is_a_volume(tmp_path):
    mrc.write_stack(tmp_path / "s.mrcs", np.ones((1, 2, 2, 2)), voxel_size=3.0)
    assert mrc.read_volume(tmp_path / "s.mrcs").data.shape == (2, 2, 2)


def test_single_volume_has_index_one(path, data):
    np.testing.assert_array_equal(mrc.read_particle(f"1@{path}").data, data)


@pytest.mark.parametrize("index", [0, -1, 4, 10**12])
def test_index_beyond_the_stack_is_refused(stack, index):
    with pytest.raises(MrcFormatError, match=rf"s.mrcs: no volume {index}, the file holds 3"):
        mrc.read_stack_image(stack[0], index)


def test_index_into_a_single_volume_tells_what_a_stack_is(path):
    with pytest.raises(MrcFormatError, match=r"one volume of 4 sections; .* space group 401"):
        mrc.read_stack_image(path, 2)


def test_stack_is_not_read_as_one_volume(stack):
    with pytest.raises(MrcFormatError, match="found a stack of 3; name one of them"):
        mrc.read_volume(stack[0])


@pytest.mark.parametrize("name", ["0@a.mrcs", "-1@a.mrcs", "1.5@a.mrcs", "9" * 5000 + "@a", "+1@a"])
def test_index_that_is_no_count_is_refused(name):
    with pytest.raises(InputError, match="must be a whole number, counted from 1"):
        mrc.parse_image_name(name)


@pytest.mark.parametrize("name", ["", "1@", "@a.mrcs"])
def test_name_without_file_or_number_is_refused(name):
    with pytest.raises(InputError, match="names no file"):
        mrc.parse_image_name(name)


@pytest.mark.parametrize("name", ["a.mrc", "user@host.mrc", "é ü.mrc", "../x.mrc"])
def test_plain_path_has_no_index(name):
    assert mrc.parse_image_name(name) == (None, Path(name))


def test_box_is_read_from_the_header(stack, path):
    assert mrc.read_box(stack[0]) == (4, 4, 4)
    assert mrc.read_box(path) == (4, 5, 6)


# --- modes


@pytest.mark.parametrize(
    ("mode", "code", "values"),
    [
        (0, "i1", [-128, -1, 0, 127]),
        (1, "<i2", [-32768, 0, 32767]),
        (2, "<f4", [-1.5, 0, 3e38]),
        (6, "<u2", [0, 32768, 65535]),
        (12, "<f2", [-1.5, 0, 65504]),
    ],
)
def test_each_mode_is_read_as_float32(path, mode, code, values):
    with_mode(path, mode, code, values)
    read = mrc.read_volume(path).data
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[0, 0], np.float32(values))


@pytest.mark.parametrize(("flags", "expected"), [(0, 200), (1, -56), (2, 200), (3, -56)])
def test_imods_bytes_are_unsigned_unless_flagged(path, flags, expected):
    with_mode(path, 0, "u1", [200])
    patch(path, IMOD_STAMP, "<2i", 1146047817, flags)
    assert mrc.read_volume(path).data[0, 0, 0] == expected


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        (3, "complex 16-bit integers"),
        (4, "complex Fourier transform"),
        (101, "packed 4-bit integers"),
        (7, "expected mode 0, 1, 2, 6 or 12, the header says 7"),
        (-2, "expected mode 0, 1, 2, 6 or 12, the header says -2"),
    ],
)
def test_other_modes_are_refused_with_a_sentence(path, mode, problem):
    patch(path, MODE, "<i", mode)
    with pytest.raises(MrcFormatError, match=f"volume.mrc: .*{problem}"):
        mrc.read_volume(path)


def test_imods_packed_nibbles_in_mode_0_are_refused(path):
    with_mode(path, 0, "u1", [200])
    patch(path, IMOD_STAMP, "<2i", 1146047817, 16)
    with pytest.raises(MrcFormatError, match="packed 4-bit integers"):
        mrc.read_volume(path)


# --- byte order, identifiers, axes


def as_big_endian(path):
    raw = path.read_bytes()
    words = np.frombuffer(raw[:1024], "<u4").astype(">u4").tobytes()
    data = np.frombuffer(raw[1024:], "<f4").astype(">f4").tobytes()
    keep = slice(MAP, MAP + 4)
    header = bytearray(words)
    header[keep] = b"MAP "
    header[MACHINE : MACHINE + 4] = b"\x11\x11\0\0"
    path.write_bytes(bytes(header) + data)


def test_big_endian_is_read(path, data):
    as_big_endian(path)
    volume = mrc.read_volume(path)
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype.isnative
    assert volume.voxel_size == pytest.approx(2.5, rel=1e-6)


@pytest.mark.parametrize("stamp", [b"\x44\x20\0\0", b"\0\0\0\0", b"\x44\x44\0\0"])
@pytest.mark.parametrize("is_big", [False, True])
def test_wrong_machine_stamp_is_one_warning(path, data, stamp, is_big):
    if is_big:
        as_big_endian(path)
    patch(path, MACHINE, "4s", stamp)
    if stamp[:2] == b"\x44\x44" and not is_big:
        return np.testing.assert_array_equal(mrc.read_volume(path).data, data)
    with pytest.warns(InputWarning, match=r"volume.mrc: accepted in spite of") as caught:
        np.testing.assert_array_equal(mrc.read_volume(path).data, data)
    assert len(caught) == 1


@pytest.mark.parametrize("identifier", [b"MAP\0", b"\0\0\0\0", b"    "])
def test_wrong_map_identifier_is_one_warning(path, data, identifier):
    patch(path, MAP, "4s", identifier)
    patch(path, MACHINE, "4s", b"\0\0\0\0")
    with pytest.warns(InputWarning, match=r"map identifier .* and machine stamp") as caught:
        np.testing.assert_array_equal(mrc.read_volume(path).data, data)
    assert len(caught) == 1


def test_text_file_is_no_mrc(tmp_path):
    (tmp_path / "x.mrc").write_bytes(b"data_particles\n" * 200)
    with pytest.raises(MrcFormatError, match=r"x.mrc: expected mode .*map identifier"):
        mrc.read_volume(tmp_path / "x.mrc")


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((1, 2, 3), (0, 1, 2)),
        ((0, 0, 0), (0, 1, 2)),
        ((3, 2, 1), (2, 1, 0)),  # columns run along z, sections along x
        ((2, 1, 3), (0, 2, 1)),
        ((2, 3, 1), (1, 2, 0)),  # columns y, rows z, sections x
        ((3, 1, 2), (2, 0, 1)),  # columns z, rows x, sections y
    ],
)
def test_axes_in_another_order_are_turned_to_z_y_x(path, data, axes, expected):
    patch(path, MAPC, "<3i", *axes)
    patch(path, MX, "<3i", 6, 5, 4)
    np.testing.assert_array_equal(mrc.read_volume(path).data, data.transpose(expected))


def test_turned_axes_follow_the_definition(path, data):
    patch(path, MAPC, "<3i", 2, 3, 1)
    turned = mrc.read_volume(path).data
    section, row, column = 3, 1, 2
    # mapc = 2: the column number is y; mapr = 3: the row number is z; maps = 1: section is x
    assert turned[row, column, section] == data[section, row, column]


@pytest.mark.parametrize("axes", [(1, 1, 3), (1, 2, 4), (0, 1, 2), (-1, 2, 3)])
def test_impossible_axes_are_refused(path, axes):
    patch(path, MAPC, "<3i", *axes)
    with pytest.raises(MrcFormatError, match="mapc, mapr, maps to be 1, 2, 3 in some order"):
        mrc.read_volume(path)


def test_stack_with_turned_axes_is_refused(stack):
    patch(stack[0], MAPC, "<3i", 3, 2, 1)
    with pytest.raises(MrcFormatError, match="a stack of volumes must have axis order x, y, z"):
        mrc.read_images(stack[0])


@pytest.mark.parametrize("sections", [0, -4, 5])
def test_stack_whose_sections_do_not_divide_is_refused(stack, sections):
    patch(stack[0], MX + 8, "<i", sections)
    with pytest.raises(MrcFormatError, match=f"mz = {sections} sections cannot have nz = 12"):
        mrc.read_images(stack[0])


# --- sizes


@given(num_missing=st.integers(1, 1024 + 480))
@settings(max_examples=60, deadline=None, database=None)
def test_every_cut_file_is_refused(tmp_path_factory, num_missing):
    path = tmp_path_factory.mktemp("cut") / "v.mrc"
    mrc.write_volume(path, np.ones((4, 5, 6)), voxel_size=2.0)
    path.write_bytes(path.read_bytes()[:-num_missing])
    with pytest.raises(MrcFormatError, match=r"v.mrc: expected .* bytes"):
        mrc.read_volume(path)


def test_cut_file_is_told_in_bytes(path):
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MrcFormatError, match=r"expected 1504 bytes for 6 x 5 x 4 .* has 1501"):
        mrc.read_volume(path)


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "e.mrc").touch()
    with pytest.raises(MrcFormatError, match="header of 1024 bytes, the file has 0"):
        mrc.read_volume(tmp_path / "e.mrc")


@pytest.mark.parametrize("dims", [(2000, 2000, 2000), (100000, 100000, 100000)])
def test_promised_terabytes_are_not_allocated(path, dims):
    patch(path, NX, "<3i", *dims)
    tracemalloc.start()
    with pytest.raises(MrcFormatError, match=f"expected {1024 + 4 * dims[0] ** 3} bytes"):
        mrc.read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("dims", [(0, 5, 4), (6, -5, 4), (6, 5, 2**31 - 1)])
def test_impossible_dimensions_are_refused(path, dims):
    patch(path, NX, "<3i", *dims)
    with pytest.raises(MrcFormatError, match=r"expected n[xyz] between 1 and"):
        mrc.read_volume(path)


@pytest.mark.parametrize("num_bytes", [-1, 2**31 - 1])
def test_impossible_extended_header_is_refused(path, num_bytes):
    patch(path, NSYMBT, "<i", num_bytes)
    with pytest.raises(MrcFormatError, match=f"of {num_bytes} bytes cannot be"):
        mrc.read_volume(path)


def test_extended_header_is_skipped(path, data):
    patch(path, NSYMBT, "<i", 80)
    raw = path.read_bytes()
    path.write_bytes(raw[:1024] + b"\xff" * 80 + raw[1024:])
    np.testing.assert_array_equal(mrc.read_volume(path).data, data)


def test_announced_but_missing_extended_header_is_ignored(path, data):
    patch(path, NSYMBT, "<i", 80)
    with pytest.warns(InputWarning, match="extended header of 80 bytes which the file does not"):
        np.testing.assert_array_equal(mrc.read_volume(path).data, data)


def test_extended_header_longer_than_the_rest_is_refused(path):
    patch(path, NSYMBT, "<i", 80)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(MrcFormatError, match="expected 1584 bytes"):
        mrc.read_volume(path)


def test_trailing_bytes_are_ignored_with_a_warning(path, data):
    path.write_bytes(path.read_bytes() + b"abc")
    with pytest.warns(InputWarning, match="expected 1504 bytes, the file has more"):
        np.testing.assert_array_equal(mrc.read_volume(path).data, data)


def test_large_volume_is_read_in_slabs(path, data, monkeypatch):
    monkeypatch.setattr("jimjax.io.mrc_header._SLAB_VOXELS", 70)
    np.testing.assert_array_equal(mrc.read_volume(path).data, data)
    patch(path, MAPC, "<3i", 2, 3, 1)
    np.testing.assert_array_equal(mrc.read_volume(path).data, data.transpose(1, 2, 0))


# --- voxel size


@pytest.mark.parametrize(
    "cell", [(0, 0, 0), (15, 12.5, 0), (-15, 12.5, 10), (np.nan,) * 3, (np.inf,) * 3]
)
def test_senseless_cell_means_unknown(path, cell):
    patch(path, CELL, "<3f", *cell)
    assert mrc.read_volume(path).voxel_size is None


def test_zero_intervals_mean_unknown(path):
    patch(path, MX, "<3i", 0, 5, 4)
    assert mrc.read_volume(path).voxel_size is None


def test_voxel_size_of_exactly_one_is_a_warning(path):
    patch(path, CELL, "<3f", 6, 5, 4)
    with pytest.warns(InputWarning, match=r"volume.mrc: the header's voxel size is exactly 1 A"):
        assert mrc.read_volume(path).voxel_size == 1.0


def test_voxels_that_differ_in_the_fourth_digit_are_cubic(path):
    patch(path, CELL, "<3f", 6 * 2.5, 5 * 2.5002, 4 * 2.5)
    assert mrc.read_volume(path).voxel_size == pytest.approx(2.50007, rel=1e-5)


def test_slightly_anisotropic_voxels_are_a_warning(path):
    patch(path, CELL, "<3f", 6 * 2.5, 5 * 2.51, 4 * 2.5)
    with pytest.warns(InputWarning, match=r"2.5 x 2.51 x 2.5 A are taken as cubic"):
        mrc.read_volume(path)


def test_anisotropic_voxels_are_refused_unless_the_size_is_given(path, data):
    patch(path, CELL, "<3f", 6 * 2.5, 5 * 2.6, 4 * 2.5)
    with pytest.raises(MrcFormatError, match=r"2.5 x 2.6 x 2.5 A; give the voxel size"):
        mrc.read_volume(path)
    assert mrc.read_volume(path, voxel_size=2.5).voxel_size == 2.5


def test_given_voxel_size_must_be_positive(path):
    with pytest.raises(InputError, match="voxel_size must be positive"):
        mrc.read_volume(path, voxel_size=-1.0)


def test_voxel_size_of_a_stack_is_that_of_one_volume(stack):
    assert mrc.read_images(stack[0]).voxel_size == pytest.approx(3.0)


# --- compressed


@pytest.mark.parametrize(("compress", "suffix"), [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_compressed_volume_is_read(path, data, compress, suffix):
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(compress(path.read_bytes()))
    volume = mrc.read_volume(packed)
    np.testing.assert_array_equal(volume.data, data)
    assert volume.voxel_size == pytest.approx(2.5, rel=1e-6)


def test_compressed_stack_is_read(stack):
    path, data = stack
    packed = path.with_name("p.mrcs.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(mrc.read_images(packed, [2, 1]).data, data[[1, 0]])


def test_bomb_is_not_unpacked_beyond_the_promise(path):
    packed = path.with_name("bomb.mrc.gz")
    packed.write_bytes(gzip.compress(path.read_bytes() + bytes(50_000_000)))
    tracemalloc.start()
    with pytest.warns(InputWarning, match="the file has more"):
        mrc.read_volume(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_compressed_promise_without_data_is_not_allocated(path):
    patch(path, NX, "<3i", 1000, 1000, 1000)
    packed = path.with_name("liar.mrc.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(MrcFormatError, match=r"expected 4000001024 bytes .* has 1504"):
        mrc.read_volume(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_compressed_promise_beyond_the_limit_is_refused(path):
    patch(path, NX, "<3i", 2000, 2000, 2000)
    packed = path.with_name("huge.mrc.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(MrcFormatError, match=r"announces 8000000000 voxels.*unpack it first"):
        mrc.read_volume(packed)


def test_compressed_file_with_missing_extended_header_is_read(path, data):
    patch(path, NSYMBT, "<i", 80)
    packed = path.with_name("p.mrc.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.warns(InputWarning, match="80 bytes which the file does not have"):
        np.testing.assert_array_equal(mrc.read_volume(packed).data, data)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("keep", [3, 20, -5])
def test_cut_compressed_file_is_refused(path, compress, keep):
    packed = path.with_name("cut.mrc")
    packed.write_bytes(compress(path.read_bytes())[:keep])
    with pytest.raises(MrcFormatError, match=r"cut.mrc: cannot be unpacked"):
        mrc.read_volume(packed)


def test_flipped_bit_in_a_compressed_file_is_noticed(path):
    packed = path.with_name("bad.mrc.gz")
    raw = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    raw[1200] ^= 1
    packed.write_bytes(raw)
    with pytest.raises(MrcFormatError, match=r"bad.mrc.gz: cannot be unpacked: CRC"):
        mrc.read_volume(packed)


# --- opening


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MrcFormatError, match=r"nowhere.mrc: cannot be read: No such file"):
        mrc.read_volume(tmp_path / "nowhere.mrc")


def test_folder_is_no_file(tmp_path):
    with pytest.raises(MrcFormatError, match="is no regular file"):
        mrc.read_volume(tmp_path)


def test_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MrcFormatError, match="is no regular file"):
        mrc.read_volume(tmp_path / "pipe")


def test_forbidden_file_is_told(path, monkeypatch):
    def forbid(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbid)
    with pytest.raises(MrcFormatError, match=r"volume.mrc: cannot be read: Permission denied"):
        mrc.read_volume(path)


def test_passing_fault_of_a_network_disk_is_tried_again(path, data, monkeypatch):
    monkeypatch.setattr("jimjax.io.files.RETRY_DELAYS", (0.0, 0.0))
    faults = [OSError(116, "Stale file handle"), OSError(5, "Input/output error")]
    real_open = open

    def flaky(*args):
        if faults:
            raise faults.pop()
        return real_open(*args)

    monkeypatch.setattr("builtins.open", flaky)
    np.testing.assert_array_equal(mrc.read_volume(path).data, data)


def test_unicode_and_spaces_in_paths_are_fine(tmp_path, data):
    path = tmp_path / "Zellkern é ü" / "ein volumen.mrc"
    path.parent.mkdir()
    mrc.write_volume(path, data, voxel_size=2.0)
    np.testing.assert_array_equal(mrc.read_particle(str(path)).data, data)
