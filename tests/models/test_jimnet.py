"""Jim-Net: sizes, symmetries of the steerable network, and how the stages' poses join."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import steerable

from jimjax.data.phantom import phantom, render
from jimjax.models import functional, jimnet
from jimjax.models.jimnet import JimNet
from jimjax.models.matching import LocalNewton, grid_points
from jimjax.models.steerable import GlobalHarmonic
from jimjax.ops import harmonics, resample, rotation
from jimjax.ops.rotation import Pose, compose, identity

BOX = 9
STEERABLE = steerable(BOX, 3)
DENSE = dataclasses.replace(STEERABLE, regressor="dense", regressor_width=4)
QUARTER_TURNS = [rotation.about_axis(axis, np.pi / 2) for axis in range(3)]


@functools.cache
def _network(config):
    return functional.create(functools.partial(JimNet, config), jax.random.key(0))


@functools.cache
def _compiled(config, **options):
    network = _network(config)
    return jax.jit(lambda *inputs: functional.apply(network, *inputs, **options)[0])


def _volumes(num):
    return jax.random.normal(jax.random.key(7), (num, BOX, BOX, BOX))


def _aligned(config):
    return _compiled(config, train=True)(*jnp.split(_volumes(4), 2))


def test_paper_preset(outline):
    build = functools.partial(JimNet, jimnet.paper(32, 5))
    found = outline(build, *[(2, 32, 32, 32)] * 2)
    assert found.num_parameters == 39_742_612
    assert found.shapes.fine == ((2, 3, 3), (2, 3))
    assert found.shapes.features == (2, 512)
    assert found.shapes.logits == (2, 5)
    assert found.shapes.rotation_logits is None


@pytest.mark.parametrize("box", [12, 15, 32])
def test_small_preset(box, outline):
    build = functools.partial(JimNet, jimnet.small(box, 3))
    found = outline(build, *[(2, box, box, box)] * 2)
    assert found.num_parameters == 40_175
    assert found.shapes.fine == ((2, 3, 3), (2, 3))
    assert found.shapes.features == (2, 128)
    assert found.shapes.logits == (2, 3)
    assert found.shapes.rotation_logits == (2, 2304)


def test_paper_preset_is_for_its_box_alone():
    with pytest.raises(ValueError, match="box of 32 voxels, got 40"):
        jimnet.paper(40, 5)


@pytest.mark.parametrize("config", [STEERABLE, DENSE], ids=["steerable", "dense"])
def test_answer_is_the_residual_after_the_coarse_pose(config):
    found = _aligned(config)
    for coarse, residual, fine in zip(
        *(zip(*pose, strict=True) for pose in (found.coarse, found.residual, found.fine)),
        strict=True,
    ):
        expected = rotation.compose(Pose(*residual), Pose(*coarse))
        np.testing.assert_allclose(fine[0], expected.rotation, atol=1e-5)
        np.testing.assert_allclose(fine[1], expected.shift, atol=1e-4)


def test_refining_the_coarse_pose_once_gives_the_answer():
    source, target = jnp.split(_volumes(4), 2)
    found = _compiled(STEERABLE, train=False)(source, target)
    refined = _compiled(STEERABLE, train=False, method="refine")(source, target, found.coarse)
    np.testing.assert_allclose(refined.rotation, found.fine.rotation, atol=1e-5)
    np.testing.assert_allclose(refined.shift, found.fine.shift, atol=1e-4)


@pytest.mark.parametrize("config", [STEERABLE, DENSE], ids=["steerable", "dense"])
def test_rotations_are_rotations(config):
    found = _aligned(config)
    for matrix in jnp.concatenate([found.coarse.rotation, found.fine.rotation]):
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-5)
        np.testing.assert_allclose(jnp.linalg.det(matrix), 1.0, atol=1e-5)


def test_dense_fine_stage_starts_as_the_identity():
    residual = _aligned(DENSE).residual
    np.testing.assert_allclose(residual.rotation, np.tile(np.eye(3), (2, 1, 1)), atol=1e-6)
    np.testing.assert_array_equal(residual.shift, np.zeros((2, 3)))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(STEERABLE, id="steerable"),
        pytest.param(DENSE, id="dense", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_constant_volumes_are_finite(config, has_finite_gradients):
    pairs = [[np.full((2, BOX, BOX, BOX), value, np.float32)] * 2 for value in (0.0, 1.0)]
    assert has_finite_gradients(_network(config), *pairs)


@pytest.mark.parametrize("turn", QUARTER_TURNS, ids=["x", "y", "z"])
def test_cluster_features_do_not_see_a_quarter_turn_of_an_odd_box(turn):
    cluster, volumes = _compiled(STEERABLE, train=True, method="describe"), _volumes(2)
    features, logits = cluster(volumes)
    turned = jax.vmap(resample.rotate, in_axes=(0, None))(volumes, turn)
    turned_features, turned_logits = cluster(turned)
    np.testing.assert_allclose(turned_features, features, atol=1e-4)
    np.testing.assert_allclose(turned_logits, logits, atol=1e-4)


def test_cluster_features_tell_different_volumes_apart():
    features, _ = _compiled(STEERABLE, train=True, method="describe")(_volumes(2))
    assert np.max(np.abs(features[0] - features[1])) > 0.1


def test_target_features_are_its_cluster_features():
    volumes = _volumes(2)
    found = _compiled(STEERABLE, train=False)(volumes[::-1], volumes)
    features, _ = _compiled(STEERABLE, train=False, method="describe")(volumes)
    np.testing.assert_allclose(found.target_features, features, atol=1e-5)


class _Moments(GlobalHarmonic):
    def expand(self, features, box, *, train):
        del train
        return self.prepare(features, box)


@pytest.mark.parametrize("turn", QUARTER_TURNS, ids=["x", "y", "z"])
def test_moments_turn_with_an_odd_feature_map(turn, key):
    network = functional.create(lambda rngs: _Moments(2, degree=3, num_rotations=8, rngs=rngs), key)
    maps = jax.random.normal(key, (5, 5, 5, 2))
    channels = jax.vmap(resample.rotate, in_axes=(-1, None), out_axes=-1)
    pair = jnp.stack([maps, channels(maps, turn)])
    run = jax.jit(lambda x: functional.apply(network, x, BOX, train=False, method="expand")[0])
    centres, moments = run(pair)
    np.testing.assert_allclose(centres[1], turn @ centres[0], atol=1e-4)
    for matrix, moment in zip(harmonics.rotation_matrices(turn, 3)[1:], moments, strict=True):
        np.testing.assert_allclose(moment[1], moment[0] @ matrix.T, atol=1e-5)


def test_harmonic_stage_finds_rotations_of_a_density_untrained(key):
    box, shape = 24, (24, 24, 24)
    molecule = phantom(0, shape)
    turns = jnp.stack([*QUARTER_TURNS, *jax.vmap(rotation.random_rotation)(jax.random.split(key))])
    source = jnp.stack([render(molecule, shape)] * len(turns))
    target = jnp.stack([render(molecule, shape, Pose(turn, jnp.zeros(3))) for turn in turns])
    network = functional.create(
        lambda rngs: GlobalHarmonic(1, degree=4, num_rotations=2304, rngs=rngs), key
    )
    run = jax.jit(lambda a, b: functional.apply(network, a, b, box, train=False)[0])
    pose, logits = run(source[..., None], target[..., None])
    errors = np.rad2deg(jax.vmap(rotation.geodesic_angle)(pose.rotation, turns))
    assert logits.shape == (len(turns), 2304)
    assert np.max(errors) < 20  # half of what degree 4 resolves


def _newton_steps(source, targets, num_steps):
    """Error of the pose, degrees and voxels, before and after each step of the fine stage."""
    volumes, poses = targets
    box = source.shape[-1]
    network = functional.create(lambda rngs: LocalNewton(radius=1), jax.random.key(0))

    @jax.jit
    def improve(found):
        moved = jax.vmap(resample.transform, (None, 0))(source, found)
        maps = moved[..., None], volumes[..., None]
        residual = functional.apply(network, *maps, box, train=False)[0]
        return jax.vmap(compose)(residual, found)

    errors, found = [], jax.vmap(lambda _: identity())(poses.shift)
    for _ in range(num_steps + 1):
        angles = jax.vmap(rotation.geodesic_angle)(found.rotation, poses.rotation)
        shifts = np.linalg.norm(found.shift - poses.shift, axis=1)
        errors.append((np.rad2deg(np.median(angles)), np.median(shifts)))
        found = improve(found)
    return errors


@pytest.mark.parametrize("snr", [np.inf, 0.3])
def test_newton_step_closes_in_on_a_small_motion_untrained(snr, key):
    shape = (24, 24, 24)
    molecule, keys = phantom(0, shape), jax.random.split(key, 8)
    poses = Pose(
        jax.vmap(lambda k: rotation.random_rotation_near(k, np.deg2rad(20)))(keys),
        jax.random.uniform(key, (8, 3), minval=-1.5, maxval=1.5),
    )
    source = render(molecule, shape)
    targets = jax.vmap(lambda pose: render(molecule, shape, pose))(poses)
    noise = jax.random.normal(key, targets.shape) * jnp.std(source) / jnp.sqrt(snr)
    before, first, *_, last = _newton_steps(source, (targets + noise, poses), 4)
    assert first[0] < 0.5 * before[0]
    assert first[1] < 0.5 * before[1]
    # Noise leaves a floor.
    assert last[0] < (1.0 if np.isinf(snr) else 5.0)
    assert last[1] < (0.05 if np.isinf(snr) else 0.3)


def test_feature_voxels_cover_the_box_from_face_to_face():
    # Box 4: faces at -0.5 and 3.5, centre voxel 2. Two feature voxels lie at 0.5 and 2.5.
    points = grid_points(2, 4)
    np.testing.assert_array_equal(points[0], [-1.5, -1.5, -1.5])
    np.testing.assert_array_equal(points[1], [0.5, -1.5, -1.5])  # x runs fastest
    np.testing.assert_array_equal(points[-1], [0.5, 0.5, 0.5])


@pytest.mark.parametrize("box", [8, 9])
def test_feature_voxels_of_an_unpooled_map_are_the_particles(box):
    expected = np.arange(box) - box // 2
    np.testing.assert_allclose(np.unique(grid_points(box, box)), expected, atol=1e-6)
