"""Random molecules: their poses, their noise, their sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.mesh import data_mesh
from jimjax.ops import resample
from jimjax.ops.correlation import standardize
from jimjax.train.molecules import MoleculeConfig, mass_mask, observe_molecules

BOX = 24
NUM = 8
FULL_TILT = (-90.0, 90.0)
# Blobs of at least two voxels, which linear interpolation does not blur, well inside the box.
SMOOTH = MoleculeConfig(
    blob_min=0.08, size_max=0.15, max_shift=0.1, snr_min=1e4, snr_max=1e4, clean_share=1.0
)
NOISY = dataclasses.replace(SMOOTH, snr_min=0.03, snr_max=1.0, clean_share=0.0)


def _observe(key, config, sign=1.0, tilt=FULL_TILT):
    numbers = dataclasses.asdict(config)
    return _observe_compiled(key, numbers.pop("num_blobs"), numbers, sign, jnp.array(tilt))


@functools.partial(jax.jit, static_argnums=1)
def _observe_compiled(key, num_blobs, numbers, sign, tilt):
    """One program for all configurations: their numbers are traced."""
    config = MoleculeConfig(num_blobs=num_blobs, **numbers)
    ranges = jnp.tile(tilt, (NUM, 1))
    return observe_molecules(key, ranges, config, box=BOX, sign=sign, mesh=data_mesh(1))


def _correlations(first, second):
    first, second = (np.reshape(volumes, (NUM, -1)) for volumes in (first, second))
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)])


def _radii(volumes):
    """Radii of gyration of light molecules, in voxels."""
    weights = np.reshape(volumes, (NUM, -1))
    weights = weights - weights.min(axis=1, keepdims=True)
    weights = weights / weights.sum(axis=1, keepdims=True)
    points = np.indices((BOX,) * 3).reshape(3, -1).T
    return np.sqrt(weights @ (points**2).sum(1) - ((weights @ points) ** 2).sum(1))


def test_pose_carries_the_clean_source_onto_the_target(key):
    pairs = _observe(key, SMOOTH)
    moved = jax.vmap(resample.transform)(
        pairs.source - pairs.source.min(axis=(1, 2, 3), keepdims=True), pairs.pose
    )
    assert _correlations(moved, pairs.target).min() > 0.95
    assert np.median(_correlations(pairs.source, pairs.target)) < 0.8


@pytest.mark.parametrize("snr", [0.1, 1.0])
def test_observed_snr_is_the_one_asked_for(snr, key):
    # The same key draws the same noise, which must hide in the clean volumes.
    clean = _observe(key, dataclasses.replace(SMOOTH, snr_min=1e8, snr_max=1e8))
    noisy = _observe(key, dataclasses.replace(SMOOTH, snr_min=snr, snr_max=snr))
    squared = _correlations(clean.target, noisy.target) ** 2
    # corr^2 = snr / (1 + snr); noise and signal correlate by chance by 24^-1.5 = 0.9%.
    np.testing.assert_allclose(np.mean(squared), snr / (1 + snr), rtol=0.05)


def test_noise_of_source_and_target_is_independent(key):
    pure = dataclasses.replace(NOISY, snr_min=1e-6, snr_max=1e-6)
    pairs = _observe(key, pure)
    # Five deviations of the chance correlation of white noise.
    assert np.abs(_correlations(pairs.source, pairs.target)).max() < 5 * BOX**-1.5


@pytest.mark.parametrize("name", ["source", "target"])
def test_observations_are_standardised(name, key):
    volumes = np.asarray(getattr(_observe(key, NOISY, tilt=(-60.0, 60.0)), name))
    np.testing.assert_allclose(volumes.mean(axis=(1, 2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(volumes.std(axis=(1, 2, 3)), 1.0, rtol=1e-5)


def test_nothing_is_observed_in_the_missing_wedge(key):
    target = _observe(key, NOISY, tilt=(-60.0, 60.0)).target
    power = np.abs(np.fft.fftn(target, axes=(1, 2, 3))) ** 2
    along_beam = power[:, 1 : BOX // 2, 0, 0].sum(axis=1)
    assert np.all(along_beam < 1e-6 * power.sum(axis=(1, 2, 3)))


def test_sign_flips_the_clean_molecule(key):
    light, dark = (_observe(key, SMOOTH, sign=sign).source for sign in (1.0, -1.0))
    np.testing.assert_array_equal(light, -dark)


def test_clean_share_is_the_share_of_sources_without_noise(key):
    clean = _observe(key, SMOOTH).source
    none = _observe(key, dataclasses.replace(NOISY, clean_share=0.0)).source
    some = _observe(key, dataclasses.replace(NOISY, clean_share=0.5)).source
    is_clean = np.all(some == clean, axis=(1, 2, 3))
    assert np.array_equal(is_clean, ~np.all(some == none, axis=(1, 2, 3)))
    assert 0 < is_clean.sum() < NUM


def test_molecules_of_a_batch_have_one_size_up_to_the_spread(key):
    fixed = dataclasses.replace(SMOOTH, blob_max=SMOOTH.blob_min, size_spread=0.0)
    same = _radii(_observe(key, fixed).source)
    spread = _radii(_observe(key, dataclasses.replace(fixed, size_spread=0.5)).source)
    assert np.ptp(same) < 0.03 * same.mean()  # the tails outside the box differ
    assert np.ptp(spread) > 0.2 * spread.mean()


def test_constant_volume_is_standardised_to_zeros():
    np.testing.assert_array_equal(standardize(jnp.full((4, 4, 4), 3.0)), 0.0)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_mask_is_the_smallest_region_that_holds_a_share_of_the_mass(share, key, compiled):
    density = jax.random.uniform(key, (6, 7, 8)) ** 3
    mask = compiled(functools.partial(mass_mask, share=share))(density)
    ordered = np.sort(np.ravel(density))[::-1]
    expected = 1 + np.searchsorted(np.cumsum(ordered), share * ordered.sum())
    assert abs(int(mask.sum()) - expected) <= 1  # 16 halvings resolve no more
    assert np.min(density[mask]) > np.max(density[~mask])


def test_masks_are_where_the_molecules_are_and_change_nothing_else(key):
    plain = _observe(key, SMOOTH, sign=-1.0)
    how = {"box": BOX, "sign": -1.0, "mesh": data_mesh(1), "with_masks": True}
    ranges = jnp.tile(jnp.array(FULL_TILT), (NUM, 1))
    masked = jax.jit(lambda key: observe_molecules(key, ranges, SMOOTH, **how))(key)
    assert plain.source_mask is plain.target_mask is None
    for name in ("source", "target"):
        volumes, masks = getattr(masked, name), getattr(masked, f"{name}_mask")
        np.testing.assert_allclose(volumes, getattr(plain, name), atol=1e-4)
        for volume, mask in zip(volumes, masks, strict=True):
            # Dark: the darkest voxels, but for noise of a hundredth.
            assert np.max(volume[mask]) <= np.min(volume[~mask]) + 0.1
    moved = jax.vmap(resample.transform)(masked.source_mask.astype(float), masked.pose)
    assert np.mean((moved > 0.5) == masked.target_mask) > 0.98
