"""``jimjax benchmark segmentation`` and ``ablation``: domains, what methods see, and the table."""

import dataclasses
import json

import numpy as np
import pytest

from jimjax import cli
from jimjax.cli import main
from jimjax.commands import benchmark_data, segmentation_benchmark
from jimjax.commands.segmentation_benchmark import Preset, simulate_domains
from jimjax.data.phantom import demo_phantoms
from jimjax.report.segmentation import PUBLISHED, PUBLISHED_ABLATIONS, make_table
from jimjax.segment import segmenter, training
from jimjax.segment.config import SegmentConfig

BOX = 16


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setitem(segmentation_benchmark.PRESETS, "small", Preset(2, 3, 4))
    for name, value in {"NUM_PHANTOMS": 2, "BOX": BOX, "VOXEL_SIZE": 24.0}.items():
        monkeypatch.setattr(benchmark_data, name, value)


@pytest.fixture
def seen(monkeypatch):
    """What trainings are given; the network that they make finds the darker half of each box."""
    given = []

    def train(config, source, target, *, progress):
        given.append((config, source, target))

    def segment(weights, particles):
        middle = np.median(particles.volumes, axis=(1, 2, 3), keepdims=True)
        return (particles.volumes < middle).astype(np.float32)

    monkeypatch.setattr(training, "train_segmenter", train)
    monkeypatch.setattr(segmenter, "segment_particles", segment)
    return given


def run(task, out, *more):
    return main(["benchmark", task, "--out", str(out), "--num-seeds", "2", *more])


def test_results_are_written_once_and_truth_is_for_scoring(seen, tmp_path, capsys):
    methods = ["--methods", "source-only", "supervised", "vox-uda-ngm"]
    assert run("segmentation", tmp_path / "out", *methods) == 0
    assert [config.seed for config, _, _ in seen] == [0, 0, 0, 1, 1, 1]
    assert [config.method for config, _, _ in seen[:3]] == ["source-only", "supervised", "vox-uda"]
    assert seen[2][0].denoiser == "ngm"
    for config, source, target in seen:
        assert len(source) == 2 * 2 * 2  # classes, noises, particles
        assert len(target) == 2 * 3
        assert source.masks.any()
        assert target.labels is target.rotations is target.shifts is None
        assert (target.masks is not None) == (config.method == "supervised")
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert len(record["results"]) == 6
    for result in record["results"]:
        assert 0 < result["dice"] < 1
        assert np.isclose(result["miou"], result["dice"] / (2 - result["dice"]), atol=0.05)
        assert result["scored_on"] == "fresh"
        assert {"dice_class_1", "dice_class_2", "snr", "seed", "seconds"} <= set(result)
    table = (tmp_path / "out/table.md").read_text()
    assert "| supervised | 2 |" in table
    assert "| 46.0 / 46.0 | 61.6 / 61.6 |" in table
    assert (tmp_path / "out/curves.png").read_bytes()[:4] == b"\x89PNG"
    assert run("segmentation", tmp_path / "out", *methods) == 0
    assert len(seen) == 6


def test_ablations_are_what_the_paper_varies(seen, tmp_path):
    assert run("ablation", tmp_path / "out", "--snr", "0.1") == 0
    configs = [config for config, _, _ in seen]
    told = [dataclasses.replace(config, seed=0) for config in configs]
    # All but the one that the small preset does already.
    assert len(set(told)) == len(told) // 2 == len(segmentation_benchmark.ABLATIONS) - 1
    table = (tmp_path / "out/table.md").read_text()
    for name in PUBLISHED_ABLATIONS:
        assert f"| {name} | 2 |" in table


def test_published_schedule_can_be_shortened(seen, tmp_path, monkeypatch):
    monkeypatch.setitem(segmentation_benchmark.PRESETS, "paper", Preset(2, 3, 4))
    options = ["--preset", "paper", "--methods", "vox-uda", "match_spectrum=True"]
    assert run("ablation", tmp_path / "short", *options, "--epochs", "6") == 0
    assert run("ablation", tmp_path / "full", *options) == 0
    short, full = seen[0][0], seen[4][0]
    assert full == SegmentConfig()
    assert (short.epochs, short.epochs_per_drop, short.ramp_epochs) == (6, 2, 2)
    assert short.preset == "paper"
    assert [config.match_spectrum for config, _, _ in seen[:2]] == [False, True]
    assert json.loads((tmp_path / "short/results.json").read_text())["epochs"] == 6


@pytest.mark.parametrize("task", ["segmentation", "ablation"])
def test_every_published_row_has_one_of_ours(task):
    published = {"segmentation": PUBLISHED, "ablation": PUBLISHED_ABLATIONS}[task]
    assert set(published) <= set(segmentation_benchmark.TASKS[task])
    for changes in (segmentation_benchmark.METHODS | segmentation_benchmark.ABLATIONS).values():
        SegmentConfig(**changes)


def test_rows_of_one_name_are_the_same():
    methods, ablations = segmentation_benchmark.METHODS, segmentation_benchmark.ABLATIONS
    for name in set(methods) & set(ablations):
        assert methods[name] == ablations[name]


def test_mixtures_of_voxels_learn_nothing_and_are_scored_alike(seen, tmp_path):
    assert run("segmentation", tmp_path / "out", "--methods", "gmm", "gmm-corrected") == 0
    assert not seen
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    shares = {r["method"]: r["found_share"] for r in results if r["seed"] == 0}
    assert 0 < shares["gmm-corrected"] < shares["gmm"] < 0.7


def test_rows_that_name_a_value_have_it():
    for name, changes in segmentation_benchmark.ABLATIONS.items():
        field, _, value = name.partition("=")
        if value:
            own = changes[field]
            own = ",".join(map(str, own)) if isinstance(own, tuple) else str(own)
            assert own.removesuffix(".0") == value.removesuffix(".0")


def test_domains_differ_in_structures_and_microscope():
    sources, targets = (demo_phantoms(2, seed, shape=(BOX,) * 3) for seed in (0, 1))
    domains = simulate_domains(list(sources), list(targets), Preset(2, 3, 4), snr=0.1, seed=0)
    assert [len(own) for own in domains] == [8, 6, 8]
    np.testing.assert_array_equal(np.unique(domains.source.tilt_ranges), [-60, 60])
    np.testing.assert_array_equal(np.unique(domains.fresh.tilt_ranges), [-50, 65])
    assert not np.array_equal(domains.target.volumes[:4], domains.fresh.volumes[:4])
    for own in domains:
        assert own.masks.any(axis=(1, 2, 3)).all()
    again = simulate_domains(list(sources), list(targets), Preset(2, 3, 4), snr=0.1, seed=0)
    np.testing.assert_array_equal(again.target.volumes, domains.target.volumes)


def test_table_says_so_where_a_noise_or_a_published_figure_is_missing():
    result = {"method": "dann", "snr": 0.04, "seed": 0, "dice": 0.5, "miou": 0.4, "seconds": 3.0}
    result |= {"found_share": 0.01, "true_share": 0.02, "device": "cpu"}
    table = make_table([result, result | {"snr": 0.1, "seed": 1, "method": "noise=poisson"}])
    assert table.index("SNR 0.1") < table.index("SNR 0.04")
    assert "| dann | 1 | 40.0 | 50.0 | 0.50 | 3 cpu | 38.4 / 31.9 | 53.0 / 45.9 |" in table
    assert "| noise=poisson | 1 | 40.0 | 50.0 | 0.50 | 3 cpu | - | - |" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segmentation", "--ctf"], "--ctf and --symmetries are of no use to segmentation"),
        (["clustering", "--source-structures", "a.mrc"], "--source-structures is of no use to clu"),
        (["segmentation", "--epochs", "3"], "--epochs is for segmentation and ablation with --pr"),
        (["ablation", "--preset", "paper", "--epochs", "0"], "--epochs must be 1 or more, got 0"),
        (["ablation", "--methods", "asc"], "no 'asc' in ablation"),
        (["ablation", "--source-structures", "missing.mrc"], "missing.mrc: no such file"),
    ],
)
def test_bad_options_are_named(arguments, message, tmp_path, capsys):
    assert main(["benchmark", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
