"""Asymmetric test molecules from a seed: nothing to download, and poses that are exact.

A phantom is a sum of isotropic 3-D Gaussians, so a rotated and shifted copy is rendered by moving
the centres instead of resampling a grid: it is free of interpolation error, which makes it the
reference for everything that rotates volumes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from jimjax.ops.rotation import Pose, super_fibonacci

REFERENCE_BOX = 32  # voxels; the lengths below belong to this box and scale with it
RADIUS = 9.5  # voxels, outermost centre plus its width: leaves room for shifts of 6 voxels
RADIUS_OF_GYRATION = 6.0  # voxels, mass weighted, blob widths included; the same for each phantom
MEAN_DENSITY = 0.3  # total weight over the volume of the bounding sphere; the same for each phantom
WIDTHS = (1.2, 1.8)  # voxels, standard deviation: about 30 to 45 A of resolution at 12 A per voxel
NUM_BLOBS = 10
MAX_SELF_CORRELATION = 0.80  # over rotations beyond SELF_ANGLE and over all mirrored rotations
MAX_CLASS_CORRELATION = 0.74  # over all rotations, between two demo phantoms
SELF_ANGLE = np.deg2rad(60.0)  # closer to identity any smooth density resembles itself
NUM_ORIENTATIONS = 2000  # of the search for likeness: about 15 degrees apart
MAX_ATTEMPTS = 2000


class Phantom(NamedTuple):
    """A sum of isotropic Gaussians.

    Attributes:
        centers: ``(m, 3)`` float32, x, y, z in voxels from the box centre.
        widths: ``(m,)`` float32, standard deviations in voxels.
        weights: ``(m,)`` float32, integral of each Gaussian over space.
    """

    centers: np.ndarray
    widths: np.ndarray
    weights: np.ndarray


def phantom(
    seed: int | jax.Array, shape: tuple[int, int, int] = (REFERENCE_BOX,) * 3, *, index: int = 0
) -> Phantom:
    """Draws an asymmetric, chiral molecule that fits a box.

    Blobs are attached one after another at random places of the growing particle. A draw is kept
    only if no rotation beyond 60 degrees, and no mirror image in any orientation, correlates with
    it by more than ``MAX_SELF_CORRELATION``. All phantoms of a box size share total weight, radius
    of gyration and centre of mass (the box centre), so that they differ by shape alone.

    Args:
        seed: an integer or a key of ``jax.random.key``; the same seed gives the same molecule.
        shape: the box it is meant for, voxels; lengths scale with the smallest side.
        index: which of the seed's molecules to return, from 0.

    Returns:
        A phantom within 0.3 of the smallest side from the centre.

    Raises:
        ValueError: if a side is shorter than 8 voxels or ``index`` is negative.
    """
    if min(shape) < 8:
        raise ValueError(f"shape must have at least 8 voxels a side, got {shape}")
    if index < 0:
        raise ValueError(f"index must be 0 or more, got {index}")
    return _scaled(_molecules(_seed_words(seed))(index), min(shape) / REFERENCE_BOX)


def demo_phantoms(
    num: int = 4, seed: int = 0, *, shape: tuple[int, int, int] = (REFERENCE_BOX,) * 3
) -> list[Phantom]:
    """Draws molecules that no rotation makes alike: the classes of the demo and of the tests.

    Args:
        num: number of classes.
        seed: the same seed gives the same molecules, and more classes extend fewer ones.
        shape: the box they are meant for, voxels.

    Returns:
        ``num`` phantoms, equal in total weight and radius of gyration, pairwise correlated by less
        than ``MAX_CLASS_CORRELATION`` in any relative orientation.

    Raises:
        ValueError: if ``num`` is below 1 or so many different molecules were not found.
    """
    if num < 1:
        raise ValueError(f"num must be 1 or more, got {num}")
    chosen = _different_molecules(num, _seed_words(seed))
    return [_scaled(molecule, min(shape) / REFERENCE_BOX) for molecule in chosen]


def render(molecule: Phantom, shape: tuple[int, int, int], pose: Pose | None = None) -> jax.Array:
    """Renders a phantom in a pose, exactly, at the voxel centres.

        v(p) = sum_i w_i / ((2 pi)^(3/2) s_i^3) exp(-|p - R c_i - t|^2 / (2 s_i^2))

    Args:
        molecule: centres and widths in voxels.
        shape: ``(z, y, x)`` of the result; the box centre is voxel ``n // 2``.
        pose: rotation ``(3, 3)`` and shift ``(3,)`` on x, y, z; none leaves it as it is.

    Returns:
        ``(z, y, x)`` float32. Differentiable in the pose and the phantom.
    """
    centers = jnp.asarray(molecule.centers)
    widths = jnp.asarray(molecule.widths)
    if pose is not None:
        turned = jnp.einsum("ij,mj->mi", pose.rotation, centers, precision=Precision.HIGHEST)
        centers = turned + pose.shift
    profiles = []
    for axis, size in zip((2, 1, 0), shape, strict=True):
        offset = jnp.arange(size) - size // 2 - centers[:, axis, None]
        profiles.append(jnp.exp(-0.5 * (offset / widths[:, None]) ** 2))
    amplitudes = jnp.asarray(molecule.weights) / ((2 * jnp.pi) ** 1.5 * widths**3)
    along_z, along_y, along_x = profiles
    return jnp.einsum(
        "m,mz,my,mx->zyx",
        amplitudes,
        along_z,
        along_y,
        along_x,
        precision=Precision.HIGHEST,
    )


def overlap_correlation(
    first: Phantom, second: Phantom, rotations: np.ndarray, num_voxels: int
) -> np.ndarray:
    """Correlates one phantom with rotated copies of another, in closed form.

    The integral of a product of Gaussians is a Gaussian of the distance of their centres, so no
    volume is rendered. The Pearson correlation follows by taking off the mean over the box.

    Args:
        first: stays.
        second: is turned about the origin.
        rotations: ``(n, 3, 3)``, proper or improper.
        num_voxels: volume of the box over which the mean is taken.

    Returns:
        ``(n,)`` float64 in [-1, 1].
    """
    mean_square = first.weights.sum(dtype=float) * second.weights.sum(dtype=float) / num_voxels
    cross = _inner_products(first, second, rotations) - mean_square
    identity = np.eye(3)[None]
    energy = [
        _inner_products(one, one, identity)[0] - one.weights.sum(dtype=float) ** 2 / num_voxels
        for one in (first, second)
    ]
    return cross / np.sqrt(energy[0] * energy[1])


def _inner_products(first: Phantom, second: Phantom, rotations: np.ndarray) -> np.ndarray:
    a, b = first.centers.astype(float), second.centers.astype(float)
    # |a - R b|^2 = |a|^2 + |b|^2 - 2 a.Rb
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ (rotations @ b.T))
    variance = first.widths.astype(float)[:, None] ** 2 + second.widths.astype(float)[None] ** 2
    factor = np.outer(first.weights, second.weights) / (2 * np.pi * variance) ** 1.5
    return np.einsum("ij,nij->n", factor, np.exp(-0.5 * squared / variance))


def _seed_words(seed: int | jax.Array) -> tuple[int, ...]:
    if isinstance(seed, (int, np.integer)):
        return (int(seed),)
    words = jax.random.key_data(seed) if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) else seed
    return tuple(int(word) for word in np.asarray(words).ravel())


@functools.lru_cache(maxsize=32)
def _molecules(words: tuple[int, ...]) -> Callable[[int], Phantom]:
    """Returns a function giving the seed's accepted molecules by number, drawn when first asked."""
    generator = np.random.default_rng(words)
    accepted: list[Phantom] = []

    def molecule(index: int) -> Phantom:
        while len(accepted) <= index:
            accepted.append(_draw_asymmetric(generator))
        return accepted[index]

    return molecule


@functools.lru_cache(maxsize=32)
def _different_molecules(num: int, words: tuple[int, ...]) -> tuple[Phantom, ...]:
    molecule = _molecules(words)
    chosen: list[Phantom] = []
    for index in range(MAX_ATTEMPTS):
        candidate = molecule(index)
        scores = [
            overlap_correlation(kept, candidate, _grid(), REFERENCE_BOX**3) for kept in chosen
        ]
        if all(score.max() < MAX_CLASS_CORRELATION for score in scores):
            chosen.append(candidate)
        if len(chosen) == num:
            return tuple(chosen)
    raise ValueError(
        f"only {len(chosen)} of {num} sufficiently different phantoms found; ask for fewer"
    )


def _draw_asymmetric(generator: np.random.Generator) -> Phantom:
    for _ in range(MAX_ATTEMPTS):
        molecule = _draw(generator)
        if molecule is not None and _is_asymmetric(molecule):
            return molecule
    raise RuntimeError(f"no asymmetric phantom in {MAX_ATTEMPTS} draws")


def _draw(generator: np.random.Generator) -> Phantom | None:
    """Grows one molecule; none if it is longer than the radius allows."""
    widths = generator.uniform(*WIDTHS, NUM_BLOBS)
    weights = widths**3 * generator.uniform(0.7, 1.3, NUM_BLOBS)
    weights *= MEAN_DENSITY * 4 / 3 * np.pi * RADIUS**3 / weights.sum()
    centers = np.zeros((1, 3))
    while len(centers) < NUM_BLOBS:
        index = len(centers)
        parent = generator.integers(index)
        direction = generator.normal(size=3)
        distance = generator.uniform(1.1, 1.5) * (widths[index] + widths[parent])
        place = centers[parent] + distance * direction / np.linalg.norm(direction)
        gaps = np.linalg.norm(centers - place, axis=1) / (widths[:index] + widths[index])
        if gaps.min() > 0.9:
            centers = np.vstack([centers, place])
    share = weights / weights.sum()
    centers = centers - share @ centers
    spread = share @ (centers**2).sum(1)
    centers *= np.sqrt((RADIUS_OF_GYRATION**2 - 3 * share @ widths**2) / spread)
    if (np.linalg.norm(centers, axis=1) + widths).max() > RADIUS:
        return None
    return Phantom(*(part.astype(np.float32) for part in (centers, widths, weights)))


def _is_asymmetric(molecule: Phantom) -> bool:
    grid = _grid()
    angles = np.arccos(np.clip((np.trace(grid, axis1=1, axis2=2) - 1) / 2, -1, 1))
    far = grid[angles > SELF_ANGLE]
    return (
        _likeness(molecule, molecule, far) < MAX_SELF_CORRELATION
        and _likeness(molecule, molecule, -grid) < MAX_SELF_CORRELATION
    )


def _likeness(first: Phantom, second: Phantom, rotations: np.ndarray) -> float:
    return overlap_correlation(first, second, rotations, REFERENCE_BOX**3).max()


@functools.cache
def _grid() -> np.ndarray:
    return np.asarray(super_fibonacci(NUM_ORIENTATIONS), float)


def _scaled(molecule: Phantom, factor: float) -> Phantom:
    """Scales lengths; weights by the cube, so that density stays of order one."""
    scale = np.float32(factor)
    return Phantom(molecule.centers * scale, molecule.widths * scale, molecule.weights * scale**3)
