"""``jimjax align`` and ``refine`` from STAR to STAR; how well is for the aligners' tests."""

import dataclasses
import functools
import json

import gemmi
import jax
import numpy as np
import pytest

from jimjax import cli
from jimjax.align import fit as fitting
from jimjax.align import halves, pairwise
from jimjax.align.plans import Nearby, Sweep
from jimjax.cli import main
from jimjax.commands import align as command
from jimjax.data.phantom import demo_phantoms, render
from jimjax.data.simulate import simulate
from jimjax.data.subtomograms import load, to_star
from jimjax.io import mrc

BOX = 16
SWEEPS = Sweep(2.35, 72, 0.1, 0.1, 2), Nearby(3.0, 1)
NEAR = (Nearby(3.0, 1),)


@pytest.fixture(autouse=True)
def short_plans(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setattr(fitting, "PLAN", SWEEPS)
    monkeypatch.setattr(fitting, "REFERENCE_PLAN", SWEEPS)
    monkeypatch.setattr(fitting, "REFINE_PLAN", NEAR)
    monkeypatch.setattr(halves, "HALF_PLAN", SWEEPS)
    monkeypatch.setattr("jimjax.align.plans.FINISH_PLAN", SWEEPS)
    monkeypatch.setattr("jimjax.align.plans.REFINE_PLAN", NEAR)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    molecules = demo_phantoms(2, shape=(BOX,) * 3)
    particles = simulate(
        jax.random.key(0),
        molecules,
        num_per_class=8,
        snr=1.0,
        voxel_size=24.0,
        box=BOX,
        max_shift=1.0,
    )
    to_star(particles, folder / "particles.star", stack_path=folder / "particles.mrcs")
    for number, molecule in enumerate(molecules):
        volume = -np.asarray(render(molecule, (BOX,) * 3))
        mrc.write_volume(folder / f"reference_{number}.mrc", volume, voxel_size=24.0)
    return folder


def columns(path, *names):
    block = next(block for block in gemmi.cif.read(str(path)) if block.name == "particles")
    return [np.array(list(block.find_loop(f"_{name}"))) for name in names]


def test_em_writes_classes_averages_and_summary(data, tmp_path):
    out = tmp_path / "out"
    arguments = ["align", str(data / "particles.star"), "--num-classes", "2"]
    assert main([*arguments, "--half-maps", "joint", "--out", str(out)]) == 0
    found = load(out / "classes.star", with_poses=True)
    assert len(found) == 16
    assert set(found.labels) <= {0, 1}
    angle, shift, probability, evidence = columns(
        out / "classes.star",
        "jimAngleDeviation",
        "jimShiftDeviation",
        "jimClassProbability",
        "jimEvidence",
    )
    assert np.all(angle.astype(float) > 0)
    assert np.all(shift.astype(float) > 0)
    assert np.all((probability.astype(float) >= 0) & (probability.astype(float) <= 1.001))
    assert np.all(np.isfinite(evidence.astype(float)))
    summary = json.loads((out / "alignment.json").read_text())
    assert summary["method"] == "em"
    assert sum(summary["classes"]) == summary["particles"] == 16
    assert (out / "averages" / "summary.json").exists()
    assert not (out / fitting.STATE).exists()


def test_search_leaves_the_references_alone(data, tmp_path):
    maps = [str(data / f"reference_{number}.mrc") for number in range(2)]
    arguments = ["align", str(data / "particles.star"), "--method", "search", "--reference", *maps]
    assert main([*arguments, "--half-maps", "joint", "--out", str(tmp_path / "out")]) == 0
    truth = load(data / "particles.star", with_poses=True)
    found = load(tmp_path / "out" / "classes.star", with_poses=True)
    assert np.mean(found.labels == truth.labels) > 0.7  # a class is its reference's


@pytest.mark.parametrize(
    ("method", "options"),
    [("ht", {}), pytest.param("fa", {"num_bands": 1}, marks=pytest.mark.slow)],
)
def test_each_particle_is_matched_to_its_reference(data, tmp_path, monkeypatch, method, options):
    matcher = functools.partial(pairwise.MATCHERS[method], max_degree=10, **options)
    monkeypatch.setitem(pairwise.MATCHERS, method, matcher)
    maps = [str(data / f"reference_{number}.mrc") for number in range(2)]
    arguments = ["align", str(data / "particles.star"), "--method", method, "--reference", *maps]
    more = ["--max-shift", "2", "--half-maps", "joint", "--out", str(tmp_path / "out")]
    assert main([*arguments, *more]) == 0
    truth = load(data / "particles.star", with_poses=True)
    found = load(tmp_path / "out" / "classes.star", with_poses=True)
    assert np.mean(found.labels == truth.labels) > 0.8
    # The grid's rotations are 16 degrees apart, 0.4 as a norm; noise adds to that.
    assert np.median(np.linalg.norm(found.rotations - truth.rotations, axis=(1, 2))) < 0.5
    (correlation,) = columns(tmp_path / "out" / "classes.star", "jimCorrelation")
    assert np.all(correlation.astype(float) > 0)


def test_refine_begins_with_the_poses_of_the_file(data, tmp_path):
    out = tmp_path / "out"
    assert main(["refine", str(data / "particles.star"), "--out", str(out)]) == 0
    truth = load(data / "particles.star", with_poses=True)
    found = load(out / "classes.star", with_poses=True)
    np.testing.assert_array_equal(found.labels, truth.labels)
    assert np.median(np.linalg.norm(found.rotations - truth.rotations, axis=(1, 2))) < 0.3


def test_refine_against_maps_leaves_classes_and_writes_deviations(data, tmp_path, monkeypatch):
    monkeypatch.setattr("jimjax.align.gradient_fit.LIMITS", (3.0,))
    out, maps = tmp_path / "out", [str(data / f"reference_{number}.mrc") for number in range(2)]
    arguments = ["refine", str(data / "particles.star"), "--half-maps", "joint"]
    assert main([*arguments, "--out", str(out), "--reference", *maps]) == 0
    truth = load(data / "particles.star", with_poses=True)
    found = load(out / "classes.star", with_poses=True)
    np.testing.assert_array_equal(found.labels, truth.labels)
    assert np.median(np.linalg.norm(found.rotations - truth.rotations, axis=(1, 2))) < 0.2
    deviations = columns(out / "classes.star", "jimAngleDeviation", "jimShiftDeviation")
    assert all(np.all(each.astype(float) > 0) for each in deviations)
    assert json.loads((out / "alignment.json").read_text())["method"] == "gradient"


def test_refine_needs_a_map_for_each_class(data, tmp_path, capsys):
    arguments = ["refine", str(data / "particles.star"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--reference", str(data / "reference_0.mrc")]) == 2
    captured = capsys.readouterr()
    assert "classes up to 2, but there are 1 references" in captured.err
    assert captured.err.count("\n") == 1


def test_half_sets_do_not_know_each_other(data):
    """What is done to one half set changes nothing in the other."""
    particles = load(data / "particles.star", with_poses=True)
    particles = dataclasses.replace(particles, halves=1 + np.arange(16) % 2)
    options = command.Align(data=data, out=data, num_classes=2, max_shift=1.0)._options()
    start = fitting.Start(particles.labels, particles.rotations, particles.shifts)
    first = halves.fit_halves(particles, options, start)
    is_second = particles.halves == 2
    spoilt = particles.volumes.copy()
    spoilt[is_second] = np.random.default_rng(0).normal(size=spoilt[is_second].shape)
    second = halves.fit_halves(dataclasses.replace(particles, volumes=spoilt), options, start)
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before[~is_second], after[~is_second])
    assert np.any(first.rotations[is_second] != second.rotations[is_second])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "search"], "--method search needs --reference"),
        (["--method", "fa"], "--method fa needs --reference"),
        (["--run", "x"], "--run is of no use to --method em"),
        (["--reference", "reference_0.mrc", "--num-classes", "3"], "--num-classes 3 and 1"),
        (["--num-classes", "0"], "the number of classes must be 1 or more, got 0"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--reference", "small.mrc"], "has 8 x 8 x 8 voxels, the particles 16 x 16 x 16"),
        (["--reference", "coarse.mrc"], "has 30 A per voxel, the particles 24 A"),
        (["--max-shift", "9"], "must be from 0 to less than 8 voxels"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(data)
    mrc.write_volume("small.mrc", np.zeros((8, 8, 8), np.float32), voxel_size=24.0)
    mrc.write_volume("coarse.mrc", np.ones((BOX,) * 3, np.float32), voxel_size=30.0)
    code = main(["align", "particles.star", "--out", str(tmp_path / "out"), *options])
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
