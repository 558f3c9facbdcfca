"""Amplitudes and phases against full complex spectra in numpy, their laws and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

from jimjax.ops import fourier, shells, spectrum

SHAPES = [(6, 9, 8), (8, 6, 7)]


def noise(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def full_radius(shape: tuple[int, ...]) -> np.ndarray:
    return np.linalg.norm(reference.full_frequencies(shape), axis=-1)


def ball(size: int, radius: float) -> jax.Array:
    """A real-space mask with an edge of two voxels."""
    grid = np.indices((size,) * 3) - size // 2
    distance = np.linalg.norm(grid, axis=0)
    return jnp.asarray(np.clip((radius - distance) / 2 + 0.5, 0, 1), jnp.float32)


def test_highest_eighth_of_a_box_of_two_is_its_corner():
    # |k|^2 of the full spectrum: one 0, three 1/4, three 1/2, one 3/4.
    mask = spectrum.highpass_mask((2, 2, 2), fraction=1 / 8)
    np.testing.assert_array_equal(mask, np.zeros((2, 2, 2)) + np.eye(8)[7].reshape(2, 2, 2))


def test_shell_of_equal_radius_is_kept_or_dropped_as_a_whole():
    count = functools.partial(_num_kept, (2, 2, 2))
    assert [count(fraction=k / 8) for k in range(1, 9)] == [1, 4, 4, 4, 7, 7, 7, 8]


def _num_kept(shape, **options):
    mask = spectrum.highpass_mask(shape, **options)
    return int(np.sum(mask * fourier.hermitian_weights(shape)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.1, 0.244, 0.5, 1.0])
def test_highpass_mask_keeps_the_highest_ranks(shape, fraction):
    mask = reference.full(np.asarray(spectrum.highpass_mask(shape, fraction=fraction)), shape)
    radius = full_radius(shape)
    np.testing.assert_array_equal(mask, reference.opposite(mask))
    kept, dropped = radius[mask == 1], radius[mask == 0]
    assert dropped.size == 0 or kept.min() > dropped.max() + 1e-9
    shell = np.sum(np.isclose(radius, kept.min()))
    assert kept.size - shell < round(fraction * radius.size) <= kept.size


def test_highest_24_percent_of_a_box_of_32_lie_beyond_nyquist():
    mask = spectrum.highpass_mask((32, 32, 32), fraction=0.244)
    lowest = 32 * np.min(np.asarray(fourier.radial_frequency((32, 32, 32)))[np.asarray(mask) == 1])
    assert lowest == pytest.approx(18.6279, abs=1e-3)  # sqrt(347)
    assert _num_kept((32, 32, 32), fraction=0.244) / 32**3 == pytest.approx(0.244, abs=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_highpass_mask_by_radius_starts_at_its_part_of_the_largest(shape):
    radius = full_radius(shape)
    expected = reference.half(radius >= 0.6 * radius.max() - 1e-6)
    mask = spectrum.highpass_mask(shape, fraction=0.4, by="radius")
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("by", ["rank", "radius"])
def test_highpass_of_everything_changes_nothing(by):
    volume = noise((6, 9, 8)) + 3
    kept = spectrum.highpass(volume, fraction=1.0, by=by)
    np.testing.assert_allclose(kept, volume, atol=1e-5)


def test_highpass_agrees_with_the_full_spectrum(compiled):
    volume = noise((6, 9, 8))
    mask = reference.full(np.asarray(spectrum.highpass_mask((6, 9, 8), fraction=0.3)), (6, 9, 8))
    expected = reference.apply_full_mask(np.asarray(volume, float), mask)
    np.testing.assert_allclose(expected.imag, 0, atol=1e-12)  # the mask keeps a volume real
    highpass = compiled(functools.partial(spectrum.highpass, fraction=0.3))
    np.testing.assert_allclose(highpass(volume), expected.real, atol=1e-5)


def test_bfloat16_volume_is_filtered_in_float32():
    volume = noise((6, 6, 6))
    filtered = spectrum.highpass(volume.astype(jnp.bfloat16), fraction=0.3)
    assert filtered.dtype == jnp.bfloat16
    expected = spectrum.highpass(volume, fraction=0.3)
    np.testing.assert_allclose(filtered.astype(float), expected, atol=0.03)  # 8 bits of about 3


def _slow_swap(source, target, width):
    """Exchanges amplitudes of the full spectrum; complex, so that an uneven band shows."""
    a, b = np.fft.fftn(np.asarray(source, float)), np.fft.fftn(np.asarray(target, float))
    numbers = np.abs(reference.full_frequencies(source.shape) * np.array(source.shape)[::-1])
    in_band = np.max(numbers, axis=-1) < width - 0.5
    return np.fft.ifftn(np.where(in_band, np.abs(b) * np.exp(1j * np.angle(a)), a))


@pytest.mark.parametrize(
    ("shape", "fraction", "width"),
    [((8, 8, 8), 0.25, 1), ((9, 9, 9), 0.5, 2), ((6, 9, 8), 1.0, 3), ((10, 10, 10), 0.58, 2)],
)
def test_swap_agrees_with_the_full_spectrum(shape, fraction, width, compiled):
    source, target = noise(shape), noise(shape, 1) + 2
    expected = _slow_swap(source, target, width)
    np.testing.assert_allclose(expected.imag, 0, atol=1e-12)
    swap = compiled(functools.partial(spectrum.swap_amplitude, fraction=fraction))
    np.testing.assert_allclose(swap(source, target), expected.real, atol=1e-5)


def test_narrowest_swap_exchanges_the_mean_alone():
    source, target = noise((32, 32, 32)) + 1, noise((32, 32, 32), 1) - 4
    swapped = spectrum.swap_amplitude(source, target, fraction=0.1)
    expected = source - source.mean() + 4.0  # the size of the target's mean, the source's sign
    np.testing.assert_allclose(swapped, expected, atol=0.02)  # the target's mean is not quite -4


def test_swap_with_itself_changes_nothing():
    source = noise((6, 9, 8))
    np.testing.assert_allclose(
        spectrum.swap_amplitude(source, source, fraction=1.0), source, atol=1e-5
    )


def test_swap_into_nothing_gives_phase_zero_and_finite_gradients():
    target = noise((6, 6, 6))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(source, target):
        return jnp.sum(spectrum.swap_amplitude(source, target, fraction=1.0) ** 3)

    swapped = spectrum.swap_amplitude(jnp.zeros((6, 6, 6)), target, fraction=1.0)
    assert np.argmax(swapped) == 0  # all waves meet in voxel 0
    for source in (jnp.zeros((6, 6, 6)), jnp.ones((6, 6, 6))):
        for other in (target, jnp.zeros((6, 6, 6))):
            gradients = slopes(source, other)
            assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_phases_keep_amplitudes_and_the_low_band(shape, key, compiled):
    volume = noise(shape)
    scrambled = compiled(functools.partial(spectrum.phase_randomize, cutoff=0.2))(key, volume)
    # Full spectra: a result that was not Hermitian would have lost amplitude in the inverse.
    before, after = np.fft.fftn(np.asarray(volume, float)), np.fft.fftn(np.asarray(scrambled))
    scale = np.sqrt(np.prod(shape))
    np.testing.assert_allclose(np.abs(after) / scale, np.abs(before) / scale, atol=1e-5)
    is_low = full_radius(shape) <= 0.2 + 1e-6
    np.testing.assert_allclose(after[is_low] / scale, before[is_low] / scale, atol=1e-5)
    turned = np.abs(np.angle(after[~is_low] / before[~is_low]))
    assert np.mean(turned < 0.1) < 0.1  # 0.1 / pi of uniform phases, and half of the real ones


def test_random_phases_are_uniform_and_follow_the_key(key):
    volume = noise((16, 16, 16))
    one, same, other = (
        spectrum.phase_randomize(k, volume, cutoff=0.0) for k in (key, key, jax.random.key(1))
    )
    np.testing.assert_array_equal(one, same)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1  # 1 / 64 is one sigma
    phases = np.exp(1j * np.angle(np.fft.rfftn(one)[..., 1:-1]))
    # 16 * 16 * 7 phases: one sigma of the mean of a circular harmonic is 0.024.
    assert abs(phases.mean()) < 0.1
    assert abs((phases**2).mean()) < 0.1


def test_nothing_beyond_the_cutoff_changes_nothing(key):
    volume = noise((6, 9, 8))
    same = spectrum.phase_randomize(key, volume, cutoff=1.0)
    np.testing.assert_allclose(same, volume, atol=1e-5)


def test_cutoff_may_be_traced(key):
    volume = noise((8, 8, 8))
    traced = jax.jit(lambda cutoff: spectrum.phase_randomize(key, volume, cutoff=cutoff))
    expected = spectrum.phase_randomize(key, volume, cutoff=0.25)
    np.testing.assert_allclose(traced(0.25), expected, atol=1e-5)


def _slow_corrected(curves, cutoff, size):
    corrected = []
    for shell, (masked, randomized) in enumerate(
        zip(np.asarray(curves.masked, float), np.asarray(curves.randomized, float), strict=True)
    ):
        is_beyond = shell / size > cutoff
        corrected.append((masked - randomized) / (1 - randomized) if is_beyond else masked)
    return np.array(corrected)


def test_corrected_curve_is_that_of_the_definition(key, compiled):
    a, b, mask = noise((16, 16, 16)), noise((16, 16, 16), 1), ball(16, 5.0)
    curves = compiled(functools.partial(spectrum.corrected_fsc, cutoff=0.25))(key, a, b, mask)
    unmasked = shells.fourier_shell_correlation(a, b)
    np.testing.assert_allclose(curves.unmasked, unmasked, atol=1e-5)
    masked = reference.fourier_shell_correlation(
        np.asarray(a * mask, float), np.asarray(b * mask, float)
    )
    np.testing.assert_allclose(curves.masked, masked, atol=1e-5)
    np.testing.assert_allclose(curves.corrected, _slow_corrected(curves, 0.25, 16), atol=1e-5)


def test_correlation_that_a_mask_invents_is_taken_away(key):
    # A common mean under a tight mask correlates shells in which the halves share nothing.
    signal = fourier.bandpass(ball(16, 6.0) * 3 + noise((16, 16, 16), 2), high=0.15)
    a, b = (signal + 0.1 * noise((16, 16, 16), seed) for seed in (3, 4))
    curves = jax.jit(spectrum.corrected_fsc)(key, a, b, ball(16, 3.0), cutoff=0.2)
    invented = curves.masked[5:]
    assert np.min(invented) > 0.3
    assert np.mean(np.abs(curves.corrected[5:])) < 0.5 * np.mean(invented)


def test_corrected_curve_of_equal_halves_is_one(key):
    a = noise((12, 12, 12))
    curves = jax.jit(spectrum.corrected_fsc)(key, a, a, ball(12, 4.0), cutoff=0.2)
    np.testing.assert_allclose(curves.corrected, 1, atol=1e-4)
    assert np.max(np.abs(curves.randomized[5:])) < 0.9


def test_corrected_curve_of_nothing_is_finite(key):
    zeros, ones = jnp.zeros((8, 8, 8)), jnp.ones((8, 8, 8))

    @jax.jit
    @jax.value_and_grad
    def total(a):
        curves = spectrum.corrected_fsc(key, a, ones, ones, cutoff=0.2)
        return sum(jnp.sum(curve) for curve in curves)

    for a in (zeros, ones):
        value, gradient = total(a)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_gradients_agree_with_finite_differences(key, x64):
    a, b = (jnp.asarray(noise((4, 5, 6), seed), jnp.float64) for seed in (0, 1))
    mask = jnp.asarray(np.random.default_rng(2).uniform(size=(4, 5, 6)))

    def filtered(a, b):
        return spectrum.highpass(a, fraction=0.3), spectrum.swap_amplitude(a, b, fraction=1.0)

    def corrected(a, b, mask):  # and phase_randomize inside
        return spectrum.corrected_fsc(key, a, b, mask, cutoff=0.3)

    check_grads(jax.jit(filtered), (a, b), order=1, modes=("fwd", "rev"))
    check_grads(jax.jit(corrected), (a, b, mask), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_everything_lowers_for_every_platform(platform, key):
    def everything(key, a, b, mask):
        highest = spectrum.highpass(a, fraction=0.3)
        swapped = spectrum.swap_amplitude(a, b, fraction=0.5)
        return highest, swapped, spectrum.corrected_fsc(key, a, b, mask, cutoff=0.2)

    volume = noise((8, 8, 8))
    jax.export.export(jax.jit(everything), platforms=[platform])(key, volume, volume, volume)


def test_errors_say_what_was_wanted(key):
    volume = jnp.zeros((8, 8, 8))
    with pytest.raises(ValueError, match="fraction must be above 0 and at most 1, got 0"):
        spectrum.highpass(volume, fraction=0)
    with pytest.raises(ValueError, match='by must be "rank" or "radius", got \'shell\''):
        spectrum.highpass_mask((8, 8, 8), fraction=0.5, by="shell")
    with pytest.raises(
        ValueError, match=r"fraction must be at least 0\.25 in a box of 8, got 0\.2"
    ):
        spectrum.swap_amplitude(volume, volume, fraction=0.2)
    with pytest.raises(ValueError, match=r"target must have source's shape \(8, 8, 8\)"):
        spectrum.swap_amplitude(volume, volume[:4], fraction=0.5)
    with pytest.raises(ValueError, match=r"volume must be \(z, y, x\), got shape \(8, 8\)"):
        spectrum.phase_randomize(key, volume[0], cutoff=0.2)
    with pytest.raises(ValueError, match=r"mask must have a's shape \(8, 8, 8\)"):
        spectrum.corrected_fsc(key, volume, volume, volume[:4], cutoff=0.2)


def test_radial_power_is_the_mean_over_shells_of_the_full_spectrum():
    volumes = jnp.stack([noise((8, 9, 10), seed) for seed in range(3)])
    power = np.mean(np.abs(np.fft.fftn(volumes, axes=(1, 2, 3))) ** 2, axis=0)
    frequencies = reference.full_frequencies((8, 9, 10))
    shell = np.round(8 * np.linalg.norm(frequencies, axis=-1)).astype(int)
    expected = [power[shell == r].mean() for r in range(5)]
    np.testing.assert_allclose(spectrum.radial_power(volumes), expected, rtol=1e-4)


def test_volumes_of_one_colour_are_given_another(compiled):
    white = jnp.stack([noise((16, 16, 16), seed) for seed in range(40)])
    falling = 1 / (1 + np.arange(9.0))
    own = spectrum.radial_power(white)
    match = compiled(lambda v: spectrum.match_power(v, own, falling))
    coloured = jnp.stack([match(volume) for volume in white])
    np.testing.assert_allclose(spectrum.radial_power(coloured)[1:], falling[1:], rtol=0.1)
    np.testing.assert_allclose(coloured.mean((1, 2, 3)), white.mean((1, 2, 3)), atol=1e-5)
    back = spectrum.match_power(coloured[0], jnp.asarray(falling), own)
    np.testing.assert_allclose(back, white[0], atol=2e-2)


def test_matched_to_its_own_power_a_volume_is_as_it_was_and_no_power_is_no_division():
    volume = noise((8, 8, 8))
    power = spectrum.radial_power(volume[None])
    np.testing.assert_allclose(spectrum.match_power(volume, power, power), volume, atol=1e-5)
    nothing = jnp.zeros(5)
    np.testing.assert_allclose(spectrum.match_power(volume, nothing, power), volume, atol=1e-5)
    with pytest.raises(ValueError, match=r"target_power must have shape \(5,\), got \(4,\)"):
        spectrum.match_power(volume, power, power[:4])
    with pytest.raises(ValueError, match="volumes must be"):
        spectrum.radial_power(volume)
