"""Fourier space against numpy and scipy, its laws, and curves worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

from jimjax.ops import fourier, optics

SHAPES = [(16, 16, 16), (15, 15, 15), (8, 9, 12)]
CTF = {
    "voxel_size": 4.0,
    "defocus": 20000.0,
    "voltage": 300.0,
    "spherical_aberration": 2.7,
    "amplitude_contrast": 0.07,
}


def noise(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_point_at_the_centre_has_a_flat_real_spectrum(shape, compiled):
    centre = tuple(size // 2 for size in shape)
    spectrum = compiled(fourier.rfft)(jnp.zeros(shape).at[centre].set(1.0))
    np.testing.assert_allclose(spectrum, np.ones(fourier.half_shape(shape)), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectrum_agrees_with_numpy(shape):
    volume = np.asarray(noise(shape), float)
    expected = reference.half(np.fft.fftn(np.fft.ifftshift(volume)))
    np.testing.assert_allclose(fourier.rfft(noise(shape)), expected, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_returns_the_volume(shape, compiled):
    volume = noise(shape)
    inverse = compiled(functools.partial(fourier.irfft, shape=shape))
    np.testing.assert_allclose(inverse(fourier.rfft(volume)), volume, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_frequencies_agree_with_numpy(shape):
    expected = reference.full_frequencies(shape)[:, :, : shape[2] // 2 + 1].copy()
    expected[..., 0] = np.abs(expected[..., 0])  # rfft counts the Nyquist of x as positive
    np.testing.assert_allclose(fourier.frequencies(shape), expected, atol=1e-7)
    np.testing.assert_allclose(
        fourier.radial_frequency(shape), np.linalg.norm(expected, axis=-1), atol=1e-7
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_hermitian_weights_count_the_full_spectrum(shape):
    volume = np.asarray(noise(shape))
    power = np.abs(fourier.rfft(volume)) ** 2
    weights = fourier.hermitian_weights(shape)
    assert weights.sum() == np.prod(shape)
    # Parseval
    np.testing.assert_allclose((weights * power).sum(), volume.size * (volume**2).sum(), rtol=1e-5)


def test_bandpass_mask_of_a_cube_keeps_its_face():
    mask = fourier.bandpass_mask((8, 8, 8), high=0.25, norm="max")
    kept = np.abs(np.fft.fftfreq(8)) <= 0.25
    expected = kept[:, None, None] & kept[None, :, None] & kept[None, None, :5]
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.1, 1 / 3), (0.2, 0.25)])
def test_bandpass_mask_agrees_with_the_full_spectrum(shape, low, high):
    radius = np.linalg.norm(reference.full_frequencies(shape), axis=-1)
    expected = (radius >= low - 1e-6) & (radius <= high + 1e-6)
    np.testing.assert_array_equal(
        fourier.bandpass_mask(shape, low=low, high=high), reference.half(expected)
    )


def test_soft_edge_falls_as_a_raised_cosine(compiled):
    mask = compiled(lambda soft: fourier.bandpass_mask((16, 16, 16), high=0.125, soft=soft))
    expected = [1, 1, 1, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5, 0.5 - 0.5 * np.cos(np.pi / 4), 0, 0, 0]
    # A frequency counts as 1e-6 lower than it is, at a slope of at most pi / 2 / 0.25.
    np.testing.assert_allclose(mask(jnp.array(0.25))[0, 0], expected, atol=1e-5)


def test_soft_mask_has_finite_gradients_for_a_hard_edge_too():
    def total(high, soft):
        return jnp.sum(fourier.bandpass_mask((8, 8, 8), high=high, soft=soft))

    for soft in (0.0, 0.1):
        assert np.all(np.isfinite(jax.grad(total, (0, 1))(0.25, soft)))


def test_bandpass_without_the_mean_gives_zero_mean(compiled):
    filtered = compiled(lambda v: fourier.bandpass(v, low=0.01))(noise((9, 9, 9)) + 5)
    np.testing.assert_allclose(filtered.mean(), 0.0, atol=1e-5)


def test_bandpass_twice_is_once():
    once = fourier.bandpass(noise((9, 10, 11)), high=0.3)
    np.testing.assert_allclose(fourier.bandpass(once, high=0.3), once, atol=1e-5)


@pytest.mark.parametrize(("size", "keep", "out"), [(12, 7, 9), (9, 9, 9), (8, 8, 11), (10, 1, 4)])
def test_spectral_pool_agrees_with_scipy(size, keep, out, compiled):
    volume = noise((size,) * 3 + (2,))
    expected = reference.spectral_pool(np.asarray(volume, float), keep, out)
    pool = compiled(functools.partial(fourier.spectral_pool, keep=keep, out=out))
    np.testing.assert_allclose(pool(volume), expected, atol=1e-5)
    np.testing.assert_allclose(pool(volume[..., 0]), expected[..., 0], atol=1e-5)


def test_spectral_pool_scales_a_constant_by_the_root_of_the_ratio_of_volumes():
    pooled = fourier.spectral_pool(jnp.ones((30, 30, 30)), keep=22, out=26)
    np.testing.assert_allclose(pooled, (30 / 26) ** 1.5, rtol=1e-5)


def test_spectral_pool_without_loss_is_orthonormal():
    matrix = fourier.spectral_pool_matrix(8, 8, 11)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(8), atol=1e-12)


@pytest.mark.parametrize(("small", "large"), [(8, 12), (8, 13), (9, 12), (9, 13), (8, 8)])
def test_resizing_up_and_down_is_the_identity(small, large, compiled):
    volume = noise((small,) * 3)
    up = compiled(functools.partial(fourier.fourier_resize, size=large))(volume)
    down = compiled(functools.partial(fourier.fourier_resize, size=small))(up)
    np.testing.assert_allclose(down, volume, atol=1e-5)


@pytest.mark.parametrize("sizes", [(5, 8, 9), (12, 13, 7)])
def test_resizing_preserves_the_mean(sizes):
    volume = noise((9, 10, 8))
    resized = fourier.fourier_resize(volume, sizes)
    assert resized.shape == sizes
    np.testing.assert_allclose(resized.mean(), volume.mean(), atol=1e-6)


@pytest.mark.parametrize("out", [10, 11, 24, 25])
@pytest.mark.parametrize("size", [16, 17])
def test_resizing_a_wave_samples_the_same_wave_about_the_centre(size, out):
    def wave(n):
        return np.cos(2 * np.pi * 3 * (np.arange(n) - n // 2) / n + 0.4)

    volume = jnp.asarray(np.broadcast_to(wave(size), (3, 3, size)), jnp.float32)
    resized = fourier.fourier_resize(volume, (3, 3, out))
    np.testing.assert_allclose(resized, np.broadcast_to(wave(out), (3, 3, out)), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_shells_of_a_full_spectrum(shape, compiled):
    volume = noise(shape)
    power = jnp.abs(fourier.rfft(volume)) ** 2
    expected = reference.shell_average(np.abs(np.fft.fftn(np.asarray(volume, float))) ** 2)
    average = compiled(functools.partial(fourier.shell_average, shape=shape))(power)
    np.testing.assert_allclose(average, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_fsc_agrees_with_a_loop_over_shells(shape, compiled):
    a, b = noise(shape), noise(shape) + noise(shape, 1)
    expected = reference.fourier_shell_correlation(np.asarray(a, float), np.asarray(b, float))
    curve = compiled(fourier.fourier_shell_correlation)(a, b)
    assert curve.shape == (min(shape) // 2 + 1,)
    np.testing.assert_allclose(curve, expected, atol=1e-5)


def test_fsc_of_a_volume_with_itself_and_its_negative():
    volume = noise((9, 9, 9))
    np.testing.assert_allclose(fourier.fourier_shell_correlation(volume, volume), 1, rtol=1e-5)
    np.testing.assert_allclose(
        fourier.fourier_shell_correlation(volume, -3 * volume), -1, rtol=1e-5
    )


def test_fsc_is_zero_where_a_shell_is_empty_and_its_gradient_finite():
    volume = fourier.bandpass(noise((8, 8, 8)), high=0.25)
    constant = jnp.ones((8, 8, 8))
    curve = fourier.fourier_shell_correlation(jnp.zeros((8, 8, 8)), volume)
    np.testing.assert_array_equal(curve, 0)
    gradient = jax.grad(lambda a: jnp.sum(fourier.fourier_shell_correlation(a, volume)))
    assert np.all(np.isfinite(gradient(constant)))
    assert np.all(np.isfinite(gradient(jnp.zeros((8, 8, 8)))))


def test_fsc_inside_a_mask_ignores_the_rest():
    volume, mask = noise((8, 8, 8)), jnp.zeros((8, 8, 8)).at[2:6, 2:6, 2:6].set(1.0)
    changed = volume + (1 - mask) * noise((8, 8, 8), 1)
    curve = fourier.fourier_shell_correlation(volume, changed, mask=mask)
    np.testing.assert_allclose(curve, 1, rtol=1e-5)


def test_resolution_interpolates_the_first_crossing():
    # Between shells 2 (0.8) and 3 (0.2) the curve is 0.5 at 2.5; the later rise is ignored.
    curve = [1.0, 0.9, 0.8, 0.2, 0.9]
    angstrom, is_at_nyquist = fourier.fsc_resolution(curve, 3.0, threshold=0.5)
    assert angstrom == pytest.approx(8 * 3.0 / 2.5)
    assert not is_at_nyquist
    odd = fourier.fsc_resolution(curve, 3.0, threshold=0.5, size=9)
    assert odd.angstrom == pytest.approx(9 * 3.0 / 2.5)


def test_curve_that_never_crosses_is_at_nyquist():
    assert fourier.fsc_resolution([1.0, 0.9, 0.5], 3.0) == fourier.Resolution(6.0, True)


def test_curve_that_starts_below_has_the_box_as_resolution():
    assert fourier.fsc_resolution([1.0, 0.1, 0.5], 3.0) == fourier.Resolution(12.0, False)


def test_electron_wavelength_at_300_kilovolt():
    assert optics.electron_wavelength(300.0) == pytest.approx(0.0196875, rel=1e-5)
    assert optics.electron_wavelength(200.0) == pytest.approx(0.0250793, rel=1e-5)


def test_ctf_at_zero_frequency_is_minus_the_amplitude_contrast():
    assert fourier.ctf((8, 8, 8), **CTF)[0, 0, 0] == pytest.approx(-0.07, rel=1e-5)


def test_ctf_without_aberration_is_zero_where_the_phase_is_pi():
    options = {**CTF, "spherical_aberration": 0.0, "amplitude_contrast": 0.0}
    # pi lambda k^2 defocus = pi
    zero = 4.0 / np.sqrt(optics.electron_wavelength(300.0) * 20000.0)  # cycles per voxel
    values = fourier.ctf(jnp.array([0.9 * zero, zero, 1.1 * zero]), **options)
    assert values[0] < -0.1
    assert values[2] > 0.1
    assert abs(values[1]) < 1e-5


def test_phase_plate_of_a_quarter_wave_gives_full_contrast_at_low_frequency():
    options = {**CTF, "amplitude_contrast": 0.0}
    assert fourier.ctf((8, 8), phase_shift=np.pi / 2, **options)[0, 0] == pytest.approx(-1.0)


def test_b_factor_damps_as_a_gaussian(compiled):
    frequency = jnp.array([0.0, 0.2, 0.5])
    damped = compiled(lambda b: fourier.ctf(frequency, b_factor=b, **CTF))(jnp.array(100.0))
    expected = np.exp(-100.0 / 4 * (np.asarray(frequency) / 4.0) ** 2)
    np.testing.assert_allclose(damped / fourier.ctf(frequency, **CTF), expected, rtol=1e-4)


def test_gradients_agree_with_finite_differences(x64):
    volume, other = (jnp.asarray(noise((4, 5, 6), seed), jnp.float64) for seed in (0, 1))
    both = ("fwd", "rev")
    check_grads(jax.jit(fourier.fourier_shell_correlation), (volume, other), 1, modes=both)
    check_grads(
        jax.jit(lambda v: fourier.bandpass(v, high=0.3, soft=0.1)), (volume,), 1, modes=both
    )
    check_grads(jax.jit(lambda v: fourier.fourier_resize(v, 3)), (volume,), 1, modes=both)
    check_grads(
        jax.jit(lambda v: fourier.spectral_pool(v, keep=3, out=4)), (volume,), 1, modes=both
    )


def test_errors_say_what_was_wanted():
    with pytest.raises(ValueError, match=r"must have shape \(4, 4, 3\), got \(4, 4, 4\)"):
        fourier.irfft(jnp.zeros((4, 4, 4)), (4, 4, 4))
    with pytest.raises(
        ValueError, match="keep must be between 1 and min\\(size, out\\) = 4, got 5"
    ):
        fourier.spectral_pool_matrix(4, 5, 8)
    with pytest.raises(ValueError, match='norm must be "l2"'):
        fourier.bandpass_mask((4, 4, 4), norm="l1")
    with pytest.raises(ValueError, match=r"b must have a's shape \(4, 4, 4\), got \(4, 4, 5\)"):
        fourier.fourier_shell_correlation(jnp.zeros((4, 4, 4)), jnp.zeros((4, 4, 5)))
    with pytest.raises(ValueError, match="fsc must be finite, shell 1 is not"):
        fourier.fsc_resolution([1.0, np.nan, 0.1], 1.0)
    with pytest.raises(ValueError, match="a box of 10 has 6 shells, fsc has 3"):
        fourier.fsc_resolution([1.0, 0.5, 0.1], 1.0, size=10)
    with pytest.raises(ValueError, match="voltage must be positive, in kV, got 0"):
        fourier.ctf((4, 4), **{**CTF, "voltage": 0.0})
