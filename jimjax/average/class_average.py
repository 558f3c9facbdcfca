"""Wedge-weighted averages of aligned particles, their half maps and their resolution.

Each particle has measured only part of Fourier space. It is turned back into the frame of the
reference, its wedge with it, and every Fourier coefficient of the average is the mean over those
particles that measured it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.ops import fourier, resample, rotation, wedge
from jimjax.ops.rotation import Pose

__all__ = [
    "ClassAverage",
    "FourierSum",
    "add_sums",
    "average_class",
    "correlate_half_maps",
    "divide_sum",
    "soft_sphere",
    "sum_particles",
]

CHUNK_SIZE = 64  # particles on the device at once: bounds the memory, one compilation fits all
COVERAGE_FLOOR = 0.1  # share of the particles below which a coefficient is damped, see divide_sum
MASK_RADIUS = 0.4  # of the box: the sphere is 1 up to here and falls to 0 at the box edge, 0.5


class FourierSum(NamedTuple):
    """What the particles of one group add up to.

    Attributes:
        spectrum: ``(z, y, x//2+1)`` complex, sum of mask times transform.
        weights: ``(z, y, x//2+1)``, sum of masks: how many particles measured each coefficient.
        num_particles: how many particles are in the sums.
    """

    spectrum: jax.Array
    weights: jax.Array
    num_particles: int


class ClassAverage(NamedTuple):
    """Average of one class with its half maps.

    Attributes:
        volume: ``(z, y, x)`` average of all particles.
        half1: ``(z, y, x)`` average of the first half set, None if that is empty.
        half2: the same of the second half set.
        fsc: ``(n//2+1,)`` correlation of the half maps by shell, None without both half maps.
        resolution: at 0.143, None without both half maps. It is "gold standard" only if the half
            sets were also aligned independently; otherwise noise aligned to a common reference
            is counted as signal.
        num_half1: particles in the first half set.
        num_half2: particles in the second half set.
    """

    volume: np.ndarray
    half1: np.ndarray | None
    half2: np.ndarray | None
    fsc: np.ndarray | None
    resolution: fourier.Resolution | None
    num_half1: int
    num_half2: int


def average_class(
    volumes: np.ndarray,
    tilt_ranges: np.ndarray,
    poses: Pose,
    halves: np.ndarray,
    *,
    voxel_size: float,
    order: int = 3,
) -> ClassAverage:
    """Averages the particles of one class, in total and for each half set.

    Args:
        volumes: ``(n, z, y, x)`` particles, cubic; may be larger than the device memory.
        tilt_ranges: ``(n, 2)`` degrees, measured tilts of each particle.
        poses: rotations ``(n, 3, 3)`` and shifts ``(n, 3)`` ((x, y, z), voxels) that carry the
            reference into each particle.
        halves: ``(n,)`` 1 or 2, the half set of each particle. The full average is over both.
        voxel_size: Angstrom.
        order: of the one interpolation, 1 or 3.

    Returns:
        The averages, and the correlation of the half maps inside a soft sphere.

    Raises:
        ValueError: if there is no particle, shapes disagree, or a half is neither 1 nor 2.
    """
    volumes, tilt_ranges, halves = np.asarray(volumes), np.asarray(tilt_ranges), np.asarray(halves)
    rotations, shifts = np.asarray(poses.rotation), np.asarray(poses.shift)
    _check_particles(volumes, tilt_ranges, rotations, shifts, halves)
    sums = []
    for half in (1, 2):
        chosen = halves == half
        chosen_poses = Pose(rotations[chosen], shifts[chosen])
        sums.append(sum_particles(volumes[chosen], tilt_ranges[chosen], chosen_poses, order=order))
    size = volumes.shape[-1]
    half1, half2 = (np.asarray(divide_sum(s, size)) if s.num_particles else None for s in sums)
    fsc, resolution = None, None
    if half1 is not None and half2 is not None:
        fsc = np.asarray(correlate_half_maps(half1, half2))
        resolution = fourier.fsc_resolution(fsc, voxel_size, size=size)
    return ClassAverage(
        volume=np.asarray(divide_sum(add_sums(*sums), size)),
        half1=half1,
        half2=half2,
        fsc=fsc,
        resolution=resolution,
        num_half1=sums[0].num_particles,
        num_half2=sums[1].num_particles,
    )


def sum_particles(
    volumes: np.ndarray, tilt_ranges: np.ndarray, poses: Pose, *, order: int = 3
) -> FourierSum:
    """Turns particles back into the frame of the reference and adds what they measured.

        spectrum(k) = sum_i m_i(k) F[particle_i turned back](k),   weights(k) = sum_i m_i(k)

    where ``m_i(k) = M_i(R_i k)`` is the particle's wedge, evaluated at the turned frequencies.
    A particle is resampled once; what comes from outside its box is the mean of the box's faces,
    the level of the solvent around it. Particles are taken in chunks of a fixed size, so memory
    does not grow with their number.

    Args:
        volumes: ``(n, z, y, x)``; n may be 0.
        tilt_ranges: ``(n, 2)`` degrees.
        poses: rotations ``(n, 3, 3)`` and shifts ``(n, 3)``, reference to particle.
        order: of the interpolation, 1 or 3.

    Returns:
        The sums, on the device.
    """
    num_particles = len(volumes)
    spectrum, weights = _zero_sums(volumes.shape[1:])
    for start in range(0, num_particles, CHUNK_SIZE):
        chunk = slice(start, start + CHUNK_SIZE)
        fields = (volumes[chunk], tilt_ranges[chunk], poses.rotation[chunk], poses.shift[chunk])
        num_in_chunk = min(CHUNK_SIZE, num_particles - start)
        more_spectrum, more_weights = _sum_chunk(
            *(_padded(field) for field in fields), num_in_chunk, order=order
        )
        spectrum, weights = spectrum + more_spectrum, weights + more_weights
    return FourierSum(spectrum, weights, num_particles)


def add_sums(first: FourierSum, second: FourierSum) -> FourierSum:
    """Adds the sums of two groups of particles."""
    return FourierSum(*(a + b for a, b in zip(first, second, strict=True)))


def divide_sum(total: FourierSum, size: int) -> jax.Array:
    """Divides the sums and returns to real space.

        average(k) = spectrum(k) / max(weights(k), 0.1 n)

    A coefficient that at least a tenth of the n particles measured becomes their plain mean. One
    that fewer measured would be the mean of few and mostly noise; it is damped in proportion to
    how few they are, and is 0 where nobody measured. Nothing is ever multiplied by more than
    10 / n.

    Args:
        total: of at least one particle.
        size: edge of the cubic box, voxels.

    Returns:
        ``(z, y, x)``.
    """
    floor = COVERAGE_FLOOR * total.num_particles
    return fourier.irfft(total.spectrum / jnp.maximum(total.weights, floor), (size,) * 3)


@jax.jit
def correlate_half_maps(half1: jax.Array, half2: jax.Array) -> jax.Array:
    """Correlates two half maps shell by shell, inside a soft sphere.

    Both maps have their mean under the sphere removed first, otherwise the edge of the sphere
    itself would correlate. Shell 0 then holds nothing and is set to 1.

    Args:
        half1: ``(z, y, x)``, cubic.
        half2: same shape.

    Returns:
        ``(n//2+1,)``, shells of width 1 from frequency 0 to Nyquist.
    """
    sphere = soft_sphere(half1.shape)

    def centred(volume: jax.Array) -> jax.Array:
        return volume - jnp.sum(sphere * volume) / jnp.sum(sphere)

    curve = fourier.fourier_shell_correlation(centred(half1), centred(half2), mask=sphere)
    return curve.at[0].set(1.0)


def soft_sphere(shape: tuple[int, int, int]) -> jax.Array:
    """Makes a sphere around the box centre with a cosine edge.

    Args:
        shape: ``(z, y, x)``, cubic, n voxels.

    Returns:
        ``(z, y, x)``: 1 within 0.4 n of the centre voxel, 0 from 0.5 n on.
    """
    size = shape[0]
    axis = (jnp.arange(size) - size // 2) / size
    radius = jnp.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return fourier.raised_cosine(radius - MASK_RADIUS, 0.5 - MASK_RADIUS)


@partial(jax.jit, static_argnames="order")
def _sum_chunk(
    volumes: jax.Array,
    tilt_ranges: jax.Array,
    rotations: jax.Array,
    shifts: jax.Array,
    num_particles: jax.Array,
    *,
    order: int,
) -> tuple[jax.Array, jax.Array]:
    """Sums the first ``num_particles`` of a chunk, one after another.

    A loop and not ``vmap``: on CPU it is six times faster (XLA repeats the cubic sampling when it
    fuses a batch of it with the transform), and it holds one particle at a time.
    """

    def add(index: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        volume = volumes[index]
        back = rotation.invert(Pose(rotations[index], shifts[index]))
        turned = resample.transform(volume, back, order=order, fill=_border_mean(volume))
        mask = wedge.wedge_mask(volume.shape, tilt_ranges[index], rotation=back.rotation)
        return sums[0] + mask * fourier.rfft(turned), sums[1] + mask

    return jax.lax.fori_loop(0, num_particles, add, _zero_sums(volumes.shape[1:]))


def _zero_sums(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    half_shape = fourier.half_shape(shape)
    return jnp.zeros(half_shape, jnp.complex64), jnp.zeros(half_shape, jnp.float32)


def _border_mean(volume: jax.Array) -> jax.Array:
    faces = [jnp.take(volume, jnp.array([0, -1]), axis=axis) for axis in range(3)]
    return jnp.mean(jnp.stack([jnp.mean(face) for face in faces]))


def _padded(field: np.ndarray) -> np.ndarray:
    """Repeats the last entry until the chunk is full; the repetitions are not summed."""
    missing = CHUNK_SIZE - len(field)
    return np.concatenate([field, np.repeat(field[-1:], missing, axis=0)]).astype(np.float32)


def _check_particles(
    volumes: np.ndarray,
    tilt_ranges: np.ndarray,
    rotations: np.ndarray,
    shifts: np.ndarray,
    halves: np.ndarray,
) -> None:
    num = len(volumes)
    if num == 0:
        raise ValueError("an average needs at least one particle")
    if volumes.ndim != 4 or len(set(volumes.shape[1:])) != 1:
        raise ValueError(f"volumes must be (n, z, y, x) with cubic boxes, got {volumes.shape}")
    for name, values, shape in (
        ("tilt_ranges", tilt_ranges, (num, 2)),
        ("poses.rotation", rotations, (num, 3, 3)),
        ("poses.shift", shifts, (num, 3)),
        ("halves", halves, (num,)),
    ):
        if values.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {values.shape}")
    if not np.isin(halves, (1, 2)).all():
        raise ValueError(f"halves must be 1 or 2, got {np.unique(halves).tolist()}")
