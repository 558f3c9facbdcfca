"""``jimjax cluster``: what it writes, resumes and refuses."""

import functools
import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jimjax import cli
from jimjax.align import fit as fitting
from jimjax.align.fit import Found
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
    data = ["cluster", str(star), "--out", str(tmp_path / "out"), "--num-classes", "2"]
    return [*data, "--method", "disca", "--no-averages", *settings]


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


def test_averages_embedding_and_report_are_written(arguments, star, tmp_path, posed):
    assert main([*arguments, "--averages"]) == 0
    out = tmp_path / "out"
    found = load(out / "classes.star", with_poses=True)
    np.testing.assert_array_equal(found.shifts, 0)  # not those of the file
    assert {path.name for path in out.glob("averages/class_00?.mrc")} == {
        "class_001.mrc",
        "class_002.mrc",
    }
    assert (out / "embedding.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "report.html").read_text()
    assert "jimjax cluster: disca" in page
    assert "t-SNE" in page
    assert json.loads((out / "summary.json").read_text())["classes"] == [6, 6]


def test_model_predicts_other_particles(arguments, star, tmp_path, capsys):
    assert main(arguments) == 0
    out, again = tmp_path / "out", tmp_path / "again.star"
    command = ["predict", "--run", str(out), "--data", str(star), "--out", str(again)]
    assert main(command) == 0
    assert "12 particles in classes of 6, 6" in capsys.readouterr().out
    first, second = (load(path, with_poses=True) for path in (out / "classes.star", again))
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (tmp_path / "again.features.npz").exists()


def test_em_corrects_the_classes_and_the_model_learns_them(
    arguments, star, tmp_path, posed, monkeypatch
):
    """The EM is told apart from the method by its answer: every third particle."""
    answer = np.arange(NUM) % 3 == 0

    def finished(particles, options, **how):
        assert particles.labels is None
        assert options.num_classes == 2
        num = len(particles)
        start = how["start"]
        return Found(
            labels=answer.astype(np.int32),
            probabilities=np.eye(2, dtype=np.float32)[answer.astype(int)],
            rotations=start.rotations,
            shifts=start.shifts,
            angle_deviations=np.full(num, 0.1),
            shift_deviations=np.full(num, 0.1),
            evidence=np.ones(num),
            volumes=np.ones((2, *[BOX] * 3), np.float32),
            noise=np.ones(3),
        )

    monkeypatch.setattr(fitting, "fit", finished)
    assert main([*arguments, "--averages", "--finish", "em"]) == 0
    out = tmp_path / "out"
    found = load(out / "classes.star", with_poses=True)
    np.testing.assert_array_equal(found.labels, answer)
    np.testing.assert_array_equal(np.load(out / "classes.features.npz")["labels"], answer)
    assert load_model(out).assignment.mixture.covariances.shape[0] == 1  # one for all classes
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["finish"], summary["classes"]) == ("em", [8, 4])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--finish", "em"], "--finish em makes averages; leave out --no-averages"),
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["autoencoder", "--weights", "small"], "no weights of autoencoder come with jimjax"),
        (["jimnet", "--weights", "none"], "--method jimnet needs weights that have learned"),
        (["transfer", "--weights", "none"], "--method transfer needs weights that have learned"),
        (["transfer", "--weights", "deepfinder.h5"], "not how to describe; give --train as well"),
        (["disca", "--train", "known.star"], "--train is of no use to --method disca"),
    ],
)
def test_methods_say_which_weights_they_want(more, message, star, tmp_path, capsys):
    command = ["cluster", str(star), "--out", str(tmp_path / "out"), "--num-classes", "2"]
    assert main([*command, "--method", *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
