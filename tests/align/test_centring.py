"""Particles of unknown orientation find their centres."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align import bands, centring
from jimjax.data.phantom import demo_phantoms, render
from jimjax.ops import rotation
from jimjax.ops.rotation import Pose

BOX, NUM, MAX_SHIFT = 24, 40, 5.0
BAND = bands.Band(BOX, 2.5)


@pytest.fixture(scope="module")
def particles():
    """Spectra, true shifts and true classes; masks that leave a part of each spectrum out."""
    molecules = demo_phantoms(2, shape=(BOX,) * 3)
    keys = jax.random.split(jax.random.key(0), NUM)
    rotations = jax.vmap(rotation.random_rotation)(keys)
    shifts = jax.random.uniform(jax.random.key(1), (NUM, 3), minval=-MAX_SHIFT, maxval=MAX_SHIFT)
    volumes = jnp.stack(
        [
            render(molecules[n % 2], (BOX,) * 3, Pose(rotations[n], shifts[n]))
            for n in range(NUM)
        ]
    )  # fmt: skip
    x, _, z = BAND.frequencies.T
    masks = jnp.asarray(np.stack([np.abs(z) <= 1.8 * np.abs(x), np.abs(x) < 9]), jnp.float32)
    groups = jnp.arange(NUM) % 2
    noise = 3.0 * volumes.std() * jax.random.normal(jax.random.key(2), volumes.shape)
    return bands.take_spectra(volumes + noise, BAND) * masks[groups], groups, masks, shifts


@pytest.mark.parametrize("contrast", [1.0, -1.0])
def test_centres_are_found_for_either_contrast(particles, contrast):
    spectra, groups, masks, shifts = particles
    found = centring.find_centres(
        contrast * spectra, groups, masks, BAND, max_shift=MAX_SHIFT, diameter=16.0
    )
    error = np.linalg.norm(found.shifts - shifts, axis=1)
    unmoved = np.linalg.norm(shifts, axis=1)
    assert np.median(error) < 1.2 < np.median(unmoved) / 3
    assert np.all(np.abs(found.shifts) <= MAX_SHIFT + 2)


def test_sizes_tell_large_from_small():
    axis = np.arange(BOX) - BOX // 2
    distance = np.sqrt(sum(np.square(g) for g in np.meshgrid(axis, axis, axis)))
    volumes = np.stack([np.exp(-0.5 * (distance / s) ** 2) for s in [1.5] * 10 + [4.0] * 10])
    volumes /= volumes.std(axis=(1, 2, 3), keepdims=True)
    volumes += np.random.default_rng(0).normal(size=volumes.shape)
    spectra = bands.take_spectra(jnp.asarray(volumes, jnp.float32), BAND)
    masks, groups = jnp.ones((1, len(BAND.shells))), jnp.zeros(20, int)
    found = centring.find_centres(spectra, groups, masks, BAND, max_shift=2.0, diameter=16.0)
    assert found.sizes[:10].max() < found.sizes[10:].min()
