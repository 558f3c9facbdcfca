"""Correlation scores against real-space definitions, and translations that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jimjax.ops import correlation, fourier, resample, rotation, wedge
from jimjax.ops.rotation import Pose

TILTS = jnp.array([-60.0, 60.0])
SHAPES = [(8, 8, 8), (7, 8, 9), (8, 9, 7)]


def _volumes(key, shape=(8, 9, 10), *, mix=0.5):
    a, b = (jax.random.normal(k, shape) for k in jax.random.split(key))
    return a, b + mix * a


def _smooth(key, shape=(16, 16, 16)):
    return fourier.bandpass(jax.random.normal(key, shape), high=0.25)


def _mask(shape, key):
    """Band-pass times a wedge at a random pose."""
    turned = wedge.wedge_mask(shape, TILTS, rotation=rotation.random_rotation(key))
    return fourier.bandpass_mask(shape, high=0.35, norm="max") * turned


def _slow_constrained(volume, template, mask):
    """Filters both volumes in float64, goes back to real space and asks numpy."""
    filtered = [
        np.fft.irfftn(
            np.fft.rfftn(np.asarray(v, np.float64)) * np.asarray(mask), v.shape, (0, 1, 2)
        )
        for v in (volume, template)
    ]
    return np.corrcoef(filtered[0].ravel(), filtered[1].ravel())[0, 1]


def _loss(volume, template):
    mask = fourier.bandpass_mask(volume.shape, high=0.35, norm="max")
    return correlation.constrained_correlation_loss(volume, template, mask)


def _one_minus_pearson(volume, template):
    return 1 - correlation.pearson(volume, template)


_LOSS_SLOPES = jax.jit(jax.value_and_grad(_loss, argnums=(0, 1)))
_PEARSON_SLOPES = jax.jit(jax.value_and_grad(_one_minus_pearson, argnums=(0, 1)))


@jax.jit
def _aligned(source, target, pose):
    return correlation.aligned_correlation(
        source, target, pose, source_tilt_range=TILTS, target_tilt_range=TILTS, cutoff=0.25
    )


def test_pearson_of_a_small_table_is_known(compiled):
    a, b = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 3.0, 2.0])
    np.testing.assert_allclose(compiled(correlation.pearson)(a, b), 0.5, rtol=1e-6)


def test_pearson_agrees_with_numpy_inside_a_mask(key):
    a, b = _volumes(key)
    inside = np.asarray(a > -0.3)
    expected = np.corrcoef(np.asarray(a)[inside], np.asarray(b)[inside])[0, 1]
    score = correlation.pearson(a, b, mask=jnp.asarray(inside, jnp.float32))
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_pearson_ignores_scale_and_offset_and_turns_with_the_sign(key):
    a, b = _volumes(key)
    score = correlation.pearson(a, b)
    np.testing.assert_allclose(correlation.pearson(3 * a + 50, b), score, rtol=1e-4)
    np.testing.assert_allclose(correlation.pearson(-a, b), -score, rtol=1e-5)


def test_pearson_under_an_empty_mask_is_zero(key):
    a, b = _volumes(key)
    score, gradient = jax.value_and_grad(
        lambda a: correlation.pearson(a, b, mask=jnp.zeros(a.shape))
    )(a)
    assert score == 0
    assert jnp.all(gradient == 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_constrained_correlation_agrees_with_real_space(shape, key):
    volume, template = _volumes(key, shape)
    mask = _mask(shape, key)
    score = correlation.constrained_correlation(volume, template, mask)
    np.testing.assert_allclose(score, _slow_constrained(volume, template, mask), atol=2e-6)


def test_full_mask_gives_the_pearson_correlation(compiled, key):
    volume, template = _volumes(key)
    full = jnp.ones(fourier.half_shape(volume.shape))
    score = compiled(correlation.constrained_correlation)(volume, template, full)
    np.testing.assert_allclose(score, correlation.pearson(volume, template), atol=2e-6)


def test_two_waves_are_orthogonal_and_one_is_its_own_double():
    x = jnp.arange(8.0) * 2 * jnp.pi / 8
    wave = jnp.broadcast_to(jnp.cos(x), (8, 8, 8))
    full = jnp.ones((8, 8, 5))
    other = wave.transpose(2, 0, 1)
    assert abs(correlation.constrained_correlation(wave, other, full)) < 1e-6
    doubled = correlation.constrained_correlation(wave, 2 * wave + 1, full)
    np.testing.assert_allclose(doubled, 1.0, atol=1e-6)
    opposite = correlation.constrained_correlation_loss(wave, -wave, full)
    np.testing.assert_allclose(opposite, 2.0, atol=1e-6)


def test_what_the_mask_hides_does_not_matter(key):
    volume, template = _volumes(key)
    mask = _mask(volume.shape, key)
    hidden = wedge.apply_mask(jax.random.normal(key, volume.shape), 1 - mask)
    score = correlation.constrained_correlation(volume, template, mask)
    changed = correlation.constrained_correlation(volume + 5 * hidden, template, mask)
    np.testing.assert_allclose(changed, score, atol=1e-5)


def test_examples_of_a_batch_do_not_touch(key):
    volumes = jnp.stack(_volumes(key))
    mask = _mask(volumes.shape[1:], key)
    scaled = volumes[::-1] * jnp.array([1.0, 100.0])[:, None, None, None] + 7
    scores = jax.vmap(correlation.constrained_correlation, in_axes=(0, 0, None))(
        volumes, scaled, mask
    )
    alone = correlation.constrained_correlation(volumes[0], volumes[1], mask)
    np.testing.assert_allclose(scores, [alone, alone], atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 7.1, -1e4])
@pytest.mark.parametrize("slopes", [_LOSS_SLOPES, _PEARSON_SLOPES], ids=["loss", "pearson"])
def test_constant_volume_scores_zero_with_zero_gradient(slopes, value, key):
    template = jax.random.normal(key, (9, 8, 10))
    flat = jnp.full(template.shape, value)
    for pair in ((flat, template), (template, flat)):
        loss, gradients = slopes(*pair)
        assert loss == 1
        assert all(bool(jnp.all(g == 0)) for g in gradients)


def test_small_contrast_on_a_large_background_is_still_seen(key):
    volume, template = _volumes(key)
    score = correlation.pearson(1 + 1e-3 * volume, template)
    # sd 1e-3 on 1 leaves float32 four digits.
    np.testing.assert_allclose(score, correlation.pearson(volume, template), atol=1e-3)


def test_gradients_of_the_scores_are_right(key):
    with jax.enable_x64(True):
        shape = (5, 4, 6)
        volume, template = (v.astype(jnp.float64) for v in _volumes(key, shape))
        mask = fourier.bandpass_mask(shape, high=0.4)
        check_grads(
            lambda v, t: correlation.constrained_correlation(v, t, mask),
            (volume, template),
            order=1,
        )
        check_grads(correlation.pearson, (volume, template), order=1)


def test_aligned_correlation_is_one_for_the_same_particle(compiled, key):
    volume = _smooth(key, (8, 8, 8))
    pose = rotation.identity()
    np.testing.assert_allclose(compiled(_aligned)(volume, volume, pose), 1.0, atol=1e-5)


def test_aligned_correlation_sees_a_quarter_turn_through_both_wedges(key):
    # A quarter turn is exact on the grid, so each particle can carry its wedge exactly.
    particle = _smooth(key, (15, 15, 15))
    pose = Pose(rotation.about_axis(1, jnp.pi / 2), jnp.zeros(3))
    own = wedge.wedge_mask(particle.shape, TILTS)
    source = wedge.apply_mask(particle, own)
    target = wedge.apply_mask(resample.transform(particle, pose), own)
    np.testing.assert_allclose(_aligned(source, target, pose), 1.0, atol=1e-4)
    wrong = Pose(rotation.about_axis(1, -jnp.pi / 2), jnp.zeros(3))
    assert _aligned(source, target, wrong) < 0.5
    # Without the wedges the same pose is punished for what neither has measured.
    band = fourier.bandpass_mask(particle.shape, high=0.25, norm="max")
    unaware = correlation.constrained_correlation(resample.transform(source, pose), target, band)
    assert unaware < 0.9


def test_following_the_gradient_of_the_shift_raises_the_score(key):
    volume = _smooth(key)
    target = resample.fourier_shift(volume, jnp.array([0.6, -0.4, 0.3]))
    start = Pose(jnp.eye(3), jnp.array([0.1, -0.1, 0.1]))
    score, slope = jax.jit(jax.value_and_grad(_aligned, argnums=2))(volume, target, start)
    assert jnp.all(jnp.sign(slope.shift) == jnp.array([1, -1, 1]))
    step = 0.1 * slope.shift / jnp.linalg.norm(slope.shift)
    assert _aligned(volume, target, start._replace(shift=start.shift + step)) > score


def test_gradient_of_the_pose_is_finite_at_the_identity(key):
    source, target = _volumes(key, (8, 8, 8))
    slope = jax.jit(jax.grad(_aligned, argnums=2))(source, target, rotation.identity())
    assert all(bool(jnp.all(jnp.isfinite(s))) for s in slope)
    assert float(jnp.abs(slope.rotation).max()) > 0


def test_peak_of_a_roll_is_the_roll(compiled, key):
    volume = jax.random.normal(key, (8, 9, 10))
    moved = jnp.roll(volume, (2, -3, 1), (0, 1, 2))  # (z, y, x)
    fn = compiled(lambda a, b: correlation.correlation_peak(a, b, max_shift=4))
    peak = fn(volume, moved)
    # White noise has neighbours of about 1 / sqrt(720) that tilt the parabola.
    np.testing.assert_allclose(peak.shift, [1, -3, 2], atol=0.05)
    np.testing.assert_allclose(peak.score, 1.0, atol=0.01)


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (1.3, -2.4, 0.6), (-3.5, 0.25, 2.75)])
def test_peak_of_a_fourier_shift_is_the_shift(shift, key):
    volume = _smooth(key)
    moved = resample.fourier_shift(volume, jnp.array(shift))
    peak = correlation.correlation_peak(volume, moved, max_shift=5)
    np.testing.assert_allclose(peak.shift, shift, atol=0.1)
    assert peak.score > 0.95


def test_peak_score_is_the_constrained_correlation_there(key):
    volume, template = _volumes(key, (9, 8, 10), mix=2.0)
    mask = _mask(volume.shape, key)
    moved = jnp.roll(template, (0, 2, -1), (0, 1, 2))
    peak = correlation.correlation_peak(volume, moved, mask=mask, max_shift=3)
    rounded = jnp.round(peak.shift).astype(int)
    assert rounded.tolist() == [-1, 2, 0]
    back = jnp.roll(volume, (0, 2, -1), (0, 1, 2))
    expected = correlation.constrained_correlation(back, moved, mask)
    assert expected - 1e-5 <= peak.score <= expected + 0.1  # the parabola's top is not below


def test_swapping_the_volumes_turns_the_shift_round(key):
    volume = _smooth(key)
    moved = resample.fourier_shift(volume, jnp.array([1.3, -2.4, 0.6]))
    forward = correlation.correlation_peak(volume, moved, max_shift=4)
    backward = correlation.correlation_peak(moved, volume, max_shift=4)
    np.testing.assert_allclose(forward.shift, -backward.shift, atol=1e-3)


def test_peak_stays_within_the_largest_shift(key):
    volume = _smooth(key)
    moved = resample.fourier_shift(volume, jnp.array([5.0, 0.0, 0.0]))
    peak = correlation.correlation_peak(volume, moved, max_shift=2)
    assert jnp.all(jnp.abs(peak.shift) <= 2)
    assert peak.score < 0.9


def test_peak_of_a_constant_volume_is_zero(key):
    volume = jax.random.normal(key, (8, 8, 8))
    peak = correlation.correlation_peak(jnp.full((8, 8, 8), 3.3), volume, max_shift=2)
    assert peak.score == 0
    assert jnp.all(jnp.isfinite(peak.shift))


def test_unequal_shapes_are_named(key):
    volume, template = _volumes(key)
    full = jnp.ones(volume.shape)
    with pytest.raises(ValueError, match=r"mask must have shape \(8, 9, 6\), got \(8, 9, 10\)"):
        correlation.constrained_correlation(volume, template, full)
    with pytest.raises(ValueError, match="second volume must have shape"):
        correlation.constrained_correlation_loss(volume, template[1:], full)
    with pytest.raises(ValueError, match="over a batch"):
        correlation.correlation_peak(volume[None], template[None], max_shift=2)
    with pytest.raises(ValueError, match="b must have shape"):
        correlation.pearson(volume, template[1:])
