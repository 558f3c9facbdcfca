"""Central slices of a density's Fourier transform, and the density that slices add up to.

A particle is described by the Fourier coefficients of one half space inside a band limit. What a
rotated reference would measure there is read off its oversampled transform; insertion is the
transpose of that.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops import fourier

OVERSAMPLING = 2  # of the transform that is interpolated; its volume is padded that often
POWER_FLOOR = 1e-6  # of the strongest shell's signal power, where a shell shows none


class Band(NamedTuple):
    """The coefficients of one half space with 0 < |k| <= limit; the other half is conjugate.

    Attributes:
        box: voxels of the volumes along each axis.
        frequencies: ``(k, 3)`` int, (x, y, z) cycles per box.
        shells: ``(k,)`` int, |k| rounded, less 1.
        num_shells: how many shells there are.
    """

    box: int
    frequencies: np.ndarray
    shells: np.ndarray
    num_shells: int


def make_band(box: int, limit: float) -> Band:
    """Lists the coefficients up to a limit.

    Args:
        box: voxels of cubic volumes.
        limit: cycles per box, at least 1 and less than ``box / 2``.

    Raises:
        ValueError: if the limit is out of range.
    """
    if not 1 <= limit < box / 2:
        raise ValueError(f"limit must be from 1 to less than {box / 2}, got {limit}")
    axis = np.arange(-int(limit), int(limit) + 1)
    z, y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, axis, indexing="ij"))
    radius = np.sqrt(x**2 + y**2 + z**2)
    is_half = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    kept = is_half & (radius <= limit)
    shells = np.maximum(np.rint(radius[kept]).astype(int), 1) - 1
    frequencies = np.stack([x, y, z], axis=-1)[kept]
    return Band(box, frequencies, shells, int(shells.max()) + 1)


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


def take_mask(mask: jax.Array, band: Band) -> jax.Array:
    """The band's part of a half-spectrum mask ``(z, y, x // 2 + 1)``: ``(k,)``."""
    x, y, z = band.frequencies.T
    return mask[z, y, x]


def phase_ramps(shifts: jax.Array, band: Band) -> jax.Array:
    """What multiplies a spectrum when the volume moves by shifts ``(..., 3)`` voxels (x, y, z).

    Returns:
        ``(..., k)`` complex.
    """
    turns = jnp.asarray(shifts) @ jnp.asarray(band.frequencies.T / band.box, jnp.float32)
    return jnp.exp(-2j * jnp.pi * turns)


def cut(volumes: jax.Array, rotations: jax.Array, band: Band) -> jax.Array:
    """Transforms volumes and reads them where rotated copies would be measured.

        T_cr(k) = V_c(R_r^T k)

    Args:
        volumes: ``(c, z, y, x)``, cubes.
        rotations: ``(r, 3, 3)``, reference into particle.
        band: the coefficients.

    Returns:
        ``(c, r, k)`` complex.
    """
    return read(oversample(volumes), rotations, band)


def oversample(volumes: jax.Array) -> jax.Array:
    """The transforms that ``read`` interpolates.

    Args:
        volumes: ``(c, z, y, x)``, cubes.

    Returns:
        ``(grid^3, 2 c)``: real parts, then imaginary parts, zero frequency at ``grid // 2``.
    """
    box = volumes.shape[-1]
    low = OVERSAMPLING * box // 2 - box // 2
    pads = [(low, (OVERSAMPLING - 1) * box - low)] * 3
    padded = jnp.pad(volumes / _envelope(box), [(0, 0), *pads])
    axes = (1, 2, 3)
    spectra = jnp.fft.fftshift(jnp.fft.fftn(jnp.fft.ifftshift(padded, axes=axes), axes=axes), axes)
    flat = spectra.reshape(len(volumes), -1).T
    return jnp.concatenate([flat.real, flat.imag], axis=-1)


def read(grid: jax.Array, rotations: jax.Array, band: Band) -> jax.Array:
    """Interpolates transforms from ``oversample``; ``(c, r, k)`` complex."""
    values = _interpolate(grid, rotations, band)
    count = grid.shape[-1] // 2
    return jnp.moveaxis(values[..., :count] + 1j * values[..., count:], -1, 0)


def insert(slices: jax.Array, weights: jax.Array, rotations: jax.Array, band: Band) -> jax.Array:
    """Adds slices up where they were measured: the transpose of ``read``.

    Args:
        slices: ``(c, r, k)`` complex.
        weights: ``(c, r, k)``, of each coefficient.
        rotations: ``(r, 3, 3)``.
        band: the coefficients.

    Returns:
        ``(grid^3, 3 c)``: real parts, imaginary parts and weights.
    """
    size = OVERSAMPLING * band.box
    values = jnp.concatenate([slices.real, slices.imag, weights])
    grid = jax.ShapeDtypeStruct((size**3, len(values)), values.dtype)
    add = jax.linear_transpose(lambda grid: _interpolate(grid, rotations, band), grid)
    (half,) = add(jnp.moveaxis(values, 0, -1))
    # The other half space is the conjugate at -k.
    count = len(slices)
    cube = half.reshape(size, size, size, -1)
    mirrored = jnp.roll(cube[::-1, ::-1, ::-1], 1 - size % 2, axis=(0, 1, 2))
    sign = np.repeat(np.float32([1, -1, 1]), count)
    return (cube + mirrored * sign).reshape(size**3, -1)


def solve(sums: jax.Array, band: Band) -> jax.Array:
    """Divides what was inserted by its weights, with the signal's own power as prior.

    With numerators B and weights W in units of one over the noise's variance, the volume is
    ``B / (W + 2 / tau^2)``; tau^2, the power of each shell of each class, is what ``|B|^2 / W``
    has beyond noise.

    Args:
        sums: ``(grid^3, 3 c)`` of ``insert``, divided by the noise.
        band: as given to ``insert``.

    Returns:
        ``(c, z, y, x)``.
    """
    box, size, count = band.box, OVERSAMPLING * band.box, sums.shape[-1] // 3
    real, imaginary, weights = jnp.moveaxis(sums.reshape(-1, 3, count), 1, 0)
    axis = (np.arange(size) - size // 2) / OVERSAMPLING
    radius = np.sqrt(sum(np.square(grid) for grid in np.meshgrid(axis, axis, axis))).ravel()
    shells = np.rint(radius).astype(int)
    num_shells = band.num_shells + 2  # what is read reaches beyond the band by a cell
    is_inside = jnp.asarray(radius > 0)[:, None] & (weights > 0)
    safe = jnp.where(is_inside, weights, 1)
    excess = jnp.where(is_inside, (real**2 + imaginary**2) / safe - 2, 0)
    shell_sum = functools.partial(
        jax.ops.segment_sum, segment_ids=np.minimum(shells, num_shells), num_segments=num_shells + 1
    )
    total = shell_sum(jnp.where(is_inside, weights, 0))
    power = shell_sum(excess) / jnp.where(total > 0, total, 1)
    power = jnp.maximum(power, POWER_FLOOR * jnp.max(power, axis=0) + jnp.finfo(power.dtype).tiny)
    gain = jnp.where(is_inside, 1 / (safe + 2 / power[np.minimum(shells, num_shells)]), 0)
    spectra = ((real + 1j * imaginary) * gain).T.reshape(count, size, size, size)
    axes = (1, 2, 3)
    volumes = jnp.fft.fftshift(jnp.fft.ifftn(jnp.fft.ifftshift(spectra, axes), axes=axes), axes)
    low = size // 2 - box // 2
    inner = slice(low, low + box)
    return volumes.real[:, inner, inner, inner] / _envelope(box)


def _interpolate(grid: jax.Array, rotations: jax.Array, band: Band) -> jax.Array:
    """Trilinear at ``R^T k``; ``(r, k, channels)``."""
    size = OVERSAMPLING * band.box
    frequencies = jnp.asarray(OVERSAMPLING * band.frequencies, rotations.dtype)
    places = jnp.einsum("kj,rji->irk", frequencies, rotations, precision="highest") + size // 2
    cells = jnp.clip(jnp.floor(places).astype(jnp.int32), 0, size - 2)
    fractions = places - cells
    total = 0.0
    for corner in np.ndindex(2, 2, 2):
        weight, index = 1.0, 0
        for axis, step in zip((2, 1, 0), corner, strict=True):  # z, y, x
            weight = weight * (fractions[axis] if step else 1 - fractions[axis])
            index = index * size + cells[axis] + step
        total = total + weight[..., None] * grid.at[index].get(mode="promise_in_bounds")
    return total


def _envelope(box: int) -> np.ndarray:
    """What trilinear interpolation in the oversampled transform multiplies the volume with."""
    axis = np.sinc((np.arange(box) - box // 2) / (OVERSAMPLING * box)) ** 2
    return (axis[:, None, None] * axis[:, None] * axis).astype(np.float32)
