"""Strength of noise against numpy's full spectra, and moments of what is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jimjax.ops import noise, spectrum
from jimjax.ops.correlation import standardize

SHAPE = (6, 9, 8)
KINDS = ("gaussian", "poisson", "speckle")


def white(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def slow_residual(volume, fraction):
    """Keeps the coefficients of the full spectrum one by one, and all of the last one's radius."""
    radius = np.linalg.norm(reference.full_frequencies(volume.shape), axis=-1)
    smallest = np.sort(radius, axis=None)[-round(fraction * radius.size)]
    return reference.apply_full_mask(np.asarray(volume, float), radius > smallest - 1e-9).real


@pytest.mark.parametrize("fraction", [0.1, 0.244, 0.5])
def test_average_first_is_the_variance_of_the_average_residual(fraction):
    volumes = white(3, *SHAPE)
    wanted = np.mean([slow_residual(volume, fraction) for volume in volumes], axis=0).var()
    found = jax.jit(functools.partial(noise.noise_variance, fraction=fraction))(volumes)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("fraction", [0.1, 0.244, 0.5])
def test_mean_of_variances_is_that_of_the_residuals(fraction):
    volumes = white(3, *SHAPE)
    wanted = np.mean([slow_residual(volume, fraction).var() for volume in volumes])
    options = {"fraction": fraction, "order": "mean-of-variances"}
    found = jax.jit(functools.partial(noise.noise_variance, **options))(volumes)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_single_voxel_counts_the_coefficients_that_are_kept():
    # Its spectrum is 1 throughout: the mean square of the residual is kept / voxels^2. The kept
    # share of a box of 32 has its lowest coefficient sqrt(347) = 18.63 voxels from the mean.
    volume = jnp.zeros((32, 32, 32)).at[3, 1, 4].set(1.0)
    number = np.fft.fftfreq(32, 1 / 32) ** 2
    squares = number[:, None, None] + number[:, None] + number
    kept = np.sum(squares >= 347)
    assert np.sum(squares > 347) < 0.244 * 32**3 <= kept
    found = noise.noise_variance(volume[None])
    np.testing.assert_allclose(found * 32**6, kept, rtol=1e-5)


def test_equal_volumes_have_one_variance_in_either_order():
    volumes = jnp.broadcast_to(white(*SHAPE), (5, *SHAPE))
    found = [noise.noise_variance(volumes, order=o) for o in ("average-first", "mean-of-variances")]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_averaging_first_divides_independent_noise_by_the_number_of_volumes():
    volumes = 3 * white(10, 16, 16, 16)
    kept = np.mean(reference.full(np.asarray(_mask(16)), (16,) * 3))  # close to 0.244
    averaged, separate = (
        noise.noise_variance(volumes, order=order)
        for order in ("average-first", "mean-of-variances")
    )
    # A variance of about 1000 kept coefficients, each of a real and an imaginary part, has a
    # relative error of sqrt(2 / 1000) = 0.045; five of them.
    np.testing.assert_allclose(averaged, 9 * kept / 10, rtol=0.22)
    np.testing.assert_allclose(separate, 9 * kept, rtol=0.22 / np.sqrt(10))


def _mask(size):
    return spectrum.highpass_mask((size,) * 3, fraction=noise.VOX_UDA_FRACTION)


def test_what_does_not_vary_fast_is_no_noise():
    z = np.arange(16)
    slow = np.cos(2 * np.pi * 3 * z / 16)[:, None, None] + np.full((16, 16, 16), 2.0)
    assert noise.noise_variance(jnp.asarray(slow, jnp.float32)[None]) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_zero_mean_and_the_variance(kind, key, compiled):
    """Poisson noise of rate s is the most skewed: a kurtosis of 3 + 1 / s."""
    volume, variance = standardize(white(32, 32, 32)), 0.04
    draw = compiled(functools.partial(noise.draw_noise, kind=kind))
    drawn = np.asarray(draw(key, volume, variance)) - volume
    kurtosis = {"gaussian": 3, "poisson": 3 + 1 / 0.2, "speckle": 9}[kind]
    assert abs(drawn.mean()) < 5 * np.sqrt(variance / drawn.size)
    np.testing.assert_allclose(drawn.var(), variance, rtol=5 * np.sqrt((kurtosis - 1) / drawn.size))


def test_gaussian_noise_is_normal(key):
    drawn = noise.draw_noise(key, jnp.zeros((32, 32, 32)), 4.0)
    shares = np.mean(np.abs(drawn)[..., None] < 2 * np.array([0.6745, 1.96]), axis=(0, 1, 2))
    np.testing.assert_allclose(shares, [0.5, 0.95], atol=5 * 0.5 / np.sqrt(32**3))


def test_poisson_noise_are_counts_of_the_rate_of_the_deviation(key):
    deviation = 0.25
    drawn = noise.draw_noise(key, jnp.zeros((32, 32, 32)), deviation**2, kind="poisson")
    counts = np.asarray(drawn) / np.sqrt(deviation) + deviation
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
    shares = np.bincount(np.rint(counts).astype(int).ravel(), minlength=3)[:3] / counts.size
    wanted = np.exp(-deviation) * np.array([1, deviation, deviation**2 / 2])
    np.testing.assert_allclose(shares, wanted, atol=5 * 0.5 / np.sqrt(counts.size))


def test_speckle_is_in_proportion_to_the_volume(key):
    volume = white(*SHAPE)
    speckle = noise.draw_noise(key, volume, 0.3, kind="speckle") - volume
    gaussian = noise.draw_noise(key, volume, 0.3) - volume
    np.testing.assert_allclose(speckle, volume * gaussian, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_variance_zero_is_none_and_gradients_stay_finite(kind, key):
    volume = white(*SHAPE)

    def total(volume, variance):
        return jnp.sum(noise.draw_noise(key, volume, variance, kind=kind) ** 2)

    np.testing.assert_array_equal(noise.draw_noise(key, volume, 0.0, kind=kind), volume)
    for variance in (0.0, 0.3):
        gradients = jax.grad(total, argnums=(0, 1))(volume, variance)
        assert all(np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_other_keys_draw_other_noise_in_every_voxel(kind, key):
    volume = white(*SHAPE)
    first, again, other = (
        noise.draw_noise(jax.random.key(seed), volume, 4.0, kind=kind) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    # Poisson counts of rate 2 agree in about a fifth of the voxels.
    assert np.mean(np.isclose(first, other)) < 0.3


def test_half_precision_stays(key):
    volume = white(*SHAPE).astype(jnp.bfloat16)
    assert all(noise.draw_noise(key, volume, 0.3, kind=k).dtype == jnp.bfloat16 for k in KINDS)


def test_errors_say_what_was_wanted(key):
    volumes = jnp.zeros((2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"volumes must be \(n, z, y, x\), one or more, got shape"):
        noise.noise_variance(volumes[0])
    with pytest.raises(ValueError, match=r"one or more, got shape \(0, 8, 8, 8\)"):
        noise.noise_variance(volumes[:0])
    with pytest.raises(ValueError, match=r"order must be among .* got 'variance-first'"):
        noise.noise_variance(volumes, order="variance-first")
    with pytest.raises(ValueError, match=r"fraction must be above 0 and at most 1, got 24\.4"):
        noise.noise_variance(volumes, fraction=24.4)
    with pytest.raises(ValueError, match=r"kind must be among .* got 'salt'"):
        noise.draw_noise(key, volumes[0], 1.0, kind="salt")
