"""Particles with what their tilts have measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align import bands
from jimjax.align.bands import Band
from jimjax.ops import wedge

TILT_ROUNDING = 0.5  # degrees; particles whose tilt ranges are then equal share a mask
CHUNK = 256  # particles that are transformed at a time


class MeasuredVolumes:
    """Particles, each with one of a few masks.

    Attributes:
        volumes: ``(n, z, y, x)``, cubes.
        groups: ``(n,)`` int, which of the masks.
    """

    def __init__(self, volumes: np.ndarray, tilt_ranges: np.ndarray):
        self.volumes = volumes
        rounded = np.round(tilt_ranges / TILT_ROUNDING) * TILT_ROUNDING
        ranges, groups = np.unique(rounded, axis=0, return_inverse=True)
        self.groups = groups.ravel()
        see = jax.jit(functools.partial(wedge.wedge_mask, volumes.shape[1:]))
        self._masks = jnp.stack([see(jnp.asarray(each)) for each in ranges])

    def __len__(self) -> int:
        """How many particles there are."""
        return len(self.volumes)

    @property
    def box(self) -> int:
        """Voxels along each axis."""
        return self.volumes.shape[-1]

    def take(self, band: Band) -> tuple[jax.Array, jax.Array]:
        """Spectra ``(n, k)`` inside a band, zero where not measured, and masks ``(g, k)``."""
        masks = bands.take_masks(self._masks, band)
        spectra = [
            _take_measured(self.volumes[rows], masks[self.groups[rows]], band)
            for rows in np.array_split(np.arange(len(self)), -(-len(self) // CHUNK))
        ]
        return jnp.concatenate(spectra), masks


@functools.partial(jax.jit, static_argnames="band")
def _take_measured(volumes: jax.Array, masks: jax.Array, band: Band) -> jax.Array:
    return bands.take_spectra(volumes, band) * masks
