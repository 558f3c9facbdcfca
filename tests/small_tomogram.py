"""A small tomogram with particles at known places, for the template matching."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.data.phantom import demo_phantoms, render
from jimjax.ops import rotation, wedge
from jimjax.ops.rotation import Pose

BOX = 16
DIAMETER = 10.0  # voxels
TILTS = (-60.0, 60.0)


class World(NamedTuple):
    """A tomogram and the truth.

    Attributes:
        tomogram: ``(z, y, x)``, dark particles.
        templates: ``(2, BOX, BOX, BOX)``; the second is the decoy's.
        positions: ``(n, 3)`` x, y, z.
        rotations: ``(n, 3, 3)``.
        labels: ``(n,)``.
    """

    tomogram: np.ndarray
    templates: np.ndarray
    positions: np.ndarray
    rotations: np.ndarray
    labels: np.ndarray


def make_world(seed=0, *, labels=(0, 0, 0, 1), noise=0.5, shape=(20, 38, 38), tilts=TILTS):
    """Particles at least a diameter apart, in white noise of a deviation relative to theirs."""
    random = np.random.default_rng(seed)
    molecules = demo_phantoms(2, shape=(BOX,) * 3)
    keys = jax.random.split(jax.random.key(seed), len(labels))
    rotations = np.asarray(jax.vmap(rotation.random_rotation)(keys))
    positions = _places(random, len(labels), shape)
    volume = np.zeros(shape, np.float32)
    for label, R, position in zip(labels, rotations, positions, strict=True):
        middle = np.array(shape)[::-1] // 2
        pose = Pose(jnp.asarray(R), jnp.asarray(position - middle, jnp.float32))
        volume += np.asarray(render(molecules[label], shape, pose))
    templates = np.stack([np.asarray(render(molecule, (BOX,) * 3)) for molecule in molecules])
    volume += noise * templates[0].std() * random.normal(size=shape)
    measured = wedge.wedge_mask(shape, jnp.asarray(tilts))
    tomogram = -np.asarray(jnp.fft.irfftn(jnp.fft.rfftn(volume) * measured, s=shape))
    return World(tomogram, -templates, positions, rotations, np.array(labels))


def _places(random, num, shape):
    low, high = np.full(3, BOX / 2), np.array(shape)[::-1] - BOX / 2
    places = []
    while len(places) < num:
        place = random.uniform(low, high)
        if all(np.linalg.norm(place - other) > DIAMETER for other in places):
            places.append(place)
    return np.array(places)


def nearest(positions, to):
    """Row of the nearest true position, and its distance, for each found one."""
    distances = np.linalg.norm(np.asarray(positions)[:, None] - to[None], axis=-1)
    return distances.argmin(axis=1), distances.min(axis=1)


def angle(a, b):
    """Degrees between two rotations."""
    return np.rad2deg(np.arccos(np.clip((np.trace(np.transpose(a) @ b) - 1) / 2, -1, 1)))
