"""The Fourier coefficients that particles are compared in: one half space inside a band limit."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops import fourier

OVERSAMPLING = 2  # of the grids that slices are read from: their field of view, in boxes


@dataclass(frozen=True)
class Band:
    """The coefficients of one half space with 0 < |k| <= limit; the other half is conjugate.

    Two bands of one box and limit are equal, so that a band can be a static argument of programs.

    Attributes:
        box: voxels of cubic volumes along each axis.
        limit: cycles per box, from 1 to ``box / 2 - 1``.

    Raises:
        ValueError: if the limit is out of range.
    """

    box: int
    limit: float

    def __post_init__(self) -> None:
        """Refuses a limit that boxes of this size do not have."""
        highest = self.box / 2 - 1
        if not 1 <= self.limit <= highest:
            raise ValueError(
                f"limit must be from 1 to {highest:g} cycles per box, got {self.limit}"
            )

    @functools.cached_property
    def frequencies(self) -> np.ndarray:
        """The coefficients' ``(k, 3)`` int, (x, y, z) cycles per box."""
        axis = np.arange(-int(self.limit), int(self.limit) + 1)
        z, y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, axis, indexing="ij"))
        is_half = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
        kept = is_half & (x**2 + y**2 + z**2 <= self.limit**2)
        return np.stack([x, y, z], axis=-1)[kept]

    @functools.cached_property
    def shells(self) -> np.ndarray:
        """Of each coefficient, |k| rounded, less 1: ``(k,)`` int."""
        radius = np.linalg.norm(self.frequencies, axis=1)
        return np.maximum(np.rint(radius).astype(int), 1) - 1

    @functools.cached_property
    def num_shells(self) -> int:
        """How many shells there are."""
        return int(self.shells.max()) + 1

    @property
    def reach(self) -> int:
        """Index of the zero frequency in a grid of side ``2 reach + 1``."""
        return int(OVERSAMPLING * self.limit) + 1

    @property
    def side(self) -> int:
        """Places of the grid along each axis."""
        return 2 * self.reach + 1


def take_spectra(volumes: jax.Array, band: Band) -> jax.Array:
    """Transforms volumes about voxel ``n // 2``.

    Args:
        volumes: ``(n, z, y, x)``, cubes of the band's box.
        band: what to keep.

    Returns:
        ``(n, k)`` complex.
    """
    x, y, z = band.frequencies.T  # x >= 0
    return jax.vmap(fourier.rfft)(jnp.asarray(volumes))[:, z, y, x]


@functools.partial(jax.jit, static_argnames="band")
def take_masks(masks: jax.Array, band: Band) -> jax.Array:
    """The band's part of half-spectrum masks ``(g, z, y, x // 2 + 1)``: ``(g, k)``."""
    x, y, z = band.frequencies.T
    return masks[:, z, y, x]


def phase_ramps(shifts: jax.Array, band: Band) -> jax.Array:
    """What multiplies a spectrum when the volume moves by shifts ``(..., 3)`` voxels (x, y, z).

    Returns:
        ``(..., k)`` complex.
    """
    turns = jnp.einsum(
        "...i,ki->...k",
        jnp.asarray(shifts),
        jnp.asarray(band.frequencies / band.box, jnp.float32),
        precision="highest",
    )
    return jnp.exp(-2j * jnp.pi * turns)


def per_shell(values: jax.Array, band: Band) -> jax.Array:
    """Adds up values ``(k,)`` of each shell: ``(shells,)``."""
    return jax.ops.segment_sum(values, band.shells, num_segments=band.num_shells)


def split(values: jax.Array) -> jax.Array:
    """Real parts, then imaginary parts, along the last axis."""
    return jnp.concatenate([values.real, values.imag], axis=-1)


def join(values: jax.Array) -> jax.Array:
    """The inverse of ``split``."""
    real, imaginary = jnp.split(values, 2, axis=-1)
    return real + 1j * imaginary


def over_norms(products: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Correlations of spectra ``(..., k)`` from their products; 0 of what is 0 throughout."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return products / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)
