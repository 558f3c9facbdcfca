"""``jimjax benchmark alignment``: what it writes, and that it goes on where it was."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jimjax import cli
from jimjax.align import fit as fitting
from jimjax.align.plans import Nearby, Sweep
from jimjax.cli import main
from jimjax.commands import alignment_methods, alignment_pairs, benchmark_data
from jimjax.data.phantom import demo_phantoms, render
from jimjax.io import mrc
from jimjax.ops import about_axis, point_group, resample, symmetrize
from jimjax.progress import Interrupted

SWEEPS = Sweep(2.35, 72, 0.1, 0.1, 2), Nearby(2.35, 1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setattr(fitting, "PLAN", SWEEPS)
    monkeypatch.setattr(fitting, "REFERENCE_PLAN", SWEEPS)
    monkeypatch.setitem(benchmark_data.PRESETS, "small", benchmark_data.Preset(4, 3, None))
    monkeypatch.setattr(alignment_pairs, "NUM_PAIRS", 3)
    monkeypatch.setattr(alignment_pairs, "NUM_ROTATIONS", 72)
    monkeypatch.setattr(benchmark_data, "NUM_PHANTOMS", 2)
    monkeypatch.setattr(benchmark_data, "BOX", 16)
    monkeypatch.setattr(benchmark_data, "VOXEL_SIZE", 24.0)
    monkeypatch.setattr(benchmark_data, "MAX_SHIFT", 2.0)


def test_results_table_and_curves_are_written_once(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["benchmark", "alignment", "--out", str(out), "--snr", "0.1"]
    methods = ["--methods", "em", "ht"]
    assert main([*arguments, *methods]) == 0
    record = json.loads((out / "results.json").read_text())
    assert len(record["results"]) == 2
    for result in record["results"]:
        for name in ("rotation_error_mean", "rotation_error_std", "translation_error_mean"):
            assert np.isfinite(result[name])
        assert result["num_pairs"] > 0
        assert result["seconds_per_particle"] > 0
    table = (out / "table.md").read_text()
    assert "| 0.1 | em | fitted |" in table
    assert "| 0.1 | Jim-Net as published | other data | 0.997 |" in table
    assert "| 0.1 | Gum-Net as published | other data | - | 0.62" in table
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
    methods = ["em-fresh", "true-maps", "jimnet", "jimnet+em", "fa", "search"]
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


def test_symmetric_structure_is_scored_modulo_its_group(tmp_path, monkeypatch):
    volume = render(demo_phantoms(1, shape=(16,) * 3)[0], (16,) * 3)
    volume = symmetrize(volume, point_group("C4"))
    turned = resample.rotate(volume, about_axis(0, 0.7), order=3)
    path = tmp_path / "c4.mrc"
    mrc.write_volume(path, np.asarray(turned), voxel_size=24.0)
    arguments = ["benchmark", "alignment", "--structures", str(path), "--snr", "50"]

    def found(particles, options, **how):
        """The truth, but every other particle turned by an element of the group."""
        (truth,) = told
        turns = np.asarray(point_group("C4"))[np.arange(len(truth)) % 4]
        return SimpleNamespace(
            labels=truth.labels,
            rotations=truth.rotations @ turns,
            shifts=truth.shifts,
            volumes=np.zeros((1, 16, 16, 16)),
        )

    told = []
    hide = alignment_methods.Case.hide
    monkeypatch.setattr(
        alignment_methods.Case, "hide", lambda case, own: told.append(own) or hide(case, own)
    )
    monkeypatch.setattr(fitting, "fit", found)
    errors = {}
    for group in ("C1", "C4"):
        out = tmp_path / group
        told.clear()
        symmetry = ["--symmetries", group, "--methods", "em", "--out", str(out)]
        assert main([*arguments, *symmetry]) == 0
        result = json.loads((out / "results.json").read_text())["results"][0]
        errors[group] = result["rotation_error_mean"]
    assert errors["C4"] < 1e-3 < 1 < errors["C1"]


def test_structure_without_the_symmetry_is_an_error(tmp_path, capsys):
    path = tmp_path / "c1.mrc"
    volume = render(demo_phantoms(1, shape=(16,) * 3)[0], (16,) * 3)
    mrc.write_volume(path, np.asarray(volume), voxel_size=24.0)
    arguments = ["benchmark", "alignment", "--structures", str(path), "--out", str(tmp_path / "o")]
    assert main([*arguments, "--symmetries", "D4"]) == 2
    assert "is not D4" in capsys.readouterr().err
    assert main([*arguments, "--symmetries", "D4", "C1"]) == 2
    assert "one of each" in capsys.readouterr().err
    assert main([*arguments, "--symmetries", "E8"]) == 2
    assert "--symmetries" in capsys.readouterr().err
