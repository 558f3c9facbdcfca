"""Slices of a transform, and the volume they add up to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align import slices
from jimjax.data.phantom import demo_phantoms, render
from jimjax.ops import rotation, wedge

BOX = 16
BAND = slices.make_band(BOX, 4.5)


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


@pytest.mark.parametrize("limit", [0.5, 8, 100])
def test_limit_out_of_range_is_an_error(limit):
    with pytest.raises(ValueError, match="limit must be from 1 to less than 8"):
        slices.make_band(BOX, limit)


def test_spectrum_is_the_transform_about_the_centre():
    volume = np.random.default_rng(0).normal(size=(BOX,) * 3)
    z, y, x = (np.indices(volume.shape) - BOX // 2).reshape(3, 1, -1)
    phase = BAND.frequencies @ np.concatenate([x, y, z]) / BOX
    expected = np.exp(-2j * np.pi * phase) @ volume.ravel()
    found = slices.take_spectra(jnp.asarray(volume[None], jnp.float32), BAND)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_mask_is_that_of_the_same_coefficients():
    mask = np.asarray(wedge.wedge_mask((BOX,) * 3, jnp.array([-50.0, 60.0])))
    x, _, z = BAND.frequencies.T
    angle = np.rad2deg(np.arctan2(z, x))
    angle = np.where(angle > 90, angle - 180, np.where(angle < -90, angle + 180, angle))
    is_clear = (np.abs(angle + 50) > 1e-3) & (np.abs(angle - 60) > 1e-3) & ((x != 0) | (z != 0))
    found = slices.take_mask(mask, BAND)
    np.testing.assert_array_equal(found[is_clear], ((angle > -50) & (angle < 60))[is_clear])


def test_ramp_shifts_the_volume():
    volumes = np.random.default_rng(0).normal(size=(1, BOX, BOX, BOX)).astype(np.float32)
    moved = np.roll(volumes, (3, 2, 1), axis=(1, 2, 3))
    ramp = slices.phase_ramps(jnp.array([1.0, 2.0, 3.0]), BAND)
    np.testing.assert_allclose(
        slices.take_spectra(moved, BAND), slices.take_spectra(volumes, BAND) * ramp, atol=1e-3
    )


def test_slices_are_the_spectra_of_rotated_volumes(molecule, rotations):
    turned = [render(molecule, (BOX,) * 3, rotation.Pose(each, jnp.zeros(3))) for each in rotations]
    expected = slices.take_spectra(jnp.stack(turned), BAND)
    found = slices.cut(render(molecule, (BOX,) * 3)[None], rotations, BAND)[0]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 0.03
    unturned = np.linalg.norm(found[0] - expected) / np.linalg.norm(expected)
    assert unturned > 10 * error


def test_insertion_is_the_transpose_of_reading(rotations):
    random = np.random.default_rng(1)
    volumes = jnp.asarray(random.normal(size=(2, BOX, BOX, BOX)), jnp.float32)
    grid = slices.oversample(volumes)  # of real volumes: conjugate at -k
    given = jnp.asarray(random.normal(size=(2, len(rotations), len(BAND.shells), 2)), jnp.float32)
    inserted = slices.insert(given[..., 0] + 1j * given[..., 1], given[..., 0], rotations, BAND)
    read = slices.read(grid, rotations, BAND)
    direct = jnp.sum(read.real * given[..., 0] + read.imag * given[..., 1])
    np.testing.assert_allclose(jnp.sum(grid * inserted[:, :4]) / 2, direct, rtol=1e-3)


def test_weights_add_up_to_both_halves(rotations):
    weights = jnp.ones((1, len(rotations), len(BAND.shells)))
    inserted = slices.insert(weights + 0j, weights, rotations, BAND)
    np.testing.assert_allclose(inserted[:, 2].sum(), 2 * weights.size, rtol=1e-4)


def test_slices_of_many_rotations_give_the_volume_back(molecule):
    volume = render(molecule, (BOX,) * 3)
    rotations = rotation.super_fibonacci(300)
    taken = slices.cut(volume[None], rotations, BAND)
    sums = slices.insert(taken * 1e6, jnp.full(taken.shape, 1e6), rotations, BAND)
    found = slices.solve(sums, BAND)
    within = slices.take_spectra(found, BAND), slices.take_spectra(volume[None], BAND)
    error = np.linalg.norm(within[0] - within[1]) / np.linalg.norm(within[1])
    assert error < 0.05


def test_noise_alone_gives_next_to_nothing(molecule):
    rotations = rotation.super_fibonacci(300)
    shape = (1, 300, len(BAND.shells))
    real, imaginary = jax.random.normal(jax.random.key(0), (2, *shape))
    power = jnp.mean(jnp.abs(slices.take_spectra(render(molecule, (BOX,) * 3)[None], BAND)) ** 2)
    noise = 100 * power  # variance: fifty times the signal
    sums = slices.insert(
        (real + 1j * imaginary) / jnp.sqrt(noise), jnp.full(shape, 1 / noise), rotations, BAND
    )
    found = slices.solve(sums, BAND)
    plain = sums[:, :1] / jnp.maximum(sums[:, 2:], 1e-3 / noise)
    left = jnp.mean(jnp.abs(slices.take_spectra(found, BAND)) ** 2)
    assert left < 0.2 * jnp.mean(plain[sums[:, 2] > 1 / noise] ** 2)
