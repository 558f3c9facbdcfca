"""What training a network that segments particles minimises, within a data set and across two.

Voxels may be weighted: pseudo-labels count where they are certain. ``cross_entropy`` is that of
all other training.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jimjax.ops.matching import l2_normalize
from jimjax.train.losses import check_labels, cross_entropy

__all__ = ["consistency", "cross_entropy", "domain_loss", "pseudo_loss", "soft_dice_loss"]

LEAST_SHARE = 1e-4  # of voxels that belong to particles, where a batch has none
SMOOTHING = 1.0  # voxels, of the soft Dice: keeps it defined where nothing is or is found
CONSISTENCY_WEIGHTS = (0.2, 0.2, 0.3, 0.3)  # of maps at falling resolution; Vox-UDA, table IV


def soft_dice_loss(
    logits: jax.Array, masks: jax.Array, *, weights: jax.Array | None = None
) -> jax.Array:
    """How little what is found overlaps with what is there, background aside.

        1 - (2 sum(w p t) + s) / (sum(w p) + sum(w t) + s),   s = 1, then the mean over the batch

    p is the probability of a voxel not to be background, t 1 where it is not. Where both are
    certain, and but for s, it is 1 less ``evaluate.segmentation.dice``.

    Args:
        logits: ``(batch, z, y, x, num_classes)``; class 0 is background.
        masks: ``(batch, z, y, x)``, booleans or classes.
        weights: ``(batch, z, y, x)`` of the voxels, >= 0; all 1 if None.

    Returns:
        Scalar in [0, 1); 0 for a volume of which no voxel has weight.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_labels(logits, masks, weights)
    found = jnp.sum(jax.nn.softmax(logits)[..., 1:], axis=-1)
    true = (masks > 0).astype(found.dtype)
    weights = jnp.ones_like(found) if weights is None else weights

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(weights * values, axis=(1, 2, 3))

    overlap = 2 * total(found * true) + SMOOTHING
    return jnp.mean(1 - overlap / (total(found) + total(true) + SMOOTHING))


def consistency(
    taps: Sequence[jax.Array],
    other_taps: Sequence[jax.Array],
    *,
    weights: Sequence[float] = CONSISTENCY_WEIGHTS,
) -> jax.Array:
    """How much maps of the same particles differ in direction.

        sum_i w_i mean_p(1 - cos(f_i(p), g_i(p)))

    over voxels p, and the angle between the channels of the two maps in each.

    Args:
        taps: maps ``(batch, z, y, x, channels)``, of resolutions of their own.
        other_taps: of the same shapes, such as of the same particles with more noise.
        weights: of each map.

    Returns:
        Scalar in [0, 2 sum(w)]. A vector of zeros is at right angles to everything, and has a
        finite gradient.

    Raises:
        ValueError: if there are not as many maps as weights, or their shapes differ.

    Reference: Vox-UDA, equation 7.
    """
    if not len(taps) == len(other_taps) == len(weights):
        raise ValueError(
            "taps, other_taps and weights must be equally many, got "
            f"{len(taps)}, {len(other_taps)} and {len(weights)}"
        )
    for tap, other in zip(taps, other_taps, strict=True):
        if tap.shape != other.shape:
            raise ValueError(f"maps must have equal shapes, got {tap.shape} and {other.shape}")
    cosines = [
        jnp.mean(jnp.sum(l2_normalize(tap) * l2_normalize(other), axis=-1))
        for tap, other in zip(taps, other_taps, strict=True)
    ]
    return sum(weight * (1 - cosine) for weight, cosine in zip(weights, cosines, strict=True))


def domain_loss(logits: jax.Array, is_source: jax.Array) -> jax.Array:
    """Mean binary cross entropy of which of two data sets each particle comes from.

    Args:
        logits: ``(batch, ...)``, of each part of each particle; positive is source.
        is_source: ``(batch,)``, booleans or 0 and 1.

    Returns:
        Scalar; log 2 for logits that tell nothing.

    Raises:
        ValueError: if the particles are not equally many.
    """
    if jnp.shape(is_source) != logits.shape[:1]:
        raise ValueError(
            f"is_source must have one entry for each of {len(logits)} particles, got shape "
            f"{jnp.shape(is_source)}"
        )
    signs = jnp.where(jnp.asarray(is_source) > 0, 1, -1).reshape(-1, *[1] * (logits.ndim - 1))
    return jnp.mean(jax.nn.softplus(-signs * logits))


def pseudo_loss(
    logits: jax.Array, told: jax.Array, share: jax.Array, confidence: float
) -> jax.Array:
    """Cross entropy and soft Dice with what a teacher is sure of.

    Of a voxel one may be sure to 98 % that it is background before having looked. So besides
    being sure, as published, it has to be as sure if particle and background were equally likely:
    when its probabilities are divided by what they are on average. Without the second, what it
    overlooks is surely background, outnumbers what it finds, and student and teacher soon find
    nothing at all; without the first, what it finds grows.

    Args:
        logits: ``(batch, z, y, x, 2)``.
        told: the teacher's probabilities, same shape.
        share: of voxels that belong to particles, in the source.
        confidence: from which it is sure of what it calls a voxel.
    """
    evidence = told / jnp.stack([1 - share, jnp.maximum(share, LEAST_SHARE)])
    evidence /= jnp.sum(evidence, axis=-1, keepdims=True)
    labels = jnp.argmax(told, axis=-1)
    certainty = jnp.minimum(told, evidence)
    is_sure = jnp.take_along_axis(certainty, labels[..., None], axis=-1)[..., 0] >= confidence
    weights = is_sure.astype(jnp.float32)
    return cross_entropy(logits, labels, weights=weights) + soft_dice_loss(
        logits, labels, weights=weights
    )
