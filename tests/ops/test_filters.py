"""Gaussian filters against scipy, and slabs against the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from jimjax.ops import filters


def noise(shape=(9, 10, 11), seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def test_gaussian_of_a_far_point_is_the_bell():
    volume = jnp.zeros((21, 21, 21)).at[10, 10, 10].set(1.0)
    smooth = filters.gaussian(volume, 1.5)
    bell = np.exp(-(np.arange(-10, 11) ** 2) / (2 * 1.5**2))
    bell /= bell.sum()
    np.testing.assert_allclose(smooth, np.einsum("z,y,x->zyx", bell, bell, bell), atol=1e-8)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_gaussian_agrees_with_scipy(sigma, compiled):
    volume = noise()
    expected = ndimage.gaussian_filter(np.asarray(volume, np.float64), sigma, truncate=12)
    # scipy cuts at 12 sigma and mirrors again and again.
    np.testing.assert_allclose(compiled(filters.gaussian)(volume, sigma), expected, atol=5e-6)


def test_gaussian_keeps_a_constant_and_the_mean():
    np.testing.assert_allclose(filters.gaussian(jnp.full((5, 6, 7), 3.0), 2.0), 3.0, rtol=1e-6)


def test_gaussian_without_width_changes_nothing_and_has_a_finite_gradient():
    volume = noise()
    np.testing.assert_array_equal(filters.gaussian(volume, 0.0), volume)
    gradient = jax.grad(lambda v, s: jnp.sum(filters.gaussian(v, s) ** 2), (0, 1))(volume, 0.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient)


def test_gaussian_of_two_widths_is_one_of_their_root_sum_square():
    # Exact on the infinite grid; the sampled bells of 2 and 3 voxels agree to rounding.
    volume = jnp.zeros((41, 41, 41)).at[20, 20, 20].set(1.0)
    twice = filters.gaussian(filters.gaussian(volume, 2.0), 3.0)
    np.testing.assert_allclose(twice, filters.gaussian(volume, np.sqrt(13.0)), atol=1e-7)


def test_gaussian_gradients_agree_with_finite_differences(x64):
    arguments = (noise((4, 5, 6), dtype=jnp.float64), 1.3)
    check_grads(jax.jit(filters.gaussian), arguments, order=1, modes=("fwd", "rev"))


def test_bfloat16_sums_in_float32():
    # 1 + 2^-7 is the next bfloat16 after 1: sums in bfloat16 would lose it.
    volume = jnp.full((32, 4, 4), 1 + 2**-7, jnp.bfloat16)
    smooth = filters.gaussian(volume, 4.0)
    assert smooth.dtype == jnp.bfloat16
    assert jnp.all(smooth == volume)


def test_difference_of_gaussians_finds_the_blob(compiled):
    z, y, x = np.indices((24, 24, 24)) - np.array([10, 12, 9])[:, None, None, None]
    volume = jnp.asarray(np.exp(-(x**2 + y**2 + z**2) / (2 * 2.0**2)), jnp.float32)
    response = compiled(functools.partial(filters.difference_of_gaussians, ratio=1.1))(volume, 2.0)
    assert np.unravel_index(np.argmax(response), response.shape) == (10, 12, 9)
    expected = filters.gaussian(volume, 2.0) - filters.gaussian(volume, 2.2)
    np.testing.assert_allclose(response, expected, atol=1e-6)


def test_ratio_of_one_is_refused():
    with pytest.raises(ValueError, match="ratio must be above 1, got 1"):
        filters.difference_of_gaussians(noise(), 1.0, ratio=1)


def _local(volume):
    """Depends on two sections to either side and on the faces: zeros are not the mirror."""
    return volume + _neighbour_sum(volume) ** 2


def _neighbour_sum(volume):
    padded = jnp.pad(volume, ((2, 2), (1, 1), (0, 0)), constant_values=0.5)
    depth, height = volume.shape[:2]
    return sum(padded[i : i + depth, j : j + height] for i in range(5) for j in (0, 2))


@pytest.mark.parametrize("depth", [4, 12, 13, 17])
@pytest.mark.parametrize("thickness", [1, 4, 5])
def test_slabs_give_what_the_whole_gives(depth, thickness, compiled):
    volume = noise((depth, 5, 6))
    by_slabs = functools.partial(filters.in_slabs, _local, halo=2, thickness=thickness)
    # Sums of ten float32 squares in another order.
    np.testing.assert_allclose(compiled(by_slabs)(volume), _local(volume), rtol=1e-4, atol=1e-5)


def test_a_halo_too_small_is_seen():
    volume = noise((17, 5, 6))
    assert (
        np.abs(filters.in_slabs(_local, volume, halo=1, thickness=4) - _local(volume)).max() > 0.1
    )


def test_gradient_through_slabs_is_that_of_the_whole():
    volume = noise((13, 5, 6))
    whole = jax.grad(lambda v: jnp.sum(jnp.sin(_local(v))))(volume)
    slabs = jax.grad(lambda v: jnp.sum(jnp.sin(filters.in_slabs(_local, v, halo=2, thickness=4))))
    np.testing.assert_allclose(slabs(volume), whole, rtol=1e-3, atol=1e-4)  # sums of ~100 terms


def test_slabs_check_their_options():
    with pytest.raises(ValueError, match="got -1 and 4"):
        filters.in_slabs(_local, noise(), halo=-1, thickness=4)
    with pytest.raises(ValueError, match=r"function must keep the shape \(9, 10, 11\)"):
        filters.in_slabs(lambda v: v[1:], noise(), halo=8)
    with pytest.raises(ValueError, match=r"volume must be \(z, y, x\)"):
        filters.in_slabs(_local, noise((3, 3)), halo=1)
