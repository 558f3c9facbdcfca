"""Lattices around poses: what they find, how sure they are, and what they add up to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import NUM_FOLDS, model_of

from jimjax.align import bands, local_em, slices
from jimjax.align.joint_em import Observations
from jimjax.align.local_em import Hypotheses
from jimjax.ops import rotation

PER_FOLD = 12


@pytest.fixture(scope="module")
def poses(world):
    keys = jax.random.split(jax.random.key(5), NUM_FOLDS * PER_FOLD)
    rotations = jax.vmap(rotation.random_rotation)(keys).reshape(NUM_FOLDS, PER_FOLD, 3, 3)
    shifts = jax.random.uniform(jax.random.key(6), (NUM_FOLDS, PER_FOLD, 3), minval=-2, maxval=2)
    classes = jnp.arange(NUM_FOLDS * PER_FOLD).reshape(NUM_FOLDS, PER_FOLD) % 2
    return classes, rotations, shifts


def observed(world, poses, noise):
    classes, rotations, shifts = poses
    seen = jnp.stack(
        [
            slices.cut_own(world.grids, classes[fold], rotations[fold][:, None], world.band)[:, 0]
            for fold in range(NUM_FOLDS)
        ]
    )
    seen = seen * bands.phase_ramps(shifts, world.band)
    real, imaginary = jax.random.normal(jax.random.key(3), (2, *seen.shape)) * jnp.sqrt(noise)
    groups = jnp.ones((NUM_FOLDS, PER_FOLD), int).at[0].set(0)
    spectra = (seen + real + 1j * imaginary) * world.masks[groups]
    return Observations(spectra, groups, jnp.ones((NUM_FOLDS, PER_FOLD)), world.masks)


def nearby(poses, *, angle, shift):
    """Hypotheses some way off the truth."""
    classes, rotations, shifts = poses
    off = rotation.from_rotation_vector(jnp.array([angle, -angle, 0.5 * angle]))
    turned = jnp.einsum("ij,fnjk->fnik", off, rotations)
    steps = jnp.full(classes.shape, 0.12), jnp.full(classes.shape, 0.5)
    found = Hypotheses(classes, turned, shifts + shift, *steps)
    return jax.tree.map(lambda field: field[:, :, None], found)


def iterate(world, observations, model, hypotheses, times):
    expect = jax.jit(functools.partial(local_em.expect_nearby, band=world.band, block=5))
    for _ in range(times):
        weighed, statistics = expect(observations, model, hypotheses)
        hypotheses = weighed.hypotheses
    return weighed, statistics


def errors(weighed, poses):
    _, rotations, shifts = poses
    found = weighed.hypotheses.rotations[:, :, 0]
    angles = jax.vmap(jax.vmap(rotation.geodesic_angle))(found, rotations)
    moved = jnp.linalg.norm(weighed.hypotheses.shifts[:, :, 0] - shifts, axis=-1)
    return np.asarray(angles), np.asarray(moved)


def test_poses_become_finer_than_any_grid(world, poses):
    noise = 1e-4 * world.power
    observations = observed(world, poses, noise)
    start = nearby(poses, angle=0.1, shift=0.3)
    weighed, _ = iterate(world, observations, model_of(world, noise), start, 12)
    angles, moved = errors(weighed, poses)
    assert np.median(angles) < np.deg2rad(0.5)
    assert np.median(moved) < 0.03


def test_deviations_are_those_of_the_errors(world, poses):
    """Over the particles, (error / deviation)^2 is about one for each of three axes."""
    noise = 0.3 * world.power
    observations = observed(world, poses, noise)
    start = nearby(poses, angle=0.05, shift=0.2)
    weighed, _ = iterate(world, observations, model_of(world, noise), start, 10)
    angles, moved = errors(weighed, poses)
    for error, deviation in (
        (angles, weighed.angle_deviations),
        (moved, weighed.shift_deviations),
    ):
        ratio = np.mean(error**2) / np.mean(3 * np.asarray(deviation[:, :, 0]) ** 2)
        assert 0.4 < ratio < 2.5


def test_right_hypothesis_has_the_evidence(world, poses):
    noise = 0.1 * world.power
    observations = observed(world, poses, noise)
    right = nearby(poses, angle=0.05, shift=0.1)
    far = rotation.from_rotation_vector(jnp.array([0.0, 1.5, 1.0]))
    wrong = right._replace(rotations=jnp.einsum("ij,fnmjk->fnmik", far, right.rotations))
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), wrong, right)
    weighed, statistics = iterate(world, observations, model_of(world, noise), both, 1)
    assert np.all(weighed.evidence[:, :, 1] > weighed.evidence[:, :, 0])
    np.testing.assert_allclose(statistics.counts.sum(), NUM_FOLDS * PER_FOLD, rtol=1e-4)


def test_sums_give_the_volume_back(world, poses):
    noise = 0.01 * world.power
    observations = observed(world, poses, noise)
    start = nearby(poses, angle=0.02, shift=0.05)
    weighed, statistics = iterate(world, observations, model_of(world, noise), start, 6)
    classes, rotations = poses[0], weighed.hypotheses.rotations
    np.testing.assert_allclose(
        statistics.counts, [[np.sum(own == c) for c in range(2)] for own in classes], rtol=1e-3
    )
    # Every particle was inserted into its class: reading there gives its weights back.
    own = slices.cut_own(statistics.sums.weights[0] + 0j, classes[0], rotations[0], world.band)
    other = slices.cut_own(
        statistics.sums.weights[0] + 0j, 1 - classes[0], rotations[0], world.band
    )
    measured = np.asarray(world.masks[0]) > 0
    assert np.mean(own.real[..., measured]) > 1.3 * np.mean(other.real[..., measured])
    left = statistics.unexplained / (2 * statistics.measured)
    np.testing.assert_allclose(left, noise, rtol=0.4)


def test_what_is_not_real_does_not_count(world, poses):
    noise = 0.1 * world.power
    observations = observed(world, poses, noise)
    without = observations._replace(is_real=observations.is_real.at[1, 3:].set(0.0))
    fewer = observations._replace(
        spectra=observations.spectra.at[1, 3:].set(9.0), is_real=without.is_real
    )
    start = nearby(poses, angle=0.05, shift=0.1)
    model = model_of(world, noise)
    first, second = (
        iterate(world, each, model, start, 1)[1] for each in (without, fewer)
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), first, second)
    assert float(first.counts[1].sum()) == pytest.approx(3, rel=1e-3)
