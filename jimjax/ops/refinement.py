"""Local refinement: one pose climbs to the nearest maximum of the constrained correlation.

The template is turned in Fourier space, where its oversampled spectrum is read at the rotated
frequencies of a band; a pose then costs as much as the band has coefficients.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.ops import fourier, search
from jimjax.ops._ascent import ascend, interpolate
from jimjax.ops.correlation import FLAT_CONTRAST
from jimjax.ops.rotation import Pose

OVERSAMPLING = 2  # of the template's spectrum, which is interpolated linearly
LEAST_CORRELATION = 0.05  # taken for the curvature where there is less, or none


class RefinedPose(NamedTuple):
    """A pose and how well it fits.

    Attributes:
        pose: rotation ``(3, 3)`` and shift ``(3,)`` in voxels.
        score: scalar in [-1, 1], the constrained correlation there.
    """

    pose: Pose
    score: jax.Array


def refine_pose(
    template: jax.Array,
    volume: jax.Array,
    pose: Pose,
    *,
    template_wedge: jax.Array | None = None,
    volume_wedge: jax.Array | None = None,
    cutoff: float = 0.5,
    num_steps: int = 8,
) -> RefinedPose:
    """Improves the pose that carries a template into a volume, by Levenberg and Marquardt's steps.

        volume(p) = template(R^T (p - t)),
        score = the constrained correlation under  band * M_volume * R M_template

    The best contrast of the template is part of every step, so that neither volume's scale
    matters. Masks are taken as constant within a step, and a step sees only what the template has
    measured with all neighbours: beside the faces of its wedge the spectrum is no longer zero, nor
    yet what was there, and that would turn the pose by degrees. A step that lowers the correlation
    so masked is undone and tried again with more damping. Poses within some ten degrees and one or
    two voxels of a maximum reach it. The found pose is a constant for autodiff; the score there is
    differentiable in both volumes.

    Args:
        template: ``(z, y, x)``.
        volume: same shape.
        pose: where to begin, rotation on ``(x, y, z)`` columns and shift in voxels.
        template_wedge: as in ``search_rotations``.
        volume_wedge: as in ``search_rotations``.
        cutoff: radius of the band, cycles per voxel, at most 0.5.
        num_steps: how many steps are tried; with 0 the pose is only scored.

    Returns:
        ``RefinedPose``; score 0 and the same pose if either volume is constant in the band.

    Raises:
        ValueError: if shapes do not fit or an option is out of range.
    """
    _check(template, volume, pose, cutoff, num_steps)
    return _refine(
        template, volume, pose, template_wedge, volume_wedge, cutoff=float(cutoff),
        num_steps=num_steps,
    )  # fmt: skip


class _Pair(NamedTuple):
    """Two volumes inside a band of k coefficients."""

    grid: jax.Array  # the template's oversampled spectrum, complex
    seen: jax.Array  # (2 k,), of the volume
    measured: jax.Array  # (k,), by the volume
    surely: jax.Array  # (z, y, x), measured by the template with all around; 0 in the middle


class _View(NamedTuple):
    """What a pose looks like."""

    pose: Pose
    score: jax.Array
    gradient: jax.Array  # (6,), of the score by a turn after the rotation, and the shift
    curvature: jax.Array  # (6, 6), of 1 - score


@functools.partial(jax.jit, static_argnames=("cutoff", "num_steps"))
def _refine(
    template: jax.Array,
    volume: jax.Array,
    pose: Pose,
    template_wedge: jax.Array | None,
    volume_wedge: jax.Array | None,
    *,
    cutoff: float,
    num_steps: int,
) -> RefinedPose:
    dtype = jnp.promote_types(jnp.result_type(template, volume), jnp.float32)
    band = _half_band(volume.shape, cutoff)
    pair = _Pair(
        _oversampled(_centred(template.astype(dtype)), cutoff),
        _split(fourier.rfft(_centred(volume.astype(dtype)))[band]),
        search.measured_mask(volume.shape, volume_wedge)[band],
        _surely_measured(volume.shape, template_wedge),
    )
    begin = found = Pose(pose.rotation.astype(dtype), pose.shift.astype(dtype))
    look = functools.partial(_view, pair, volume.shape, band)
    if num_steps:
        unseen = _View(begin, jnp.asarray(-2, dtype), jnp.zeros(6, dtype), jnp.eye(6, dtype=dtype))
        found = ascend(look, unseen, num_steps).pose
    found = lax.stop_gradient(found)
    expected = _read(pair.grid, found, volume.shape, band)[0]
    turned = search.measured_mask(volume.shape, template_wedge, rotation=found.rotation)[band]
    weights = lax.stop_gradient(jnp.tile((pair.measured * turned) ** 2, 2).astype(dtype))
    score = _compare(pair, expected, weights).score
    return RefinedPose(found, jnp.clip(score, -1, 1))


class _Comparison(NamedTuple):
    score: jax.Array
    expected: jax.Array  # (2 k,), of unit length under the weights
    seen: jax.Array  # the same
    norm: jax.Array  # what the expected was multiplied with


def _compare(pair: _Pair, expected: jax.Array, weights: jax.Array) -> _Comparison:
    norms = [_inverse_norm(weights, part) for part in (expected, pair.seen)]
    expected, seen = expected * norms[0], pair.seen * norms[1]
    return _Comparison(jnp.sum(weights * expected * seen), expected, seen, norms[0])


def _weigh(
    pair: _Pair, pose: Pose, shape: tuple[int, ...], band: tuple[np.ndarray, ...]
) -> jax.Array:
    frequencies = jnp.asarray(_frequencies(shape, band), pose.rotation.dtype)
    sizes = jnp.asarray(shape[::-1])
    places = jnp.rint(_matmul(frequencies, pose.rotation) * sizes).astype(jnp.int32) + sizes // 2
    x, y, z = jnp.clip(places, 0, sizes - 1).T
    weights = jnp.tile((pair.measured * pair.surely[z, y, x]) ** 2, 2)
    return lax.stop_gradient(weights.astype(pair.seen.dtype))


def _view(pair: _Pair, shape: tuple[int, ...], band: tuple[np.ndarray, ...], pose: Pose) -> _View:
    expected, slopes = _read(pair.grid, pose, shape, band)
    weights = _weigh(pair, pose, shape, band)
    own = _compare(pair, expected, weights)
    slopes = slopes * own.norm
    # The part along the template only scales it.
    slopes = slopes - _matmul(slopes * weights, own.expected)[:, None] * own.expected
    weighted = slopes * weights
    curvature = jnp.maximum(own.score, LEAST_CORRELATION) * _matmul(weighted, slopes.T)
    return _View(pose, own.score, _matmul(weighted, own.seen), curvature)


def _half_band(shape: tuple[int, ...], cutoff: float) -> tuple[np.ndarray, ...]:
    """Indices of the coefficients of a half space inside the band, but for 0: z, y, x >= 0.

    Those at Nyquist of an even axis stand for two frequencies, and are left out.
    """
    axes = [np.arange(-((n - 1) // 2), (n - 1) // 2 + 1) for n in shape]
    z, y, x = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
    radius = np.sqrt(sum((index / n) ** 2 for index, n in zip((z, y, x), shape, strict=True)))
    is_half = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    kept = is_half & (radius <= cutoff + fourier.FREQUENCY_TOLERANCE)
    return z[kept], y[kept], x[kept]


def _surely_measured(shape: tuple[int, ...], measured: jax.Array | None) -> jax.Array:
    """The least of what is measured at a coefficient and its neighbours along the axes."""
    half = search.measured_mask(shape, measured)
    # A real centrosymmetric spectrum is that of a real volume: this unfolds it to all of z, y, x.
    mask = jnp.fft.fftn(jnp.fft.irfftn(half, s=shape)).real
    for axis in range(3):
        mask = jnp.minimum(mask, jnp.minimum(jnp.roll(mask, 1, axis), jnp.roll(mask, -1, axis)))
    return jnp.fft.fftshift(mask)


def _frequencies(shape: tuple[int, ...], band: tuple[np.ndarray, ...]) -> np.ndarray:
    """``(k, 3)``, (x, y, z) cycles per voxel."""
    return np.stack([index / n for index, n in zip(band, shape, strict=True)][::-1], axis=-1)


def _oversampled(volume: jax.Array, cutoff: float) -> jax.Array:
    """The spectrum on a finer grid, as far as the band can turn; 0 is in the middle."""
    pads, kept = [], []
    for axis, size in enumerate(volume.shape):
        # What linear interpolation in the spectrum multiplies the volume with.
        places = (np.arange(size) - size // 2) / (OVERSAMPLING * size)
        envelope = np.sinc(places).astype(np.float32) ** 2
        volume = volume / envelope.reshape([-1 if axis == other else 1 for other in range(3)])
        padded = OVERSAMPLING * size
        low = padded // 2 - size // 2
        pads.append((low, padded - size - low))
        reach = int(padded * cutoff) + 2
        # Beyond Nyquist, which a turn may lead to, the spectrum is periodic.
        kept.append(np.arange(-reach, reach + 1) % padded)
    return jnp.fft.fftn(jnp.fft.ifftshift(jnp.pad(volume, pads)))[np.ix_(*kept)]


def _read(
    grid: jax.Array, pose: Pose, shape: tuple[int, ...], band: tuple[np.ndarray, ...]
) -> tuple[jax.Array, jax.Array]:
    """The moved template ``exp(-2 pi i k.t) T(R^T k)``, ``(2 k,)``, and its slopes ``(6, 2 k)``."""
    frequencies = jnp.asarray(_frequencies(shape, band), pose.shift.dtype)
    sizes = OVERSAMPLING * jnp.asarray(shape[::-1], frequencies.dtype)
    middle = jnp.asarray(grid.shape[::-1]) // 2
    central, by_place = interpolate(grid, _matmul(frequencies, pose.rotation) * sizes + middle)
    # d (R^T exp(-w) k) = R^T (k x w)
    crossed = jnp.cross(frequencies[:, None], jnp.eye(3, dtype=frequencies.dtype))
    by_angle = jnp.sum(_matmul(crossed, pose.rotation) * (sizes * by_place)[:, None], axis=2)
    slopes = jnp.concatenate([by_angle, -2j * jnp.pi * frequencies * central[:, None]], axis=1)
    ramp = jnp.exp(-2j * jnp.pi * _matmul(frequencies, pose.shift))
    return _split(central * ramp), _split((slopes * ramp[:, None]).T)


def _split(values: jax.Array) -> jax.Array:
    return jnp.concatenate([values.real, values.imag], axis=-1)


def _centred(volume: jax.Array) -> jax.Array:
    """Takes the mean away; what is only the rounding error of a constant becomes 0."""
    centred = volume - volume.mean()
    floor = FLAT_CONTRAST * jnp.finfo(volume.dtype).eps
    has_contrast = jnp.sum(centred**2) > floor**2 * jnp.sum(volume**2)
    return jnp.where(has_contrast, centred, 0)


def _inverse_norm(weights: jax.Array, values: jax.Array) -> jax.Array:
    """1 / length under the weights; 0 where that is only the rounding error of the whole."""
    power = jnp.sum(weights * values**2)
    floor = (FLAT_CONTRAST * jnp.finfo(power.dtype).eps) ** 2 * jnp.sum(values**2)
    has_contrast = power > floor
    return jnp.where(has_contrast, lax.rsqrt(jnp.where(has_contrast, power, 1)), 0)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check(
    template: jax.Array, volume: jax.Array, pose: Pose, cutoff: float, num_steps: int
) -> None:
    if jnp.ndim(volume) != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {jnp.shape(volume)}; vmap a batch")
    if jnp.shape(template) != jnp.shape(volume):
        raise ValueError(
            f"template must have the volume's shape {jnp.shape(volume)}, got "
            f"{jnp.shape(template)}; crop or pad it first"
        )
    shapes = jnp.shape(pose.rotation), jnp.shape(pose.shift)
    if shapes != ((3, 3), (3,)):
        raise ValueError(f"pose must be of (3, 3) and (3,), got {shapes[0]} and {shapes[1]}")
    if not 1 / min(volume.shape) <= cutoff <= 0.5:
        raise ValueError(
            f"cutoff must be in [{1 / min(volume.shape):.3g}, 0.5] cycles per voxel, got {cutoff}"
        )
    if num_steps < 0:
        raise ValueError(f"num_steps must be 0 or more, got {num_steps}")
