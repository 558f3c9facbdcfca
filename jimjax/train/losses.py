"""What training minimises."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jimjax.mesh import map_batch
from jimjax.models.jimnet import Alignment
from jimjax.ops import matching
from jimjax.ops.correlation import aligned_correlation
from jimjax.ops.rotation import Pose, compose, super_fibonacci

GRID_CONCENTRATION = 15.0  # of the soft label on the rotation grid: about 15 degrees wide
BASIN = 0.8  # Frobenius distance, 33 degrees: the fine stage is taught only within it
TEMPERATURE = 0.2  # of the contrast between molecules
COARSE_SHIFT_WEIGHT = 0.3  # more, and early steps learn the centre and not the rotation
SHIFT_UNIT = 1 / 8  # of the box: the displacement that counts as much as |R - R*| = 1


def pose_loss(found: Pose, true: Pose, *, box: int) -> jax.Array:
    """Squared pose error of one pair: |R - R*|^2 + |t - t*|^2, shifts in ``SHIFT_UNIT``."""
    shift = (found.shift - true.shift) / (SHIFT_UNIT * box)
    return jnp.sum((found.rotation - true.rotation) ** 2) + jnp.sum(shift**2)


def supervised_alignment_loss(
    aligned: Alignment, true: Pose, *, box: int, weights: jax.Array | None = None
) -> jax.Array:
    """Error of both stages against known poses, averaged over a batch.

    The coarse stage of a steerable network is a distribution over rotations, and pays the cross
    entropy to a narrow one around the truth; its shift, and a dense stage as a whole, pay the
    squared error. The fine stage pays only where the coarse one brought it near enough.

    Args:
        aligned: what the network said about ``batch`` pairs.
        true: ``(batch,)`` poses.
        box: side of the particles in voxels.
        weights: ``(batch,)`` of the pairs; all 1 if None.

    Returns:
        Scalar: the sum of weighted errors over the number of pairs.
    """
    each = jax.vmap(lambda found, known: pose_loss(found, known, box=box))
    if aligned.rotation_logits is None:
        coarse = each(aligned.coarse, true)
    else:
        grid = super_fibonacci(aligned.rotation_logits.shape[-1])
        nearness = jnp.einsum("bij,gij->bg", true.rotation, grid)
        wanted = jax.nn.softmax(GRID_CONCENTRATION * nearness)
        coarse = -jnp.sum(wanted * jax.nn.log_softmax(aligned.rotation_logits), axis=-1)
        shift = (aligned.coarse.shift - true.shift) / (SHIFT_UNIT * box)
        coarse = coarse + COARSE_SHIFT_WEIGHT * jnp.sum(shift**2, axis=-1)
    # The fine stage is judged on what it adds; the coarse one has its own loss.
    fine = each(jax.vmap(compose)(aligned.residual, lax.stop_gradient(aligned.coarse)), true)
    error = jnp.sum((aligned.coarse.rotation - true.rotation) ** 2, axis=(1, 2))
    is_near = lax.stop_gradient(error < BASIN**2)
    weights = jnp.ones(len(error)) if weights is None else weights
    return jnp.mean(weights * coarse) + jnp.mean(jnp.where(is_near, weights * fine, 0.0))


def contrastive_loss(first: jax.Array, second: jax.Array) -> jax.Array:
    """Tells which rows of two sets describe the same molecule.

    Cross entropy of the cosines between all rows, both ways (InfoNCE).

    Args:
        first: ``(batch, features)``.
        second: same shape; row i belongs to row i of ``first``.

    Returns:
        Scalar; log(batch) for features that tell nothing.

    Reference: van den Oord, Li, Vinyals 2018, equation 4.
    """
    first, second = matching.l2_normalize(first), matching.l2_normalize(second)
    similarity = first @ second.T / TEMPERATURE
    forward = jnp.diagonal(jax.nn.log_softmax(similarity, axis=1))
    backward = jnp.diagonal(jax.nn.log_softmax(similarity, axis=0))
    return -jnp.mean(forward + backward) / 2


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, weights: jax.Array | None = None
) -> jax.Array:
    """Mean cross entropy of softmax probabilities to labels.

        sum(w * -log p_label) / sum(w)

    Args:
        logits: ``(..., classes)``.
        labels: ``(...)``, whole numbers, or booleans where there are two classes.
        weights: ``(...)``, >= 0; all 1 if None. The result times their mean is what it would be
            if what has no weight were counted among that averaged over.

    Returns:
        Scalar; 0 if nothing has weight.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_labels(logits, labels, weights)
    places = jnp.asarray(labels).astype(int)[..., None]
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), places, axis=-1)[..., 0]
    if weights is None:
        return jnp.mean(each)
    total = jnp.sum(weights)
    return jnp.sum(weights * each) / jnp.where(total > 0, total, 1)


def check_labels(logits: jax.Array, labels: jax.Array, weights: jax.Array | None) -> None:
    """Refuses labels and weights that are not one for each of the logits' ``(..., classes)``.

    Raises:
        ValueError: if so.
    """
    for name, given in (("labels", labels), ("weights", weights)):
        if given is not None and jnp.shape(given) != jnp.shape(logits)[:-1]:
            raise ValueError(
                f"{name} of logits {jnp.shape(logits)} must have shape {jnp.shape(logits)[:-1]}, "
                f"got {jnp.shape(given)}"
            )


def pair_correlations(
    source: jax.Array,
    target: jax.Array,
    poses: Pose,
    source_tilt_range: jax.Array,
    target_tilt_range: jax.Array,
    *,
    cutoff: float,
    mesh: Mesh,
) -> jax.Array:
    """Constrained correlation of each pair once the source is moved; see ``aligned_correlation``.

    Args:
        source: ``(batch, z, y, x)``.
        target: same shape.
        poses: ``(batch,)``, source onto target.
        source_tilt_range: ``(batch, 2)`` degrees.
        target_tilt_range: ``(batch, 2)`` degrees.
        cutoff: low-pass, cycles per voxel.
        mesh: devices that share the batch.

    Returns:
        ``(batch,)``.
    """

    def correlate(
        source: jax.Array, target: jax.Array, pose: Pose, *ranges: jax.Array
    ) -> jax.Array:
        return aligned_correlation(
            source,
            target,
            pose,
            source_tilt_range=ranges[0],
            target_tilt_range=ranges[1],
            cutoff=cutoff,
        )

    return map_batch(correlate, mesh)(source, target, poses, source_tilt_range, target_tilt_range)
