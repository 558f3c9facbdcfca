"""Gum-Net: published sizes, upstream's pose convention, and where its norms sit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.models import functional, gumnet
from jimjax.models.gumnet import GumNet, GumNetConfig, pose_from_unit
from jimjax.ops import resample

BOX = 10
TINY = GumNetConfig(
    box=BOX, widths=(2, 3), sizes=(8,), keeps=(7,), tower_width=4, dense_width=5, momentum=0.9
)


RADIAL = dataclasses.replace(TINY, design="radial")
UPSTREAM = dataclasses.replace(TINY, is_batch_norm_shared=False)


@functools.cache
def _network(config=TINY):
    return functional.create(functools.partial(GumNet, config), jax.random.key(0))


@functools.cache
def _compiled(config):
    network = _network(config)

    @jax.jit
    def run(params, *inputs):
        return functional.apply(network._replace(params=params), *inputs, train=True)

    return run


def _train(source, target, *, config=TINY, params=None):
    """Matches and statistics of a training pass."""
    return _compiled(config)(_network(config).params if params is None else params, source, target)


def _pairs():
    keys = jax.random.split(jax.random.key(1))
    return tuple(jax.random.normal(key, (3, BOX, BOX, BOX)) for key in keys)


def test_published_size(outline):
    found = outline(functools.partial(GumNet, gumnet.paper(32)), *[(2, 32, 32, 32)] * 2)
    # Extractor 4.70 M, convolutions over the correlations 68.6 M, dense layers 36.8 M.
    assert found.num_parameters == 110_067_334
    assert found.shapes == (((2, 3, 3), (2, 3)), (2, 3, 3))
    assert gumnet.paper(32).feature_size == 6
    assert gumnet.paper(32).tower_size == 2


@pytest.mark.parametrize("box", [16, 17, 32])
def test_small_preset_fits_any_box(box, outline):
    found = outline(functools.partial(GumNet, gumnet.small(box)), *[(2, box, box, box)] * 2)
    assert found.num_parameters == 1_123_076
    assert found.shapes == (((2, 3, 3), (2, 3)), (2, 3, 3))


def test_first_pose_is_the_same_for_every_pair():
    (pose, matrix), _ = _train(*_pairs())
    np.testing.assert_array_equal(matrix, pose.rotation)
    bias = _network().params["out"]["bias"][...]
    assert np.all(np.abs(bias) <= 0.5)
    expected = pose_from_unit(jax.nn.sigmoid(bias), BOX)
    np.testing.assert_allclose(pose.rotation, np.tile(expected.rotation, (3, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(pose.shift, np.tile(expected.shift, (3, 1)), atol=1e-5)


def test_other_keys_start_at_other_poses():
    network = functional.create(functools.partial(GumNet, TINY), jax.random.key(1))
    biases = [n.params["out"]["bias"][...] for n in (network, _network())]
    assert not np.allclose(*biases)


def test_first_gradient_reaches_the_last_layer_alone():
    def loss(params):
        (pose, _), _ = _train(*_pairs(), params=params)
        return jnp.sum(pose.shift**2) + jnp.sum(pose.rotation[:, 0, 1])

    found = jax.jit(jax.grad(loss))(_network().params)
    assert np.all(np.isfinite(found["out"]["kernel"][...]))
    assert np.any(found["out"]["kernel"][...] != 0)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found["extractor"]))


def _awake(config, key):
    """A network whose last layer is not zero, so that gradients reach every layer."""
    params = jax.tree.map(jnp.copy, _network(config).params)
    kernel = params["out"]["kernel"]
    kernel[...] = jax.random.normal(key, kernel[...].shape)
    return _network(config)._replace(params=params)


@pytest.mark.parametrize("config", [TINY, RADIAL], ids=lambda config: config.design)
def test_gradients_of_constant_volumes_are_finite(config, key, has_finite_gradients):
    pairs = [[np.full((2, BOX, BOX, BOX), value, np.float32)] * 2 for value in (0.0, 1.0)]
    assert has_finite_gradients(_awake(config, key), *pairs)


def test_radial_network_starts_at_the_identity():
    (pose, matrix), _ = _train(*_pairs(), config=RADIAL)
    np.testing.assert_allclose(pose.rotation, np.tile(np.eye(3), (3, 1, 1)), atol=1e-6)
    np.testing.assert_array_equal(pose.shift, np.zeros((3, 3)))
    np.testing.assert_array_equal(matrix, np.zeros((3, 3, 3)))


def test_radial_network_turns_by_the_rotation_nearest_to_its_matrix(key):
    params = _awake(RADIAL, key).params
    (pose, matrix), _ = _train(*_pairs(), config=RADIAL, params=params)
    u, _, vt = np.linalg.svd(matrix)
    signs = np.stack([np.ones(3), np.ones(3), np.linalg.det(u @ vt)], axis=-1)
    np.testing.assert_allclose(pose.rotation, u * signs[:, None] @ vt, atol=1e-4)
    assert np.all(np.abs(pose.shift) <= BOX / 2)


def test_radial_network_does_not_see_brightness_and_contrast_of_features(key):
    """Only batch norm's epsilon does."""
    params = _awake(RADIAL, key).params
    source, target = _pairs()
    (pose, _), _ = _train(source, target, config=RADIAL, params=params)
    (same, _), _ = _train(7 * source, 7 * target, config=RADIAL, params=params)
    np.testing.assert_allclose(same.rotation, pose.rotation, atol=0.02)


def test_pose_of_one_half_throughout_is_the_identity(compiled):
    pose = compiled(functools.partial(pose_from_unit, box=32))(jnp.full(6, 0.5))
    np.testing.assert_allclose(pose.rotation, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(pose.shift, np.zeros(3))


def test_range_of_the_pose_is_a_full_turn_and_half_a_box():
    pose = pose_from_unit(jnp.array([0.75, 0.5, 0.5, 1.0, 0.0, 0.25]), 32)
    np.testing.assert_allclose(pose.rotation @ np.eye(3)[0], np.eye(3)[1], atol=1e-6)  # x to y
    np.testing.assert_allclose(pose.shift, [16.0, -16.0, -8.0])


def test_pose_agrees_with_upstreams_sampling_matrix():
    numbers = np.random.default_rng(0).uniform(size=6)
    phi, theta, psi = 2 * np.pi * numbers[:3] - np.pi
    # Upstream stores the transpose and samples the input at x_in = rm (x_out - t).
    rm = Rotation.from_euler("ZYZ", [phi, theta, psi]).as_matrix().T
    shift = (2 * numbers[3:] - 1) * 16
    point = np.array([3.0, -1.0, 2.0])
    pose = pose_from_unit(jnp.asarray(numbers, jnp.float32), 32)
    moved = pose.rotation @ point + pose.shift
    np.testing.assert_allclose(rm @ (moved - shift), point, atol=1e-4)  # 16 voxels in float32


def test_pose_carries_the_source_onto_the_target():
    # A quarter turn about z and 2 voxels along z: (x, y, z) goes to (-y, x, z + 2).
    pose = pose_from_unit(jnp.array([0.75, 0.5, 0.5, 0.5, 0.5, 0.625]), 16)
    source = jnp.zeros((16, 16, 16)).at[8 + 1, 8 - 2, 8 + 3].set(1.0)  # z, y, x
    moved = resample.transform(source, pose)
    assert np.unravel_index(np.argmax(moved), moved.shape) == (8 + 3, 8 + 3, 8 + 2)


def test_extractor_normalises_after_the_relu_and_towers_before():
    _, stats = _train(*_pairs())
    extractor, tower = stats["extractor"]["norms"], stats["towers"][0]["norms"]
    assert np.all(extractor[0][0]["mean"][...] >= 0)
    assert np.any(extractor[1][0]["mean"][...] < 0)  # the last one has no ReLU
    assert np.any(tower[0]["mean"][...] < 0)


def test_upstreams_batch_norm_keeps_sources_and_targets_apart():
    source, target = _pairs()
    _, stats = _train(source, 3 * target, config=UPSTREAM)
    _, swapped = _train(3 * target, source, config=UPSTREAM)
    own, other = (stats["extractor"]["norms"][0][i]["var"][...] for i in range(2))
    assert np.all(other > own)
    np.testing.assert_allclose(swapped["extractor"]["norms"][0][0]["var"][...], other, rtol=1e-5)


def test_shared_batch_norm_does_not_tell_sources_from_targets():
    source, target = _pairs()
    variances = [
        _train(*pair)[1]["extractor"]["norms"][0][0]["var"][...]
        for pair in ((source, 3 * target), (3 * target, source))
    ]
    np.testing.assert_allclose(*variances, rtol=1e-5)


def test_second_tower_sees_the_pair_swapped():
    # So with the towers' parameters exchanged it says what the first one said.
    source, target = _pairs()
    params = jax.tree.map(jnp.copy, _network().params)
    params["towers"][0], params["towers"][1] = params["towers"][1], params["towers"][0]
    _, first = _train(source, target)
    _, second = _train(target, source, params=params)
    means = first["towers"][0]["norms"][1]["mean"], second["towers"][1]["norms"][1]["mean"]
    np.testing.assert_allclose(*[mean[...] for mean in means], atol=1e-5)
    assert not np.allclose(means[0][...], first["towers"][1]["norms"][1]["mean"][...], atol=1e-3)


def test_volumes_of_another_box_are_named():
    volumes = jnp.zeros((2, 12, 12, 12))
    with pytest.raises(ValueError, match=r"must both be \(batch, 10, 10, 10\), got \(2, 12"):
        functional.apply(_network(), volumes, volumes, train=False)


def test_wrong_number_of_numbers_is_named():
    with pytest.raises(ValueError, match=r"numbers must have shape \(6,\), got \(2, 6\)"):
        pose_from_unit(jnp.zeros((2, 6)), 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (8, 8)}, "one entry per convolution but the last, got 2 widths, 2 sizes"),
        ({"keeps": (9,)}, "pooling from 8 to 8 voxels .* at most 8 frequencies, got keep 9"),
        ({"sizes": (6,), "keeps": (6,)}, "the correlation is 4 voxels wide, .* need 5"),
    ],
)
def test_sizes_that_cannot_be_built_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_paper_preset_is_for_its_box_alone():
    with pytest.raises(ValueError, match="box of 32 voxels, got 40"):
        gumnet.paper(40)
