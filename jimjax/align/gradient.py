"""Poses improved against given references by Gauss-Newton steps, all particles at once.

    D_n(k) = m_n(k) g(|k|) T(k) + noise,   T(k) = exp(-2 pi i k.s) V_c(R^T k),
    noise ~ N(0, sigma^2(|k|)) in each of real and imaginary part

With J the derivatives of g T by the six parameters of a pose (a turn about x, y and z, which is
applied after R, and a shift), the score ``Re sum m (conj(g T) D - |g T|^2 / 2) / sigma^2`` has the
gradient ``Re J^H m (D - g T) / sigma^2`` and nearly the curvature ``-H``, ``H = Re J^H m J /
sigma^2``. A step solves ``(H + damping diag H) step = gradient``; what lowers the score is undone,
and tried again with more damping (Levenberg and Marquardt).

The covariance of a pose is ``H^-1``. That takes the reference and the noise as known, the noise as
independent between coefficients, and the posterior as a Gaussian at this one maximum: it knows
nothing of other maxima, and holds where the pose is determined better than the references vary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.align import bands
from jimjax.align.bands import Band, per_shell, split
from jimjax.align.joint_em import NOISE_FLOOR, cut_blocks
from jimjax.ops._ascent import ascend, interpolate
from jimjax.ops.rotation import Pose

LARGEST_ANGLE = np.pi  # radians; no deviation is beyond, though nothing be known of an angle


class Images(NamedTuple):
    """Particles inside a band, each with its class.

    Attributes:
        spectra: ``(n, k)`` complex, zero where not measured.
        groups: ``(n,)`` int, which of the masks.
        labels: ``(n,)`` int, which of the references.
        is_real: ``(n,)``, 1, or 0 for what only fills up a block.
    """

    spectra: jax.Array
    groups: jax.Array
    labels: jax.Array
    is_real: jax.Array


class Strength(NamedTuple):
    """What the particles show of the references, per shell.

    Attributes:
        gain: ``(shells,)``, what references are multiplied with; negative beyond a zero of a
            contrast transfer function.
        noise: ``(shells,)``, variance of the real part of a coefficient, also of the imaginary.
    """

    gain: jax.Array
    noise: jax.Array


class Shells(NamedTuple):
    """Sums over particles, per shell; references as they were given.

    Attributes:
        energy: of ``|D|^2``.
        crossed: of ``Re conj(T) D``.
        explained: of ``|T|^2`` where measured.
        fitted: of what ``crossed`` owes to noise that the poses followed, half of
            ``g Re conj(J) H^-1 J`` with the derivatives of T.
        measured: number of measured coefficients.
    """

    energy: jax.Array
    crossed: jax.Array
    explained: jax.Array
    fitted: jax.Array
    measured: jax.Array


class Climbed(NamedTuple):
    """Poses at, or on the way to, a maximum of the score.

    Attributes:
        pose: rotations ``(n, 3, 3)`` and shifts ``(n, 3)``, voxels.
        score: ``(n,)``, log of the likelihood ratio to noise alone.
        covariance: ``(n, 6, 6)``, of the turn about x, y and z, radians, and the shift, voxels.
    """

    pose: Pose
    score: jax.Array
    covariance: jax.Array


class _View(NamedTuple):
    """A pose with all that is known there of one particle."""

    pose: Pose
    score: jax.Array
    gradient: jax.Array  # (6,)
    curvature: jax.Array  # (6, 6)
    template: jax.Array  # (k,)
    slopes: jax.Array  # (k, 6)


def predict(
    grids: jax.Array, label: jax.Array, pose: Pose, band: Band
) -> tuple[jax.Array, jax.Array]:
    """Reads what a reference would show in a pose, and its derivatives.

    Args:
        grids: ``(c, g, g, g)``; see ``slices``.
        label: which of them.
        pose: of the particle.
        band: the coefficients.

    Returns:
        T ``(k,)`` and its derivatives ``(k, 6)``, complex: by the angles of a turn about x, y and z
        after the rotation, radians, and by the shift, voxels.
    """
    frequencies = bands.OVERSAMPLING * jnp.asarray(band.frequencies, pose.rotation.dtype)
    places = jnp.matmul(frequencies, pose.rotation, precision="highest") + band.reach
    # d (R^T exp(-w) k) = R^T (k x w)
    crossed = jnp.cross(frequencies[:, None], jnp.eye(3, dtype=frequencies.dtype))
    moved = jnp.matmul(crossed, pose.rotation, precision="highest")
    central, by_place = interpolate(grids, places, label)
    by_angle = jnp.sum(moved * by_place[:, None], axis=2)
    turns = jnp.asarray(-2j * np.pi * band.frequencies / band.box, central.dtype)
    slopes = jnp.concatenate([by_angle, central[:, None] * turns], axis=1)
    ramp = bands.phase_ramps(pose.shift, band)
    return central * ramp, slopes * ramp[:, None]


def climb(
    images: Images,
    masks: jax.Array,
    grids: jax.Array,
    strength: Strength,
    pose: Pose,
    band: Band,
    *,
    num_steps: jax.Array | int,
    block: int = 16,
) -> tuple[Climbed, Shells]:
    """Improves poses; none ends with a lower score than it begins with.

    Args:
        images: particles.
        masks: ``(g, k)``, 1 where measured.
        grids: ``(c, g, g, g)``, references as they were given.
        strength: of the references in the particles.
        pose: to begin with, rotations ``(n, 3, 3)`` and shifts ``(n, 3)``.
        band: the coefficients.
        num_steps: how many steps are tried; with 0 poses are only weighed. May be traced.
        block: particles at a time; the memory is that of some ``100 * block * k`` floats.

    Returns:
        The poses, and the particles' sums there.
    """
    block = min(block, len(images.spectra))
    gain, precision = strength.gain[band.shells], (1 / strength.noise)[band.shells]

    def one(
        spectrum: jax.Array, group: jax.Array, label: jax.Array, pose: Pose
    ) -> tuple[Climbed, jax.Array]:
        weights = masks[group] * precision
        view = functools.partial(_view, spectrum, weights, gain, grids, label, band=band)
        found = ascend(view, _unseen(pose, len(band.shells)), num_steps)
        covariance = _invert(found.curvature, band)
        spread = jnp.einsum("ki,ij,kj->k", jnp.conj(found.slopes), covariance, found.slopes).real
        sums = jnp.stack(
            [
                jnp.abs(spectrum) ** 2,
                (jnp.conj(found.template) * spectrum).real,
                jnp.abs(found.template) ** 2 * masks[group],
                gain * spread * masks[group] / 2,
                masks[group],
            ]
        )
        return Climbed(found.pose, found.score, covariance), sums

    def one_block(total: jax.Array, own: tuple) -> tuple[jax.Array, Climbed]:
        fields, is_real = own
        found, sums = jax.vmap(one)(*fields)
        return total + jnp.einsum("nik,n->ik", sums, is_real, precision="highest"), found

    fields = images.spectra, images.groups, images.labels, pose
    begin = jnp.zeros((len(Shells._fields), len(band.shells)), masks.dtype)
    total, parts = lax.scan(one_block, begin, cut_blocks(fields, images.is_real, block))
    num = len(images.spectra)
    found = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:num], parts)
    return found, Shells(*(per_shell(row, band) for row in total))


def estimate_strength(shells: Shells, *, is_fitted: bool) -> Strength:
    """Fits gains and noise to particles in their poses.

    A pose follows the noise of its particle, whose score is then higher than that of the truth
    by half of the number of parameters; that much is taken off again, shell by shell.

    Args:
        shells: of ``climb``.
        is_fitted: whether the poses have been fitted to these particles.
    """
    crossed = shells.crossed - shells.fitted if is_fitted else shells.crossed
    gain = crossed / jnp.where(shells.explained > 0, shells.explained, 1)
    left = shells.energy - 2 * gain * crossed + gain**2 * shells.explained
    noise = left / (2 * jnp.maximum(shells.measured, 1))
    return Strength(gain, jnp.maximum(noise, NOISE_FLOOR * jnp.mean(noise)))


def _view(
    spectrum: jax.Array,
    weights: jax.Array,
    gain: jax.Array,
    grids: jax.Array,
    label: jax.Array,
    pose: Pose,
    *,
    band: Band,
) -> _View:
    template, slopes = predict(grids, label, pose, band)
    rows = split((gain[:, None] * slopes).T)  # (6, 2k)
    weights = jnp.concatenate([weights, weights])
    seen, expected = split(spectrum), split(gain * template)
    weighted = rows * weights
    return _View(
        pose,
        jnp.sum(weights * expected * (seen - expected / 2)),
        jnp.matmul(weighted, seen - expected, precision="highest"),
        jnp.matmul(weighted, rows.T, precision="highest"),
        template,
        slopes,
    )


def _unseen(pose: Pose, num_coefficients: int) -> _View:
    dtype = pose.shift.dtype
    nothing = jnp.zeros((num_coefficients, 7), jnp.result_type(dtype, "complex64"))
    return _View(
        pose,
        jnp.asarray(-jnp.inf, dtype),
        jnp.zeros(6, dtype),
        jnp.eye(6, dtype=dtype),
        nothing[:, 0],
        nothing[:, 1:],
    )


def _invert(curvature: jax.Array, band: Band) -> jax.Array:
    """The covariance; where nothing is known, that of half a turn and of a box."""
    least = np.repeat([LARGEST_ANGLE**-2, float(band.box) ** -2], 3).astype(np.float32)
    # Scaled to a unit diagonal: radians and voxels differ by orders of magnitude.
    scale = 1 / jnp.sqrt(jnp.diagonal(curvature) + least)
    scaled = (curvature + jnp.diag(least)) * scale[:, None] * scale
    return jnp.linalg.inv(scaled) * scale[:, None] * scale
