"""Particles seen once more: moved as their missing wedge allows, with a little more noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jimjax.mesh import map_batch
from jimjax.train.supervised import augment

TURN_SHARE = 0.5  # of the particles, by 180 degrees about the tilt axis


def perturb(key: jax.Array, volume: jax.Array, *, max_shift: float, noise: float) -> jax.Array:
    """Shifts a particle, turns it or not by 180 degrees about the tilt axis, and adds noise.

    Args:
        key: seeds all three.
        volume: ``(z, y, x)``, of unit deviation.
        max_shift: along each axis, as a share of the box; whole voxels, round the box's edges.
        noise: standard deviation; what comes out has unit deviation again, if it had.
    """
    move_key, noise_key = jax.random.split(key)
    moved = augment(move_key, volume, max_shift=max_shift, turn_share=TURN_SHARE)
    noisy = moved + noise * jax.random.normal(noise_key, volume.shape)
    return noisy / jnp.sqrt(1 + noise**2)


def perturb_all(
    mesh: Mesh, *, max_shift: float, noise: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``perturb`` for a batch: of a key and volumes ``(batch, z, y, x)``, split over devices."""

    def one(volume: jax.Array, key: jax.Array) -> jax.Array:
        return perturb(key, volume, max_shift=max_shift, noise=noise)

    def every(key: jax.Array, volumes: jax.Array) -> jax.Array:
        return map_batch(one, mesh)(volumes, jax.random.split(key, len(volumes)))

    return every
