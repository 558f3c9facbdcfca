"""Image correlation, mutual matches and inlier counts against loops written out."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.ndimage import map_coordinates

from jimjax.ops import matching, matching2d, warp2d

IDENTITY = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
MATRIX = jnp.array([[0.9, -0.3, 0.13], [0.4, 1.2, -0.21]])  # takes no pixel to a pixel centre


def _features(key, shape=(4, 5, 3)):
    return tuple(jax.random.normal(k, shape) for k in jax.random.split(key))


def _slow_local_correlation(source, target, radius):
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    size, width = source.shape[:2], 2 * radius + 1
    out = np.zeros((*size, width**2))
    for p in np.ndindex(*size):
        for channel, index in enumerate(np.ndindex(width, width)):
            q = np.array(p) - (np.array(index) - radius)
            if np.all((q >= 0) & (q < size)):
                out[(*p, channel)] = source[p] @ target[tuple(q)]
    return out


def _slow_inlier_count(correlation, grid, normalized):
    """Warps each channel of the identity mask as an image, as the published code does."""
    correlation, grid = np.asarray(correlation, np.float64), np.asarray(grid, np.float64)
    height, width, num_pixels = correlation.shape
    mask = np.eye(num_pixels).reshape(height, width, num_pixels)
    rows, columns = (grid[..., 1] + 1) * (height - 1) / 2, (grid[..., 0] + 1) * (width - 1) / 2
    warped = np.stack(
        [
            map_coordinates(mask[..., q], [rows, columns], order=1, mode="grid-constant")
            for q in range(num_pixels)
        ],
        axis=-1,
    )
    count = np.sum(warped * correlation)
    return count / np.sum(warped + 1e-5) if normalized else count


def test_global_correlation_has_target_places_and_source_channels(compiled):
    source = jnp.zeros((2, 4, 1)).at[1, 2, 0].set(2.0)  # C order: 1 * 4 + 2 = 6
    target = jnp.zeros((3, 3, 1)).at[0, 2, 0].set(5.0)
    scores = compiled(matching2d.global_correlation_2d)(source, target)
    assert scores.shape == (3, 3, 8)
    assert jnp.argwhere(scores).tolist() == [[0, 2, 6]]
    assert scores[0, 2, 6] == 10


def test_global_correlation_is_that_of_volumes_one_voxel_deep(key):
    source, target = _features(key)
    scores = matching2d.global_correlation_2d(source, target[:3])
    expected = matching.global_correlation(source[None], target[None, :3])[0]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_global_correlation_agrees_with_all_inner_products(key):
    source, target = _features(key)
    rows = np.asarray(source, np.float64).reshape(-1, 3)
    expected = (np.asarray(target, np.float64).reshape(-1, 3) @ rows.T).reshape(4, 5, 20)
    scores = matching2d.global_correlation_2d(source, target)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_swapping_arguments_transposes_the_global_correlation(key):
    source, target = _features(key)
    forward = matching2d.global_correlation_2d(source, target).reshape(20, 20)
    backward = matching2d.global_correlation_2d(target, source).reshape(20, 20)
    np.testing.assert_allclose(forward, backward.T, atol=1e-6)


def test_local_correlation_looks_at_the_target_minus_the_offset():
    source = jnp.zeros((5, 5, 1)).at[2, 2, 0].set(1.0)
    target = jnp.zeros((5, 5, 1)).at[1, 3, 0].set(1.0)
    scores = matching2d.local_correlation_2d(source, target, radius=1)
    # p - o = (1, 3) at p = (2, 2): o = (1, -1), channel (2, 0) of 3 x 3.
    assert jnp.argwhere(scores).tolist() == [[2, 2, 2 * 3 + 0]]


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_local_correlation_agrees_with_the_slow_twin(radius, compiled, key):
    source, target = _features(key)
    fn = compiled(lambda s, t: matching2d.local_correlation_2d(s, t, radius=radius))
    expected = _slow_local_correlation(source, target, radius)
    np.testing.assert_allclose(fn(source, target), expected, atol=1e-5)


def test_a_shifted_target_moves_the_peak_channel(key):
    source = matching.l2_normalize(_features(key, (8, 8, 16))[0])
    target = jnp.roll(source, (1, -1), (0, 1))  # target(p + (1, -1)) = source(p)
    best = jnp.argmax(matching2d.local_correlation_2d(source, target, radius=1), axis=-1)
    assert jnp.all(best[1:-1, 1:-1] == 0 * 3 + 2)  # o = (-1, 1)


def test_local_correlation_picks_channels_of_the_global_one(key):
    source, target = _features(key)
    every = matching2d.global_correlation_2d(target, source).reshape(4, 5, 4, 5)
    near = matching2d.local_correlation_2d(source, target, radius=1)
    for oy, ox in itertools.product((-1, 0, 1), repeat=2):
        channel = (oy + 1) * 3 + ox + 1
        np.testing.assert_allclose(near[2, 2, channel], every[2, 2, 2 - oy, 2 - ox], atol=1e-6)


def test_half_precision_features_are_summed_in_float32(key):
    ones = jnp.ones((2, 2, 1000), jnp.bfloat16)  # bfloat16 sums stop at 256
    slope = jax.grad(lambda s: matching2d.global_correlation_2d(s, ones).astype(float).sum())
    assert jnp.all(matching2d.global_correlation_2d(ones, ones) == 1000)
    assert slope(ones).dtype == jnp.bfloat16
    near = matching2d.local_correlation_2d(ones, ones, radius=0)
    assert near.dtype == jnp.bfloat16
    assert jnp.all(near == 1000)


def test_mutual_pairs_by_hand(compiled):
    scores = jnp.array([[3.0, 9.0, 1.0], [8.0, 2.0, 4.0]])
    assert compiled(matching2d.mutual_nearest)(scores).tolist() == [
        [False, True, False],
        [True, False, False],
    ]
    # Row 1 likes column 0, but column 0 prefers row 0.
    one_sided = jnp.array([[9.0, 1.0], [8.0, 2.0]])
    assert matching2d.mutual_nearest(one_sided).tolist() == [[True, False], [False, False]]


def test_mutual_pairs_agree_with_a_loop(key):
    scores = np.asarray(jax.random.normal(key, (7, 11)))
    expected = np.zeros(scores.shape, bool)
    for i, j in np.ndindex(*scores.shape):
        expected[i, j] = scores[i, j] == scores[i].max() == scores[:, j].max()
    assert expected.sum() >= 2
    np.testing.assert_array_equal(matching2d.mutual_nearest(scores), expected)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_equal_scores_make_one_pair(value):
    pairs = matching2d.mutual_nearest(jnp.full((3, 4), value))
    assert jnp.argwhere(pairs).tolist() == [[0, 0]]


def test_a_shift_is_found_by_mutual_pairs_in_three_dimensions_too(key):
    volume = matching.l2_normalize(jax.random.normal(key, (3, 3, 3, 16)))
    moved = jnp.roll(volume, 1, axis=0)
    scores = matching.global_correlation(volume, moved).reshape(27, 27)
    pairs = np.argwhere(matching2d.mutual_nearest(scores))
    np.testing.assert_array_equal(pairs, np.c_[np.arange(27), np.roll(np.arange(27), 9)])


def test_soft_filter_by_hand(compiled):
    scores = jnp.array([[4.0, 2.0], [1.0, -3.0]])
    # Row maxima 4, 1; column maxima 4, 2.
    expected = [[4.0, 2 * (2 / 4) * (2 / 2)], [1 * (1 / 1) * (1 / 4), 0.0]]
    np.testing.assert_allclose(compiled(matching2d.soft_mutual_nearest)(scores), expected)


def test_soft_filter_agrees_with_a_loop(key):
    scores = np.asarray(jax.random.uniform(key, (6, 4)), np.float64)
    expected = np.empty(scores.shape)
    for i, j in np.ndindex(*scores.shape):
        expected[i, j] = scores[i, j] ** 3 / (scores[i].max() * scores[:, j].max())
    filtered = matching2d.soft_mutual_nearest(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(filtered, expected, atol=1e-6)


def test_soft_filter_keeps_mutual_pairs_and_weakens_the_others(key):
    scores = np.asarray(jax.random.uniform(key, (6, 4))) + 0.1
    pairs = np.asarray(matching2d.mutual_nearest(scores))
    filtered = np.asarray(matching2d.soft_mutual_nearest(scores))
    np.testing.assert_allclose(filtered[pairs], scores[pairs], rtol=1e-6)
    assert np.all(filtered[~pairs] < scores[~pairs])


def test_soft_filter_treats_rows_and_columns_alike_and_scales(key):
    scores = np.asarray(jax.random.normal(key, (6, 6)))
    soft = jax.jit(matching2d.soft_mutual_nearest)
    np.testing.assert_allclose(soft(scores.T), soft(scores).T, atol=1e-6)
    np.testing.assert_allclose(soft(3 * scores), 3 * soft(scores), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_soft_filter_of_nothing_is_nothing_with_no_gradient(value):
    scores = jnp.full((3, 4), value)
    slope = jax.jit(jax.grad(lambda c: matching2d.soft_mutual_nearest(c).sum()))(scores)
    assert jnp.all(matching2d.soft_mutual_nearest(scores) == 0)
    assert jnp.all(slope == 0)


def test_identity_explains_the_identity_wholly(compiled):
    correlation = jnp.eye(20).reshape(4, 5, 20)
    grid = warp2d.pixel_grid((4, 5))
    plain = compiled(functools.partial(matching2d.soft_inlier_count, normalized=False))
    np.testing.assert_allclose(plain(correlation, grid), 20, rtol=1e-5)
    share = compiled(matching2d.soft_inlier_count)(correlation, grid)
    np.testing.assert_allclose(share, 20 / (20 + 1e-5 * 400), rtol=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
def test_inlier_count_agrees_with_a_warped_mask(normalized, compiled, key):
    correlation = jax.random.normal(key, (4, 5, 20))
    grid = warp2d.affine_grid(MATRIX, (4, 5))
    fn = compiled(functools.partial(matching2d.soft_inlier_count, normalized=normalized))
    expected = _slow_inlier_count(correlation, grid, normalized)
    np.testing.assert_allclose(fn(correlation, grid), expected, atol=2e-5)


def test_inlier_count_is_linear_in_the_correlation(key):
    first, second = (jax.random.normal(k, (4, 5, 20)) for k in jax.random.split(key))
    grid = warp2d.affine_grid(MATRIX, (4, 5))
    one, other = (matching2d.soft_inlier_count(c, grid) for c in (first, second))
    both = matching2d.soft_inlier_count(first - 2 * second, grid)
    np.testing.assert_allclose(both, one - 2 * other, atol=1e-5)


def test_the_true_shift_explains_most(key):
    source = matching.l2_normalize(jax.random.normal(key, (5, 6, 16)))
    target = jnp.roll(source, -1, axis=1)  # target(x) = source(x + 1)
    correlation = matching2d.global_correlation_2d(source, target)
    pixel = 2 / 5

    def count(shift):
        grid = warp2d.affine_grid(IDENTITY.at[0, 2].set(shift * pixel), (5, 6))
        return matching2d.soft_inlier_count(correlation, grid)

    counts = jax.jit(jax.vmap(count))(jnp.arange(-1, 3))
    assert jnp.argmax(counts) == 2
    assert counts[2] > 0.95  # all but the mask's floor, 1e-5 * 900 / 25
    assert jnp.all(counts[jnp.array([0, 1, 3])] < 0.5)


def test_following_the_gradient_finds_the_shift():
    y, x = np.indices((8, 8)).reshape(2, -1)
    near = (y[:, None] - y) ** 2 + (x[:, None] + 1 - x) ** 2  # source is one pixel to the right
    correlation = jnp.asarray(np.exp(-near / 4), jnp.float32).reshape(8, 8, 64)

    @jax.jit
    def climb(matrix):
        def count(m):
            return matching2d.soft_inlier_count(correlation, warp2d.affine_grid(m, (8, 8)))

        return matrix.at[:, 2].add(0.05 * jax.grad(count)(matrix)[:, 2])

    matrix = IDENTITY.at[:, 2].set(jnp.array([-0.11, 0.13]))
    for _ in range(60):
        matrix = climb(matrix)
    # A step near the kink of the top overshoots by up to 0.05 times the slope, about 1.
    np.testing.assert_allclose(matrix[:, 2], [2 / 7, 0], atol=0.06)


def test_a_grid_outside_counts_nothing_with_no_gradient(key):
    correlation = jax.random.normal(key, (4, 5, 20))
    grid = jnp.full((4, 5, 2), warp2d.OUTSIDE)
    fn = jax.jit(jax.value_and_grad(matching2d.soft_inlier_count, argnums=(0, 1)))
    count, slopes = fn(correlation, grid)
    assert count == 0
    assert all(bool(jnp.all(s == 0)) for s in slopes)


def test_gradients_are_right(x64, key):
    source, target = _features(key)
    scores = jnp.abs(source[..., 0]) + 0.1
    matrix = jnp.asarray(MATRIX, jnp.float64)

    @jax.jit
    def everything(source, target, scores, matrix):
        correlation = matching2d.global_correlation_2d(source, target)
        return (
            correlation,
            matching2d.local_correlation_2d(source, target, radius=2),
            matching2d.soft_mutual_nearest(scores),
            matching2d.soft_inlier_count(correlation, warp2d.affine_grid(matrix, (4, 5))),
        )

    check_grads(everything, (source, target, scores, matrix), order=1, modes=("fwd", "rev"))


def test_matching_lowers_for_every_platform(key):
    def score(source, target):
        correlation = matching2d.global_correlation_2d(source, target)
        filtered = matching2d.soft_mutual_nearest(correlation.reshape(20, 20))
        near = matching2d.local_correlation_2d(source, target, radius=1)
        grid = warp2d.affine_grid(IDENTITY, (4, 5))
        count = matching2d.soft_inlier_count(filtered.reshape(4, 5, 20), grid)
        return count + near.sum() + matching2d.mutual_nearest(filtered).sum()

    operands = _features(key)
    exported = jax.export.export(jax.jit(score), platforms=["cpu", "cuda", "tpu"])(*operands)
    np.testing.assert_allclose(exported.call(*operands), score(*operands), rtol=1e-5)


def test_wrong_shapes_are_named(key):
    source, target = _features(key)
    with pytest.raises(ValueError, match="equal channels"):
        matching2d.global_correlation_2d(source, target[..., :2])
    with pytest.raises(ValueError, match="equal shapes"):
        matching2d.local_correlation_2d(source, target[:2], radius=1)
    with pytest.raises(ValueError, match="radius must be 0 or more"):
        matching2d.local_correlation_2d(source, target, radius=-1)
    with pytest.raises(ValueError, match=r"scores must be \(rows, columns\)"):
        matching2d.mutual_nearest(source)
    with pytest.raises(ValueError, match=r"scores must be \(rows, columns\)"):
        matching2d.soft_mutual_nearest(source)
    with pytest.raises(ValueError, match=r"correlation must be \(y, x, y \* x\)"):
        matching2d.soft_inlier_count(jnp.ones((4, 5, 6)), jnp.ones((4, 5, 2)))
    with pytest.raises(ValueError, match=r"grid must have shape \(4, 5, 2\), got \(5, 4, 2\)"):
        matching2d.soft_inlier_count(jnp.ones((4, 5, 20)), jnp.ones((5, 4, 2)))
