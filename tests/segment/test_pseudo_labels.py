"""Rough masks: the voxel-wise mixture against scikit-learn, parts against scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.mixture import GaussianMixture

from jimjax.segment.pseudo_labels import (
    CENTRE_WIDTH,
    central_component,
    central_components,
    corrected_labels,
    high_part,
    pseudo_labels,
    voxel_mixture,
)

BOX, SIGMA = 16, 1.0


def _ball(centre=(8, 8, 8), radius=4.0):
    points = np.indices((BOX,) * 3).transpose(1, 2, 3, 0)
    return np.linalg.norm(points - np.array(centre), axis=-1) <= radius


def _particle(seed=0, noise=2.0, centre=(8, 8, 8)):
    """A dark ball in noise."""
    generator = np.random.default_rng(seed)
    volume = noise * generator.normal(size=(BOX,) * 3) - 2.0 * _ball(centre)
    return volume.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_mixture_is_that_of_scikit_learn_from_the_same_start(seed, compiled):
    volume = _particle(seed)
    fit = compiled(functools.partial(voxel_mixture, sigma=SIGMA, sign=-1.0))
    found, probability = fit(volume)
    smooth = -ndimage.gaussian_filter(volume.astype(float), SIGMA, mode="reflect", truncate=8)
    rows = ((smooth - smooth.mean()) / smooth.std()).reshape(-1, 1)
    is_tail = rows[:, 0] > 2
    parts = [rows[~is_tail], rows[is_tail]]
    theirs = GaussianMixture(
        2,
        weights_init=[len(part) / len(rows) for part in parts],
        means_init=[part.mean(axis=0) for part in parts],
        precisions_init=[[[1 / part.var()]] for part in parts],
        max_iter=60,
        tol=0,
    )
    with pytest.warns(match="did not converge"):
        theirs.fit(rows)
    np.testing.assert_allclose(found.means, theirs.means_, atol=2e-3)
    np.testing.assert_allclose(np.exp(found.log_weights), theirs.weights_, atol=2e-3)
    expected = theirs.predict_proba(rows)[:, 1].reshape(volume.shape)
    np.testing.assert_allclose(probability, expected, atol=1e-2)  # float32 through 60 steps


def test_labels_are_the_dark_ball_in_little_noise():
    volumes = np.stack([_particle(seed, noise=0.3) for seed in range(2)])
    found = pseudo_labels(volumes, sigma=0.5, sign=-1.0) > 0.5
    assert np.mean(found != _ball()) < 0.02


def test_light_labels_are_the_dark_ones_of_the_negative():
    volumes = _particle()[None]
    dark = pseudo_labels(volumes, sigma=SIGMA, sign=-1.0)
    np.testing.assert_allclose(pseudo_labels(-volumes, sigma=SIGMA, sign=1.0), dark, atol=1e-6)


def test_scale_and_offset_change_no_label():
    volumes = _particle()[None]
    found = pseudo_labels(50 * volumes + 7, sigma=SIGMA, sign=-1.0)
    np.testing.assert_allclose(
        found, pseudo_labels(volumes, sigma=SIGMA, sign=-1.0), atol=1e-2
    )  # float32 through 60 steps


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_volume_has_no_particle(value):
    volumes = np.full((1, BOX, BOX, BOX), value, np.float32)
    labels = pseudo_labels(volumes, sigma=SIGMA, sign=-1.0)
    np.testing.assert_array_equal(labels, np.zeros_like(labels))
    corrected = corrected_labels(volumes, labels, sigma=SIGMA, sign=-1.0, height=0.5)
    np.testing.assert_array_equal(corrected, np.zeros_like(labels))


def _slow_component(mask):
    """scipy's parts, and the one with the largest sum of the Gaussian."""
    points = np.indices(mask.shape).transpose(1, 2, 3, 0) - np.array(mask.shape) // 2
    squares = np.sum((points / (CENTRE_WIDTH * np.array(mask.shape))) ** 2, axis=-1)
    parts, num = ndimage.label(mask)
    sums = ndimage.sum_labels(np.exp(-squares / 2), parts, range(1, num + 1))
    return parts == 1 + np.argmax(sums)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.4])
def test_component_is_scipys(density):
    masks = np.random.default_rng(1).random((4, 12, 12, 12)) < density
    expected = np.stack([_slow_component(mask) for mask in masks])
    np.testing.assert_array_equal(central_components(masks), expected)


def test_small_part_in_the_middle_beats_a_large_one_in_the_corner(compiled):
    middle, corner = _ball(radius=2.0), _ball((0, 0, 0), radius=6.0)
    np.testing.assert_array_equal(compiled(central_component)(middle | corner), middle)


def test_parts_do_not_hang_together_around_the_box():
    mask = np.zeros((BOX,) * 3, bool)
    mask[8, 8, :3] = mask[8, 8, -1] = True
    expected = mask.copy()
    expected[8, 8, -1] = False
    np.testing.assert_array_equal(central_component(jnp.asarray(mask)), expected)


def test_long_winding_part_is_one():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, ::2, :] = True
    mask[4, 1::4, 0] = mask[4, 3::4, -1] = True
    np.testing.assert_array_equal(central_component(jnp.asarray(mask)), mask)


def test_empty_mask_has_an_empty_component():
    assert not np.any(central_component(jnp.zeros((4, 5, 6), bool)))


def test_high_part_ends_at_half_height(compiled):
    values = np.zeros((5, 5, 50), np.float32)
    values[2, 2] = np.linspace(1, 0, 50)
    mask = values > 0.01
    found = compiled(functools.partial(high_part, height=0.5))(values, mask)
    # Of 49 voxels inside, a fiftieth is none: the height is the highest voxel, 1, around 0.
    np.testing.assert_array_equal(found, values > 0.5)


def test_high_part_of_nothing_is_nothing():
    values = jax.random.normal(jax.random.key(0), (4, 4, 4))
    assert not np.any(high_part(values, jnp.zeros((4, 4, 4), bool), height=0.5))
    assert np.all(np.isin(high_part(values, jnp.ones((4, 4, 4), bool), height=0.5), [0, 1]))


def test_corrected_labels_are_inside_the_rough_ones_and_nearer_to_the_truth():
    volumes = np.stack([_particle(seed, noise=1.5, centre=(7, 9, 8)) for seed in range(4)])
    truth = _ball((7, 9, 8))
    rough = pseudo_labels(volumes, sigma=SIGMA, sign=-1.0)
    whole, high = (
        corrected_labels(volumes, rough, sigma=SIGMA, sign=-1.0, height=height)
        for height in (0.0, 0.5)
    )
    np.testing.assert_array_equal(whole, np.where(central_components(rough > 0.5), rough, 0))
    assert np.all((high == 0) | (high == whole))
    assert np.mean((high > 0.5) != truth) < np.mean((rough > 0.5) != truth)
