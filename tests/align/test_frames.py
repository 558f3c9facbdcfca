"""Particles that were posed in two frames are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align import bands, frames, slices
from jimjax.align.fit import fit
from jimjax.align.fit_data import Options
from jimjax.align.joint_em import Observations
from jimjax.align.plans import Nearby, Start
from jimjax.data.subtomograms import Subtomograms
from jimjax.evaluate import evaluate
from jimjax.ops import resample, rotation
from jimjax.ops.rotation import Pose, compose

BOX, FOLDS, PER_FOLD = 20, 4, 12
BAND = bands.Band(BOX, 5.0)
OFFSET = np.array([1.0, 0.0, 0.5])  # no axis passes through the box centre


def density(places, weights):
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    grid = np.stack([x, y, z], axis=-1)
    distance = np.linalg.norm(grid[None] - np.asarray(places)[:, None, None, None], axis=-1)
    return np.tensordot(weights, np.exp(-0.5 * (distance / 1.3) ** 2), 1).astype(np.float32)


@pytest.fixture(scope="module")
def half_turn():
    turn = np.asarray(rotation.about_axis(2, np.pi))
    return Pose(jnp.asarray(turn), jnp.asarray(OFFSET - turn @ OFFSET, jnp.float32))


def two_fold(first):
    """Blobs in pairs, half a turn about z through the offset apart; of one, another strength."""
    half = np.array([[4.0, 0.0, 1.0], [2.0, 3.5, -2.0], [1.0, -2.0, 4.0]])
    places = [*half, *half * [-1, -1, 1]]
    return density(np.array(places) + OFFSET, [first, 1.0, 1.0, 1.0, 1.0, 1.0])


def observe(volumes, labels, poses, deviation):
    """Particles in two wedges with noise in units of the spectra's root mean square."""
    grids = slices.make_grids(jnp.asarray(volumes), BAND)
    x, _, z = BAND.frequencies.T
    masks = jnp.asarray(np.stack([np.abs(z) <= 1.7 * np.abs(x), np.abs(x) < 99]), jnp.float32)
    groups = jnp.arange(FOLDS * PER_FOLD) // 2 % 2
    seen = slices.cut_own(grids, labels, poses.rotation[:, None], BAND)[:, 0]
    noise = deviation**2 * jnp.mean(jnp.abs(seen) ** 2)
    parts = jax.random.normal(jax.random.key(2), (2, *seen.shape)) * jnp.sqrt(noise)
    seen = (seen * bands.phase_ramps(poses.shift, BAND) + parts[0] + 1j * parts[1]) * masks[groups]
    dealt = (field.reshape(FOLDS, PER_FOLD, *field.shape[1:]) for field in (seen, groups))
    real = jnp.ones((FOLDS, PER_FOLD)).at[-1, -1].set(0)  # the last one only fills up
    return Observations(*dealt, real, masks), jnp.full(BAND.num_shells, noise)


@pytest.fixture(scope="module")
def true_poses():
    num = FOLDS * PER_FOLD
    rotations = jax.vmap(rotation.random_rotation)(jax.random.split(jax.random.key(0), num))
    return Pose(rotations, jax.random.uniform(jax.random.key(1), (num, 3), minval=-2, maxval=2))


def tell(observations, noise, labels, poses, twin, num_classes):
    def deal(field):
        return field.reshape(FOLDS, PER_FOLD, *field.shape[1:])

    twins = jax.tree.map(lambda field: jnp.stack([field] * num_classes), twin)
    return frames.tell_frames(
        observations, noise, deal(labels), jax.tree.map(deal, poses), twins, BAND, radius=BOX / 2
    )


def mix(poses, is_turned, twin):
    turned = jax.vmap(compose, (0, None))(poses, twin)
    return jax.tree.map(
        lambda a, b: jnp.where(is_turned.reshape(-1, *[1] * (a.ndim - 1)), a, b), turned, poses
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4])
def test_particles_in_the_other_frame_are_named_in_every_class(true_poses, half_turn, share):
    labels = jnp.arange(FOLDS * PER_FOLD) % 2
    is_turned = np.random.default_rng(0).permutation(FOLDS * PER_FOLD) < share * FOLDS * PER_FOLD
    observations, noise = observe([two_fold(1.5), two_fold(0.6)], labels, true_poses, 0.2)
    given = mix(true_poses, is_turned, half_turn)
    found = tell(observations, noise, labels, given, half_turn, 2)
    is_real = np.asarray(observations.is_real).ravel() > 0
    np.testing.assert_array_equal(np.ravel(found.scores)[is_real] < 0, is_turned[is_real])
    assert np.all(found.certainty > 5)


@pytest.mark.slow
def test_fit_begun_in_both_frames_ends_in_one(true_poses, half_turn):
    num = len(true_poses.shift)
    is_turned = np.random.default_rng(0).permutation(num) < 0.4 * num
    given = mix(true_poses, is_turned, half_turn)
    volumes = jax.vmap(resample.transform, (None, 0))(jnp.asarray(two_fold(1.5)), true_poses)
    noise = jax.random.normal(jax.random.key(3), volumes.shape) * volumes.std()
    particles = Subtomograms(
        np.asarray(volumes + noise),
        np.tile(np.float32([-60, 60]), (num, 1)),
        12.0,
        tuple(map(str, range(num))),
        np.ones(num, int),
    )
    start = Start(np.zeros(num, int), *map(np.asarray, given))
    plan = Nearby(5.0, 1), Nearby(5.0, 1, with_twins=True)
    found = fit(particles, Options(1), start=start, plan=plan)
    truth = np.zeros(num, int), np.asarray(true_poses.rotation), np.asarray(true_poses.shift)
    begun, ended = (
        evaluate(truth[0], *map(np.asarray, poses), *truth)["rotation_error_mean"]
        for poses in (given, (found.rotations, found.shifts))
    )
    assert ended < 0.2 < 1 < begun


def test_nothing_is_certain_of_a_symmetric_density(true_poses, half_turn):
    labels = jnp.zeros(FOLDS * PER_FOLD, int)
    observations, noise = observe([two_fold(1.0)], labels, true_poses, 0.5)
    found = tell(observations, noise, labels, true_poses, half_turn, 1)
    assert abs(found.certainty[0]) < 3


def test_class_without_particles_does_no_harm(true_poses, half_turn):
    labels = jnp.zeros(FOLDS * PER_FOLD, int)
    observations, noise = observe([two_fold(1.5)], labels, true_poses, 0.5)
    found = tell(observations, noise, labels, true_poses, half_turn, 2)
    assert np.all(np.isfinite(found.scores))
    assert np.isfinite(found.certainty).all()


@pytest.mark.parametrize(
    ("degrees", "is_half"), [(180, True), (172, True), (160, False), (0, True)]
)
def test_half_turns_are_their_own_inverse(degrees, is_half):
    turn = rotation.about_axis(0, np.deg2rad(degrees))
    assert bool(frames.is_half_turn(turn)) == is_half
