"""Feature correlation layers against loops, and the size of a pose against Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jimjax.ops import matching, rotation
from jimjax.ops.rotation import Pose


def _features(key, shape=(4, 5, 6, 3)):
    return tuple(jax.random.normal(k, shape) for k in jax.random.split(key))


def _slow_local_correlation(source, target, radius):
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    size, width = source.shape[:3], 2 * radius + 1
    out = np.zeros((*size, width**3))
    for p in np.ndindex(*size):
        for channel, index in enumerate(np.ndindex(width, width, width)):
            q = np.array(p) - (np.array(index) - radius)
            if np.all((q >= 0) & (q < size)):
                out[(*p, channel)] = source[p] @ target[tuple(q)]
    return out


def test_three_four_vector_normalises_to_a_unit_vector(compiled):
    unit = compiled(matching.l2_normalize)(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(unit, [0.6, 0.8], rtol=1e-6)


def test_zero_features_stay_zero_with_a_finite_gradient():
    zeros = jnp.zeros((2, 3))
    assert jnp.all(matching.l2_normalize(zeros) == 0)
    gradient = jax.grad(lambda f: matching.l2_normalize(f).sum())(zeros)
    assert jnp.all(jnp.isfinite(gradient))


def test_global_correlation_has_target_places_and_source_channels(compiled):
    source = jnp.zeros((2, 3, 4, 1)).at[1, 2, 0, 0].set(2.0)  # C order: 1 * 12 + 2 * 4 + 0 = 20
    target = jnp.zeros((3, 3, 3, 1)).at[0, 1, 2, 0].set(5.0)
    scores = compiled(matching.global_correlation)(source, target)
    assert scores.shape == (3, 3, 3, 24)
    assert jnp.argwhere(scores).tolist() == [[0, 1, 2, 20]]
    assert scores[0, 1, 2, 20] == 10


def test_global_correlation_agrees_with_all_inner_products(key):
    source, target = _features(key)
    rows = np.asarray(source, np.float64).reshape(-1, 3)
    expected = (np.asarray(target, np.float64).reshape(-1, 3) @ rows.T).reshape(4, 5, 6, 120)
    scores = matching.global_correlation(source, target)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_swapping_arguments_transposes_the_global_correlation(key):
    source, target = _features(key)
    forward = matching.global_correlation(source, target).reshape(120, 120)
    backward = matching.global_correlation(target, source).reshape(120, 120)
    np.testing.assert_allclose(forward, backward.T, atol=1e-6)


def test_local_correlation_looks_at_the_target_minus_the_offset():
    source = jnp.zeros((5, 5, 5, 1)).at[2, 2, 2, 0].set(1.0)
    target = jnp.zeros((5, 5, 5, 1)).at[1, 2, 3, 0].set(1.0)
    scores = matching.local_correlation(source, target, radius=1)
    # p - o = (1, 2, 3) at p = (2, 2, 2): o = (1, 0, -1), channel (2, 1, 0) of 3 x 3 x 3.
    assert jnp.argwhere(scores).tolist() == [[2, 2, 2, 2 * 9 + 1 * 3 + 0]]


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
def test_local_correlation_agrees_with_the_slow_twin(radius, key):
    source, target = _features(key)
    scores = matching.local_correlation(source, target, radius=radius)
    expected = _slow_local_correlation(source, target, radius)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_local_correlation_is_the_same_compiled(compiled, key):
    source, target = _features(key)
    fn = compiled(lambda s, t: matching.local_correlation(s, t, radius=1))
    expected = _slow_local_correlation(source, target, 1)
    np.testing.assert_allclose(fn(source, target), expected, atol=1e-5)


def test_a_shifted_target_moves_the_peak_channel(key):
    source = matching.l2_normalize(_features(key, (8, 8, 8, 16))[0])
    target = jnp.roll(source, (1, -1, 0), (0, 1, 2))  # target(p + (1, -1, 0)) = source(p)
    best = jnp.argmax(matching.local_correlation(source, target, radius=1), axis=-1)
    # p - o = p + (1, -1, 0): o = (-1, 1, 0), channel (0, 2, 1).
    assert jnp.all(best[1:-1, 1:-1, 1:-1] == 0 * 9 + 2 * 3 + 1)


def test_gradients_of_the_correlations_are_right(key):
    with jax.enable_x64(True):
        source, target = (f.astype(jnp.float64) for f in _features(key, (3, 3, 4, 2)))
        check_grads(matching.global_correlation, (source, target), order=1)
        check_grads(matching.l2_normalize, (source,), order=1)
        check_grads(
            lambda s, t: matching.local_correlation(s, t, radius=2), (source, target), order=1
        )


def test_regulariser_of_the_identity_is_zero(compiled):
    loss = compiled(lambda pose: matching.transform_regulariser(pose, radius=8.0))
    assert loss(rotation.identity()) == 0


def test_regulariser_of_a_half_turn_is_known():
    pose = Pose(rotation.about_axis(2, jnp.pi), jnp.zeros(3))  # trace -1
    loss = matching.transform_regulariser(pose, radius=8.0)
    np.testing.assert_allclose(loss, 32 * np.pi / 15, rtol=1e-5)


def test_regulariser_is_the_mean_square_motion_of_the_ball(key):
    pose = Pose(rotation.random_rotation(key), jnp.array([1.0, -2.0, 0.5]))
    generator = np.random.default_rng(0)
    points = generator.uniform(-1, 1, (200_000, 3))
    points = points[np.sum(points**2, axis=1) <= 1]
    moved = points @ np.asarray(pose.rotation).T + np.asarray(pose.shift) / 8.0
    expected = 4 * np.pi / 3 * np.mean(np.sum((moved - points) ** 2, axis=1))
    # 100 000 points: standard error below 0.3 %.
    loss = matching.transform_regulariser(pose, radius=8.0)
    np.testing.assert_allclose(loss, expected, rtol=0.01)


def test_unequal_feature_maps_are_named(key):
    source, target = _features(key)
    with pytest.raises(ValueError, match="equal channels"):
        matching.global_correlation(source, target[..., :2])
    with pytest.raises(ValueError, match="equal shapes"):
        matching.local_correlation(source, target[:2], radius=1)
    with pytest.raises(ValueError, match="radius must be 0 or more"):
        matching.local_correlation(source, target, radius=-1)
