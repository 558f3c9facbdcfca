"""``jimjax train`` and ``predict`` of a UMTL, and ``jimjax benchmark multitask``."""

import json

import numpy as np
import pytest
from small_networks import umtl as tiny

from jimjax import cli
from jimjax.cli import main
from jimjax.commands import benchmark_data, multitask_benchmark
from jimjax.commands.benchmark_data import Preset
from jimjax.commands.multitask_benchmark import Answer
from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.io import star
from jimjax.report.multitask import make_table
from jimjax.train import run as runs
from jimjax.train import umtl

NUM, BOX = 8, 12
SETTINGS = """
[network]
kind = "umtl"
num_classes = 2
[pretrain]
steps = 0
[joint]
epochs = 1
batch_size = 4
molecule_share = 0.0
[umtl]
tasks = ["cluster", "segment"]
molecule_masks = false
"""


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "prepare_jax", lambda: None)
        patch.setitem(umtl.PRESETS, "small", tiny)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smooth_volumes):
    """Particles with masks, which training must not read, and a configuration."""
    folder = tmp_path_factory.mktemp("umtl")
    volumes = smooth_volumes(NUM, BOX)
    particles = Subtomograms(
        volumes=volumes,
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=("",) * NUM,
        halves=np.arange(NUM) % 2 + 1,
        rotations=np.tile(np.eye(3, dtype=np.float32), (NUM, 1, 1)),
        shifts=np.ones((NUM, 3), np.float32),
        labels=np.zeros(NUM, np.int32),
        masks=volumes < -1,
    )
    to_star(particles, folder / "particles.star", stack_path=folder / "particles.mrcs")
    (folder / "umtl.toml").write_text(SETTINGS)
    command = ["train", str(folder / "umtl.toml"), "--data", str(folder / "particles.star")]
    assert main([*command, "--out", str(folder / "run")]) == 0
    return folder


def _predict(folder, out, capsys):
    command = ["predict", "--run", str(folder / "run"), "--data", str(folder / "particles.star")]
    assert main([*command, "--out", str(folder / out)]) == 0
    return capsys.readouterr().out


def test_prediction_writes_classes_and_masks_and_prints_their_overlap(folder, capsys):
    printed = _predict(folder, "classes.star", capsys)
    assert "Dice 0." in printed
    assert "IoU 0." in printed
    table = star.read_particles(folder / "classes.star")
    assert set(table.ints("rlnClassNumber")) <= {1, 2}
    found = load(folder / "classes.star", with_poses=True, with_masks=True)
    np.testing.assert_array_equal(found.masks.sum(axis=(1, 2, 3)), table.ints("jimSegmentVoxels"))
    # It does not align: poses of the table stay as they are.
    np.testing.assert_allclose(found.shifts, np.ones((NUM, 3)), atol=1e-5)
    wanted = runs.predict(runs.load_run(folder / "run"), load(folder / "particles.star")).masks
    np.testing.assert_array_equal(found.masks, wanted)


def test_masks_of_the_truth_are_left_alone(folder, capsys):
    before = (folder / "particles_masks.mrcs").read_bytes()
    _predict(folder, "again.star", capsys)
    assert (folder / "again.masks.mrcs").exists()
    assert (folder / "particles_masks.mrcs").read_bytes() == before


def test_without_true_masks_nothing_is_scored(folder, capsys, tmp_path):
    particles = load(folder / "particles.star")
    to_star(particles, tmp_path / "p.star", stack_path=tmp_path / "p.mrcs")
    command = ["predict", "--run", str(folder / "run"), "--data", str(tmp_path / "p.star")]
    assert main([*command, "--out", str(tmp_path / "classes.star")]) == 0
    assert "Dice" not in capsys.readouterr().out
    assert star.MASK_COLUMN in star.read_particles(tmp_path / "classes.star").columns


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('tasks = ["align", "align"]', "umtl.tasks names one twice"),
        ('tasks = ["denoise"]', "must be one of 'align', 'cluster', 'segment'"),
        ("tasks = []", "'umtl.tasks' must be a list"),
        ("size_min = 0.5", "size_min and size_max must be shares of the box"),
        ("bootstrap = 1.5", "umtl.bootstrap must be at most 1"),
        ("heigth = 0.5", "did you mean 'umtl.height'"),
    ],
)
def test_mistake_in_the_section_is_one_line(line, message, folder, tmp_path, capsys):
    path = tmp_path / "umtl.toml"
    path.write_text(f"[umtl]\n{line}\n")
    command = ["train", str(path), "--data", str(folder / "particles.star")]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# The benchmark


@pytest.fixture
def bench(monkeypatch):
    """Tiny data, and a method in the place of training that remembers what it was given."""
    cases = []
    monkeypatch.setitem(multitask_benchmark.PRESETS, "small", Preset(4, 3, 2))
    for name, value in {
        "NUM_PHANTOMS": 2,
        "BOX": BOX,
        "VOXEL_SIZE": 24.0,
        "MAX_SHIFT": 1.0,
    }.items():
        monkeypatch.setattr(benchmark_data, name, value)

    def answer(case):
        cases.append(case)
        return Answer(labels=np.arange(len(case.fresh)) % 2)

    monkeypatch.setitem(multitask_benchmark.METHODS, "umtl", answer)
    return cases


def _bench(out, *methods):
    command = ["benchmark", "multitask", "--out", str(out), "--snr", "1", "--num-seeds", "2"]
    return main([*command, "--methods", *methods])


def test_methods_see_no_truth_and_results_are_kept(bench, tmp_path):
    out = tmp_path / "out"
    methods = ("umtl", "gmm", "gmm-corrected", "constant")
    assert _bench(out, *methods) == 0
    for case in bench:
        for own in (case.fitted, case.fresh):
            assert own.labels is own.rotations is own.shifts is own.masks is None
    assert [case.seed for case in bench] == [0, 1]
    results = json.loads((out / "results.json").read_text())["results"]
    assert len(results) == 8
    by_name = {result["method"]: result for result in results}
    assert by_name["constant"]["clustering_accuracy"] == 0.5
    assert by_name["constant"]["rotation_error_mean"] > 1
    assert by_name["gmm"]["mean_dice"] > 0
    assert "rotation_error_mean" not in by_name["gmm"]
    assert "| gmm | 2 | - | - | - | - |" in (out / "table.md").read_text()
    assert _bench(out, *methods) == 0
    assert len(bench) == 2  # nothing was run again


def test_answers_are_scored_by_what_they_say(bench, tmp_path):
    preset = multitask_benchmark.PRESETS["small"]
    densities = benchmark_data.read_densities((), (), 0)
    _, fresh = benchmark_data.simulate_particles(
        densities, preset, snr=1.0, seed=0, ctf=False, mask_threshold=0.5
    )
    case = multitask_benchmark._case("small", 0, fresh, fresh, tmp_path)
    perfect = Answer(
        labels=1 - fresh.labels,  # names are free
        poses=(fresh.rotations, fresh.shifts),
        masks=fresh.masks,
    )
    found = multitask_benchmark.score(perfect, fresh, case.pairs)
    assert found["clustering_accuracy"] == found["mean_dice"] == found["mean_iou"] == 1
    np.testing.assert_allclose(found["rotation_error_mean"], 0, atol=1e-4)
    assert "pair_rotation_error_mean" not in found


def test_table_says_which_task_gains():
    scores = {"snr": 0.1, "seconds": 9.0}
    results = [
        {**scores, "method": method, "seed": seed, "mean_dice": dice, "rotation_error_mean": error}
        for seed in range(2)
        for method, dice, error in (
            ("umtl", 0.8 + seed / 10, 0.9),
            ("umtl-segment", 0.7, 1.0),
            ("umtl-align", 0.0, 0.5),
        )
    ]
    table = make_table(results)
    assert "| umtl | 2 | - | 0.90 ± 0.00 | - | - | 0.850 ± 0.050 | - | 9 |" in table
    assert (
        "- Dice: 0.850 ± 0.050 together, 0.700 ± 0.000 alone; better in 2 of 2 seeds: joint "
        "training helps." in table
    )
    assert "0.90 ± 0.00 together, 0.50 ± 0.00 alone; better in 0 of 2 seeds" in table


@pytest.mark.slow
def test_trained_and_untrained_networks_are_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(multitask_benchmark.PRESETS, "small", Preset(4, 3, 2))
    for name, value in {"NUM_PHANTOMS": 2, "BOX": BOX, "VOXEL_SIZE": 24.0}.items():
        monkeypatch.setattr(benchmark_data, name, value)
    assert _bench(tmp_path / "out", "umtl", "umtl-align", "untrained") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    for result in results:
        assert np.isfinite(result["pair_rotation_error_mean"])
        assert ("mean_dice" in result) == (result["method"] != "umtl-align")
