"""Losses of segmentation against numpy, cases solved by hand, and where they must stay finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.evaluate.segmentation import dice
from jimjax.segment import losses

SHAPE = (2, 3, 4, 5)
CERTAIN = 50.0  # a logit whose class is certain in float32


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def logits():
    return draw(*SHAPE, 3)


@pytest.fixture
def masks():
    return np.random.default_rng(1).integers(0, 3, SHAPE)


@pytest.fixture
def weights():
    return np.random.default_rng(2).uniform(size=SHAPE).astype(np.float32)


def probabilities(logits):
    powers = np.exp(logits.astype(float))
    return powers / powers.sum(axis=-1, keepdims=True)


def sure_of(masks, num_classes=2):
    return CERTAIN * np.eye(num_classes, dtype=np.float32)[masks.astype(int)]


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_agrees_with_numpy(weighted, logits, masks, weights):
    chosen = np.empty(SHAPE)
    for place in np.ndindex(SHAPE):
        chosen[place] = -np.log(probabilities(logits)[place][masks[place]])
    weights = weights if weighted else np.ones(SHAPE)
    found = jax.jit(losses.cross_entropy)(logits, masks, weights=weights if weighted else None)
    np.testing.assert_allclose(found, np.average(chosen, weights=weights), rtol=1e-5)


def test_cross_entropy_of_equal_logits_is_log_of_the_number_of_classes(masks):
    np.testing.assert_allclose(
        losses.cross_entropy(np.zeros((*SHAPE, 3)), masks), np.log(3), rtol=1e-6
    )


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.soft_dice_loss])
def test_masks_may_be_booleans(loss, logits):
    masks = draw(*SHAPE) > 0
    assert loss(logits[..., :2], masks) == loss(logits[..., :2], masks.astype(np.int8))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.soft_dice_loss])
def test_voxels_without_weight_have_no_influence(loss, logits, masks):
    is_used = draw(*SHAPE, seed=3) > 0
    changed = np.where(is_used[..., None], logits, draw(*SHAPE, 3, seed=4))
    others = np.where(is_used, masks, 2 - masks)
    plain, moved = (
        loss(*given, weights=is_used.astype(np.float32))
        for given in ((logits, masks), (changed, others))
    )
    np.testing.assert_allclose(plain, moved, rtol=1e-6)
    assert abs(loss(changed, others) - loss(logits, masks)) > 1e-3


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.soft_dice_loss])
def test_no_weight_at_all_is_no_loss_and_no_gradient(loss, logits, masks):
    value, gradient = jax.value_and_grad(loss)(logits, masks, weights=np.zeros(SHAPE))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_soft_dice_agrees_with_numpy(weighted, logits, masks, weights):
    found = jax.jit(losses.soft_dice_loss)(logits, masks, weights=weights if weighted else None)
    particle, wanted = 1 - probabilities(logits)[..., 0], []
    for p, m, w in zip(particle, masks, weights if weighted else np.ones(SHAPE), strict=True):
        overlap = 2 * np.sum(w * p * (m != 0)) + 1
        wanted.append(1 - overlap / (np.sum(w * p) + np.sum(w * (m != 0)) + 1))
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)


def test_soft_dice_of_certain_voxels_is_the_dice_of_the_masks():
    found, true = np.zeros((2, 1, 12, 12, 12), bool)
    found[0, 2:10, 2:10, 2:10] = true[0, 4:12, 2:10, 2:10] = True
    expected = dice(found, true)[0]
    # Both have 512 voxels; the smoothing adds one to numerator and denominator.
    np.testing.assert_allclose(expected, 0.75)
    smoothed = (2 * 384 + 1) / (1024 + 1)
    np.testing.assert_allclose(losses.soft_dice_loss(sure_of(found), true), 1 - smoothed, rtol=1e-5)
    assert losses.soft_dice_loss(sure_of(true), true) < 1e-6


def test_soft_dice_where_nothing_is_and_nothing_is_found_is_zero():
    nothing = np.zeros(SHAPE, bool)
    value, gradient = jax.value_and_grad(losses.soft_dice_loss)(sure_of(nothing), nothing)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert np.isfinite(gradient).all()


def test_consistency_agrees_with_numpy(compiled):
    shapes = [(2, 4, 4, 4, 3), (2, 2, 2, 2, 5)]
    taps = [draw(*shape, seed=place) for place, shape in enumerate(shapes)]
    others = [draw(*shape, seed=9 + place) for place, shape in enumerate(shapes)]
    wanted = 0
    for weight, tap, other in zip((0.3, 0.7), taps, others, strict=True):
        lengths = np.linalg.norm(tap, axis=-1) * np.linalg.norm(other, axis=-1)
        wanted += weight * np.mean(1 - np.sum(tap * other, axis=-1) / lengths)
    found = compiled(functools.partial(losses.consistency, weights=(0.3, 0.7)))(taps, others)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize(("factor", "wanted"), [(1.0, 0.0), (3.0, 0.0), (-1.0, 2.0)])
def test_consistency_sees_directions_alone(factor, wanted):
    taps = [draw(1, 2, 2, 2, 4, seed=place) for place in range(4)]
    found = losses.consistency(taps, [factor * tap for tap in taps])
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # the published weights add up to 1


@pytest.mark.parametrize("place", range(4))
def test_published_weights_of_consistency(place):
    taps = [draw(1, 2, 2, 2, 4, seed=each) for each in range(4)]
    others = [-tap if each == place else tap for each, tap in enumerate(taps)]
    found = losses.consistency(taps, others)
    np.testing.assert_allclose(found, 2 * [0.2, 0.2, 0.3, 0.3][place], atol=1e-4)


def test_consistency_of_zero_vectors_has_a_finite_gradient():
    zeros, ones = np.zeros((1, 2, 2, 2, 3), np.float32), np.ones((1, 2, 2, 2, 3), np.float32)
    loss = jax.value_and_grad(functools.partial(losses.consistency, weights=(1.0,)), argnums=(0, 1))
    for pair in ((zeros, zeros), (zeros, ones), (ones, zeros)):
        value, gradients = loss([pair[0]], [pair[1]])
        np.testing.assert_allclose(value, 1)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_domain_loss_agrees_with_numpy():
    logits, is_source = draw(4, 2, 3, 2), np.array([True, False, False, True])
    wanted = []
    for own, source in zip(logits, is_source, strict=True):
        share = 1 / (1 + np.exp(-own.astype(float)))
        wanted.append(-np.log(share if source else 1 - share))
    found = jax.jit(losses.domain_loss)(logits, is_source)
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-5)
    np.testing.assert_allclose(losses.domain_loss(logits, is_source.astype(int)), found, rtol=1e-6)


def test_domain_loss_of_large_logits_is_finite():
    logits = jnp.array([[1e4], [-1e4], [1e4]])
    value, gradient = jax.value_and_grad(losses.domain_loss)(logits, jnp.array([1, 1, 0]))
    np.testing.assert_allclose(value, 2e4 / 3)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(losses.domain_loss(0 * logits, jnp.array([1, 1, 0])), np.log(2))


def test_errors_say_what_was_wanted(logits, masks):
    with pytest.raises(ValueError, match=r"labels of logits \(2, 3, 4, 5, 3\) must have shape"):
        losses.cross_entropy(logits, masks[0])
    with pytest.raises(ValueError, match=r"weights of logits .* \(2, 3, 4, 5\), got \(2,\)"):
        losses.soft_dice_loss(logits, masks, weights=np.ones(2))
    with pytest.raises(ValueError, match="equally many, got 1, 2 and 4"):
        losses.consistency([logits], [logits] * 2)
    with pytest.raises(ValueError, match=r"equal shapes, got \(2, 3, 4, 5, 3\) and \(1, 3"):
        losses.consistency([logits], [logits[:1]], weights=(1.0,))
    with pytest.raises(ValueError, match=r"one entry for each of 2 particles, got shape \(3,\)"):
        losses.domain_loss(logits, np.ones(3))


def test_pseudo_labels_are_voxels_that_the_teacher_is_sure_of():
    told = jnp.full((1, 2, 2, 2), 0.9).at[0, 0, 0, 0].set(0.1).at[0, 1, 1].set(0.6)
    told = jnp.stack([told, 1 - told], axis=-1)  # one sure of a particle, two unsure
    logits = jax.random.normal(jax.random.key(0), told.shape)
    labels = (told[..., 1] > 0.5).astype(jnp.int32)
    weights = (jnp.max(told, axis=-1) > 0.85).astype(jnp.float32)
    expected = losses.cross_entropy(logits, labels, weights=weights)
    expected += losses.soft_dice_loss(logits, labels, weights=weights)
    np.testing.assert_allclose(losses.pseudo_loss(logits, told, 0.5, 0.85), expected, rtol=1e-6)
    gradient = jax.grad(losses.pseudo_loss)(logits, told, 0.5, 0.85)
    np.testing.assert_array_equal(gradient[0, 1, 1], 0)
    assert (jnp.abs(gradient[0, 0]) > 0).all()


def test_what_is_rare_needs_its_confidence_and_what_is_common_more():
    share, confidence = 0.02, 0.85
    particle = confidence / (1 - confidence)  # odds from which it is one, as published
    background = share / (1 - share) / particle  # below which it is none, though common
    edges = [particle * 1.01, particle * 0.99, background * 1.01, background * 0.99]
    told = jnp.array([odds / (1 + odds) for odds in edges]).reshape(1, 2, 2, 1)
    told = jnp.stack([1 - told, told], axis=-1)
    logits = jnp.zeros(told.shape)
    gradient = jax.grad(losses.pseudo_loss)(logits, told, share, confidence)
    pull = gradient[..., 1].ravel()
    assert pull[0] < 0 < pull[3]
    np.testing.assert_array_equal(pull[1:3], 0)
    assert np.isfinite(jax.grad(losses.pseudo_loss)(logits, told, 0.0, confidence)).all()
