"""A small world for the joint EM: two molecules, a few poses, two wedges."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align import bands, slices
from jimjax.align.joint_em import Model, Observations
from jimjax.data.phantom import demo_phantoms, render
from jimjax.ops import rotation

BOX = 16
BAND = bands.Band(BOX, 4.5)
SHIFTS = jnp.asarray([[0, 0, 0], [2, 0, -1], [0, -2, 1]], jnp.float32)
NUM_ROTATIONS = 20
NUM_FOLDS, PER_FOLD = 2, 5


def make_world():
    """Classes, poses and noisy particles of two folds; the last particle is not real."""
    random = np.random.default_rng(0)
    rotations = rotation.super_fibonacci(NUM_ROTATIONS)
    volumes = jnp.stack([render(m, (BOX,) * 3) for m in demo_phantoms(2, shape=(BOX,) * 3)])
    x, _, z = BAND.frequencies.T
    steep = np.abs(z) > 1.7 * np.abs(x)
    masks = jnp.asarray(np.stack([~steep, np.ones_like(steep)]), jnp.float32)
    shape = NUM_FOLDS, PER_FOLD
    truth = {
        "class": random.integers(0, 2, shape),
        "rotation": random.integers(0, NUM_ROTATIONS, shape),
        "shift": random.integers(0, 3, shape),
        "group": random.integers(0, 2, shape),
    }
    power = float(jnp.mean(jnp.abs(bands.take_spectra(volumes, BAND)) ** 2))
    return SimpleNamespace(
        band=BAND,
        rotations=rotations,
        shifts=SHIFTS,
        volumes=volumes,
        grids=slices.make_grids(volumes, BAND),
        masks=masks,
        truth=truth,
        power=power,
    )


def observe(world, truth, noise, *, num_real=None):
    """Particles with the world's truth and white noise of a variance."""
    templates = slices.cut(world.grids, world.rotations, world.band)
    seen = templates[truth["class"], truth["rotation"]]
    moved = seen * bands.phase_ramps(world.shifts, world.band)[truth["shift"]]
    real, imaginary = jax.random.normal(jax.random.key(1), (2, *moved.shape)) * jnp.sqrt(noise)
    own = world.masks[truth["group"]]
    is_real = np.ones(moved.shape[:2], np.float32)
    if num_real is not None:
        is_real.reshape(-1)[num_real:] = 0
    spectra = (moved + real + 1j * imaginary) * own
    return Observations(spectra, jnp.asarray(truth["group"]), jnp.asarray(is_real), world.masks)


def model_of(world, noise):
    """The true volumes for both folds, and a noise variance per shell."""
    grids = jnp.broadcast_to(world.grids, (NUM_FOLDS, *world.grids.shape))
    return Model(grids, jnp.broadcast_to(noise, (world.band.num_shells,)))
