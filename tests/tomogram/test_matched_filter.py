import numpy as np
import pytest

from jimjax.tomogram import matched_filter


def blob(shape, place, width=3.0):
    """A Gaussian at (z, y, x)."""
    grid = np.indices(shape) - np.reshape(place, (3, 1, 1, 1))
    return np.exp(-(grid**2).sum(0) / (2 * width**2)).astype(np.float32)


def test_voxel_of_a_coarser_tomogram_lies_where_the_multiple_was():
    coarse = matched_filter.coarsen(blob((30, 31, 36), (12, 18, 15)), 3)
    assert coarse.shape == (10, 11, 12)
    np.testing.assert_allclose(coarse, blob(coarse.shape, (4, 6, 5), 1.0), atol=0.01)


@pytest.mark.parametrize("size", [24, 25, 27])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_coarser_template_keeps_its_centre(size, factor):
    coarse = matched_filter.coarsen_template(blob((size,) * 3, (size // 2,) * 3), factor)
    side = len(coarse)
    assert side * factor >= size
    expected = blob((side,) * 3, (side // 2,) * 3, 3.0 / factor)
    np.testing.assert_allclose(coarse, expected, atol=0.01)


def test_binning_keeps_band_and_particle():
    assert matched_filter.choose_binning(0.13, 40) == 3
    assert matched_filter.choose_binning(0.01, 40) == 5
    assert matched_filter.choose_binning(0.5, 40) == 1


@pytest.mark.parametrize("size", [12, 15, 30])
def test_a_template_is_cut_or_padded_about_its_centre_on_its_ground(size):
    template = 5 + blob((size,) * 3, (size // 2,) * 3, 1.5)
    fitted = matched_filter.fit_template(template, 9.0)
    side = matched_filter.mask_side(9.0)
    expected = blob((side,) * 3, (side // 2,) * 3, 1.5)
    mask = matched_filter.soft_mask(side, 9.0)
    np.testing.assert_allclose(fitted, expected * mask, atol=0.01)


def test_mask_ends_inside_its_cube():
    for diameter in (8.0, 9.5, 21.3):
        mask = matched_filter.soft_mask(matched_filter.mask_side(diameter), diameter)
        assert mask[0].max() == mask[:, -1].max() == 0
        assert mask.max() == 1


def test_filtered_noise_is_flat_in_the_measured_band_and_of_unit_variance():
    shape, cutoff, tilts = (48, 48, 48), 0.3, (-60.0, 60.0)
    random = np.random.default_rng(0)
    kz, ky, kx = np.meshgrid(*[np.fft.fftfreq(48)] * 2, np.fft.rfftfreq(48), indexing="ij")
    steepness = np.rad2deg(np.arctan2(np.abs(kz), np.abs(kx)))
    measured, radius = steepness <= 60, np.sqrt(kz**2 + ky**2 + kx**2)
    spectrum = np.fft.rfftn(random.normal(size=shape)) * measured / (0.05 + radius)
    noise = np.fft.irfftn(spectrum, s=shape, axes=(0, 1, 2))
    noise = (noise / noise.std()).astype(np.float32)
    kernel = matched_filter.whitening_kernel(noise, 16, cutoff=cutoff, tilt_range=tilts)
    around = np.zeros(shape, np.float32)
    around[:16, :16, :16] = kernel
    response = np.abs(np.fft.rfftn(around))
    filtered = spectrum / spectrum.std() * response
    power = np.abs(filtered) ** 2
    inside = (measured > 0) & (radius > 0.1) & (radius < 0.22)
    low, high = (power[inside & (np.abs(radius - k) < 0.03)].mean() for k in (0.12, 0.2))
    assert 0.5 < low / high < 2  # 5 before
    assert power[radius > 0.36].mean() < 0.03 * power[inside].mean()
    in_wedge = (steepness > 80) & (radius > 0.1)
    assert (response[in_wedge] ** 2).mean() < 0.1 * (response[inside] ** 2).mean()
    real = np.fft.irfftn(np.fft.rfftn(noise) * np.fft.rfftn(around), s=shape, axes=(0, 1, 2))
    assert real.var() == pytest.approx(1, abs=0.35)  # the window blurs the response
