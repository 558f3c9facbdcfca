"""``jimjax benchmark clustering``: data sets, what methods see, and the table."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from jimjax import cli
from jimjax.cli import main
from jimjax.commands import benchmark_data, clustering_benchmark
from jimjax.commands.benchmark_data import Preset
from jimjax.commands.clustering_benchmark import Answer
from jimjax.data.phantom import demo_phantoms
from jimjax.data.subtomograms import Subtomograms
from jimjax.report.clustering import make_table

BOX = 16


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setitem(benchmark_data.PRESETS, "small", Preset(10, 6, None))
    for name, value in {
        "NUM_PHANTOMS": 2,
        "BOX": BOX,
        "VOXEL_SIZE": 24.0,
        "MAX_SHIFT": 2.0,
    }.items():
        monkeypatch.setattr(benchmark_data, name, value)


@pytest.fixture
def seen(monkeypatch):
    """What methods are given, one that is asked about fresh particles and one about its own."""
    cases = []

    def fresh(case):
        cases.append(case)
        return Answer(np.arange(len(case.fresh)) % 2)

    def fitted(case):
        return Answer(np.zeros(len(case.fitted), int), is_fresh=False)

    monkeypatch.setitem(clustering_benchmark.METHODS, "jimnet", fresh)
    monkeypatch.setitem(clustering_benchmark.METHODS, "em", fitted)
    return cases


@pytest.fixture
def particles(monkeypatch):
    """Nothing but noise, quickly made; with three classes where there is background."""

    def make(densities, preset, *, snr, seed, ctf, num_classes=2):
        return tuple(
            Subtomograms(
                volumes=np.random.default_rng(seed).normal(size=(num, 4, 4, 4)),
                tilt_ranges=np.tile([-60, 60], (num, 1)),
                voxel_size=24.0,
                names=("",) * num,
                halves=np.arange(num) % 2 + 1,
                rotations=np.tile(np.eye(3), (num, 1, 1)),
                shifts=np.zeros((num, 3)),
                labels=np.arange(num) % num_classes,
            )
            for num in (preset.num_per_class, preset.num_fresh)
        )

    monkeypatch.setattr(benchmark_data, "simulate_particles", make)
    imbalanced = functools.partial(make, num_classes=3)
    monkeypatch.setattr(benchmark_data, "simulate_imbalanced", imbalanced)


def run(out, *more):
    command = ["benchmark", "clustering", "--out", str(out), "--snr", "0.1", *more]
    return main([*command, "--methods", "jimnet", "em"])


def test_methods_see_no_truth_and_three_seeds_of_each_data_set(seen, particles, tmp_path):
    assert run(tmp_path / "out") == 0
    assert len(seen) == 9
    for case in seen:
        for own in (case.fitted, case.fresh):
            assert own.labels is own.rotations is own.shifts is None
    assert [case.candidates for case in seen[:3]] == [(2,), (3,), tuple(range(2, 11))]
    assert [case.seed for case in seen[::3]] == [0, 1, 2]
    assert np.any(seen[0].fitted.volumes != seen[3].fitted.volumes)


def test_results_and_table_are_written_and_kept(seen, particles, tmp_path):
    out = tmp_path / "out"
    assert run(out) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert len(results) == 15  # the em is not asked for a number of classes
    wanted = {"method", "dataset", "snr", "accuracy", "ari", "nmi", "v_measure", "seed", "seconds"}
    wanted |= {"device"}
    assert all(wanted <= set(result) for result in results)
    constant = [r for r in results if r["method"] == "em" and r["dataset"] == "five"]
    assert {r["accuracy"] for r in constant} == {0.5}
    assert {r["scored_on"] for r in constant} == {"fitted"}
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "| Jim-Net as published | other data | 0.997 |" in (out / "table.md").read_text()
    assert run(out) == 0
    assert len(seen) == 9  # nothing was run again


def test_unknown_method_is_one_line(tmp_path, capsys):
    command = ["benchmark", "clustering", "--out", str(tmp_path / "out"), "--methods", "ht"]
    assert main(command) == 2
    assert "no 'ht' in clustering; there are jimnet," in capsys.readouterr().err


@pytest.mark.slow
def test_background_is_most_of_the_particles_and_unlike_itself():
    preset = Preset(20, 10, None)
    fitted, fresh = benchmark_data.simulate_imbalanced(
        demo_phantoms(2, shape=(BOX,) * 3), preset, snr=1.0, seed=0, ctf=False
    )
    counts = np.bincount(fitted.labels)
    assert len(fitted) == 40
    assert len(fresh) == 20
    assert list(counts) == [4, 4, 32]
    background = fitted.volumes[fitted.labels == 2].reshape(32, -1)
    alike = np.corrcoef(background) - np.eye(32)
    assert alike.max() < 0.9
    np.testing.assert_allclose(background.std(axis=1), 1, rtol=1e-3)
    assert not np.array_equal(np.sort(fitted.labels), fitted.labels)  # in no order


def test_few_shot_methods_learn_other_classes_than_they_are_tested_on(monkeypatch):
    asked = {}

    class Spy:
        def __init__(self, config, *, weights):
            asked["config"] = config

        def train(self, base):
            asked["known"] = set(base.labels.tolist())
            return self

        def evaluate(self, particles, **how):
            asked["novel"] = set(particles.labels.tolist())
            return SimpleNamespace(mean=0.9, half_width=0.01)

    from jimjax.commands import align_network
    from jimjax.fewshot import classifier

    monkeypatch.setattr(classifier, "FewShotClassifier", Spy)
    monkeypatch.setattr(align_network, "open_weights", lambda *_: None)
    densities = demo_phantoms(5, shape=(BOX,) * 3)
    own, fresh = benchmark_data.simulate_particles(
        densities, Preset(1, 1, None), snr=1.0, seed=0, ctf=False
    )
    case = clustering_benchmark.Case(own, fresh, (5,), "small", 1, None)
    prepared = clustering_benchmark.Prepared(case, own, fresh)
    found = clustering_benchmark._measure_one("protonet-ce", prepared)
    assert found["accuracy"] == 0.9
    assert asked["known"] | asked["novel"] == set(range(5))
    assert not asked["known"] & asked["novel"]
    assert asked["config"].method == "protonet-ce"


def test_table_has_mean_and_spread_of_seeds():
    shared = {"method": "disca", "dataset": "five", "snr": 0.1, "scored_on": "fresh"}
    shared |= {"ari": 0.5, "nmi": 0.5, "v_measure": 0.5, "balanced_accuracy": 0.8, "seconds": 9.0}
    results = [{**shared, "accuracy": 0.8 + seed / 10, "seed": seed} for seed in range(3)]
    assert "| disca | fresh | 0.900 ± 0.082 | 9 |" in make_table(results)


def test_seconds_of_different_devices_are_not_mixed():
    scores = {"dataset": "five", "snr": 0.1, "scored_on": "fresh", "accuracy": 1.0}
    timed = [(1.0, "gpu"), (900.0, "gpu"), (3.0, "gpu"), (70.0, "cpu")]
    results = [
        {**scores, "method": "disca", "seed": seed, "seconds": seconds, "device": device}
        for seed, (seconds, device) in enumerate(timed)
    ]
    table = make_table(results)
    assert "| disca | fresh | 1.000 ± 0.000 | 3 gpu |" in table
