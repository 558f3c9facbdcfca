"""``jimjax benchmark alignment``: what it writes, and that it goes on where it was."""

import json

import numpy as np
import pytest

from jimjax import cli
from jimjax.align import fit as fitting
from jimjax.align.fit_steps import Nearby, Sweep
from jimjax.cli import main
from jimjax.commands import benchmark, benchmark_pairs
from jimjax.progress import Interrupted

SWEEPS = Sweep(2.35, 72, 0.1, 0.1, 2), Nearby(2.35, 1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setattr(fitting, "PLAN", SWEEPS)
    monkeypatch.setattr(fitting, "REFERENCE_PLAN", SWEEPS)
    monkeypatch.setitem(benchmark.PRESETS, "small", benchmark.Preset(4, 3, None))
    monkeypatch.setattr(benchmark_pairs, "NUM_PAIRS", 3)
    monkeypatch.setattr(benchmark_pairs, "NUM_ROTATIONS", 72)
    monkeypatch.setattr(benchmark, "NUM_PHANTOMS", 2)
    monkeypatch.setattr(benchmark, "BOX", 16)
    monkeypatch.setattr(benchmark, "VOXEL_SIZE", 24.0)
    monkeypatch.setattr(benchmark, "MAX_SHIFT", 2.0)


def test_results_table_and_curves_are_written_once(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["benchmark", "alignment", "--out", str(out), "--snr", "0.1"]
    methods = ["--methods", "em", "em-fresh", "ht"]
    assert main([*arguments, *methods]) == 0
    record = json.loads((out / "results.json").read_text())
    assert len(record["results"]) == 3
    for result in record["results"]:
        for name in ("rotation_error_mean", "rotation_error_std", "translation_error_mean"):
            assert np.isfinite(result[name])
        assert result["num_pairs"] > 0
        assert result["seconds_per_particle"] > 0
    table = (out / "table.md").read_text()
    assert "| 0.1 | em | fitted |" in table
    assert "| 0.1 | Jim-Net as published |" in table
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"

    times = {path: path.stat().st_mtime_ns for path in out.glob("snr_*/result_*.json")}
    assert main([*arguments, *methods]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("snr_*/result_*.json")}
    capsys.readouterr()
    assert main([*arguments, "--seed", "3"]) == 2
    assert "holds a benchmark with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_every_method_gives_scores(tmp_path):
    out = tmp_path / "out"
    methods = ["true-maps", "jimnet", "jimnet+em", "fa", "search"]
    assert (
        main(["benchmark", "alignment", "--out", str(out), "--snr", "1", "--methods", *methods])
        == 0
    )
    results = json.loads((out / "results.json").read_text())["results"]
    assert [result["method"] for result in results] == methods
    assert all(np.isfinite(result["rotation_error_mean"]) for result in results)


def test_methods_see_no_truth(tmp_path, monkeypatch):
    seen = []

    def spy(particles, options, **how):
        seen.append((particles.labels, particles.rotations, particles.shifts))
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", spy)
    main(["benchmark", "alignment", "--out", str(tmp_path), "--snr", "1", "--methods", "em"])
    assert seen == [(None, None, None)]


def test_interrupted_benchmark_can_go_on(tmp_path, monkeypatch, capsys):
    def stop(particles, options, **how):
        raise Interrupted("stopped at iteration 1 of 3")

    monkeypatch.setattr(fitting, "fit", stop)
    arguments = ["benchmark", "alignment", "--out", str(tmp_path), "--snr", "1", "--methods", "em"]
    assert main(arguments) == 75
    assert "go on with the same command" in capsys.readouterr().err
