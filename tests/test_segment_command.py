"""``jimjax segment``: from simulated masks to masks of particles and of a tomogram."""

import json

import numpy as np
import pytest

from jimjax import cli
from jimjax.cli import main
from jimjax.data.phantom import demo_phantoms, render
from jimjax.data.subtomograms import load
from jimjax.io import mrc, star
from jimjax.io.errors import InputError
from jimjax.models.voxresnet import VoxResNetConfig
from jimjax.segment import training

BOX = 16
SETTINGS = """
epochs = 8
batch_size = 4
num_sampled = 2
learning_rate = 0.02
"""


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    sizes = VoxResNetConfig(box=BOX, first_width=4, width=4)
    monkeypatch.setitem(training.PRESETS, "small", lambda box: sizes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two simulated data sets with masks."""
    folder = tmp_path_factory.mktemp("segment")
    for seed, name in enumerate(("source", "target")):
        density = demo_phantoms(1, seed, shape=(BOX,) * 3)[0]
        mrc.write_volume(folder / f"{name}.mrc", render(density, (BOX,) * 3), voxel_size=12.0)
        command = ["simulate", "--structures", str(folder / f"{name}.mrc"), "--masks"]
        command += ["--num-per-class", "8", "--box", str(BOX), "--max-shift", "2", "--snr", "2"]
        assert main([*command, "--out", str(folder / name), "--seed", str(seed)]) == 0
    (folder / "settings.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    with pytest.MonkeyPatch.context() as patch:
        sizes = VoxResNetConfig(box=BOX, first_width=4, width=4)
        patch.setitem(training.PRESETS, "small", lambda box: sizes)
        assert main(train(folder, "run", "--method", "dann")) == 0
    return folder / "run"


def train(folder, out, *more):
    command = ["segment", "train", "--source", str(folder / "source/particles.star")]
    command += ["--target", str(folder / "target/particles.star"), "--out", str(folder / out)]
    return [*command, "--config", str(folder / "settings.toml"), *more]


def predict(run, data, out, *more):
    return ["segment", "predict", "--run", str(run), "--data", str(data), "--out", str(out), *more]


def test_run_folder_holds_all_that_made_it(trained):
    names = {path.name for path in trained.iterdir()}
    wanted = {"weights.safetensors", "config.toml", "provenance.json", "metrics.jsonl"}
    assert wanted <= names
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"segmentation", "domain"} <= set(line)


@pytest.mark.slow
def test_vox_uda_is_what_is_trained_unless_told_otherwise(folder, tmp_path, capsys):
    (tmp_path / "one.toml").write_text("epochs = 1\nbatch_size = 4\nnum_sampled = 2\n")
    assert main(train(folder, tmp_path / "run", "--config", str(tmp_path / "one.toml"))) == 0
    assert "vox-uda from 8 particles for 8" in capsys.readouterr().out
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert {"segmentation", "consistency", "domain", "pseudo"} <= set(line)


def test_particles_get_masks_and_scores_where_truth_is_known(trained, folder, tmp_path, capsys):
    data = folder / "target/particles.star"
    assert main(predict(trained, data, tmp_path / "out", "--threshold", "0.3")) == 0
    found = load(tmp_path / "out/segments.star", with_masks=True)
    truth = load(data, with_masks=True)
    np.testing.assert_array_equal(found.volumes, truth.volumes)
    assert found.masks.shape == truth.masks.shape
    assert found.masks.any()
    assert np.any(found.masks != truth.masks)
    table = star.read_particles(tmp_path / "out/segments.star")
    assert table.strings("rlnMaskName")[0] == "000001@masks.mrcs"
    voxels = list(table.ints("jimSegmentVoxels"))
    assert voxels == list(found.masks.sum(axis=(1, 2, 3)))
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    overlap = 2 * (found.masks & truth.masks).sum(axis=(1, 2, 3))
    sizes = found.masks.sum(axis=(1, 2, 3)) + truth.masks.sum(axis=(1, 2, 3))
    assert scores["mean_dice"] == pytest.approx(np.mean(overlap / sizes))
    assert f"mean_dice {scores['mean_dice']:.3f}" in capsys.readouterr().out


def test_contrast_of_the_data_is_turned_when_it_is_said(trained, folder, tmp_path):
    data = folder / "target/particles.star"
    truth = load(data)
    light = tmp_path / "light.mrc"
    mrc.write_stack(light, -truth.volumes, voxel_size=12.0)
    table = star.read_particles(data)
    names = [f"{n:06d}@{light}" for n in range(1, len(truth) + 1)]
    table.with_columns({"rlnImageName": names}).write(tmp_path / "light.star")
    level = "--threshold", "0.3"
    assert main(predict(trained, data, tmp_path / "dark", *level)) == 0
    more = "--contrast", "light", *level
    said = predict(trained, tmp_path / "light.star", tmp_path / "said", *more)
    assert main(said) == 0
    one, other = ((tmp_path / name / "masks.mrcs").read_bytes()[1024:] for name in ("dark", "said"))
    assert one == other
    assert any(one)


def test_tomogram_is_segmented_section_by_section(trained, tmp_path):
    volume = np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32)
    mrc.write_volume(tmp_path / "tomogram.mrc", volume, voxel_size=12.0)
    command = predict(trained, tmp_path / "tomogram.mrc", tmp_path / "out", "--threshold", "0.4")
    assert main(command) == 0
    found = mrc.read_volume(tmp_path / "out/probability.mrc")
    mask = mrc.read_volume(tmp_path / "out/mask.mrc")
    assert found.voxel_size == mask.voxel_size == pytest.approx(12)
    assert found.data.shape == volume.shape
    np.testing.assert_array_equal(mask.data, found.data >= np.float32(0.4))


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory):
    path = tmp_path_factory.mktemp("tomogram") / "tomogram.mrc"
    volume = np.random.default_rng(0).normal(size=(14, 40, 24)).astype(np.float32)
    mrc.write_volume(path, volume, voxel_size=12.0)
    return path


@pytest.fixture
def targets(monkeypatch):
    """What a training is given as target, without the training."""
    given = []

    def train_segmenter(config, source, target, **more):
        given.append(target)
        raise InputError("that is enough")

    monkeypatch.setattr(training, "train_segmenter", train_segmenter)
    return given


@pytest.mark.slow
def test_training_adapts_to_the_boxes_of_a_tomogram(folder, tomogram, tmp_path, capsys):
    settings = "epochs = 1\nbatch_size = 4\nnum_sampled = 2\n"
    (tmp_path / "one.toml").write_text(settings)
    more = "--method", "dann", "--config", str(tmp_path / "one.toml"), "--max-boxes"
    command = train(folder, tmp_path / "run", "--target", str(tomogram), *more)
    assert main([*command, "5"]) == 0
    assert "dann from 8 particles for 5" in capsys.readouterr().out
    assert main(predict(tmp_path / "run", tomogram, tmp_path / "out")) == 0
    # The same boxes are drawn again, or the folder would be that of another training.
    assert main([*command, "5", "--resume"]) == 0
    assert main([*command, "6", "--resume"]) == 2


def test_boxes_of_a_tomogram_are_of_the_sources_size_and_drawn_by_seed(folder, tomogram, targets):
    tilts = "--tilt-min", "-40", "--tilt-max", "50"
    for more in ([], tilts, ["--max-boxes", "3"], ["--max-boxes", "3", "--seed", "1"]):
        assert main(train(folder, "never", "--target", str(tomogram), *more)) == 2
    everything, tilted, three, others = targets
    assert everything.volumes.shape == (1 * 4 * 2, BOX, BOX, BOX)
    assert everything.masks is None
    assert everything.tilt_ranges.tolist() == [[-90, 90]] * 8
    assert tilted.tilt_ranges.tolist() == [[-40, 50]] * 8
    assert three.volumes.shape == others.volumes.shape == (3, BOX, BOX, BOX)
    assert np.any(three.volumes != others.volumes)


def test_given_voxel_size_takes_the_place_of_the_headers(folder, tmp_path, targets):
    path = tmp_path / "other.mrc"
    mrc.write_volume(path, np.random.default_rng(0).normal(size=(BOX,) * 3), voxel_size=3.0)
    assert main(train(folder, "never", "--target", str(path), "--voxel-size", "12")) == 2
    assert [target.voxel_size for target in targets] == [12.0]


def test_tomograms_that_cannot_be_adapted_to_are_one_line(folder, tomogram, tmp_path, capsys):
    other = tmp_path / "other.mrc"
    mrc.write_volume(other, np.zeros((BOX,) * 3), voxel_size=10.0)
    for path, more, message in (
        (tomogram, ["--method", "supervised"], "method supervised learns from masks"),
        (other, [], "other.mrc: is at 10 A per voxel, the source is for 12 A"),
        (other, ["--voxel-size", "12"], "other.mrc: all 1 boxes that were drawn are constant"),
        (tomogram, ["--max-boxes", "0"], "--max-boxes must be 1 or more, got 0"),
        (tomogram, ["--tilt-min", "-60"], "--tilt-max is missing"),
        (tmp_path / "missing.mrc", [], "missing.mrc"),
    ):
        assert main(train(folder, "never", "--target", str(path), *more)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "dann", "--denoiser", "ngm"], "--denoiser is of no use to --method dann"),
        (["--method", "asc", "--noise", "none"], "--noise is of no use to --method asc"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--target", "missing.star"], "missing.star"),
    ],
)
def test_mistakes_are_one_line(more, message, folder, tmp_path, capsys):
    assert main(train(folder, "never", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_mistakes_of_prediction_are_one_line(trained, tmp_path, capsys):
    mrc.write_volume(tmp_path / "other.mrc", np.zeros((16, 16, 16)), voxel_size=10.0)
    for command, message in (
        (predict(trained, tmp_path / "other.mrc", tmp_path / "a"), "is at 10 A per voxel"),
        (predict(tmp_path, tmp_path / "other.mrc", tmp_path / "a"), "weights.safetensors"),
        (
            predict(trained, tmp_path / "other.mrc", tmp_path / "a", "--threshold", "1"),
            "--threshold must be between 0 and 1",
        ),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
