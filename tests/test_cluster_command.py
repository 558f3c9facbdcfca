"""``jimjax cluster``: what it writes, resumes and refuses."""

import functools
import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jimjax import cli
from jimjax.cli import main
from jimjax.cluster import disca
from jimjax.cluster.model import load_model
from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.models.yopo import YopoConfig

BOX, NUM = 12, 12
SIZES = functools.partial(
    YopoConfig, size=8, widths=(4,), dense_width=6, kernel="isotropic", momentum=0.9
)
SETTINGS = "iterations = 1\nbatch_size = 6\nnum_axes = 2\nnum_starts = 1\nhead_epochs = 1\n"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setitem(disca.PRESETS, "small", lambda box, num: SIZES(box=box, num_classes=num))


@pytest.fixture
def star(tmp_path):
    """Blobs of two sizes, with poses that nobody asked for."""
    points = np.zeros((NUM, BOX, BOX, BOX))
    points[:, BOX // 2, BOX // 2, BOX // 2] = -1
    sizes = np.arange(NUM) % 2 + 1.0
    volumes = np.stack([gaussian_filter(p, s) * s**3 for p, s in zip(points, sizes, strict=True)])
    particles = Subtomograms(
        volumes=volumes.astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=("",) * NUM,
        halves=np.arange(NUM) % 2 + 1,
        rotations=np.tile(np.eye(3, dtype=np.float32), (NUM, 1, 1)),
        shifts=np.ones((NUM, 3), np.float32),
        labels=np.zeros(NUM, np.int32),
    )
    path = tmp_path / "particles.star"
    to_star(particles, path, stack_path=tmp_path / "particles.mrcs")
    return path


@pytest.fixture
def arguments(star, tmp_path):
    (tmp_path / "settings.toml").write_text(SETTINGS)
    settings = ["--config", str(tmp_path / "settings.toml"), "--weights", "none"]
    return ["cluster", str(star), "--out", str(tmp_path / "out"), "--num-classes", "2", *settings]


def test_classes_features_and_model_are_written(arguments, star, tmp_path, capsys):
    assert main(arguments) == 0
    out = tmp_path / "out"
    assert "12 particles in classes of 6, 6" in capsys.readouterr().out
    given, found = load(star, with_poses=True), load(out / "classes.star", with_poses=True)
    assert len(set(found.labels[::2])) == len(set(found.labels[1::2])) == 1
    assert found.labels[0] != found.labels[1]
    np.testing.assert_array_equal(found.shifts, given.shifts)
    features = np.load(out / "classes.features.npz")
    np.testing.assert_array_equal(features["labels"], found.labels)
    np.testing.assert_allclose(features["probabilities"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(load_model(out).predict(given), found.labels)
    assert json.loads((out / "provenance.json").read_text())["num_particles"] == NUM


def test_finished_folder_is_resumed_and_not_overwritten(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    before = (tmp_path / "out/classes.star").read_bytes()
    assert main(arguments) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "out/classes.star").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-classes", "0"], "--num-classes must be 1 or more, got 0"),
        (["--num-classes", "13"], "12 particles cannot be in 13 classes; ask for fewer classes"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--weights", "nothing.safetensors"], "nothing.safetensors: cannot be read"),
    ],
)
def test_mistake_is_one_line(more, message, arguments, capsys):
    assert main([*arguments, *more]) == 2
    problem = capsys.readouterr().err
    assert message in problem
    assert problem.count("\n") == 1
