"""Central slices of a density's Fourier transform, and the density that slices add up to.

A particle is described by the Fourier coefficients of one half space inside a band limit. What a
rotated reference would measure there is read off its oversampled transform, the grid; insertion
is the transpose of that.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align.bands import OVERSAMPLING, Band, join, split
from jimjax.ops import fourier

PRIOR_POWER = OVERSAMPLING**3  # times the strongest class's; as many places share a coefficient
POWER_FLOOR = 0.01  # of the noise left in an average, where a shell shows no power beyond it
EDGE = 3.0  # voxels over which a support falls off


class Sums(NamedTuple):
    """What slices add up to on the grid, in one half space.

    Attributes:
        spectra: ``(..., g, g, g)`` complex, zero frequency in the middle.
        weights: ``(..., g, g, g)``.
    """

    spectra: jax.Array
    weights: jax.Array


def make_grids(volumes: jax.Array, band: Band) -> jax.Array:
    """The oversampled transforms that slices are read from.

    Args:
        volumes: ``(c, z, y, x)``, cubes.
        band: what will be read.

    Returns:
        ``(c, g, g, g)`` complex, zero frequency in the middle.
    """
    box = volumes.shape[-1]
    size = OVERSAMPLING * box
    low = size // 2 - box // 2
    pads = [(low, size - box - low)] * 3
    padded = jnp.pad(volumes / _envelope(box, box), [(0, 0), *pads])
    return _middle(_transform(padded), band.side)


def make_volumes(grids: jax.Array, band: Band) -> jax.Array:
    """The volumes of grids, without what is beyond the band: ``(c, z, y, x)``."""
    size = OVERSAMPLING * band.box
    volumes = _transform_back(_embed(grids, size)).real
    return _middle(volumes, band.box) * _envelope(band.box, band.box)


def widen_grids(grids: jax.Array, band: Band) -> jax.Array:
    """Cuts or pads grids with zeros to another band's."""
    if grids.shape[-1] >= band.side:
        return _middle(grids, band.side)
    return _embed(grids, band.side)


def grid_shells(band: Band) -> np.ndarray:
    """The shell of every place of the grid, the last one for those beyond: ``(g, g, g)`` int."""
    axis = np.arange(-band.reach, band.reach + 1) / OVERSAMPLING
    distance = _distances(axis)
    return np.clip(np.rint(distance).astype(int) - 1, 0, band.num_shells - 1)


def cut(grids: jax.Array, rotations: jax.Array, band: Band) -> jax.Array:
    """Reads grids where rotated copies of their volumes would be measured.

        T_cr(k) = V_c(R_r^T k)

    Args:
        grids: ``(c, g, g, g)``.
        rotations: ``(r, 3, 3)``, reference into particle.
        band: the coefficients.

    Returns:
        ``(c, r, k)`` complex.
    """
    # All classes are read at the same places: the classes of a place lie side by side.
    values = _read(split(grids.reshape(len(grids), -1).T), _corners(rotations, band))
    return jnp.moveaxis(join(values), -1, 0)


def cut_own(grids: jax.Array, classes: jax.Array, rotations: jax.Array, band: Band) -> jax.Array:
    """Reads one grid for each particle.

    Args:
        grids: ``(c, g, g, g)``.
        classes: ``(n,)`` int.
        rotations: ``(n, r, 3, 3)``.
        band: the coefficients.

    Returns:
        ``(n, r, k)`` complex.
    """
    first = classes[:, None, None] * band.side**3
    return join(_read(split(grids.reshape(-1, 1)), _corners(rotations, band, first)))[..., 0]


def insert(slices: jax.Array, weights: jax.Array, rotations: jax.Array, band: Band) -> Sums:
    """Adds slices up where they were measured: the transpose of ``cut``.

    Args:
        slices: ``(c, r, k)`` complex.
        weights: ``(c, r, k)``, of each coefficient.
        rotations: ``(r, 3, 3)``.
        band: the coefficients.
    """
    values = jnp.moveaxis(jnp.concatenate([slices.real, slices.imag, weights]), 0, -1)
    total = _write(values, _corners(rotations, band), band.side**3)
    return _as_sums(jnp.moveaxis(total.reshape(*[band.side] * 3, 3, -1), (3, 4), (0, 1)))


def insert_own(
    slices: jax.Array,
    weights: jax.Array,
    classes: jax.Array,
    rotations: jax.Array,
    band: Band,
    *,
    num_classes: int,
) -> Sums:
    """Adds slices up, each into its own class: the transpose of ``cut_own``.

    Args:
        slices: ``(n, r, k)`` complex.
        weights: ``(n, r, k)``.
        classes: ``(n,)`` int.
        rotations: ``(n, r, 3, 3)``.
        band: the coefficients.
        num_classes: how many classes there are.
    """
    num_places = band.side**3
    corners = _corners(rotations, band, classes[:, None, None] * num_places)
    values = jnp.stack([slices.real, slices.imag, weights], axis=-1)
    total = _write(values, corners, num_classes * num_places)
    return _as_sums(jnp.moveaxis(total.reshape(num_classes, *[band.side] * 3, 3), -1, 0))


def solve(sums: Sums, band: Band, *, radius: float, group: jax.Array | None = None) -> jax.Array:
    """Divides what was inserted by its weights, with the signal's own power as prior.

    With numerators B and weights W in units of one over the noise's variance, the transform is
    ``B / (W + 2 / tau^2)``. The prior variance tau^2 of a shell is the same for all classes: what
    ``|B|^2 / W`` of the strongest has beyond noise. A prior of its own would hold a class down
    whose particles are few or not yet aligned, and so keep it from ever becoming better.

    Args:
        sums: ``(c, g, g, g)``, slices and weights divided by the noise.
        band: as given to ``insert``.
        radius: of the sphere that the density is in, voxels.
        group: ``(order, 3, 3)`` rotations that leave the density as it is; none if None.

    Returns:
        Grids ``(c, g, g, g)``.
    """
    count = len(sums.weights)
    flip = (slice(None), *[slice(None, None, -1)] * 3)  # the other half: the conjugate at -k
    spectra = (sums.spectra + jnp.conj(sums.spectra[flip])).reshape(count, -1)
    weights = (sums.weights + sums.weights[flip]).reshape(count, -1)
    if group is not None and len(group) > 1:
        spectra, weights = _add_equivalents(spectra, weights, group, band)
    axis = np.arange(-band.reach, band.reach + 1) / OVERSAMPLING
    distance = _distances(axis).ravel()
    shells = np.rint(distance).astype(int)
    is_inside = jnp.asarray(distance > 0) & (weights > 0)
    safe = jnp.where(is_inside, weights, 1)
    excess = jnp.where(is_inside, jnp.abs(spectra) ** 2 / safe - 2, 0)

    def add_shells(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values.T, shells, num_segments=int(shells.max()) + 1).T

    total = add_shells(jnp.where(is_inside, weights, 0))
    safe_total = jnp.where(total > 0, total, 1)
    left = 2 * add_shells(is_inside.astype(total.dtype)) / safe_total
    power = jnp.max(jnp.maximum(add_shells(excess) / safe_total, POWER_FLOOR * left), axis=0)
    prior = PRIOR_POWER * jnp.where(power > 0, power, 1)
    gain = jnp.where(is_inside, 1 / (safe + 2 / prior[shells]), 0)
    return _confine((spectra * gain).reshape(sums.spectra.shape), band, radius)


def soft_ball(distance: jax.Array | np.ndarray, radius: float) -> jax.Array:
    """1 within a radius, falling to 0 over the next ``EDGE``, all in voxels."""
    return fourier.raised_cosine(jnp.asarray(distance) - radius, EDGE)


def _confine(grids: jax.Array, band: Band, radius: float) -> jax.Array:
    """Undoes both interpolations in the density, and masks it, on a coarse lattice."""
    size = max(band.box, band.side + 1)
    spacing = OVERSAMPLING * band.box / size  # voxels
    axis = (np.arange(size) - size // 2) * spacing
    distance = _distances(axis)
    mask = soft_ball(distance, radius) / _envelope(size, band.box, spacing) ** 2
    densities = _transform_back(_embed(grids, size)).real
    return _middle(_transform(densities * mask), band.side)


def _distances(axis: np.ndarray) -> np.ndarray:
    """How far the places of a cube with these coordinates along each axis are from its middle."""
    return np.sqrt(sum(np.square(grid) for grid in np.meshgrid(axis, axis, axis)))


def _add_equivalents(
    spectra: jax.Array, weights: jax.Array, group: jax.Array, band: Band
) -> tuple[jax.Array, jax.Array]:
    """Adds what was measured at all places that are one by symmetry; fields ``(c, places)``."""
    axis = np.arange(-band.reach, band.reach + 1) / OVERSAMPLING
    z, y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, axis, indexing="ij"))
    is_inside = np.sqrt(x**2 + y**2 + z**2) <= band.reach / OVERSAMPLING
    flat = jnp.concatenate([spectra.real, spectra.imag, weights]).T
    frequencies = np.stack([x, y, z], axis=-1)[is_inside]

    def add(total: jax.Array, rotation: jax.Array) -> tuple[jax.Array, None]:
        return total + _read(flat, _corners_of(frequencies, rotation, band)), None

    zeros = jnp.zeros((len(frequencies), flat.shape[1]), flat.dtype)
    total = jax.lax.scan(add, zeros, group)[0]
    places = jnp.zeros_like(flat).at[np.flatnonzero(is_inside)].set(total)
    real, imaginary, weights = jnp.split(places.T, 3)
    return real + 1j * imaginary, weights


def _corners(
    rotations: jax.Array, band: Band, first: jax.Array | int = 0
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The eight neighbours of ``R^T k``: their weights and places in a flat grid, ``(..., k)``."""
    return _corners_of(band.frequencies, rotations, band, first)


def _corners_of(
    frequencies: np.ndarray, rotations: jax.Array, band: Band, first: jax.Array | int = 0
) -> Iterator[tuple[jax.Array, jax.Array]]:
    scaled = jnp.asarray(OVERSAMPLING * frequencies, rotations.dtype)
    places = jnp.einsum("kj,...ji->i...k", scaled, rotations, precision="highest")
    places = places + band.reach
    cells = jnp.clip(jnp.floor(places).astype(jnp.int32), 0, band.side - 2)
    fractions = places - cells
    for corner in np.ndindex(2, 2, 2):
        weight, index = 1.0, 0
        for axis, step in zip((2, 1, 0), corner, strict=True):  # z, y, x
            weight = weight * (fractions[axis] if step else 1 - fractions[axis])
            index = index * band.side + cells[axis] + step
        yield weight, index + first


def _read(grid: jax.Array, corners: Iterator[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Trilinear interpolation in a flat grid ``(places, channels)``."""
    return sum(
        weight[..., None] * grid.at[index].get(mode="promise_in_bounds")
        for weight, index in corners
    )


def _write(
    values: jax.Array, corners: Iterator[tuple[jax.Array, jax.Array]], num_places: int
) -> jax.Array:
    """The transpose of ``_read``: ``(places, channels)``."""
    total = jnp.zeros((num_places, values.shape[-1]), values.dtype)
    for weight, index in corners:
        total = total.at[index].add(weight[..., None] * values, mode="promise_in_bounds")
    return total


def _as_sums(parts: jax.Array) -> Sums:
    real, imaginary, weights = parts
    return Sums(real + 1j * imaginary, weights)


def _transform(volumes: jax.Array) -> jax.Array:
    axes = (1, 2, 3)
    return jnp.fft.fftshift(jnp.fft.fftn(jnp.fft.ifftshift(volumes, axes), axes=axes), axes)


def _transform_back(grids: jax.Array) -> jax.Array:
    axes = (1, 2, 3)
    return jnp.fft.fftshift(jnp.fft.ifftn(jnp.fft.ifftshift(grids, axes), axes=axes), axes)


def _embed(grids: jax.Array, size: int) -> jax.Array:
    """Pads cubes with zeros; the middle ``n // 2`` stays the middle."""
    low = size // 2 - grids.shape[-1] // 2
    return jnp.pad(grids, [(0, 0), *[(low, size - grids.shape[-1] - low)] * 3])


def _middle(cubes: jax.Array, size: int) -> jax.Array:
    """The inverse of ``_embed``."""
    low = cubes.shape[-1] // 2 - size // 2
    part = slice(low, low + size)
    return cubes[:, part, part, part]


def _envelope(size: int, box: int, spacing: float = 1.0) -> np.ndarray:
    """What trilinear interpolation in the grid multiplies the density with."""
    places = (np.arange(size) - size // 2) * spacing
    axis = np.sinc(places / (OVERSAMPLING * box)) ** 2
    return (axis[:, None, None] * axis[:, None] * axis).astype(np.float32)
