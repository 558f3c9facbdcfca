"""What is known of masks: each penalty in cases solved by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jimjax.ops import resample, rotation
from jimjax.ops.rotation import Pose, identity
from jimjax.segment import priors

BOX = 12
LIMITS = {"smallest": 0.01, "largest": 0.25}
size = functools.partial(priors.size_penalty, **LIMITS)


def _cube(side, start=3):
    mask = np.zeros((BOX,) * 3, np.float32)
    mask[(slice(start, start + side),) * 3] = 1
    return mask


def test_size_inside_the_interval_costs_nothing(compiled):
    assert compiled(size)(_cube(4)) == 0


@pytest.mark.parametrize(("share", "factor"), [(0.5, 2.0), (0.0025, 4.0)])
def test_size_outside_costs_the_squared_logarithm_of_the_factor(share, factor):
    found = size(jnp.full((BOX,) * 3, share))
    np.testing.assert_allclose(found, np.log(factor) ** 2, rtol=2e-3)  # epsilon of 1e-6


@pytest.mark.parametrize("limits", [(0.0, 0.5), (0.4, 0.3), (0.1, 1.5)])
def test_empty_interval_of_sizes_is_an_error(limits):
    with pytest.raises(ValueError, match="0 < smallest <= largest <= 1"):
        priors.size_penalty(jnp.zeros((4, 4, 4)), smallest=limits[0], largest=limits[1])


@pytest.mark.parametrize("side", [3, 6])
def test_total_variation_of_a_cube_is_six(side):
    # Six faces of side^2 steps over (side^3 + 1)^(2/3).
    expected = 6 * side**2 / (side**3 + 1) ** (2 / 3)
    np.testing.assert_allclose(priors.total_variation(_cube(side)), expected, rtol=1e-5)


def test_scattered_voxels_are_more_ragged_than_a_cube_of_as_many():
    scattered = np.zeros((BOX,) * 3, np.float32)
    scattered[1:-1:3, 1:-1:3, 1:-1:3] = 1
    num = int(scattered.sum())
    assert num == 4**3
    assert priors.total_variation(scattered) > 2 * priors.total_variation(_cube(4))


def test_equal_masks_agree_soft_or_not():
    soft = jax.random.uniform(jax.random.key(0), (BOX,) * 3)
    np.testing.assert_allclose(priors.disagreement(soft, soft), 0, atol=1e-6)


def test_masks_without_overlap_disagree_by_one_but_for_the_smoothing():
    first, second = _cube(3, 0), _cube(3, 6)
    np.testing.assert_allclose(priors.disagreement(first, second), 1 - 1 / 55, rtol=1e-6)


def test_disagreement_of_hard_masks_is_one_less_dice():
    first, second = _cube(4, 2), _cube(4, 3)
    expected = 1 - (2 * 27 + 1) / (64 + 64 + 1)
    np.testing.assert_allclose(priors.disagreement(first, second), expected, rtol=1e-6)


def test_mask_moved_by_the_true_pose_agrees(compiled):
    source = np.zeros((13,) * 3, np.float32)
    source[3:6, 5:9, 4:11] = 1
    pose = Pose(rotation.about_axis(2, jnp.pi / 2), jnp.array([1.0, 0, -2]))
    turned = np.rot90(source, 1, axes=(2, 1))  # about z, from x to y
    target = np.roll(turned, (-2, 0, 1), axis=(0, 1, 2))
    disagree = compiled(lambda a, b, pose: priors.disagreement(resample.transform(a, pose), b))
    assert disagree(source, target, pose) < 1e-4
    assert disagree(source, target, identity()) > 0.3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_at_constant_masks_are_finite(value):
    mask = jnp.full((4, 4, 4), value)

    def total(p):
        return size(p) + priors.total_variation(p) + priors.disagreement(p, mask)

    assert np.all(np.isfinite(jax.grad(total)(mask)))


def test_gradients_are_those_of_differences(x64):
    mask = jax.random.uniform(jax.random.key(0), (4, 4, 4)) * 0.001 + 0.001
    check_grads(size, (mask,), order=1, modes=("fwd", "rev"))
    other = jax.random.uniform(jax.random.key(1), (4, 4, 4))
    check_grads(priors.disagreement, (mask, other), order=1, modes=("fwd", "rev"))
