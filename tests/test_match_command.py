"""``jimjax match`` from files to files; how well it finds is for the search's tests."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from small_tomogram import BOX, DIAMETER, angle, make_world, nearest

from jimjax import cli
from jimjax.cli import main
from jimjax.data.packing import pack
from jimjax.data.subtomograms import load
from jimjax.io import mrc, read_particles, rotation_from_relion
from jimjax.ops import correlation, resample
from jimjax.ops.rotation import Pose, invert

VOXEL_SIZE = 10.0
STEP = 30.0
TILTS = ("--tilt-min", "-60", "--tilt-max", "60")
SEARCH = ("--angle-step", STEP, "--resolution", "33", "--particle-diameter", DIAMETER * VOXEL_SIZE)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)


@pytest.fixture(scope="module")
def world():
    return make_world(4, labels=(0, 0, 0, 0), noise=0.3, shape=(22, 46, 46))


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tomogram")
    mrc.write_volume(folder / "01.mrc", world.tomogram, voxel_size=VOXEL_SIZE)
    for name, template in zip("ab", world.templates, strict=True):
        mrc.write_volume(folder / f"{name}.mrc", template, voxel_size=VOXEL_SIZE)
    return folder


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    """A search with two maps, and subtomograms."""
    out = tmp_path_factory.mktemp("out") / "found"
    maps = "--reference", folder / "a.mrc", folder / "b.mrc"
    assert run(folder / "01.mrc", *maps, *TILTS, *SEARCH, "--extract", BOX, "--max-picks", 4,
               "--threshold", 1, "--out", out) == 0  # fmt: skip
    return out


def run(*arguments):
    return main(["match", *map(str, arguments)])


def coordinates(table):
    return np.stack([table.floats(f"rlnCoordinate{axis}") for axis in "XYZ"], axis=1)


def test_packed_picks_are_the_subtomograms(folder, out, tmp_path):
    tilts = [float(limit) for limit in TILTS[1::2]]
    wanted = load(out / "particles.star", with_poses=True)
    done = pack(
        out / "picks.star", tmp_path / "out", box=BOX, tilt_range=tilts, precision="float32"
    )
    found = load(done.star_path, with_poses=True)
    np.testing.assert_array_equal(found.volumes, wanted.volumes)
    np.testing.assert_array_equal(found.tilt_ranges, wanted.tilt_ranges)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_allclose(found.rotations, wanted.rotations, atol=1e-5)
    np.testing.assert_allclose(found.shifts, wanted.shifts, atol=1e-5)


def test_picks_are_the_particles(world, out):
    table = read_particles(out / "picks.star")
    rows, distances = nearest(coordinates(table), world.positions)
    assert sorted(rows) == [0, 1, 2, 3]
    assert distances.max() < 1
    angles = np.stack([table.floats(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1)
    errors = map(angle, rotation_from_relion(angles), world.rotations[rows])
    assert max(errors) < 1.3 * STEP
    np.testing.assert_array_equal(table.ints("rlnClassNumber"), 1)
    assert table.strings("rlnTomoName") == ["01"] * 4
    assert np.all(np.diff(table.floats("rlnAutopickFigureOfMerit")) <= 0)
    assert np.all(table.floats("jimScoreDeviations") > 1)


def test_maps_say_score_rotation_and_class_of_each_voxel(world, out):
    scores, angles, classes = (
        mrc.read_volume(out / f"{name}.mrc") for name in ("scores", "angles", "classes")
    )
    assert scores.data.shape == angles.data.shape == classes.data.shape == world.tomogram.shape
    assert scores.voxel_size == VOXEL_SIZE
    table, picks = _numbers(out / "angles.star"), read_particles(out / "picks.star")
    x, y, z = np.rint(coordinates(picks)[0]).astype(int)
    row = int(angles.data[z, y, x])
    assert table[row] == pytest.approx(
        [picks.floats(f"rlnAngle{name}")[0] for name in ("Rot", "Tilt", "Psi")]
    )
    assert classes.data[z, y, x] == 1
    assert set(np.unique(classes.data)) == {1, 2}
    assert scores.data.max() == pytest.approx(picks.floats("rlnAutopickFigureOfMerit")[0])


def test_subtomograms_average_to_the_reference(world, out):
    particles = load(out / "particles.star", with_poses=True)
    assert particles.volumes.shape[1:] == (BOX,) * 3
    np.testing.assert_array_equal(particles.tilt_ranges, [[-60, 60]] * len(particles))
    assert particles.voxel_size == VOXEL_SIZE
    np.testing.assert_array_equal(np.bincount(particles.halves), [0, 2, 2])
    average = np.mean(
        [
            resample.transform(
                jnp.asarray(v), invert(Pose(jnp.asarray(R), jnp.asarray(t))), order=3
            )
            for v, R, t in zip(
                particles.volumes, particles.rotations, particles.shifts, strict=True
            )
        ],
        axis=0,
    )
    likeness = correlation.pearson(jnp.asarray(average), jnp.asarray(world.templates[0]))
    unturned = correlation.pearson(
        jnp.asarray(particles.volumes.mean(0)), jnp.asarray(world.templates[0])
    )
    assert likeness > 0.8
    assert likeness > unturned + 0.1


def test_subtomograms_and_picks_name_the_same_places(out):
    particles, picks = (read_particles(out / f"{name}.star") for name in ("particles", "picks"))
    origins = np.stack([particles.floats(f"rlnOrigin{axis}Angst") for axis in "XYZ"], axis=1)
    places = coordinates(particles) - origins / VOXEL_SIZE  # RELION's position of a particle
    np.testing.assert_allclose(places, coordinates(picks)[: len(places)], atol=1e-5)
    assert np.all(coordinates(particles) % 1 == 0)


def test_summary_says_what_was_done(out):
    summary = json.loads((out / "match.json").read_text())
    assert summary["picks"] == 4
    assert summary["subtomograms"] == 4
    assert summary["binning"] == 1
    assert summary["rotations"] == len(_numbers(out / "angles.star"))


def test_no_pick_leaves_scores_and_says_so(folder, tmp_path, capsys):
    (tmp_path / "picks.star").touch()  # of an earlier search
    assert run(folder / "01.mrc", "--reference", folder / "a.mrc", *TILTS, *SEARCH[2:],
               "--angle-step", 150, "--min-score", 0.99, "--out", tmp_path) == 0  # fmt: skip
    assert "no pick: no score reaches 0.99, the highest is" in capsys.readouterr().out
    assert (tmp_path / "scores.mrc").exists()
    assert not (tmp_path / "picks.star").exists()
    assert not (tmp_path / "classes.mrc").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tilt-min", "-60"], "--tilt-max is missing"),
        ([], "the tilt range is not known; give --tilt-min and --tilt-max"),
        (["--tilt-min", "60", "--tilt-max", "-60"], "tilt range must be -90 <= lowest < highest"),
        ([*TILTS, "--extract", "23"], "--extract must be 2 to 22 voxels"),
        ([*TILTS, "--voxel-size", "12"], "a.mrc: has 10 A per voxel, the tomogram 12 A"),
        ([*TILTS, "--particle-diameter", "190"], "must have 26 voxels or more along each axis"),
        ([*TILTS, "--memory", "0.00001"], "the memory must be"),
        ([*TILTS, "--symmetry", "Q"], "symmetry 'Q'"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, options, message):
    code = run(
        folder / "01.mrc", "--reference", folder / "a.mrc", "--out", tmp_path / "new", *options
    )
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("name", "volume", "message"),
    [
        ("oblong.mrc", np.eye(8)[None] * np.ones((6, 1, 1)), "has 8 x 8 x 6 voxels"),
        ("flat.mrc", np.ones((8, 8, 8)), "is constant or not finite"),
    ],
)
def test_maps_that_cannot_be_used_are_one_line(folder, tmp_path, capsys, name, volume, message):
    mrc.write_volume(tmp_path / name, volume, voxel_size=VOXEL_SIZE)
    out = tmp_path / "new"
    assert run(folder / "01.mrc", "--reference", tmp_path / name, *TILTS, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_tomograms_that_cannot_be_used_are_one_line(folder, tmp_path, capsys):
    broken = np.zeros((20, 20, 20), np.float32)
    mrc.write_volume(tmp_path / "flat.mrc", broken, voxel_size=VOXEL_SIZE)
    path = tmp_path / "nan.mrc"
    broken[1, 2, 3] = 7.0
    mrc.write_volume(path, broken, voxel_size=VOXEL_SIZE)
    raw = bytearray(path.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    messages = {"flat.mrc": "is constant", "nan.mrc": "has 1 voxels that are NaN or infinite"}
    for name, message in messages.items():
        arguments = tmp_path / name, "--reference", folder / "a.mrc", *TILTS
        assert run(*arguments, "--out", tmp_path / "new") == 2
        assert message in capsys.readouterr().err


def test_output_does_not_replace_the_input(folder, tmp_path, capsys):
    path = tmp_path / "scores.mrc"
    path.write_bytes((folder / "01.mrc").read_bytes())
    assert run(path, "--reference", folder / "a.mrc", *TILTS, "--out", tmp_path) == 2
    assert "is read as an input" in capsys.readouterr().err


def _numbers(path):
    """Rows of a STAR file that has numbers only."""
    rows = [line.split() for line in path.read_text().splitlines() if line[:1] in "-0123456789"]
    return [[float(value) for value in row] for row in rows if row]
