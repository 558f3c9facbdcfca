"""Simulation: the truth it reports, its signal-to-noise ratio, its wedge and its contrast."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jimjax.data.phantom import demo_phantoms, render
from jimjax.data.simulate import CHUNK, CtfParameters, simulate
from jimjax.data.structures import density_from_file
from jimjax.io.errors import InputError
from jimjax.ops.rotation import Pose

STRUCTURES = Path(__file__).parents[3] / "shared" / "data" / "structures"
SHAPE = (16, 16, 16)
PHANTOMS = demo_phantoms(3, shape=SHAPE)
SETTINGS = {"num_per_class": 4, "snr": math.inf, "voxel_size": 12.0, "max_shift": 2.0, "box": 16}


@pytest.fixture(scope="module")
def arrays():
    return [np.asarray(render(molecule, SHAPE)) for molecule in PHANTOMS]


def spectra(volumes):
    """Full Fourier transforms, and the angle atan2(kz, kx) in [-90, 90); nan on the tilt axis."""
    kz, _, kx = np.meshgrid(*3 * [np.fft.fftfreq(16)], indexing="ij")
    angle = (np.degrees(np.arctan2(kz, kx)) + 90) % 180 - 90
    # The Nyquist planes of an even box stand for two directions at once: left out.
    is_nyquist = np.logical_or.reduce([np.abs(k) == 0.5 for k in (kz, kx)])
    angle[((kx == 0) & (kz == 0)) | is_nyquist] = np.nan
    return np.fft.fftn(volumes, axes=(-3, -2, -1)), angle


def test_a_full_tilt_range_without_noise_gives_the_phantom_in_its_true_pose_and_dark(key):
    particles = simulate(key, PHANTOMS, **SETTINGS | {"tilt_range": (-90.0, 90.0)})
    for volume, label, rotation, shift in zip(
        particles.volumes, particles.labels, particles.rotations, particles.shifts, strict=True
    ):
        pose = Pose(jnp.asarray(rotation), jnp.asarray(shift))
        np.testing.assert_allclose(volume, -render(PHANTOMS[label], SHAPE, pose), atol=1e-5)


def test_an_array_is_turned_as_scipy_turns_it_with_cubic_splines(key, arrays):
    particles = simulate(key, arrays, **SETTINGS | {"tilt_range": (-90.0, 90.0)})
    for volume, label, rotation, shift in zip(
        particles.volumes, particles.labels, particles.rotations, particles.shifts, strict=True
    ):
        inverse = rotation.T[::-1, ::-1].astype(float)  # acts on z, y, x
        offset = 8 - inverse @ (8 + shift[::-1])
        expected = ndimage.affine_transform(
            arrays[label].astype(float), inverse, offset, order=3, mode="grid-constant"
        )
        np.testing.assert_allclose(volume, -expected, atol=2e-3 * arrays[label].max())


@pytest.mark.parametrize("snr", [10.0, 0.1, 0.01])
@pytest.mark.parametrize("ctf", [None, CtfParameters(defocus=(15000.0, 40000.0))])
def test_each_particle_has_exactly_the_asked_signal_to_noise_ratio(key, snr, ctf):
    signal = simulate(key, PHANTOMS, **SETTINGS, ctf=ctf).volumes.astype(float)
    noisy = simulate(key, PHANTOMS, **SETTINGS | {"snr": snr}, ctf=ctf).volumes.astype(float)
    ratio = signal.var((1, 2, 3)) / (noisy - signal).var((1, 2, 3))
    np.testing.assert_allclose(ratio, snr, rtol=1e-4)


@pytest.mark.parametrize("snr", [math.inf, 0.1])
def test_each_particle_is_empty_outside_its_own_tilt_range(key, snr):
    ranges = np.linspace([-70, 20], [-20, 75], 12)
    particles = simulate(key, PHANTOMS, **SETTINGS | {"snr": snr, "tilt_range": ranges})
    np.testing.assert_allclose(particles.tilt_ranges, ranges, rtol=1e-6)
    power, angle = spectra(particles.volumes)
    power = np.abs(power) ** 2
    for row, (low, high) in enumerate(ranges):
        is_missing = (angle < low - 0.01) | (angle > high + 0.01)
        is_measured = (angle > low + 0.01) & (angle < high - 0.01)
        assert power[row][is_missing].max() < 1e-8 * power[row].max()
        assert power[row][is_measured].min() > 0


def test_noise_is_independent_and_white_where_the_wedge_measured(key):
    settings = SETTINGS | {"num_per_class": 40, "tilt_range": (-50.0, 70.0)}
    clean = simulate(key, PHANTOMS, **settings).volumes
    noise = simulate(key, PHANTOMS, **settings | {"snr": 0.1}).volumes - clean
    noise /= noise.std((1, 2, 3), keepdims=True)
    transform, angle = spectra(noise)
    power = (np.abs(transform) ** 2).mean(0)[(angle > -49.9) & (angle < 69.9)]
    # Mean of 120 exponential variables: relative deviation 0.09; 6 of those bound all voxels.
    np.testing.assert_allclose(power, power.mean(), rtol=6 * 120**-0.5)
    # And the particles' noises are independent: the norm of their mean falls as n^(-1/2).
    np.testing.assert_allclose(np.linalg.norm(noise.mean(0)), 64 / 120**0.5, rtol=0.05)


def test_power_of_coloured_noise_falls_to_one_half_at_its_corner(key):
    settings = SETTINGS | {"num_per_class": 40, "tilt_range": (-90.0, 90.0)}
    clean = simulate(key, PHANTOMS, **settings).volumes
    noisy = simulate(key, PHANTOMS, **settings | {"snr": 0.1}, noise_corner=0.125).volumes
    np.testing.assert_allclose(
        clean.var((1, 2, 3)) / (noisy - clean).var((1, 2, 3)), 0.1, rtol=1e-3
    )
    noise = (noisy - clean) / (noisy - clean).std((1, 2, 3), keepdims=True)
    power = np.mean(np.abs(np.fft.fftn(noise, axes=(1, 2, 3))) ** 2, axis=0)
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in noise.shape[1:]], indexing="ij")
    squared = sum(axis**2 for axis in axes)
    flattened = power * (1 + squared / 0.125**2)
    inner = flattened[squared < 0.1**2].mean()
    assert abs(flattened[squared > 0.3**2].mean() / inner - 1) < 0.1


def test_the_detector_damps_the_signal_and_not_the_noise(key):
    sharp, damped = (
        simulate(key, PHANTOMS, **SETTINGS, ctf=CtfParameters(mtf=mtf)).volumes
        for mtf in (math.inf, 0.4)
    )
    before, after = (np.fft.rfftn(volumes, axes=(1, 2, 3)) for volumes in (sharp, damped))
    # 4 cycles along x in a box of n are 8 / n of Nyquist.
    box = sharp.shape[-1]
    np.testing.assert_allclose(
        after[:, 0, 0, 4], before[:, 0, 0, 4] * np.exp(-((8 / box / 0.4) ** 2)), rtol=1e-2
    )
    options = SETTINGS | {"snr": 0.01}
    noisy = simulate(key, PHANTOMS, **options, ctf=CtfParameters(mtf=0.4)).volumes
    power = np.mean(np.abs(np.fft.rfftn(noisy, axes=(1, 2, 3))) ** 2, axis=0)
    assert power[0, 0, box // 2 - 1] > 0.3 * power[0, 0, box // 4]


def test_the_ctf_multiplies_the_spectrum_and_keeps_the_contrast(key):
    plain = simulate(key, PHANTOMS, **SETTINGS).volumes
    ctf = CtfParameters(defocus=60000.0, spherical_aberration=0.0, amplitude_contrast=0.1)
    seen = simulate(key, PHANTOMS, **SETTINGS, ctf=ctf).volumes
    kz, ky, kx = np.meshgrid(*3 * [np.fft.fftfreq(16) / 12.0], indexing="ij")
    wavelength = 0.019687  # A, 300 kV
    transfer = np.sin(np.pi * wavelength * 60000 * (kz**2 + ky**2 + kx**2) + np.arcsin(0.1))
    expected = np.fft.fftn(plain, axes=(1, 2, 3)) * transfer
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.fft.fftn(seen, axes=(1, 2, 3)), expected, atol=2e-4 * scale)
    assert transfer.min() < -0.9  # the CTF does change sign within the box


def test_a_defocus_range_gives_each_particle_its_own(key):
    fixed, ranged = (
        simulate(key, PHANTOMS, **SETTINGS, ctf=CtfParameters(defocus=defocus)).volumes
        for defocus in ((30000.0, 30000.0), (20000.0, 40000.0))
    )
    same = simulate(key, PHANTOMS, **SETTINGS, ctf=CtfParameters(defocus=30000.0)).volumes
    np.testing.assert_array_equal(fixed, same)
    difference = np.abs(ranged - fixed).max((1, 2, 3))
    assert len(np.unique(difference)) == 12
    assert difference.min() > 0


def test_classes_are_interleaved_and_dealt_evenly_over_the_halves(key):
    particles = simulate(key, PHANTOMS, **SETTINGS | {"num_per_class": [30, 20, 10]})
    np.testing.assert_array_equal(np.bincount(particles.labels), [30, 20, 10])
    assert np.bincount(particles.labels[:20]).min() >= 1
    assert np.bincount(particles.labels[20:40]).min() >= 1
    for label, half in ((0, 15), (1, 10), (2, 5)):
        counts = np.bincount(particles.halves[particles.labels == label], minlength=3)
        np.testing.assert_array_equal(counts, [0, half, half])


def test_rotations_are_uniform_and_shifts_fill_their_cube(key):
    small = demo_phantoms(1, shape=(8, 8, 8))
    settings = SETTINGS | {"num_per_class": 500, "box": 8, "max_shift": 3.0}
    particles = simulate(key, small, **settings)
    assert np.abs(particles.shifts).max() <= 3
    # Uniform: mean 0 +- 3/sqrt(3 n), variance 3; five standard errors.
    np.testing.assert_allclose(particles.shifts.mean(0), 0, atol=5 * 3 / 1500**0.5)
    np.testing.assert_allclose(particles.shifts.var(0), 3, rtol=0.2)
    # Haar: entries have mean 0 and variance 1/3, and the trace has mean square 1.
    np.testing.assert_allclose(particles.rotations.mean(0), 0, atol=5 / 1500**0.5)
    np.testing.assert_allclose((particles.rotations**2).mean(0), 1 / 3, atol=0.07)
    np.testing.assert_allclose(np.linalg.det(particles.rotations), 1, atol=1e-5)


def test_light_is_the_negative_of_dark(key):
    dark, light = (
        simulate(key, PHANTOMS, **SETTINGS, contrast=contrast) for contrast in ("dark", "light")
    )
    np.testing.assert_array_equal(dark.volumes, -light.volumes)


def test_the_key_decides_everything(key):
    settings = SETTINGS | {"snr": 0.1}
    one, same = (simulate(key, PHANTOMS, **settings) for _ in range(2))
    other = simulate(jax.random.key(1), PHANTOMS, **settings)
    np.testing.assert_array_equal(one.volumes, same.volumes)
    assert np.abs(one.rotations - other.rotations).max() > 0.1


def density_by_hand(molecule, rotation, shift):
    """Float64 density of a phantom in a pose; the slow twin of ``render``."""
    z, y, x = np.indices(SHAPE) - 8.0
    density = np.zeros(SHAPE)
    for center, width, weight in zip(*(part.astype(float) for part in molecule), strict=True):
        cx, cy, cz = rotation.astype(float) @ center + shift
        squared = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2
        density += weight / (np.sqrt(2 * np.pi) * width) ** 3 * np.exp(-squared / (2 * width**2))
    return density


@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("contrast", ["dark", "light"])
def test_mask_is_where_the_posed_phantom_exceeds_its_share_of_the_peak(key, threshold, contrast):
    how = SETTINGS | {"snr": 0.1, "mask_threshold": threshold, "contrast": contrast}
    particles = simulate(key, PHANTOMS, **how, ctf=CtfParameters(defocus=(15000.0, 40000.0)))
    assert particles.masks.dtype == bool
    for mask, label, rotation, shift in zip(
        particles.masks, particles.labels, particles.rotations, particles.shifts, strict=True
    ):
        molecule = PHANTOMS[label]
        level = threshold * density_by_hand(molecule, np.eye(3), 0).max()
        density = density_by_hand(molecule, rotation, shift)
        is_decided = np.abs(density - level) > 1e-4 * level  # float32 cannot tell the others
        assert is_decided.mean() > 0.995
        np.testing.assert_array_equal(mask[is_decided], (density > level)[is_decided])
        assert mask.any()


def test_mask_of_an_array_is_of_what_scipy_turns_with_cubic_splines(key, arrays):
    particles = simulate(key, arrays, **SETTINGS, mask_threshold=0.4)
    for mask, label, rotation, shift in zip(
        particles.masks, particles.labels, particles.rotations, particles.shifts, strict=True
    ):
        inverse = rotation.T[::-1, ::-1].astype(float)  # acts on z, y, x
        offset = 8 - inverse @ (8 + shift[::-1])
        density = ndimage.affine_transform(
            arrays[label].astype(float), inverse, offset, order=3, mode="grid-constant"
        )
        level = 0.4 * arrays[label].max()
        is_decided = np.abs(density - level) > 2e-3 * arrays[label].max()
        assert is_decided.mean() > 0.95
        np.testing.assert_array_equal(mask[is_decided], (density > level)[is_decided])


def test_masks_change_nothing_else_and_are_not_made_unless_asked_for(key):
    settings = SETTINGS | {"snr": 0.1}
    plain = simulate(key, PHANTOMS, **settings)
    masked = simulate(key, PHANTOMS, **settings, mask_threshold=0.5)
    assert plain.masks is None
    for name in ("volumes", "rotations", "shifts", "labels", "halves"):
        np.testing.assert_array_equal(getattr(masked, name), getattr(plain, name))


def test_each_class_has_a_level_of_its_own(key, arrays):
    brighter = [arrays[0], 100 * arrays[1], arrays[2]]
    masks, same = (
        simulate(key, densities, **SETTINGS, mask_threshold=0.5).masks
        for densities in (arrays, brighter)
    )
    # Rounding may move single voxels at the level.
    assert np.count_nonzero(masks != same) <= 2


def test_a_higher_threshold_leaves_a_part_of_the_mask(key):
    wide, narrow = (
        simulate(key, PHANTOMS, **SETTINGS, mask_threshold=threshold).masks
        for threshold in (0.2, 0.6)
    )
    assert not (narrow & ~wide).any()
    assert narrow.sum() < wide.sum()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, math.nan])
def test_threshold_that_is_no_share_is_refused(key, threshold):
    with pytest.raises(InputError, match="mask_threshold must be a fraction between 0 and 1, got"):
        simulate(key, PHANTOMS, **SETTINGS, mask_threshold=threshold)


def test_density_without_mass_has_no_mask(key, arrays):
    with pytest.raises(InputError, match="density 1 is nowhere positive, so it has no mask"):
        simulate(key, [arrays[0], -arrays[1]], **SETTINGS, mask_threshold=0.5)


@pytest.mark.skipif(not STRUCTURES.is_dir(), reason="the shared structures are not there")
def test_half_of_the_highest_density_encloses_about_the_molecular_volume(key):
    ratios = []
    for path in sorted(STRUCTURES.glob("*.pdb")):
        density = density_from_file(path, voxel_size=12.0, resolution=24.0, box=32)
        how = SETTINGS | {"num_per_class": 8, "mask_threshold": 0.5}
        voxels = simulate(key, [density], **how).masks.sum(axis=(1, 2, 3)).mean()
        mass = density.sum() / 0.93  # daltons of the heavy atoms; hydrogens are 7 % of a protein
        ratios.append(voxels * 12.0**3 / (1.21 * mass))
    assert len(ratios) == 10
    assert 1.0 < np.median(ratios) < 1.15
    assert 0.85 < min(ratios) <= max(ratios) < 1.3


def test_more_particles_than_a_chunk_are_all_filled(key):
    num = CHUNK + 3
    particles = simulate(key, PHANTOMS[:1], **SETTINGS | {"num_per_class": num, "snr": 1.0})
    assert len(np.unique(particles.volumes[:, 8, 8, 8])) == len(particles) == num


def test_masks_of_more_particles_than_a_chunk_belong_to_their_particles(key):
    how = SETTINGS | {"num_per_class": CHUNK + 3, "tilt_range": (-90.0, 90.0)}
    particles = simulate(key, PHANTOMS[:2], **how, mask_threshold=0.5, contrast="light")
    for label in (0, 1):
        level = 0.5 * render(PHANTOMS[label], SHAPE).max()
        members = particles.labels == label
        seen, masks = particles.volumes[members], particles.masks[members]
        is_decided = np.abs(seen - level) > 1e-4  # volumes went through Fourier space
        np.testing.assert_array_equal(masks[is_decided], (seen > level)[is_decided])
        assert masks.any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snr": 0.0}, "snr must be above 0 .* got 0.0"),
        ({"snr": math.nan}, "snr must be above 0"),
        ({"voxel_size": -1.0}, "voxel_size must be a positive number of angstrom, got -1.0"),
        ({"max_shift": -1.0}, "max_shift must be 0 voxels or more, got -1.0"),
        ({"contrast": "white"}, "contrast must be 'dark' or 'light', got 'white'"),
        ({"tilt_range": (60.0, -60.0)}, "-90 <= min < max <= 90 degrees, got 60, -60"),
        ({"tilt_range": np.zeros((5, 2))}, r"shape \(12, 2\), got shape \(5, 2\)"),
        ({"num_per_class": [3, 3]}, "one number or 3, one per density, got 2"),
        ({"num_per_class": 0}, "num_per_class must be 1 or more"),
        ({"ctf": CtfParameters(defocus=(3e4, 2e4))}, "must be lowest first"),
        ({"noise_corner": 0.0}, r"noise_corner must be above 0 \(inf for white\), got 0"),
    ],
)
def test_impossible_settings_say_what_was_wrong(key, changes, message):
    with pytest.raises(ValueError, match=message):
        simulate(key, PHANTOMS, **SETTINGS | changes)


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ([], "densities is empty"),
        ([np.eye(4)], r"must be cubes \(n, n, n\), got \(4, 4\)"),
        ([np.ones((4, 4, 4)), np.ones((6, 6, 6))], "must have one shape"),
        ([np.full((4, 4, 4), np.nan)], "density 0 has voxels that are not finite"),
        ([np.ones((4, 4, 4))], "density 0 is constant"),
    ],
)
def test_impossible_densities_say_what_was_wrong(key, densities, message):
    with pytest.raises(ValueError, match=message):
        simulate(key, densities, **SETTINGS)
