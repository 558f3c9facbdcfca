"""``jimjax fewshot``: what it writes, resumes and refuses."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jimjax import cli
from jimjax.cli import main
from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.fewshot import pretraining
from jimjax.fewshot.model import load_model
from jimjax.models.protonet import ProtoNetConfig

BOX = 12
SIZES = functools.partial(
    ProtoNetConfig,
    size=8,
    widths=(4,),
    num_halvings=1,
    kernel="isotropic",
    pools=("max", "mean", "std"),
    dense_width=4,
)
SETTINGS = "ways = 2\nshots = 2\nqueries = 2\nepisodes = 2\nepochs = 1\n"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setitem(pretraining.PRESETS, "small", lambda box: SIZES(box=box))


@pytest.fixture
def stars(tmp_path):
    """Blobs of two sizes, classes 2 and 5, five of each to show and four to ask about."""
    points = np.zeros((18, BOX, BOX, BOX))
    points[:, BOX // 2, BOX // 2, BOX // 2] = -1
    sizes = np.arange(18) % 2 + 1.0
    volumes = np.stack([gaussian_filter(p, s) * s**3 for p, s in zip(points, sizes, strict=True)])
    noise = 0.01 * np.random.default_rng(0).normal(size=volumes.shape)
    everything = Subtomograms(
        volumes=(volumes + noise).astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (18, 1)),
        voxel_size=10.0,
        names=("",) * 18,
        halves=np.arange(18) % 2 + 1,
        labels=(np.arange(18) % 2 * 3 + 1).astype(np.int32),
    )
    support = everything.select(range(10))
    query = everything.select(range(10, 18))
    written = {
        "support": support,
        "query": dataclasses.replace(query, labels=np.zeros(8, np.int32)),
        "one": support.select([0, 1, 3]),
        "lone": support.select([0, 2]),
    }
    for name, particles in written.items():
        to_star(particles, tmp_path / f"{name}.star", stack_path=tmp_path / f"{name}.mrcs")
    (tmp_path / "settings.toml").write_text(SETTINGS)
    return tmp_path


@pytest.fixture
def arguments(stars):
    files = {"support": "support.star", "query": "query.star", "out": "out"}
    given = [word for name, file in files.items() for word in (f"--{name}", str(stars / file))]
    settings = ["--weights", "none", "--config", str(stars / "settings.toml")]
    return ["fewshot", *given, "--no-averages", *settings]


@pytest.mark.parametrize("method", ["protonet", "protonet-ce"])
def test_classes_features_and_model_are_written(method, arguments, stars, capsys):
    assert main([*arguments, "--method", method]) == 0
    assert "8 particles, 4 of class 2, 4 of class 5" in capsys.readouterr().out
    out = stars / "out"
    table = (out / "classes.star").read_text()
    assert "jimClassProbability" in table
    features = np.load(out / "classes.features.npz")
    np.testing.assert_array_equal(features["labels"], [1, 4] * 4)
    assert features["probabilities"].shape == (8, 5)
    np.testing.assert_allclose(features["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert not features["probabilities"][:, [0, 2, 3]].any()
    model, query = load_model(out), load(stars / "query.star")
    np.testing.assert_array_equal(model.predict(query), features["labels"])
    record = json.loads((out / "provenance.json").read_text())
    assert (record["method"], record["weights"]) == (method, "none")


def test_averages_embedding_and_report_are_written(arguments, stars, posed):
    assert main([*arguments, "--averages"]) == 0
    out = stars / "out"
    averages = {path.name for path in out.glob("averages/class_???.mrc")}
    assert averages == {"class_002.mrc", "class_005.mrc"}
    assert (out / "embedding.png").read_bytes()[:4] == b"\x89PNG"
    assert "jimjax fewshot: protonet" in (out / "report.html").read_text()


def test_model_predicts_other_particles(arguments, stars):
    assert main(arguments) == 0
    out, again = stars / "out", stars / "again.star"
    command = ["predict", "--run", str(out), "--data", str(stars / "query.star")]
    assert main([*command, "--out", str(again)]) == 0
    features = [
        np.load(path)["labels"]
        for path in (out / "classes.features.npz", stars / "again.features.npz")
    ]
    np.testing.assert_array_equal(*features)


def test_support_needs_no_poses(arguments, stars):
    """Neither file has angles; one labelled particle of a class is enough."""
    assert "rlnAngleRot" not in (stars / "one.star").read_text()
    assert main([*arguments, "--support", str(stars / "one.star")]) == 0
    labels = np.load(stars / "out/classes.features.npz")["labels"]
    np.testing.assert_array_equal(labels, [1, 4] * 4)


def test_single_class_is_everyones(arguments, stars):
    assert main([*arguments, "--support", str(stars / "lone.star")]) == 0
    features = np.load(stars / "out/classes.features.npz")
    np.testing.assert_array_equal(features["probabilities"], np.tile([0, 1], (8, 1)))


def test_accuracy_of_held_out_support_is_printed_and_kept(arguments, stars, capsys):
    assert main([*arguments, "--episodes", "4"]) == 0
    printed = capsys.readouterr().out
    assert "2-way 2-shot accuracy of 4 episodes of the support: 1.000 +- 0.000" in printed
    record = json.loads((stars / "out/provenance.json").read_text())
    assert (record["ways"], record["shots"], record["queries"]) == (2, 2, 2)
    assert record["accuracy"] == 1.0


def test_training_is_resumed_and_not_overwritten(arguments, stars, capsys):
    trained = [*arguments, "--train", str(stars / "support.star")]
    assert main(trained) == 0
    before = load_model(stars / "out").prototypes
    assert (stars / "out/training/metrics.jsonl").exists()
    assert main(trained) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*trained, "--resume"]) == 0
    np.testing.assert_array_equal(load_model(stars / "out").prototypes, before)
    assert main(arguments) == 0  # without training, other prototypes
    assert np.any(load_model(stars / "out").prototypes != before)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--resume"], "--resume goes on with a training; give --train as well"),
        (["--weights", "nothing.safetensors"], "nothing.safetensors: cannot be read"),
        (["--episodes", "1"], "a confidence interval needs 2 episodes or more, got 1"),
        (["--support", "one.star", "--episodes", "4"], "class 2 has a single particle"),
        (["--support", "lone.star", "--episodes", "4"], "these particles are of one"),
        (["--train", "one.star"], "class 2 has 1 particles, episodes take 4"),
        (["--train", "lone.star"], "are of 1 classes, episodes want 2"),
    ],
)
def test_mistake_is_one_line(more, message, arguments, stars, capsys, monkeypatch):
    monkeypatch.chdir(stars)
    assert main([*arguments, *more]) == 2
    problem = capsys.readouterr().err
    assert message in problem
    assert problem.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_rlnClassNumber", "_rlnSomething", "the particles lack column rlnClassNumber"),
        (" 2\n", " 0\n", "rlnClassNumber must count from 1, got 0"),
        (" 2\n", " 10001\n", "rlnClassNumber goes up to 10001, 10000 is the most"),
    ],
)
def test_broken_labels_are_one_line(old, new, message, arguments, stars, capsys):
    path = stars / "support.star"
    path.write_text(path.read_text().replace(old, new))
    assert main(arguments) == 2
    problem = capsys.readouterr().err
    assert message in problem
    assert problem.count("\n") == 1


def test_query_is_not_overwritten(arguments, stars, capsys):
    (stars / "out").mkdir()
    path = stars / "out/classes.star"
    path.write_bytes((stars / "query.star").read_bytes())
    assert main([*arguments, "--query", str(path)]) == 2
    assert "is read as an input" in capsys.readouterr().err
