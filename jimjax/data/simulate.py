"""Subtomograms with known class, rotation and shift, at an exact signal-to-noise ratio.

A density is turned and shifted, negated (protein is dark), multiplied by a CTF and by the missing
wedge in Fourier space, and given white noise that lives where the wedge measured. The wedge belongs
to the tomogram, so it is not turned with the particle.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.data.phantom import Phantom, render
from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.ops import fourier, wedge
from jimjax.ops.resample import transform
from jimjax.ops.rotation import Pose, random_rotation

NYQUIST = 0.5  # cycles per voxel
CHUNK = 16  # particles rendered at once: bounds the memory, and one compilation serves any number

Density = Phantom | np.ndarray | jax.Array


class CtfParameters(NamedTuple):
    """Contrast transfer function of the microscope.

    Attributes:
        defocus: angstrom, positive is underfocus; a pair is a range, drawn uniformly per particle.
        voltage: kilovolt.
        spherical_aberration: millimetre.
        amplitude_contrast: fraction; 0.07 was measured for ice (Toyoshima & Unwin 1988).
        phase_shift: radian.
        b_factor: square angstrom, 0 leaves the envelope at 1.
        mtf: of the detector, as the frequency at which it falls to 1 / e, in Nyquist frequencies:
            ``exp(-(k / (mtf k_Nyquist))^2)``; inf leaves it at 1. Noise stays white, as that of a
            detector's read-out.
    """

    defocus: float | tuple[float, float] = 20000.0
    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.07
    phase_shift: float = 0.0
    b_factor: float = 0.0
    mtf: float = math.inf


class _Plan(NamedTuple):
    """What is drawn before anything is rendered; each field has one row per particle."""

    labels: np.ndarray
    halves: np.ndarray
    rotations: jax.Array
    shifts: jax.Array
    defocus: jax.Array
    noise_keys: jax.Array


def simulate(
    key: jax.Array,
    densities: Sequence[Density],
    *,
    num_per_class: int | Sequence[int],
    snr: float,
    voxel_size: float,
    tilt_range: tuple[float, float] | np.ndarray = (-60.0, 60.0),
    max_shift: float = 6.0,
    ctf: CtfParameters | None = None,
    contrast: str = "dark",
    box: int = 32,
    mask_threshold: float | None = None,
    noise_corner: float = math.inf,
) -> Subtomograms:
    """Simulates a data set in which every class has its own density.

        particle = wedge * ctf * s T(R, t) density + noise,   s = -1 for dark, +1 for light

    Rotations are uniform on SO(3) (Haar) and shifts uniform in a cube, not rounded. Noise is
    Gaussian, and white unless ``noise_corner`` is given, before the wedge takes its part away. It
    is scaled for each particle so that

        snr = var(signal) / var(noise)

    over the whole box, both after the wedge. (Two replicates then correlate by snr / (1 + snr).)
    Classes come in random order, so that any prefix is a mixture, and each class is dealt evenly
    over the two half sets.

    Masks, if asked for, are those of the density in the particle's pose, before the microscope:

        mask = T(R, t) density > mask_threshold max(density)

    One half is a good threshold: it encloses about the volume that a molecule fills, 1.21 A^3 per
    dalton of protein. Found with 11 structures of 30 to 1240 kDa (mass of the file's atoms, and of
    hydrogens, 7 % of a protein), at a resolution of two voxels:

        24 A: 1.07 times that volume in the median, 0.92 to 1.23 in all; 0.52 would be exact
        20 A: 1.01, 0.78 to 1.22; 0.50
        16 A: 0.97, 0.76 to 1.20; 0.49

    At 24 A, maps, which are blurred on top of a resolution of their own, would want 0.55, and large
    ones with thin parts (70S ribosome, 26S and 20S proteasome) 0.58 to 0.69.

    Args:
        key: the same key and arguments give the same data.
        densities: one per class, bright where there is mass: ``Phantom``, rendered exactly, or
            ``(n, n, n)`` at ``voxel_size``, turned with cubic splines and zero outside.
        num_per_class: particles of each class; one number for all or one for each.
        snr: ratio of variances, above 0; ``math.inf`` adds no noise.
        voxel_size: angstrom.
        tilt_range: degrees, ``(2,)`` for all particles or ``(num_particles, 2)`` for each.
        max_shift: voxels; each of x, y, z is uniform in [-max_shift, max_shift].
        ctf: none leaves the contrast transfer at 1.
        contrast: ``"dark"`` negates the density as in real tomograms, ``"light"`` does not. An
            underfocused CTF leaves the sign of low frequencies as it is.
        box: side in voxels when all densities are phantoms; arrays bring their own.
        mask_threshold: fraction, between 0 and 1, of the highest voxel of a class's density at
            rest, which is the same for all particles of the class; none makes no masks. Nothing
            else that is drawn depends on it.
        noise_corner: frequency at which the power of the noise has fallen to one half, cycles per
            voxel: ``1 / (1 + (k / noise_corner)^2)``, as of crowded surroundings; inf: white.

    Returns:
        Subtomograms with rotations ``(n, 3, 3)``, shifts ``(n, 3)`` in voxels, 0-based labels, and
        masks if asked for.

    Raises:
        InputError: if an argument is out of range, the densities differ in shape, or one of which
            a mask is wanted is nowhere positive.
    """
    if not noise_corner > 0:
        raise InputError(f"noise_corner must be above 0 (inf for white), got {noise_corner:g}")
    if ctf is not None and not ctf.mtf > 0:
        raise InputError(f"mtf must be above 0 (inf for none), got {ctf.mtf:g}")
    shape = _common_shape(densities, box)
    counts = _counts(num_per_class, len(densities))
    tilt_ranges = _tilt_ranges(tilt_range, sum(counts))
    _check_scalars(snr, voxel_size, max_shift, contrast)
    levels = _mask_levels(densities, shape, mask_threshold)
    plan = _draw_plan(key, counts, max_shift, ctf)
    measure = partial(
        _measure_chunk,
        snr=snr,
        sign=-1.0 if contrast == "dark" else 1.0,
        is_noisy=not math.isinf(snr),
        voxel_size=float(voxel_size),
        ctf=None if ctf is None else ctf._replace(defocus=0.0),  # each particle brings its own
        noise_corner=float(noise_corner),
    )
    volumes = np.empty((len(plan.labels), *shape), np.float32)
    masks = None if levels is None else np.empty(volumes.shape, bool)
    for label, density in enumerate(densities):
        members = np.flatnonzero(plan.labels == label)
        for start in range(0, len(members), CHUNK):
            part = members[start : start + CHUNK]
            padded = np.resize(part, CHUNK)
            pose = Pose(plan.rotations[padded], plan.shifts[padded])
            signals = _pose_chunk(density, pose, shape)
            rows = (tilt_ranges[padded], plan.defocus[padded])
            particles = measure(plan.noise_keys[padded], signals, *rows)
            volumes[part] = np.asarray(particles)[: len(part)]
            if masks is not None:
                masks[part] = np.asarray(signals)[: len(part)] > levels[label]
    return Subtomograms(
        volumes=volumes,
        tilt_ranges=tilt_ranges,
        voxel_size=float(voxel_size),
        names=tuple(f"simulated/{index + 1:06d}" for index in range(len(volumes))),
        halves=plan.halves,
        rotations=np.asarray(plan.rotations),
        shifts=np.asarray(plan.shifts),
        labels=plan.labels,
        masks=masks,
    )


def _mask_levels(
    densities: Sequence[Density], shape: tuple[int, int, int], mask_threshold: float | None
) -> list[np.float32] | None:
    """The density above which a voxel belongs to a particle of each class."""
    if mask_threshold is None:
        return None
    if not 0 < mask_threshold < 1:
        raise InputError(
            f"mask_threshold must be a fraction between 0 and 1, got {mask_threshold:g}"
        )
    levels = []
    for index, density in enumerate(densities):
        at_rest = render(density, shape) if isinstance(density, Phantom) else density
        highest = np.asarray(at_rest, np.float32).max()
        if not highest > 0:
            raise InputError(
                f"density {index} is nowhere positive, so it has no mask; mass must be bright"
            )
        levels.append(np.float32(mask_threshold * highest))
    return levels


def _draw_plan(
    key: jax.Array, counts: list[int], max_shift: float, ctf: CtfParameters | None
) -> _Plan:
    order_key, rotation_key, shift_key, defocus_key, noise_key = jax.random.split(key, 5)
    num = sum(counts)
    order = np.asarray(jax.random.permutation(order_key, num))
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
    halves = np.empty(num, np.int32)
    for label in range(len(counts)):
        members = np.flatnonzero(labels == label)
        halves[members] = 1 + np.arange(len(members)) % 2
    low, high = _defocus_range(ctf)
    return _Plan(
        labels=labels,
        halves=halves,
        rotations=jax.vmap(random_rotation)(jax.random.split(rotation_key, num)),
        shifts=jax.random.uniform(shift_key, (num, 3), minval=-max_shift, maxval=max_shift),
        defocus=jax.random.uniform(defocus_key, (num,), minval=low, maxval=high),
        noise_keys=jax.random.split(noise_key, num),
    )


def _defocus_range(ctf: CtfParameters | None) -> tuple[float, float]:
    if ctf is None:
        return 0.0, 0.0
    if np.ndim(ctf.defocus) == 0:
        return ctf.defocus, ctf.defocus
    low, high = ctf.defocus
    if not low <= high:
        raise InputError(f"the defocus range must be lowest first, got {low} to {high} A")
    return low, high


def _pose_chunk(density: Density, poses: Pose, shape: tuple[int, int, int]) -> jax.Array:
    if isinstance(density, Phantom):
        return _render_chunk(density, poses, shape)
    return _transform_chunk(jnp.asarray(density, jnp.float32), poses)


@jax.jit
def _transform_chunk(volume: jax.Array, poses: Pose) -> jax.Array:
    return jax.vmap(lambda pose: transform(volume, pose, order=3))(poses)


@jax.jit(static_argnums=2)
def _render_chunk(molecule: Phantom, poses: Pose, shape: tuple[int, int, int]) -> jax.Array:
    return jax.vmap(lambda pose: render(molecule, shape, pose))(poses)


@partial(jax.jit, static_argnames=("is_noisy", "voxel_size", "ctf", "noise_corner"))
def _measure_chunk(
    keys: jax.Array,
    volumes: jax.Array,
    tilt_ranges: jax.Array,
    defocus: jax.Array,
    snr: float,
    sign: float,
    *,
    is_noisy: bool,
    voxel_size: float,
    ctf: CtfParameters | None,
    noise_corner: float,
) -> jax.Array:
    """Takes rendered particles through the microscope; one row each of the first four."""
    shape = volumes.shape[1:]
    colour = 1.0
    if not math.isinf(noise_corner):
        colour = lax.rsqrt(1 + (fourier.radial_frequency(shape) / noise_corner) ** 2)

    def particle(
        key: jax.Array, volume: jax.Array, tilt_range: jax.Array, defocus: jax.Array
    ) -> jax.Array:
        measured = wedge.wedge_mask(shape, tilt_range)
        transfer = sign * measured
        if ctf is not None:
            transfer = transfer * _contrast_transfer(shape, voxel_size, ctf, defocus)
        signal = fourier.irfft(fourier.rfft(volume) * transfer, shape)
        if not is_noisy:
            return signal
        white = jax.random.normal(key, shape)
        noise = fourier.irfft(fourier.rfft(white) * measured * colour, shape)
        return signal + noise * jnp.sqrt(jnp.var(signal) / (snr * jnp.var(noise)))

    return jax.vmap(particle)(keys, volumes, tilt_ranges, defocus)


def _contrast_transfer(
    shape: tuple[int, int, int], voxel_size: float, parameters: CtfParameters, defocus: jax.Array
) -> jax.Array:
    """Returns the half spectrum of CTF times MTF, positive at low frequencies under focus."""
    envelope = jnp.exp(-((fourier.radial_frequency(shape) / (parameters.mtf * NYQUIST)) ** 2))
    return -envelope * fourier.ctf(
        shape,
        voxel_size=voxel_size,
        defocus=defocus,
        voltage=parameters.voltage,
        spherical_aberration=parameters.spherical_aberration,
        amplitude_contrast=parameters.amplitude_contrast,
        phase_shift=parameters.phase_shift,
        b_factor=parameters.b_factor,
    )


def _common_shape(densities: Sequence[Density], box: int) -> tuple[int, int, int]:
    if not len(densities):
        raise InputError("densities is empty; give one density per class")
    shapes = {tuple(d.shape) for d in densities if not isinstance(d, Phantom)}
    if not shapes:
        return (box, box, box)
    if len(shapes) > 1:
        raise InputError(
            f"densities must have one shape, got {sorted(shapes)}; use one box for all"
        )
    shape = shapes.pop()
    if len(shape) != 3 or len(set(shape)) != 1:
        raise InputError(f"densities must be cubes (n, n, n), got {shape}; pad them first")
    for index, density in enumerate(densities):
        if isinstance(density, Phantom):
            continue
        if not np.isfinite(density).all():
            raise InputError(f"density {index} has voxels that are not finite numbers")
        if np.ptp(density) == 0:
            raise InputError(f"density {index} is constant, so there is no signal; check its file")
    return shape


def _counts(num_per_class: int | Sequence[int], num_classes: int) -> list[int]:
    counts = [num_per_class] * num_classes if np.ndim(num_per_class) == 0 else list(num_per_class)
    if len(counts) != num_classes:
        raise InputError(
            f"num_per_class must be one number or {num_classes}, one per density, got {len(counts)}"
        )
    if min(counts) < 1:
        raise InputError(f"num_per_class must be 1 or more for each class, got {min(counts)}")
    return [int(count) for count in counts]


def _tilt_ranges(tilt_range: tuple[float, float] | np.ndarray, num: int) -> np.ndarray:
    ranges = np.asarray(tilt_range, np.float32)
    if ranges.shape not in ((2,), (num, 2)):
        raise InputError(
            f"tilt_range must be a pair or have shape ({num}, 2), got shape {ranges.shape}"
        )
    ranges = np.broadcast_to(ranges, (num, 2)).copy()
    valid = (ranges[:, 0] >= -90) & (ranges[:, 0] < ranges[:, 1]) & (ranges[:, 1] <= 90)
    if not valid.all():
        low, high = ranges[np.argmin(valid)]
        raise InputError(
            f"tilt_range must be -90 <= min < max <= 90 degrees, got {low:g}, {high:g}"
        )
    return ranges


def _check_scalars(snr: float, voxel_size: float, max_shift: float, contrast: str) -> None:
    if not snr > 0:
        raise InputError(f"snr must be above 0 (math.inf for no noise), got {snr}")
    if not 0 < voxel_size < math.inf:
        raise InputError(f"voxel_size must be a positive number of angstrom, got {voxel_size}")
    if not 0 <= max_shift < math.inf:
        raise InputError(f"max_shift must be 0 voxels or more, got {max_shift}")
    if contrast not in ("dark", "light"):
        raise InputError(f"contrast must be 'dark' or 'light', got {contrast!r}")
