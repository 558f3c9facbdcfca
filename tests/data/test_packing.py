"""Particles are packed into a store, which gives back what went in, or says what is wrong."""

import json
import os
import shutil

import numpy as np
import pytest

from jimjax.data.packing import STORE, TABLE, pack
from jimjax.data.subtomograms import hash_arrays, load, normalize
from jimjax.io import mrc, packed, star
from jimjax.io.errors import InputError

NUM, BOX = 7, 8


@pytest.fixture
def volumes():
    noise = np.random.default_rng(0).normal(size=(NUM, BOX, BOX, BOX))
    scale = np.geomspace(1e-6, 1e6, NUM)[:, None, None, None]  # far beyond what float16 holds
    return (scale * (noise + 3)).astype(np.float32)


@pytest.fixture
def unpacked(volumes, tmp_path):
    """A STAR file with all kinds of columns, and blocks of other programs."""
    folder = tmp_path / "here"
    folder.mkdir()
    mrc.write_stack(folder / "s.mrcs", volumes, voxel_size=4.0)
    mrc.write_volume(folder / "mask.mrc", np.ones((BOX,) * 3, np.float32), voxel_size=4.0)
    columns = {
        "rlnImageName": [f"{row + 1}@s.mrcs" for row in range(NUM)],
        "rlnTomoName": [f"0{row}" for row in range(NUM)],
        "rlnMaskName": ["mask.mrc"] * NUM,
        "jimTiltMin": np.linspace(-60, -50, NUM),
        "jimTiltMax": np.linspace(50, 60, NUM),
        "somebodysColumn": ["a b", "''", "None", "1_0", "x", "y", "z"],
        "rlnOpticsGroup": [1] * NUM,
    }
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [5.0]}
    star.new_table(columns, optics).write(folder / "p.star")
    with open(folder / "p.star", "a") as stream:
        stream.write("\ndata_mine\n\n_my.value 7\n")
    return folder / "p.star"


def refusal(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what goes in comes out


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_packed_particles_are_those_that_were(unpacked, volumes, tmp_path, precision):
    done = pack(unpacked, tmp_path / "out", precision=precision)
    assert done.num_particles == NUM
    found, wanted = load(done.star_path, with_masks=True), load(unpacked, with_masks=True)
    if precision == "float32":
        np.testing.assert_array_equal(found.volumes, volumes)
    deviations = volumes.std(axis=(1, 2, 3))[:, None, None, None]
    assert np.abs((found.volumes - volumes) / deviations).max() < 4 * 2**-11
    for name in ("tilt_ranges", "halves", "masks", "voxel_size"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_columns_and_blocks_are_kept(unpacked, tmp_path):
    made = star.read_particles(pack(unpacked, tmp_path / "out").star_path)
    old = star.read_particles(unpacked)
    for name in set(old.columns) - {"rlnImageName", "rlnMaskName"}:
        assert made.strings(name) == old.strings(name)
    assert set(made.columns) == {*old.columns, "rlnRandomSubset"}
    assert made.strings("rlnImageName")[2] == "000003@volumes.zarr"
    assert made.optics_floats("rlnImagePixelSize").tolist() == [5.0] * NUM
    assert "_my.value 7" in (tmp_path / "out" / TABLE).read_text()
    (mask,) = {reference.path.resolve() for reference in made.image_references("rlnMaskName")}
    assert mask == unpacked.parent / "mask.mrc"


def test_store_moves_with_its_table_and_is_packed_again(unpacked, tmp_path, monkeypatch):
    pack(unpacked, tmp_path / "out", precision="float32")
    os.rename(tmp_path / "out", tmp_path / "moved")
    star_path = tmp_path / "moved" / TABLE
    chosen = star.read_particles(star_path).select([5, 0, 5])
    chosen.write(tmp_path / "moved" / "few.star")
    monkeypatch.chdir(tmp_path / "moved")
    again = pack("few.star", tmp_path / "again", precision="float32")
    wanted = load(star_path).volumes[[5, 0, 5]]
    np.testing.assert_array_equal(load(again.star_path).volumes, wanted)


@pytest.mark.parametrize("per_shard", [2, 3, 16])
def test_store_of_several_shards_is_the_same(unpacked, volumes, tmp_path, monkeypatch, per_shard):
    monkeypatch.setattr(packed, "CHUNK_BYTES", 2 * 4 * BOX**3)
    monkeypatch.setattr(packed, "SHARD_BYTES", per_shard * 4 * BOX**3)
    done = pack(unpacked, tmp_path / "out", precision="float32")
    store = packed.open_packed(tmp_path / "out" / STORE)
    rows = np.array([6, 0, 3, 3])
    np.testing.assert_array_equal(store.read(rows), volumes[rows])
    assert load(done.star_path).voxel_size == 5.0  # of the table, as it was


def test_voxel_size_of_headers_goes_along(unpacked, tmp_path):
    table = star.read_particles(unpacked)
    columns = {name: table.strings(name) for name in ("rlnImageName", "jimTiltMin", "jimTiltMax")}
    star.new_table(columns).write(unpacked.parent / "q.star")
    done = pack(unpacked.parent / "q.star", tmp_path / "out")
    assert load(done.star_path).voxel_size == pytest.approx(4.0)


# --- read when asked for


@pytest.mark.parametrize("is_packed", [True, False])
def test_lazy_particles_are_those_in_memory(unpacked, tmp_path, is_packed):
    path = pack(unpacked, tmp_path / "out").star_path if is_packed else unpacked
    whole, lazy = load(path), load(path, max_bytes=100)
    assert not isinstance(lazy.volumes, np.ndarray)
    assert (lazy.volumes.shape, lazy.volumes.nbytes) == (whole.volumes.shape, whole.volumes.nbytes)
    both = normalize(lazy.volumes), normalize(whole.volumes)
    picked = np.arange(NUM) % 2 == 0
    for rows in (3, slice(1, 6, 2), [4, 4, 0], picked, np.array([], int)):
        np.testing.assert_array_equal(both[0][rows], both[1][rows])
    np.testing.assert_array_equal((np.float32(-1) * both[0])[:2], -both[1][:2])
    np.testing.assert_array_equal(np.asarray(both[0]), both[1])
    np.testing.assert_array_equal(lazy.select(picked).volumes[[1]], whole.volumes[[2]])
    assert hash_arrays(lazy.volumes, lazy.tilt_ranges) == hash_arrays(
        whole.volumes, whole.tilt_ranges
    )


def test_rows_that_are_not_there_are_an_error(unpacked):
    volumes = load(unpacked, max_bytes=0).volumes
    with pytest.raises(IndexError):
        volumes[NUM]
    assert [each.shape for each in volumes] == [(BOX,) * 3] * NUM


# --- what must not be


def test_bad_voxels_are_refused_and_nothing_is_left(unpacked, volumes, tmp_path):
    volumes[4, 1, 2, 3:5] = np.nan
    with open(unpacked.parent / "s.mrcs", "r+b") as stream:
        stream.seek(1024)
        stream.write(volumes.tobytes())
    said = refusal(pack, unpacked, tmp_path / "out")
    assert "particle 5" in said
    assert "has 2 voxels that are NaN or infinite, the first at [z, y, x] = [1, 2, 3]" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [STORE, TABLE])
def test_what_is_there_is_not_replaced(unpacked, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    assert f"{name}: exists; choose another folder" in refusal(pack, unpacked, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [name]


def test_disk_that_fails_leaves_nothing(unpacked, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(packed, "_write", fail)
    with pytest.raises(OSError, match="no space left"):
        pack(unpacked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def store(unpacked, tmp_path):
    return pack(unpacked, tmp_path / "out").star_path.parent / STORE


def _first_shard(store):
    return next(path for path in sorted((store / "volumes" / "c").rglob("*")) if path.is_file())


def _flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


def _change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _link(path):
    real = path.with_name("real")
    os.rename(path, real)
    path.symlink_to(real)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda store: _flip_byte(_first_shard(store)), "copy or make it again"),
        (lambda store: os.truncate(_first_shard(store), 100), "copy or make it again"),
        (lambda store: _first_shard(store).unlink(), "copy or make it again"),
        (lambda store: (store / "volumes" / "zarr.json").unlink(), "copy or make it again"),
        (lambda store: (store / "volumes" / "zarr.json").write_text("{"), "copy or make it again"),
        (lambda store: shutil.rmtree(store / "scales"), "scales: cannot be read"),
        (lambda store: (store / "zarr.json").unlink(), "zarr.json: cannot be read"),
        (lambda store: (store / "zarr.json").write_text("[1]"), "holds no Zarr metadata"),
        (lambda store: _change(store / "zarr.json", attributes={}), "make them with jimjax pack"),
        (
            lambda store: _change(
                store / "zarr.json", attributes={"jimjax": {"version": 1, "voxel_size": 0}}
            ),
            "voxel size must be positive, got 0",
        ),
        (
            lambda store: _change(store / "volumes" / "zarr.json", shape=[NUM, BOX, BOX, BOX + 1]),
            "volumes.zarr: ",
        ),
        (
            lambda store: _change(store / "volumes" / "zarr.json", shape=[10**9, BOX, BOX, BOX]),
            "announces 1000000000 particles",
        ),
        (
            lambda store: _change(store / "offsets" / "zarr.json", shape=[NUM - 1]),
            f"offsets: expected {NUM} finite numbers",
        ),
        (lambda store: _link(_first_shard(store)), "is a symbolic link, which is not followed"),
        (lambda store: _link(store / "volumes"), "is a symbolic link, which is not followed"),
        (lambda store: os.mkfifo(store / "volumes" / "c" / "9"), "is no regular file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_store_is_refused(store, damage, problem):
    damage(store)
    said = refusal(load, store.parent / TABLE)
    assert problem in said
    assert str(store) in said


@pytest.mark.parametrize(("name", "problem"), [("8@", "no particle 8, it holds 7"), ("", "NUMBER")])
def test_number_that_is_not_in_the_store_is_told_with_its_line(store, name, problem):
    table = star.read_particles(store.parent / TABLE)
    names = table.strings("rlnImageName")
    names[3] = f"{name}volumes.zarr"
    table.with_columns({"rlnImageName": names}).write(store.parent / "wrong.star")
    said = refusal(load, store.parent / "wrong.star")
    assert "particle 4" in said
    assert problem in said
