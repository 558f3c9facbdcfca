"""Coarse regressor that compares two particles at every rotation at once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jimjax.models.matching import grid_points, windowed
from jimjax.ops import harmonics
from jimjax.ops.procrustes import nearest_rotation
from jimjax.ops.rotation import Pose, super_fibonacci

RADIAL_SCALES = (0.09, 0.15, 0.21)  # of the box: widths of the Gaussian radial functions
INITIAL_SHARPNESS = 10.0  # of the softmax over cosines
BASIN = np.deg2rad(40.0)  # rotations nearer than this to the best one refine it
EPSILON = 1e-6


class Moments(NamedTuple):
    """What the coarse stage keeps of particles.

    Attributes:
        centre: ``(batch, 3)``, ``(x, y, z)`` in voxels from the box centre.
        degrees: per degree l from 1, ``(batch, radii * channels, 2 l + 1)``; weighted and
            normalised so that the sum of products over all of them is a cosine.
    """

    centre: jax.Array
    degrees: tuple[jax.Array, ...]


class GlobalHarmonic(nnx.Module):
    """Global correlation of feature maps over SO(3), through their harmonic moments.

    Each feature channel is expanded about the particle's (learned) centre in Gaussian radial
    functions times solid harmonics. Rotating the particle multiplies the moments of degree l by
    a matrix D_l(R), so the correlation of source and target over a grid of rotations is one
    matrix product; the peak, refined within its basin, is the pose. What is learned: the
    features, the centre, and the weight of every channel, radius and degree.
    """

    def __init__(self, num_features: int, *, degree: int, num_rotations: int, rngs: nnx.Rngs):
        self.degree = degree
        self.num_rotations = num_rotations
        self.centre = nnx.Linear(num_features, 1, rngs=rngs)
        self.weights = nnx.Param(jnp.zeros((degree, len(RADIAL_SCALES), num_features)))
        self.log_sharpness = nnx.Param(jnp.log(jnp.full((), INITIAL_SHARPNESS, jnp.float32)))

    def __call__(
        self, source: jax.Array, target: jax.Array, box: int, *, train: bool
    ) -> tuple[Pose, jax.Array]:
        """Estimates poses from feature maps ``(batch, n, n, n, c)``.

        Returns:
            Poses, shifts in box voxels, and ``(batch, num_rotations)`` logits over the grid.
        """
        return self.compare(self.prepare(source, box), self.prepare(target, box), box, train=train)

    def compare(
        self, source: Moments, target: Moments, box: int, *, train: bool
    ) -> tuple[Pose, jax.Array]:
        """Does the same from what ``prepare`` made of the feature maps."""
        del box, train
        logits = self.score(source.degrees, target.degrees)
        grid = jnp.asarray(super_fibonacci(self.num_rotations))
        rotation = jax.vmap(_peak, in_axes=(0, None))(logits, grid)
        turned = jnp.einsum("bij,bj->bi", rotation, source.centre, precision=lax.Precision.HIGHEST)
        return Pose(rotation, target.centre - turned), logits

    def prepare(self, features: jax.Array, box: int) -> Moments:
        """Expands feature maps.

        Args:
            features: ``(batch, n, n, n, c)``.
            box: side of the particle in voxels.

        Returns:
            Their moments.
        """
        batch, size = features.shape[:2]
        points = grid_points(size, box)
        flat = windowed(features, box).reshape(batch, size**3, -1)
        centre = nnx.softmax(self.centre(flat)[..., 0], axis=-1) @ points
        relative = points - centre[:, None]
        squared = jnp.sum(relative**2, axis=-1)
        widths = box * np.asarray(RADIAL_SCALES, np.float32)
        radial = jnp.exp(-squared[..., None] / (2 * widths**2))
        weights = nnx.softplus(self.weights[...])
        out = []
        solids = harmonics.solid_harmonics(relative / widths[-1], self.degree)
        for degree, solid in enumerate(solids[1:], start=1):
            # (r / width)^l with each radial function's own width
            scaled = radial * (widths[-1] / widths) ** degree
            basis = (scaled[..., None] * solid[..., None, :]).reshape(batch, size**3, -1)
            moments = jnp.einsum("bnc,bnk->bck", flat, basis, precision=lax.Precision.HIGHEST)
            moments = moments.reshape(batch, flat.shape[-1], len(widths), -1)
            moments = moments * weights[degree - 1].T[..., None]
            out.append(moments.reshape(batch, -1, 2 * degree + 1))
        total = sum(jnp.sum(m**2, axis=(1, 2)) for m in out)
        scale = lax.rsqrt(total + EPSILON)[:, None, None]
        return Moments(centre, tuple(m * scale for m in out))

    def score(self, source: tuple[jax.Array, ...], target: tuple[jax.Array, ...]) -> jax.Array:
        """Correlates moments at every rotation of the grid: ``(batch, num_rotations)``."""
        total = 0.0
        for moments, turned, grid in zip(
            source, target, _grid_matrices(self.num_rotations, self.degree), strict=True
        ):
            outer = jnp.einsum("bcm,bcn->bmn", turned, moments, precision=lax.Precision.HIGHEST)
            matrices = grid.reshape(len(grid), -1).T
            total += jnp.matmul(
                outer.reshape(len(outer), -1), matrices, precision=lax.Precision.HIGHEST
            )
        return total * jnp.exp(self.log_sharpness[...])


def _peak(logits: jax.Array, rotations: jax.Array) -> jax.Array:
    """The best rotation, as the mean of the probable ones in its basin."""
    best = rotations[jnp.argmax(logits)]
    cosine = (jnp.einsum("nij,ij->n", rotations, best, precision=lax.Precision.HIGHEST) - 1) / 2
    weights = nnx.softmax(jnp.where(cosine > np.cos(BASIN), logits, -jnp.inf))
    mean = jnp.einsum("n,nij->ij", weights, rotations, precision=lax.Precision.HIGHEST)
    return nearest_rotation(mean)


@functools.cache
def _grid_matrices(num_rotations: int, degree: int) -> tuple[np.ndarray, ...]:
    with jax.ensure_compile_time_eval():
        rotations = jnp.asarray(super_fibonacci(num_rotations))
        matrices = harmonics.rotation_matrices(rotations, degree)
        return tuple(np.asarray(m) for m in matrices[1:])
