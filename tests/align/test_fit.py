"""The whole estimation on simulated particles: found, resumed, shared among devices."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from jimjax.align import fit as fitting
from jimjax.align.fit import fit
from jimjax.align.fit_data import Options
from jimjax.align.plans import Nearby, Start, Sweep
from jimjax.data.phantom import demo_phantoms, render
from jimjax.data.simulate import simulate
from jimjax.evaluate import evaluate
from jimjax.io.errors import InputError
from jimjax.progress import Interrupted

BOX = 16
PLAN = (
    Sweep(2.35, 144, 0.14, 0.07, 8, temperature=2.0),
    Sweep(3.0, 288, 0.095, 0.095, 3),
    Nearby(3.7, 3),
    Nearby(3.7, 2, with_twins=True),
)
OPTIONS = Options(num_classes=2, max_shift=2.0, seed=1)


def simulated(num_per_class, snr, seed=0):
    molecules = demo_phantoms(2, shape=(BOX,) * 3)
    return simulate(
        jax.random.key(seed),
        molecules,
        num_per_class=num_per_class,
        snr=snr,
        voxel_size=24.0,
        box=BOX,
        max_shift=2.0,
    )


@pytest.fixture(scope="module")
def particles():
    return simulated(30, 0.5)


@pytest.fixture(scope="module")
def found(particles):
    return fit(particles, OPTIONS, plan=PLAN)


def score(found, truth):
    true = truth.labels, truth.rotations, truth.shifts
    return evaluate(found.labels, found.rotations, found.shifts, *true)


def test_classes_and_poses_are_found_from_nothing(particles, found):
    scores = score(found, particles)
    assert scores["clustering_accuracy"] >= 0.9
    assert scores["rotation_error_median"] < 0.45  # of 2.5 by chance
    assert found.volumes.shape == (2, BOX, BOX, BOX)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-3)
    assert np.all(found.angle_deviations > 0)
    assert np.all(np.isfinite(found.evidence))


def test_truth_is_not_read(particles, found):
    order = np.random.default_rng(0).permutation(len(particles))
    lying = dataclasses.replace(
        particles,
        rotations=particles.rotations[order],
        shifts=particles.shifts[order],
        labels=particles.labels[order],
    )
    again = fit(lying, OPTIONS, plan=PLAN)
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_resumed_fit_ends_where_an_uninterrupted_one_does(particles, found, tmp_path):
    class StopAt:
        def __init__(self, step):
            self.step = step

        def update(self, stage, step, num_steps, metrics):
            if step == self.step:
                raise KeyboardInterrupt

    for step in (4, 9, 15):
        with pytest.raises(KeyboardInterrupt):
            fit(particles, OPTIONS, plan=PLAN, folder=tmp_path, resume=True, progress=StopAt(step))
    again = fit(particles, OPTIONS, plan=PLAN, folder=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_resuming_with_other_options_is_an_error(particles, tmp_path):
    fit(particles, OPTIONS, plan=PLAN[:1], folder=tmp_path)
    other = dataclasses.replace(OPTIONS, seed=2)
    with pytest.raises(InputError, match="other particles or options"):
        fit(particles, other, plan=PLAN[:1], folder=tmp_path, resume=True)


def test_signal_stops_between_iterations(particles, tmp_path):
    class Signals:
        def update(self, stage, step, num_steps, metrics):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped at iteration 1 of 16"):
        fit(particles, OPTIONS, plan=PLAN, folder=tmp_path, progress=Signals())
    assert (tmp_path / fitting.STATE).exists()


@pytest.mark.parametrize("contrast", [1.0, -1.0])
def test_particles_are_posed_against_references(contrast):
    fresh = simulated(8, 0.5, seed=7)
    molecules = demo_phantoms(2, shape=(BOX,) * 3)
    references = -np.stack([np.asarray(render(each, (BOX,) * 3)) for each in molecules])
    if contrast < 0:
        with pytest.raises(InputError, match="invert the contrast"):
            fit(fresh, OPTIONS, references=-references, plan=(Sweep(3.0, 288, 0.2, 0.1, 1),))
        return
    plan = Sweep(3.0, 288, 0.2, 0.1, 2), Nearby(3.7, 4)
    found = fit(fresh, OPTIONS, references=references, plan=plan)
    assert np.mean(found.labels == fresh.labels) > 0.9
    angles = np.linalg.norm(found.rotations - fresh.rotations, axis=(1, 2))
    assert np.median(angles) < 0.25
    assert np.median(np.linalg.norm(found.shifts - fresh.shifts, axis=1)) < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "must be 1 or more, got 0"),
        ({"num_classes": 40}, "60 particles are too few for 40 classes; give at least 80"),
        ({"max_shift": -1.0}, "must be from 0 to less than 8 voxels, got -1"),
        ({"diameter": 1000.0}, "must be from 96 to 384 angstrom"),
        ({"symmetry": "Q3"}, "Q3"),
    ],
)
def test_options_out_of_range_are_errors(particles, change, message):
    with pytest.raises(InputError, match=message):
        fit(particles, dataclasses.replace(OPTIONS, **change))


def test_constant_reference_is_an_error(particles):
    references = np.stack([particles.volumes[0], np.zeros((BOX,) * 3, np.float32)])
    with pytest.raises(InputError, match="reference 2 is constant"):
        fit(particles, OPTIONS, references=references)


def test_references_of_another_box_are_an_error(particles):
    with pytest.raises(InputError, match="2 references of 16 x 16 x 16 voxels"):
        fit(particles, OPTIONS, references=np.zeros((2, 8, 8, 8), np.float32))


@pytest.mark.slow
def test_eight_devices_find_what_one_finds():
    script = """
        import sys
        import jax, numpy as np
        sys.path.insert(0, "tests/align")
        from test_fit import OPTIONS, PLAN, simulated
        from jimjax.align.fit import fit
        from jimjax.mesh import data_mesh
        assert len(jax.devices()) == 8
        particles = simulated(30, 0.5)
        one, eight = (fit(particles, OPTIONS, plan=PLAN, mesh=data_mesh(n)) for n in (1, 8))
        assert np.mean(one.labels == eight.labels) == 1
        np.testing.assert_allclose(one.rotations, eight.rotations, atol=1e-2)
        np.testing.assert_allclose(one.shifts, eight.shifts, atol=2e-2)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize(("temperature", "after"), [(1.0, 1.0), (2.0, 1.5)])
def test_first_sweep_says_how_unsure_a_start_is(particles, temperature, after):
    """Classes that are two, or two that are one, are let go of while likelihoods are flat."""
    start = Start(particles.labels, particles.rotations, particles.shifts)
    plan = (Sweep(2.35, 72, 0.1, 0.1, 1, temperature=temperature),)
    seen = []
    fit(particles, OPTIONS, start=start, plan=plan, watch=lambda _, state: seen.append(state))
    assert float(seen[0].temperature) == after
    assert (seen[0].probabilities.max(axis=1).mean() > 0.9) == (temperature == 1)
