"""Slices of a transform, and the volume they add up to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align import bands, slices
from jimjax.data.phantom import demo_phantoms, render
from jimjax.ops import rotation, symmetry, wedge

BOX = 16
BAND = bands.Band(BOX, 4.5)


@pytest.fixture(scope="module")
def molecule():
    return demo_phantoms(1, shape=(BOX,) * 3)[0]


@pytest.fixture(scope="module")
def rotations():
    return rotation.super_fibonacci(12)


def test_band_holds_one_of_each_pair():
    both = np.concatenate([BAND.frequencies, -BAND.frequencies])
    axis = np.arange(-8, 9)
    cube = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    radius = np.linalg.norm(cube, axis=1)
    inside = cube[(radius > 0) & (radius <= 4.5)]
    assert len(np.unique(both, axis=0)) == len(both) == len(inside)
    np.testing.assert_array_equal(
        BAND.shells, np.rint(np.linalg.norm(both, axis=1))[: len(both) // 2] - 1
    )


@pytest.mark.parametrize("limit", [0.5, 7.5, 100])
def test_limit_out_of_range_is_an_error(limit):
    with pytest.raises(ValueError, match="limit must be from 1 to 7"):
        bands.Band(BOX, limit)


def test_spectrum_is_the_transform_about_the_centre():
    volume = np.random.default_rng(0).normal(size=(BOX,) * 3)
    z, y, x = (np.indices(volume.shape) - BOX // 2).reshape(3, 1, -1)
    phase = BAND.frequencies @ np.concatenate([x, y, z]) / BOX
    expected = np.exp(-2j * np.pi * phase) @ volume.ravel()
    found = bands.take_spectra(jnp.asarray(volume[None], jnp.float32), BAND)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_mask_is_that_of_the_same_coefficients():
    mask = np.asarray(wedge.wedge_mask((BOX,) * 3, jnp.array([-50.0, 60.0])))
    x, _, z = BAND.frequencies.T
    angle = np.rad2deg(np.arctan2(z, x))
    angle = np.where(angle > 90, angle - 180, np.where(angle < -90, angle + 180, angle))
    is_clear = (np.abs(angle + 50) > 1e-3) & (np.abs(angle - 60) > 1e-3) & ((x != 0) | (z != 0))
    found = bands.take_masks(mask[None], BAND)[0]
    np.testing.assert_array_equal(found[is_clear], ((angle > -50) & (angle < 60))[is_clear])


def test_ramp_shifts_the_volume():
    volumes = np.random.default_rng(0).normal(size=(1, BOX, BOX, BOX)).astype(np.float32)
    moved = np.roll(volumes, (3, 2, 1), axis=(1, 2, 3))
    ramp = bands.phase_ramps(jnp.array([1.0, 2.0, 3.0]), BAND)
    np.testing.assert_allclose(
        bands.take_spectra(moved, BAND), bands.take_spectra(volumes, BAND) * ramp, atol=1e-3
    )


def test_slices_are_the_spectra_of_rotated_volumes(molecule, rotations):
    turned = [render(molecule, (BOX,) * 3, rotation.Pose(each, jnp.zeros(3))) for each in rotations]
    expected = bands.take_spectra(jnp.stack(turned), BAND)
    grids = slices.make_grids(render(molecule, (BOX,) * 3)[None], BAND)
    found = slices.cut(grids, rotations, BAND)[0]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 0.03
    unturned = np.linalg.norm(found[0] - expected) / np.linalg.norm(expected)
    assert unturned > 10 * error


@pytest.fixture(scope="module")
def grids():
    volumes = np.random.default_rng(1).normal(size=(2, BOX, BOX, BOX))
    return slices.make_grids(jnp.asarray(volumes, jnp.float32), BAND)


def test_insertion_is_the_transpose_of_reading(grids, rotations):
    random = np.random.default_rng(2)
    given = jnp.asarray(random.normal(size=(2, len(rotations), len(BAND.shells), 2)), jnp.float32)
    given = given[..., 0] + 1j * given[..., 1]
    inserted = slices.insert(given, given.real, rotations, BAND)
    direct = jnp.sum((slices.cut(grids, rotations, BAND) * jnp.conj(given)).real)
    found = jnp.sum((grids * jnp.conj(inserted.spectra)).real)
    np.testing.assert_allclose(found, direct, rtol=1e-3)


def test_own_slices_are_those_of_the_class(grids, rotations):
    classes, own = jnp.array([1, 0, 1]), rotations[:6].reshape(3, 2, 3, 3)
    found = slices.cut_own(grids, classes, own, BAND)
    every = slices.cut(grids, rotations, BAND)
    expected = [[every[c, 2 * n + r] for r in range(2)] for n, c in enumerate((1, 0, 1))]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_own_slices_are_inserted_into_the_class(rotations):
    real, imaginary, weights = np.random.default_rng(1).normal(size=(3, 3, 2, len(BAND.shells)))
    parts = jnp.asarray(real + 1j * imaginary, jnp.complex64), jnp.asarray(weights, jnp.float32)
    classes, own = jnp.array([1, 0, 1]), rotations[:6].reshape(3, 2, 3, 3)
    found = slices.insert_own(*parts, classes, own, BAND, num_classes=2)
    for c, members in enumerate((np.array([1]), np.array([0, 2]))):
        chosen = [part[members].reshape(1, -1, len(BAND.shells)) for part in parts]
        expected = slices.insert(*chosen, own[members].reshape(-1, 3, 3), BAND)
        np.testing.assert_allclose(found.spectra[c], expected.spectra[0], atol=1e-5)
        np.testing.assert_allclose(found.weights[c], expected.weights[0], atol=1e-5)


def test_weights_add_up(rotations):
    weights = jnp.ones((1, len(rotations), len(BAND.shells)))
    inserted = slices.insert(weights + 0j, weights, rotations, BAND)
    np.testing.assert_allclose(inserted.weights.sum(), weights.size, rtol=1e-4)


@pytest.mark.parametrize("limit", [3.0, 7.0])
def test_volumes_of_grids_are_those_they_were_made_of(molecule, limit):
    volume = render(molecule, (BOX,) * 3)[None]
    band = bands.Band(BOX, limit)
    found = slices.make_volumes(slices.make_grids(volume, band), band)
    inside = [bands.take_spectra(each, band) for each in (found, volume)]
    error = np.linalg.norm(inside[0] - inside[1]) / np.linalg.norm(inside[1])
    assert error < 0.02


def test_wider_grids_hold_the_same_volume(molecule):
    volume, wide = render(molecule, (BOX,) * 3)[None], bands.Band(BOX, 6.0)
    grids = slices.make_grids(volume, BAND)
    widened = slices.widen_grids(grids, wide)
    assert widened.shape == (1, wide.side, wide.side, wide.side)
    np.testing.assert_array_equal(slices.widen_grids(widened, BAND), grids)
    np.testing.assert_allclose(
        slices.make_volumes(widened, wide), slices.make_volumes(grids, BAND), atol=1e-5
    )


def test_slices_of_many_rotations_give_the_volume_back(molecule):
    volume = render(molecule, (BOX,) * 3)
    rotations = rotation.super_fibonacci(300)
    taken = slices.cut(slices.make_grids(volume[None], BAND), rotations, BAND)
    sums = slices.insert(taken * 1e6, jnp.full(taken.shape, 1e6), rotations, BAND)
    found = slices.make_volumes(slices.solve(sums, BAND, radius=BOX / 2), BAND)
    within = bands.take_spectra(found, BAND), bands.take_spectra(volume[None], BAND)
    error = np.linalg.norm(within[0] - within[1]) / np.linalg.norm(within[1])
    assert error < 0.06


def test_density_beyond_the_radius_is_removed():
    middle, far = np.zeros((2, BOX, BOX, BOX), np.float32)
    middle[8, 8, 8], far[8, 8, 15] = 1.0, 1.0
    rotations = rotation.super_fibonacci(300)
    left = []
    for volume in (middle, far):
        grids = slices.make_grids(jnp.asarray(volume)[None], BAND)
        taken = slices.cut(grids, rotations, BAND)
        sums = slices.insert(taken * 1e6, jnp.full(taken.shape, 1e6), rotations, BAND)
        found = slices.make_volumes(slices.solve(sums, BAND, radius=2.0), BAND)
        left.append(float(jnp.linalg.norm(found)))
    assert left[1] < 0.2 * left[0]


def test_noise_alone_gives_little(molecule):
    """Much less than its plain average, though the prior is made to err on the weak side."""
    rotations = rotation.super_fibonacci(100)
    shape = (1, 100, len(BAND.shells))
    real, imaginary = jax.random.normal(jax.random.key(0), (2, *shape))
    sums = slices.insert(real + 1j * imaginary, jnp.ones(shape), rotations, BAND)
    found = slices.make_volumes(slices.solve(sums, BAND, radius=6.0), BAND)
    sure = slices.Sums(1e6 * sums.spectra, 1e6 * sums.weights)  # as if it were no noise
    plain = slices.make_volumes(slices.solve(sure, BAND, radius=6.0), BAND)
    assert jnp.linalg.norm(found) < 0.3 * jnp.linalg.norm(plain)


def test_symmetry_is_that_of_the_symmetric_average(molecule):
    volume = render(molecule, (BOX,) * 3)
    group = symmetry.point_group("D2")
    rotations = rotation.super_fibonacci(400)
    taken = slices.cut(slices.make_grids(volume[None], BAND), rotations, BAND)
    sums = slices.insert(taken * 1e6, jnp.full(taken.shape, 1e6), rotations, BAND)
    expected = np.mean(
        [render(molecule, (BOX,) * 3, rotation.Pose(each, jnp.zeros(3))) for each in group], axis=0
    )
    wanted = bands.take_spectra(expected[None], BAND)
    errors = []
    for own in (None, group):
        grids = slices.solve(sums, BAND, radius=BOX / 2, group=own)
        found = bands.take_spectra(slices.make_volumes(grids, BAND), BAND)
        errors.append(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
    assert errors[1] < 0.08 < errors[0] / 3
