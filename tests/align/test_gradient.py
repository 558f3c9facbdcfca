"""Poses that climb against given references: slopes, scores, and how sure they are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import BAND

from jimjax.align import gradient, gradient_fit, slices
from jimjax.align.fit_data import Options
from jimjax.align.gradient import Images, Shells, Strength
from jimjax.align.gradient_fit import fit_poses
from jimjax.align.plans import Start
from jimjax.data.phantom import demo_phantoms, render
from jimjax.data.simulate import simulate
from jimjax.io.errors import InputError
from jimjax.ops import rotation
from jimjax.ops.rotation import Pose

BOX = 16
NUM = 30  # of each class
OPTIONS = Options(num_classes=2)


@pytest.fixture(autouse=True)
def two_bands(monkeypatch):
    monkeypatch.setattr(gradient_fit, "LIMITS", (3.0, 4.5))


@pytest.fixture(scope="module")
def references():
    molecules = demo_phantoms(2, shape=(BOX,) * 3)
    return -np.stack([np.asarray(render(each, (BOX,) * 3)) for each in molecules])


def simulated(snr, num=NUM):
    return simulate(
        jax.random.key(4),
        demo_phantoms(2, shape=(BOX,) * 3),
        num_per_class=num,
        snr=snr,
        voxel_size=24.0,
        box=BOX,
        max_shift=2.0,
    )


def perturbed(truth):
    """Poses some 6 degrees and 0.7 voxels off."""
    random = np.random.default_rng(0)
    turns, moves = random.normal(size=(2, len(truth), 3)) / np.sqrt(3)
    off = jax.vmap(rotation.from_rotation_vector)(jnp.asarray(np.deg2rad(6) * turns))
    turned = np.einsum("nij,njk->nik", off, truth.rotations)
    return Start(truth.labels, turned, truth.shifts + 0.7 * moves)


def errors(poses, truth):
    angles = jax.vmap(rotation.geodesic_angle)(
        *map(jnp.asarray, (poses.rotations, truth.rotations))
    )
    return np.asarray(angles), np.linalg.norm(poses.shifts - truth.shifts, axis=1)


def test_slopes_are_those_of_finite_differences(world, x64):
    pose = Pose(rotation.random_rotation(jax.random.key(2)), jnp.array([0.5, -1.0, 0.3]))
    grids, label, step = world.grids.astype(complex), jnp.array(1), 1e-6
    _, slopes = gradient.predict(grids, label, pose, world.band)

    def at(change):
        turned = rotation.from_rotation_vector(change[:3]) @ pose.rotation
        moved = Pose(turned, pose.shift + change[3:])
        return gradient.predict(grids, label, moved, world.band)[0]

    differences = [(at(step * axis) - at(-step * axis)) / (2 * step) for axis in jnp.eye(6)]
    scale = jnp.abs(slopes).max(axis=0)
    # Interpolation is linear between places; none is passed by so small a step.
    np.testing.assert_allclose(jnp.stack(differences, axis=1) / scale, slopes / scale, atol=1e-5)


@pytest.fixture(scope="module")
def images(world):
    num = 7
    rotations = rotation.super_fibonacci(num)
    labels, groups = jnp.arange(num) % 2, jnp.arange(num) // 4
    seen = slices.cut_own(world.grids, labels, rotations[:, None], world.band)[:, 0]
    noise = jax.random.normal(jax.random.key(0), (2, *seen.shape)) * jnp.sqrt(world.power)
    spectra = (seen + noise[0] + 1j * noise[1]) * world.masks[groups]
    return Images(spectra, groups, labels, jnp.ones(num)), Pose(rotations, jnp.zeros((num, 3)))


@functools.partial(jax.jit, static_argnames="block")
def climb(images, masks, grids, strength, pose, num_steps, block):
    return gradient.climb(
        images, masks, grids, strength, pose, BAND, num_steps=num_steps, block=block
    )


def climbed(world, images, pose, *, num_steps, block=3):
    shells = jnp.ones(BAND.num_shells)
    strength = Strength(shells, world.power * shells)
    return climb(images, world.masks, world.grids, strength, pose, num_steps, block)


def test_no_step_lowers_a_score(world, images):
    images, pose = images
    scores = [climbed(world, images, pose, num_steps=steps)[0].score for steps in range(5)]
    assert np.all(np.diff(scores, axis=0) >= 0)
    assert np.mean(scores[-1]) > np.mean(scores[0]) + 1


def test_covariance_is_the_inverse_of_the_second_derivative_without_noise(world, images):
    images, pose = images
    seen = jax.vmap(gradient.predict, (None, 0, 0, None))(
        world.grids, images.labels, pose, world.band
    )[0]
    exact = images._replace(spectra=seen * world.masks[images.groups])
    found, _ = climbed(world, exact, pose, num_steps=0)
    step = 0.1 * np.sqrt(found.covariance[0, 4, 4])
    moved = pose._replace(shift=pose.shift.at[0, 1].add(step))
    fall = found.score[0] - climbed(world, exact, moved, num_steps=0)[0].score[0]
    precision = np.linalg.inv(found.covariance[0])[4, 4]
    assert float(fall) == pytest.approx(precision * step**2 / 2, rel=0.05)


def test_blocks_and_what_fills_them_change_nothing(world, images):
    images, pose = images
    found, shells = climbed(world, images, pose, num_steps=2)
    again, more = climbed(world, images, pose, num_steps=2, block=2)
    np.testing.assert_allclose(found.score, again.score, rtol=1e-4)
    fewer = images._replace(is_real=images.is_real.at[3:].set(0.0))
    first = jax.tree.map(lambda field: field[:3], (images, pose))
    part, alone = (climbed(world, *each, num_steps=2)[1] for each in ((fewer, pose), first))
    for wanted, seen in ((shells, more), (part, alone)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), wanted, seen)


def test_strength_explains_what_was_put_in():
    explained, measured = jnp.array([8.0, 5.0, 2.0]), jnp.array([100.0, 200.0, 300.0])
    gain, noise = jnp.array([2.0, -0.5, 0.3]), jnp.array([0.1, 0.2, 0.3])
    fitted = jnp.array([0.5, 0.1, 0.2])
    energy = gain**2 * explained + 2 * noise * measured
    shells = Shells(energy, gain * explained + fitted, explained, fitted, measured)
    found = gradient.estimate_strength(shells, is_fitted=True)
    np.testing.assert_allclose(found.gain, gain, rtol=1e-5)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-5)


@pytest.fixture(scope="module")
def truths():
    return {snr: simulated(snr) for snr in (1.0, 0.1)}


@pytest.mark.parametrize("snr", [pytest.param(1.0, marks=pytest.mark.slow), 0.1])
def test_errors_fall_to_the_predicted_deviations(references, truths, snr):
    truth = truths[snr]
    start = perturbed(truth)
    found = fit_poses(truth, references, start, OPTIONS)
    np.testing.assert_array_equal(found.labels, truth.labels)
    deviations = found.angle_deviations, found.shift_deviations
    for before, after, deviation in zip(
        errors(start, truth), errors(found, truth), deviations, strict=True
    ):
        # Of 60 particles and three axes each: the ratio's own deviation is 0.11.
        assert 0.6 < np.mean(after**2) / np.mean(3 * deviation**2) < 1.7
        assert np.mean(after**2) < 0.8 * np.mean(before**2)


def test_scale_of_particles_and_references_does_not_matter(references, truths):
    truth = truths[1.0]
    start = perturbed(truth)
    found = fit_poses(truth, references, start, OPTIONS)
    louder = dataclasses.replace(truth, volumes=40 * truth.volumes + 3)
    again = fit_poses(louder, 0.1 * references - 1, start, OPTIONS)
    np.testing.assert_allclose(again.rotations, found.rotations, atol=2e-3)
    np.testing.assert_allclose(again.shifts, found.shifts, atol=5e-3)
    np.testing.assert_allclose(again.angle_deviations, found.angle_deviations, rtol=0.02)


def test_without_steps_poses_stay(references, truths, monkeypatch):
    start = perturbed(truths[1.0])
    monkeypatch.setattr(gradient_fit, "STEPS", 0)
    found = fit_poses(truths[1.0], references, start, OPTIONS)
    np.testing.assert_allclose(found.rotations, start.rotations, atol=1e-6)
    np.testing.assert_allclose(found.shifts, start.shifts, atol=1e-6)


def test_mistakes_are_said(references):
    truth = simulated(1.0, num=4)
    start = perturbed(truth)
    with pytest.raises(InputError, match="invert the contrast"):
        fit_poses(truth, -references, start, OPTIONS)
    with pytest.raises(InputError, match="classes up to 2, but there are 1 references"):
        fit_poses(truth, references[:1], start, Options(num_classes=1))
