"""Exhaustive search over rotations: every rotation is tried with every translation.

Whether a template and a volume have measured a frequency is part of the score, so that the
missing wedges do not attract each other.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.ops import correlation, fourier, frequency, resample, wedge
from jimjax.ops.correlation import Peak
from jimjax.ops.rotation import Pose

FFT_FACTORS = (2, 3, 5)  # box sizes without other prime factors transform fast


class Matches(NamedTuple):
    """The poses that carry a template into a volume best, best first.

    Attributes:
        pose: rotations ``(num_best, 3, 3)`` and shifts ``(num_best, 3)`` in voxels.
        score: ``(num_best,)`` in [-1, 1], the constrained correlation there; -inf where there
            were fewer distinct rotations.
    """

    pose: Pose
    score: jax.Array


def search_rotations(
    template: jax.Array,
    volume: jax.Array,
    rotations: jax.Array,
    *,
    max_shift: float,
    template_wedge: jax.Array | None = None,
    volume_wedge: jax.Array | None = None,
    cutoff: float = 0.5,
    num_best: int = 1,
    min_angle: float = 0.0,
    order: int = 1,
    batch_size: int = 64,
) -> Matches:
    """Finds the rotations of a list, and their shifts, that carry a template into a volume best.

        volume(p) = template(R^T (p - t)),
        score(R) = max over t of the constrained correlation under  band * M_volume * R M_template

    All translations of a rotation are scored at once by FFT. A cutoff below Nyquist makes that
    cheap in cubic boxes: both volumes are cropped in Fourier space to the smallest box that holds
    the band. The best rotations are then scored again in the full box, so that neither shifts nor
    scores depend on the crop. The choice of rotations is a constant for autodiff; the scores and
    the sub-voxel part of the shifts are differentiable in both volumes.

    Args:
        template: ``(z, y, x)``; its mean fills what turns in from outside the box.
        volume: same shape.
        rotations: ``(num, 3, 3)`` on ``(x, y, z)`` columns, for instance ``super_fibonacci``.
        max_shift: largest shift along any axis, voxels. May be traced.
        template_wedge: what the template has measured, in its own frame: the tilt range ``(2,)``
            in degrees, evaluated at the turned frequencies, or a mask ``(z, y, x // 2 + 1)``,
            turned by interpolation; everything if None.
        volume_wedge: the same of the volume.
        cutoff: radius of the band, cycles per voxel, at most 0.5. A sphere, for a cube's corners
            would turn out of the crop.
        num_best: how many to return.
        min_angle: smallest angle between two returned rotations, radians.
        order: of the interpolation that turns the template, 1 or 3.
        batch_size: rotations scored side by side; bounds the memory.

    Returns:
        ``Matches``, best first; score 0 if either volume is constant.

    Raises:
        ValueError: if shapes do not fit or an option is out of range.
    """
    _check_search(template, volume, rotations, num_best)
    for measured in (template_wedge, volume_wedge):
        _check_measured(volume.shape, measured)
    if not 0 < cutoff <= 0.5:
        raise ValueError(f"cutoff must be in (0, 0.5] cycles per voxel, got {cutoff}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    dtype = jnp.promote_types(jnp.result_type(template, volume), jnp.float32)
    volumes = jnp.asarray(template, dtype), jnp.asarray(volume, dtype)
    rotations = jnp.asarray(rotations, dtype)
    wedges = template_wedge, volume_wedge
    options = {"cutoff": float(cutoff), "order": order, "batch_size": batch_size}
    # Two programs: differentiating the second leaves the first, and its compilation, alone.
    scores = _score_cropped(lax.stop_gradient(volumes), rotations, wedges, max_shift, **options)
    chosen = pick_distinct(scores, rotations, num=num_best, min_angle=min_angle)
    return _rank(volumes, rotations, chosen, wedges, max_shift, **options)


@functools.partial(jax.jit, static_argnames=("cutoff", "order", "batch_size"))
def _score_cropped(
    volumes: tuple[jax.Array, jax.Array],
    rotations: jax.Array,
    wedges: tuple[jax.Array | None, jax.Array | None],
    max_shift: jax.Array | float,
    *,
    cutoff: float,
    order: int,
    batch_size: int,
) -> jax.Array:
    """The score of every rotation in the smallest box that holds the band."""
    shape = volumes[0].shape
    cropped = _cropped_shape(shape, cutoff)
    scale = cropped[0] / shape[0]
    return _score_rotations(
        tuple(fourier.fourier_resize(volume, cropped) for volume in volumes),
        rotations,
        tuple(_crop_wedge(measured, cropped) for measured in wedges),
        max_shift * scale,
        cutoff=cutoff / scale,
        order=order,
        batch_size=batch_size,
    ).score


@functools.partial(jax.jit, static_argnames=("cutoff", "order", "batch_size"))
def _rank(
    volumes: tuple[jax.Array, jax.Array],
    rotations: jax.Array,
    chosen: jax.Array,
    wedges: tuple[jax.Array | None, jax.Array | None],
    max_shift: jax.Array | float,
    *,
    cutoff: float,
    order: int,
    batch_size: int,
) -> Matches:
    """The chosen rotations, scored in the full box and sorted."""
    rotations = rotations[chosen]
    peaks = _score_rotations(
        volumes, rotations, wedges, max_shift, cutoff=cutoff, order=order, batch_size=batch_size
    )
    scores = jnp.where(chosen >= 0, peaks.score, -jnp.inf)
    by_score = jnp.argsort(-lax.stop_gradient(scores))
    return Matches(Pose(rotations[by_score], peaks.shift[by_score]), scores[by_score])


def _score_rotations(
    volumes: tuple[jax.Array, jax.Array],
    rotations: jax.Array,
    wedges: tuple[jax.Array | None, jax.Array | None],
    max_shift: jax.Array | float,
    *,
    cutoff: float,
    order: int,
    batch_size: int,
) -> Peak:
    """The best translation of each rotation; a batch axis on every field."""
    (template, volume), (template_wedge, volume_wedge) = volumes, wedges
    shape = volume.shape
    # What turns in from outside the box then has the mean, 0.
    template = template - template.mean()
    fixed = fourier.bandpass_mask(shape, high=cutoff) * measured_mask(shape, volume_wedge)

    # What does not depend on the rotation is computed once per batch, not per rotation: vmap.
    def score(rotation: jax.Array) -> Peak:
        mask = fixed * measured_mask(shape, template_wedge, rotation=rotation)
        turned = resample.rotate(template, rotation, order=order)
        mask = lax.stop_gradient(mask).astype(volume.dtype)
        return correlation.correlation_peak(turned, volume, mask=mask, max_shift=max_shift)

    # Batches of one size: a smaller last one would be compiled as a second program.
    num = rotations.shape[0]
    num_batches = math.ceil(num / batch_size)
    batch_size = math.ceil(num / num_batches)
    padding = [(0, num_batches * batch_size - num), (0, 0), (0, 0)]
    peaks = lax.map(score, jnp.pad(rotations, padding, mode="edge"), batch_size=batch_size)
    return jax.tree.map(lambda leaf: leaf[:num], peaks)


def measured_mask(
    shape: tuple[int, int, int],
    measured: jax.Array | None,
    *,
    rotation: jax.Array | None = None,
) -> jax.Array:
    """Builds the mask of what a volume has measured, turned with the volume: ``M(R^T k)``.

    Args:
        shape: ``(z, y, x)`` of the volume.
        measured: a tilt range ``(2,)`` in degrees, evaluated at the turned frequencies; or a mask
            ``(z, y, x // 2 + 1)`` before the turn, interpolated; everything if None.
        rotation: ``(3, 3)`` on ``(x, y, z)`` columns; the identity if None.

    Returns:
        ``(z, y, x // 2 + 1)``; 0 where the turn of a mask leads out of its spectrum.

    Raises:
        ValueError: if ``measured`` or ``rotation`` has another shape.
    """
    _check_measured(shape, measured)
    if measured is None:
        return jnp.ones(frequency.half_shape(shape))
    if measured.ndim == 1:
        return wedge.wedge_mask(shape, measured, rotation=rotation)
    if rotation is None:
        return measured
    # A real centrosymmetric spectrum is that of a real volume: this unfolds it to all of z, y, x.
    full = jnp.fft.fftshift(jnp.fft.fftn(jnp.fft.irfftn(measured, s=shape)).real)
    # The index of a frequency grows with the side of the box.
    sides = jnp.asarray(shape[::-1], rotation.dtype)
    matrix = rotation * sides[:, None] / sides[None, :]
    turned = resample.affine(full, matrix, jnp.zeros(3, rotation.dtype))
    return jnp.fft.ifftshift(turned)[..., : shape[2] // 2 + 1]


def _cropped_shape(shape: tuple[int, ...], cutoff: float) -> tuple[int, ...]:
    """The smallest fast box that holds the band, if smaller; oblong boxes are left alone.

    Sides cropped by different factors would make voxels that are no cubes.
    """
    size = shape[0]
    if len(set(shape)) > 1:
        return shape
    highest = math.floor((cutoff + fourier.FREQUENCY_TOLERANCE) * size)
    smallest = 2 * highest + 1  # the Nyquist coefficient of an even box is half a frequency
    return (min(size, _fast_size(smallest)),) * 3


def _fast_size(size: int) -> int:
    while True:
        rest = size
        for factor in FFT_FACTORS:
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1


def _crop_wedge(measured: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    if measured is None or measured.ndim == 1:
        return measured
    kz, ky = (np.fft.fftfreq(size, 1 / size).astype(int) for size in shape[:2])
    return measured[kz][:, ky][..., : shape[2] // 2 + 1]


def pick_distinct(
    scores: jax.Array, rotations: jax.Array, *, num: int, min_angle: float = 0.0
) -> jax.Array:
    """Picks the best rotations of a list that lie apart.

    The best comes first; each next one is the best among those at least ``min_angle`` from all
    before it.

    Args:
        scores: ``(n,)``; -inf is never picked.
        rotations: ``(n, 3, 3)``.
        num: how many to pick.
        min_angle: radians. May be traced.

    Returns:
        ``(num,)`` integers, indices into the list; -1 where none is left.

    Raises:
        ValueError: if the shapes do not belong together or ``num`` is less than 1.
    """
    if scores.ndim != 1 or rotations.shape != (*scores.shape, 3, 3):
        raise ValueError(
            "scores and rotations must be (n,) and (n, 3, 3), got "
            f"{scores.shape} and {rotations.shape}; flatten a grid first"
        )
    if num < 1:
        raise ValueError(f"num must be 1 or more, got {num}")
    closest = 8 * jnp.sin(jnp.minimum(min_angle, jnp.pi) / 2) ** 2  # |A - B|^2 at that angle

    def pick(scores: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        best = jnp.argmax(scores)
        distance = jnp.sum((rotations - rotations[best]) ** 2, axis=(1, 2))
        rest = jnp.where(distance < closest, -jnp.inf, scores).at[best].set(-jnp.inf)
        return rest, jnp.where(scores[best] > -jnp.inf, best, -1)

    return lax.scan(pick, lax.stop_gradient(scores), None, length=num)[1]


def _check_search(
    template: jax.Array, volume: jax.Array, rotations: jax.Array, num_best: int
) -> None:
    if jnp.ndim(volume) != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {jnp.shape(volume)}; vmap a batch")
    if jnp.shape(template) != jnp.shape(volume):
        raise ValueError(
            f"template must have the volume's shape {jnp.shape(volume)}, got "
            f"{jnp.shape(template)}; crop or pad it first"
        )
    if jnp.ndim(rotations) != 3 or jnp.shape(rotations)[1:] != (3, 3):
        raise ValueError(f"rotations must be (num, 3, 3), got shape {jnp.shape(rotations)}")
    if not 1 <= num_best <= rotations.shape[0]:
        raise ValueError(
            f"num_best must be from 1 to the {rotations.shape[0]} rotations, got {num_best}; "
            "ask for fewer or give more rotations"
        )


def _check_measured(shape: tuple[int, ...], measured: jax.Array | None) -> None:
    half = frequency.half_shape(shape)
    if measured is not None and jnp.shape(measured) not in ((2,), half):
        raise ValueError(
            f"what a volume {tuple(shape)} has measured must be a tilt range (2,), a mask {half} "
            f"or None, got shape {jnp.shape(measured)}"
        )
