"""Random molecules, to teach a network alignment before it sees a particle.

Two noisy copies of one particle share its noise, and a network that trains on random transforms
of noisy particles learns to align the noise. Random molecules, observed twice with independent
noise, have no such shortcut, are never exhausted, and need no labels: what is learned (where is
the mass, how is it turned) carries over to proteins that were never seen.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jimjax.data.phantom import Phantom, render
from jimjax.mesh import map_batch
from jimjax.ops import rotation, wedge
from jimjax.ops.correlation import standardize
from jimjax.ops.rotation import Pose, compose, invert

MASK_MASS = 0.5  # of a molecule's mass that its mask holds: that of 7 proteins above half height
MASK_STEPS = 16  # halvings of the interval in which the density is sought that bounds a mask


@dataclass(frozen=True)
class MoleculeConfig:
    """The family of molecules and how they are observed. Lengths are fractions of the box.

    Attributes:
        num_blobs: Gaussians per molecule.
        size_min: smallest radius of gyration.
        size_max: largest radius of gyration.
        size_spread: relative spread of sizes within a batch; small, so that molecules of one
            batch differ by shape.
        elongation: largest ratio of a random axis to the mean, and one over its smallest.
        blob_min: smallest standard deviation of a Gaussian.
        blob_max: largest standard deviation of a Gaussian.
        max_shift: largest displacement from the box centre per axis.
        snr_min: lowest signal-to-noise ratio, var(signal) / var(noise) over the box.
        snr_max: highest; ratios are uniform in the logarithm.
        clean_share: how many sources are seen without noise and wedge, as references are.
    """

    num_blobs: int = 16
    size_min: float = 0.09
    size_max: float = 0.25
    size_spread: float = 0.15
    elongation: float = 1.6
    blob_min: float = 0.035
    blob_max: float = 0.1
    max_shift: float = 0.15
    snr_min: float = 0.03
    snr_max: float = 1.0
    clean_share: float = 0.4


class MoleculePairs(NamedTuple):
    """Two observations of each of a batch of molecules.

    Attributes:
        source: ``(batch, z, y, x)``, normalised.
        target: likewise.
        pose: ``(batch,)``, carries each source onto its target.
        source_mask: ``(batch, z, y, x)`` boolean, the source's molecule; None if not asked for.
        target_mask: likewise.
    """

    source: jax.Array
    target: jax.Array
    pose: Pose
    source_mask: jax.Array | None = None
    target_mask: jax.Array | None = None


def observe_molecules(
    key: jax.Array,
    tilt_ranges: jax.Array,
    config: MoleculeConfig,
    *,
    box: int,
    sign: float,
    mesh: Mesh,
    with_masks: bool = False,
) -> MoleculePairs:
    """Draws molecules and observes each twice.

    Args:
        key: seeds the batch.
        tilt_ranges: ``(batch, 2)`` degrees; one molecule per row.
        config: the family.
        box: side in voxels.
        sign: -1 for dark protein, 1 for light.
        mesh: devices to share the work; their number does not change the result.
        with_masks: whether to say where the molecules are; nothing else depends on it.

    Returns:
        Pairs with their relative poses.
    """
    num = len(tilt_ranges)
    size_key, *keys = jax.random.split(key, 7)
    size = jax.random.uniform(size_key, (), minval=config.size_min, maxval=config.size_max)

    def pair(keys: jax.Array, tilt_range: jax.Array, size: jax.Array) -> MoleculePairs:
        molecule = _draw(keys[0], config, box, size)
        first, second = (_draw_pose(k, config, box) for k in (keys[1], keys[2]))
        shape = (box,) * 3
        densities = render(molecule, shape, first), render(molecule, shape, second)
        clean = sign * densities[0]
        noisy = _observe(keys[3], clean, tilt_range, config)
        target = _observe(keys[4], sign * densities[1], tilt_range, config)
        is_clean = jax.random.uniform(keys[5]) < config.clean_share
        source = jnp.where(is_clean, standardize(clean), noisy)
        masks = tuple(map(mass_mask, densities)) if with_masks else (None, None)
        return MoleculePairs(source, target, compose(second, invert(first)), *masks)

    per_molecule = jnp.stack([jax.random.split(k, num) for k in keys], axis=1)
    return map_batch(pair, mesh)(per_molecule, tilt_ranges, jnp.full(num, size))


def mass_mask(density: jax.Array, *, share: float = MASK_MASS) -> jax.Array:
    """The smallest region that holds a share of the mass.

    Half of it is what seven proteins of 67 to 1650 voxels have above half of their highest density
    at a resolution of two voxels (0.47 to 0.63), which is how ``simulate`` draws masks. Random
    molecules are too uneven to be judged by their highest density.

    Args:
        density: ``(z, y, x)``, not negative.
        share: above 0 and below 1.

    Returns:
        ``(z, y, x)`` boolean.
    """
    wanted = share * jnp.sum(density)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        is_enough = jnp.sum(jnp.where(density > middle, density, 0)) >= wanted
        return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

    low, _ = lax.fori_loop(0, MASK_STEPS, halve, (jnp.zeros_like(wanted), jnp.max(density)))
    return density > low


def observe_views(
    key: jax.Array,
    tilt_ranges: jax.Array,
    config: MoleculeConfig,
    *,
    box: int,
    sign: float,
    mesh: Mesh,
) -> jax.Array:
    """Draws molecules and observes each several times, always with noise and wedge.

    Args:
        key: seeds the batch.
        tilt_ranges: ``(molecules, views, 2)`` degrees, of each observation.
        config: the family; its share of clean sources is of no account.
        box: side in voxels.
        sign: -1 for dark protein, 1 for light.
        mesh: devices to share the molecules; their number does not change the result.

    Returns:
        ``(molecules, views, z, y, x)``, normalised; poses and noise are independent.
    """
    num, num_views, _ = tilt_ranges.shape
    size_key, molecule_key, pose_key, noise_key = jax.random.split(key, 4)
    size = jax.random.uniform(size_key, (), minval=config.size_min, maxval=config.size_max)

    def look(molecule: Phantom, pose_key: jax.Array, key: jax.Array, tilt: jax.Array) -> jax.Array:
        view = sign * render(molecule, (box,) * 3, _draw_pose(pose_key, config, box))
        return _observe(key, view, tilt, config)

    def observe(keys: tuple[jax.Array, ...], tilts: jax.Array, size: jax.Array) -> jax.Array:
        molecule = _draw(keys[0], config, box, size)
        per_view = (jax.random.split(key, num_views) for key in keys[1:])
        return jax.vmap(look, in_axes=(None, 0, 0, 0))(molecule, *per_view, tilts)

    keys = tuple(jax.random.split(k, num) for k in (molecule_key, pose_key, noise_key))
    return map_batch(observe, mesh)(keys, tilt_ranges, jnp.full(num, size))


def draw_molecules(key: jax.Array, num: int, config: MoleculeConfig, *, box: int) -> Phantom:
    """Draws molecules of all sizes of a family.

    Args:
        key: seeds them.
        num: how many.
        config: the family.
        box: side in voxels that they are for.

    Returns:
        Phantoms, every array with ``num`` in front.
    """

    def draw(key: jax.Array) -> Phantom:
        size_key, shape_key = jax.random.split(key)
        size = jax.random.uniform(size_key, minval=config.size_min, maxval=config.size_max)
        return _draw(shape_key, config, box, size)

    return jax.vmap(draw)(jax.random.split(key, num))


def observe_molecule(
    key: jax.Array,
    molecule: Phantom,
    tilt_range: jax.Array,
    config: MoleculeConfig,
    *,
    box: int,
    sign: float,
) -> jax.Array:
    """Observes a molecule in a random pose, with noise and a missing wedge.

    Args:
        key: seeds pose, noise and signal-to-noise ratio.
        molecule: what to observe.
        tilt_range: ``(2,)`` degrees.
        config: the family that it is observed as.
        box: side in voxels.
        sign: -1 for dark protein, 1 for light.

    Returns:
        ``(z, y, x)``, normalised.
    """
    pose_key, noise_key = jax.random.split(key)
    volume = sign * render(molecule, (box,) * 3, _draw_pose(pose_key, config, box))
    return _observe(noise_key, volume, tilt_range, config)


def _draw(key: jax.Array, config: MoleculeConfig, box: int, size: jax.Array) -> Phantom:
    keys = jax.random.split(key, 5)
    num = config.num_blobs
    stretch = jnp.log(config.elongation)
    axes = jnp.exp(jax.random.uniform(keys[0], (3,), minval=-stretch, maxval=stretch))
    centers = jax.random.normal(keys[1], (num, 3)) * axes
    weights = jax.random.uniform(keys[2], (num,), minval=0.3, maxval=1.7)
    weights = weights / jnp.sum(weights)
    centers = centers - weights @ centers
    spread = 1 + config.size_spread * jax.random.uniform(keys[3], minval=-1.0)
    radius = jnp.sqrt(weights @ jnp.sum(centers**2, axis=-1))
    centers = centers * (size * spread * box / radius)
    widths = box * jax.random.uniform(
        keys[4], (num,), minval=config.blob_min, maxval=config.blob_max
    )
    return Phantom(centers, widths, weights)


def _draw_pose(key: jax.Array, config: MoleculeConfig, box: int) -> Pose:
    rotation_key, shift_key = jax.random.split(key)
    limit = config.max_shift * box
    shift = jax.random.uniform(shift_key, (3,), minval=-limit, maxval=limit)
    return Pose(rotation.random_rotation(rotation_key), shift)


def _observe(
    key: jax.Array, volume: jax.Array, tilt_range: jax.Array, config: MoleculeConfig
) -> jax.Array:
    """Cuts the missing wedge, adds noise inside what is measured, normalises."""
    noise_key, snr_key = jax.random.split(key)
    mask = wedge.wedge_mask(volume.shape, tilt_range)
    signal = standardize(wedge.apply_mask(volume, mask))
    noise = standardize(wedge.apply_mask(jax.random.normal(noise_key, volume.shape), mask))
    low, high = jnp.log(config.snr_min), jnp.log(config.snr_max)
    snr = jnp.exp(jax.random.uniform(snr_key, minval=low, maxval=high))
    return standardize(signal + noise * lax.rsqrt(snr))
