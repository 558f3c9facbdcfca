"""Particles are cut out of MRC and OME-Zarr tomograms alike, where the table says they are."""

import contextlib
import gzip
import json
import os

import numpy as np
import pytest
import tensorstore

from jimjax.data.boxes import COORDINATES
from jimjax.data.packing import STORE, pack
from jimjax.data.subtomograms import load
from jimjax.io import mrc, star
from jimjax.io.errors import InputError, InputWarning
from jimjax.io.tomograms import open_tomogram

SHAPE, BOX, VOXEL_SIZE = (20, 24, 30), 6, 10.0
# x, y, z: whole, a corner that just fits, between voxels; the last two reach beyond.
PLACES = np.array([[10, 9, 8], [3, 3, 3], [20.4, 12.6, 9.8], [2, 9, 8], [10, 9, 18]])
CENTERS = np.array([[10, 9, 8], [3, 3, 3], [20, 13, 10]])


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-99, 99, SHAPE).astype(np.int16)


def write_mrc(path, voxels):
    mrc.write_volume(path, voxels.astype(np.float32), voxel_size=VOXEL_SIZE)


def write_zarr(path, voxels, *, version, axes="zyx", units=("angstrom",) * 3, scale=VOXEL_SIZE):
    """One scale of OME-Zarr; axes besides z, y, x have length one."""
    data = voxels.transpose(["zyx".index(a) for a in axes if a in "zyx"])
    data = data.reshape([SHAPE["zyx".index(a)] if a in "zyx" else 1 for a in axes])
    driver = "zarr3" if version == "0.5" else "zarr"
    metadata = {"shape": data.shape}
    chunk = [min(8, length) for length in data.shape]
    if version == "0.5":
        metadata |= {"data_type": "int16", "chunk_grid": {"name": "regular", "configuration": {}}}
        metadata["chunk_grid"]["configuration"]["chunk_shape"] = chunk
    else:
        metadata |= {"dtype": ">i2", "chunks": chunk, "compressor": {"id": "zlib", "level": 1}}
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/0/"}}
    tensorstore.open(spec | {"metadata": metadata}, create=True).result()[...] = data
    unit_of = dict(zip("zyx", units, strict=True))
    described = [
        {"name": a, "type": "space" if a in "zyx" else "channel"}
        | ({"unit": unit_of[a]} if unit_of.get(a) else {})
        for a in axes
    ]
    transform = {"type": "scale", "scale": [scale if a in "zyx" else 1.0 for a in axes]}
    datasets = [{"path": "0", "coordinateTransformations": [transform]}]
    image = {"axes": described, "datasets": datasets}
    if version == "0.5":
        ome = {"version": version, "multiscales": [image]}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        (path / "zarr.json").write_text(json.dumps(group))
    else:
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps({"multiscales": [image | {"version": version}]}))


WRITERS = {
    "mrc": write_mrc,
    "0.4": lambda path, voxels: write_zarr(path, voxels, version="0.4"),
    "0.5": lambda path, voxels: write_zarr(path, voxels, version="0.5"),
    "channel": lambda path, voxels: write_zarr(path, voxels, version="0.5", axes="tczyx"),
    "turned": lambda path, voxels: write_zarr(path, voxels, version="0.4", axes="xcyz"),
    "nanometer": lambda path, voxels: write_zarr(
        path, voxels, version="0.4", units=("nanometer",) * 3, scale=1.0
    ),
}


def write_picks(folder, places=PLACES, column="rlnMicrographName", name="tomo", **more):
    columns = dict(zip(COORDINATES, np.transpose(places), strict=True))
    columns |= {"jimTiltMin": [-60.0] * len(places), "jimTiltMax": [60.0] * len(places)}
    columns |= {f"rlnAngle{angle}": [10.0] * len(places) for angle in ("Rot", "Tilt", "Psi")}
    if column is not None:
        columns[column] = [name] * len(places)
    star.new_table(columns | more).write(folder / "picks.star")
    return folder / "picks.star"


@pytest.fixture
def picks(voxels, tmp_path):
    write_mrc(tmp_path / "tomo", voxels)
    return write_picks(tmp_path)


def load_quietly(path, **options):
    with pytest.warns(InputWarning, match="2 of 5 particles are left out, as their boxes of 6"):
        return load(path, box=BOX, with_poses=True, **options)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("column", ["rlnMicrographName", "rlnTomoName"])
def test_boxes_are_those_of_the_array(voxels, tmp_path, kind, column):
    WRITERS[kind](tmp_path / "tomo", voxels)
    found = load_quietly(write_picks(tmp_path, column=column), max_bytes=0)
    first = CENTERS[:, ::-1] - BOX // 2
    wanted = [voxels[z : z + BOX, y : y + BOX, x : x + BOX] for z, y, x in first]
    np.testing.assert_array_equal(found.volumes[:], wanted)
    np.testing.assert_array_equal(found.volumes[[2, 0]], np.stack([wanted[2], wanted[0]]))
    assert found.voxel_size == pytest.approx(VOXEL_SIZE)
    np.testing.assert_allclose(found.shifts, PLACES[:3] - CENTERS, atol=1e-6)


def test_boxes_in_memory_are_those_read_when_asked_for(picks):
    lazy, whole = load_quietly(picks, max_bytes=0), load_quietly(picks)
    assert isinstance(whole.volumes, np.ndarray)
    np.testing.assert_array_equal(lazy.volumes[:], whole.volumes)
    assert lazy.names == whole.names == tuple(dict.fromkeys(lazy.names))


def test_packed_boxes_are_the_particles_with_their_origins(picks, tmp_path):
    wanted = load_quietly(picks, voxel_size=VOXEL_SIZE)
    with pytest.warns(InputWarning, match="left out"):
        done = pack(picks, tmp_path / "out", box=BOX, precision="float32", tilt_range=(-50, 40))
    found = load(done.star_path, with_poses=True)
    np.testing.assert_array_equal(found.volumes, wanted.volumes)
    np.testing.assert_allclose(found.shifts, wanted.shifts, atol=1e-5)
    np.testing.assert_allclose(found.rotations, wanted.rotations, atol=1e-6)
    np.testing.assert_array_equal(found.halves, wanted.halves)
    assert np.unique(found.tilt_ranges, axis=0).tolist() == [[-50, 40]]
    table = star.read_particles(done.star_path)
    assert np.stack([table.floats(name) for name in COORDINATES], axis=1).tolist() == (
        CENTERS.tolist()
    )
    assert (tmp_path / "out" / STORE / "zarr.json").exists()
    # Packed once more, the origins stay what they are.
    with pytest.warns(InputWarning, match="left out"):
        again = pack(picks, tmp_path / "more", box=BOX)
    np.testing.assert_allclose(
        load(again.star_path, with_poses=True).shifts, wanted.shifts, atol=1e-5
    )


def test_origins_of_the_table_are_added(picks, tmp_path):
    table = star.read_particles(picks)
    origins = {f"rlnOrigin{axis}Angst": [-5.0] * len(PLACES) for axis in "XYZ"}
    table.with_columns(origins).write(picks)
    with pytest.warns(InputWarning, match="left out"):
        done = pack(picks, tmp_path / "out", box=BOX)
    found = load(done.star_path, with_poses=True)
    np.testing.assert_allclose(found.shifts, PLACES[:3] - CENTERS + 0.5, atol=1e-5)


# --- what must not be


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        load(path, **{"box": BOX, "max_bytes": 0} | options).volumes[:]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_table_without_images_says_how_to_cut_them_out(picks):
    assert "jimjax pack --box" in refusal(picks, box=None)


def test_missing_tomograms_and_columns_are_told(picks, voxels, tmp_path):
    os.remove(tmp_path / "tomo")
    assert "picks.star" in refusal(picks)
    assert "add a column rlnMicrographName" in refusal(write_picks(tmp_path, column=None))


def test_box_that_fits_nowhere_is_told(picks):
    assert "no box of 22 voxels lies in its tomogram whole" in refusal(picks, box=22)


@pytest.mark.parametrize(
    ("value", "problem"), [(np.nan, "1 voxels that are NaN or infinite"), (7, "is constant")]
)
def test_boxes_without_a_signal_are_told(tmp_path, value, problem):
    voxels = np.full(SHAPE, 7, np.float32)
    write_mrc(tmp_path / "tomo", voxels)
    voxels[8, 9, 10] = value
    with open(tmp_path / "tomo", "r+b") as stream:
        stream.seek(1024)
        stream.write(voxels.tobytes())
    said = refusal(write_picks(tmp_path, PLACES[:1]))
    assert "picks.star" in said
    assert "particle 1" in said
    assert problem in said


def test_compressed_tomogram_is_refused(picks, tmp_path):
    (tmp_path / "tomo").write_bytes(gzip.compress((tmp_path / "tomo").read_bytes()))
    assert "parts cannot be read of a compressed file" in refusal(picks)


def change(path, function):
    found = json.loads(path.read_text())
    function(found["multiscales"][0])
    path.write_text(json.dumps(found))


def _set(level, **values):
    level.update(values)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda image: _set(image, datasets=[]), "holds no multiscale image"),
        (lambda image: _set(image, datasets=7), "holds no multiscale image"),
        (lambda image: _set(image, axes=[]), "expected axes z, y and x, found none"),
        (lambda image: _set(image["axes"][0], name="c"), "expected axes z, y and x"),
        (lambda image: _set(image["datasets"][0], path="/etc"), "lies outside"),
        (lambda image: _set(image["datasets"][0], path="../0"), "lies outside"),
        (lambda image: _set(image["datasets"][0], path="1"), "1: cannot be read"),
        (lambda image: image["axes"].append({"name": "t"}), "has 3 axes, 4 are described"),
        (
            lambda image: _set(
                image["datasets"][0], coordinateTransformations=[{"type": "scale", "scale": [1]}]
            ),
            "has no number for each axis",
        ),
        (
            lambda image: _set(
                image, coordinateTransformations=[{"type": "scale", "scale": [1, 1, 2]}]
            ),
            "expected cubic voxels, the metadata says 20 x 10 x 10 A",
        ),
        (lambda image: _set(image["axes"][0], unit="parsec"), "pass --voxel-size"),
    ],
)
def test_ome_zarr_that_is_none_is_refused(voxels, tmp_path, function, problem):
    WRITERS["0.4"](tmp_path / "tomo", voxels)
    change(tmp_path / "tomo" / ".zattrs", function)
    said = refusal(write_picks(tmp_path))
    assert problem in said


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_metadata_of_any_kind_is_read_or_refused(voxels, tmp_path, version):
    WRITERS[version](tmp_path / "tomo", voxels)
    picks = write_picks(tmp_path, PLACES[:3])
    group = "zarr.json" if version == "0.5" else ".zattrs"
    array = "0/zarr.json" if version == "0.5" else "0/.zarray"
    random = np.random.default_rng(0)
    others = [None, 0, -1, 2**70, np.inf, "x", "..", "\0", [], {}, [[1]], {"a": 1}, True]
    for name in (group, array):
        path = tmp_path / "tomo" / name
        good = path.read_text()
        for _ in range(40):
            found = json.loads(good)
            holders = list(_holders(found))
            holder, key = holders[random.integers(len(holders))]
            holder[key] = others[random.integers(len(others))]
            path.write_text(json.dumps(found))
            with contextlib.suppress(InputError):  # and nothing else
                load(picks, box=BOX)
        path.write_text(good)


def _holders(found):
    """Everything in JSON that can be something else."""
    keys = found.keys() if isinstance(found, dict) else range(len(found))
    for key in keys:
        yield found, key
        if isinstance(found[key], dict | list):
            yield from _holders(found[key])


def test_links_in_a_tomogram_are_refused(voxels, tmp_path):
    WRITERS["0.5"](tmp_path / "tomo", voxels)
    os.rename(tmp_path / "tomo" / "0" / "c", tmp_path / "c")
    (tmp_path / "tomo" / "0" / "c").symlink_to(tmp_path / "c")
    assert "is a symbolic link, which is not followed" in refusal(write_picks(tmp_path))


def test_folder_that_is_no_zarr_is_told(tmp_path):
    (tmp_path / "tomo").mkdir()
    assert ".zattrs: cannot be read" in refusal(write_picks(tmp_path))


def test_two_channels_are_refused(voxels, tmp_path):
    WRITERS["channel"](tmp_path / "tomo", voxels)
    array = tmp_path / "tomo" / "0" / "zarr.json"
    found = json.loads(array.read_text())
    found["shape"][1] = 2
    array.write_text(json.dumps(found))
    assert "save one channel and time alone" in refusal(write_picks(tmp_path))


def test_voxel_size_that_is_given_is_not_looked_for(voxels, tmp_path):
    write_zarr(tmp_path / "tomo", voxels, version="0.5", units=(None,) * 3)
    assert open_tomogram(tmp_path / "tomo").voxel_size is None
    assert load_quietly(write_picks(tmp_path), voxel_size=3.0).voxel_size == 3.0
