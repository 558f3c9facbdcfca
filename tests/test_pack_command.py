"""``jimjax pack``, and commands on what it wrote."""

import json

import numpy as np
import pytest
from small_particles import noise_particles

from jimjax import cli
from jimjax.data.subtomograms import load, to_star
from jimjax.io import new_table, write_volume
from jimjax.train import run as runs

NUM, BOX = 6, 8


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)


@pytest.fixture
def star_path(tmp_path):
    particles = noise_particles(NUM, BOX, num_classes=2)
    to_star(particles, tmp_path / "p.star", stack_path=tmp_path / "p.mrcs")
    return tmp_path / "p.star"


@pytest.fixture
def picks(tmp_path):
    voxels = np.random.default_rng(1).normal(size=(20, 20, 20)).astype(np.float32)
    write_volume(tmp_path / "tomogram.mrc", voxels, voxel_size=10.0)
    places = {f"rlnCoordinate{axis}": [8.0, 9.6, 12.0] for axis in "XYZ"}
    new_table({**places, "rlnMicrographName": ["tomogram.mrc"] * 3}).write(tmp_path / "picks.star")
    return tmp_path / "picks.star"


def test_packed_particles_are_what_other_commands_take(star_path, tmp_path, jimjax):
    code, out, _ = jimjax("pack", star_path, tmp_path / "packed")
    assert code == 0
    assert out.startswith(f"{NUM} particles in ")
    packed = tmp_path / "packed" / "particles.star"
    assert jimjax("doctor", "--data", packed)[0] == 0
    assert jimjax("average", packed, "--out", tmp_path / "averages")[0] == 0
    code, out, _ = jimjax("evaluate", packed, "--truth", packed, "--json")
    assert json.loads(out)["ari"] == 1.0
    code, _, err = jimjax("pack", star_path, tmp_path / "packed")
    assert (code, len(err)) == (2, 1)
    assert "volumes.zarr: exists; choose another folder" in err[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--box", 1], "--box must be 2 voxels or more"),
        (["--tilt-min", -60], "--tilt-max is missing"),
        (["--precision", "float64"], "float64"),
        (["--box", 4], "rlnCoordinateX"),
    ],
)
def test_mistakes_are_one_line(star_path, tmp_path, jimjax, arguments, problem):
    code, _, err = jimjax("pack", star_path, tmp_path / "packed", *arguments)
    assert (code, len(err)) == (2, 1)
    assert problem in err[0]
    assert not (tmp_path / "packed").exists()


def test_training_takes_boxes_of_tomograms_and_memory(picks, tmp_path, jimjax, monkeypatch):
    taken = []
    monkeypatch.setattr(
        runs, "train_run", lambda config, particles, *_, **__: taken.append(particles)
    )
    (tmp_path / "run.toml").write_text("seed = 3\n")
    tilts = "--tilt-min", "-60", "--tilt-max", "60"
    train = "train", tmp_path / "run.toml", "--data", picks, "--out", tmp_path / "run", *tilts
    assert jimjax(*train, "--box", 6)[0] == 0
    assert jimjax(*train, "--box", 6, "--memory", 0)[0] == 0
    assert jimjax("pack", picks, tmp_path / "packed", "--box", 6, *tilts)[0] == 0
    whole, lazy = taken
    assert isinstance(whole.volumes, np.ndarray)
    assert not isinstance(lazy.volumes, np.ndarray)
    np.testing.assert_array_equal(lazy.volumes[:], whole.volumes)
    packed = load(tmp_path / "packed" / "particles.star")
    np.testing.assert_allclose(packed.volumes, whole.volumes, atol=4e-3)
    for more, problem in (
        (["--box", 6, "--teacher"], "cut them out by jimjax pack"),
        (["--memory", -1], "--memory must be 0 GiB or more"),
        ([], "jimjax pack --box"),
    ):
        code, _, err = jimjax(*train, *more)
        assert (code, len(err)) == (2, 1)
        assert problem in err[0]
