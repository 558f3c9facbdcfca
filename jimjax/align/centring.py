"""Where particles are in their boxes, before anything is known of their orientation.

Each particle is compared, at every shift, with a few isotropic densities of different sizes that
are estimated together with the shifts: an expectation-maximisation whose only rotation is all of
them. It is cheap, needs no starting reference, and puts the centre of mass of every particle of
a class into the same place.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align import bands
from jimjax.align.bands import Band, per_shell
from jimjax.align.measured import MeasuredVolumes

LIMIT, LOWEST_LIMIT = 1.7, 2.0  # of the band, cycles per particle diameter and per box
NUM_PROFILES = 4
SMALLEST, LARGEST = 0.1, 0.3  # standard deviations of the first profiles, particle diameters
DIAMETER = 2 / 3  # of the box, of particles of unknown size
STEP = 1.5  # voxels of a 32-voxel box between two shifts
NUM_ITERATIONS = 25
FIRST_TEMPERATURE, COOLING = 3.0, 0.8  # of the log-likelihoods, and what it falls by
START = 0.5  # amplitude of the first profiles, noise deviations


class Centres(NamedTuple):
    """Where particles are.

    Attributes:
        shifts: ``(n, 3)``, voxels (x, y, z) from the box centre.
        sizes: ``(n,)``, expected place of the particle among the profiles, small to large.
    """

    shifts: np.ndarray
    sizes: np.ndarray


def centre_particles(
    particles: MeasuredVolumes, *, max_shift: float, diameter: float | None = None
) -> Centres:
    """Finds the shift of every particle from low frequencies, in which it is one blob.

    Args:
        particles: of unknown orientation.
        max_shift: along each axis, voxels.
        diameter: of the particles, voxels; two thirds of the box if None.
    """
    diameter = DIAMETER * particles.box if diameter is None else diameter
    highest = particles.box / 2 - 1
    limit = np.clip(LIMIT * particles.box / diameter, min(LOWEST_LIMIT, highest), highest)
    band = Band(particles.box, float(limit))
    spectra, masks = particles.take(band)
    groups = jnp.asarray(particles.groups)
    return find_centres(spectra, groups, masks, band, max_shift=max_shift, diameter=diameter)


def find_centres(
    spectra: jax.Array,
    groups: jax.Array,
    masks: jax.Array,
    band: Band,
    *,
    max_shift: float,
    diameter: float,
) -> Centres:
    """Finds the shift of every particle.

    Args:
        spectra: ``(n, k)`` complex, zero where not measured.
        groups: ``(n,)`` int, which of the masks.
        masks: ``(g, k)``, 1 where measured.
        band: the coefficients; low ones, in which a particle is one blob.
        max_shift: along each axis, voxels.
        diameter: of the particles, voxels.
    """
    step = STEP * band.box / 32
    reach = np.arange(np.ceil(max_shift / step) + 1) * step
    axis = np.concatenate([-reach[:0:-1], reach])
    grid = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3).astype(np.float32)
    frequencies = np.arange(1, band.num_shells + 1) / band.box
    deviations = np.geomspace(SMALLEST, LARGEST, NUM_PROFILES) * diameter
    profiles = np.exp(-2 * (np.pi * deviations[:, None] * frequencies) ** 2)
    shifts, sizes = _fit(spectra, groups, masks, jnp.asarray(grid), jnp.asarray(profiles), band)
    return Centres(np.asarray(shifts), np.asarray(sizes))


def _fit(
    spectra: jax.Array,
    groups: jax.Array,
    masks: jax.Array,
    grid: jax.Array,
    profiles: jax.Array,
    band: Band,
) -> tuple[jax.Array, jax.Array]:
    products = _correlate(spectra, grid, band)
    masses = jax.vmap(lambda mask: per_shell(mask, band))(masks)[groups]
    measured = masses.sum(axis=0)
    energy = per_shell(jnp.sum(jnp.abs(spectra) ** 2, axis=0), band)
    noise = energy / measured / 2
    sign = jnp.sign(jnp.mean(products[..., 0]))  # light or dark protein
    profiles = jnp.asarray(profiles, noise.dtype) * START * sign * jnp.sqrt(jnp.mean(noise))
    shares = jnp.full(len(profiles), 1 / len(profiles))
    for iteration in range(NUM_ITERATIONS):
        temperature = max(1.0, FIRST_TEMPERATURE * COOLING**iteration)
        profiles, noise, shares, shifts, members = _iterate(
            products, masses, energy, grid, profiles, noise, shares, temperature
        )
    return shifts, members @ jnp.arange(len(profiles))


@jax.jit
def _iterate(
    products: jax.Array,
    masses: jax.Array,
    energy: jax.Array,
    grid: jax.Array,
    profiles: jax.Array,
    noise: jax.Array,
    shares: jax.Array,
    temperature: float,
) -> tuple[jax.Array, ...]:
    num = len(products)
    power = masses @ (profiles**2 / noise).T
    scores = jnp.einsum("nsh,kh->nsk", products, profiles / noise) - power[:, None] / 2
    scores = (scores + jnp.log(shares)) / temperature
    posterior = jax.nn.softmax(scores.reshape(num, -1), axis=1).reshape(scores.shape)
    members = posterior.sum(axis=1)
    crossed = jnp.einsum("nsk,nsh->kh", posterior, products)
    weights = members.T @ masses
    profiles = crossed / (weights + jnp.finfo(weights.dtype).eps)
    left = energy + jnp.sum(weights * profiles**2 - 2 * crossed * profiles, axis=0)
    shifts = jnp.einsum("nsk,si->ni", posterior, grid, precision="highest")
    noise = jnp.maximum(left / masses.sum(axis=0) / 2, jnp.finfo(left.dtype).tiny)
    return profiles, noise, members.mean(axis=0), shifts, members


@functools.partial(jax.jit, static_argnames="band")
def _correlate(spectra: jax.Array, grid: jax.Array, band: Band) -> jax.Array:
    """The sum over each shell of every particle, moved back by every shift: ``(n, s, shells)``."""
    back = jnp.conj(bands.phase_ramps(grid, band))

    def one_shell(shell: int) -> jax.Array:
        chosen = np.flatnonzero(band.shells == shell)
        part, ramps = spectra[:, chosen], back[:, chosen]
        return part.real @ ramps.real.T - part.imag @ ramps.imag.T

    return jnp.stack([one_shell(shell) for shell in range(band.num_shells)], axis=-1)
