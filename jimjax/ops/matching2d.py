"""Correlation of image features, and how well a warp or mutual agreement explains it.

Two-dimensional forms of ``matching``; coordinates as in ``warp2d``.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import warp2d

MASK_FLOOR = 1e-5  # added to each entry of the inlier mask in the normalisation; Jim-Net 2D


def global_correlation_2d(source: jax.Array, target: jax.Array) -> jax.Array:
    """Compares each target pixel with each source pixel.

        C[p, q] = <target(p), source(q)>

    Args:
        source: ``(y, x, channels)``, usually from ``l2_normalize``.
        target: ``(y', x', channels)``.

    Returns:
        ``(y', x', y * x)``; channels are source pixels in C order (the published networks count
        them column by column). The inputs' dtype, summed in float32 or wider.

    Raises:
        ValueError: if ranks or channels differ.
    """
    _check_features(source, target)
    dtype = jnp.result_type(source, target)
    scores = jnp.einsum(
        "yxc,nc->yxn",
        target,
        source.reshape(-1, source.shape[-1]),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )
    return scores.astype(dtype)


def local_correlation_2d(source: jax.Array, target: jax.Array, *, radius: int) -> jax.Array:
    """Compares each source pixel with the target pixels in a square around it.

        C[p, o] = <source(p), target(p - o)>,   |o|_inf <= radius;   0 outside the target

    Args:
        source: ``(y, x, channels)``.
        target: same shape.
        radius: half width of the square, pixels.

    Returns:
        ``(y, x, (2 radius + 1)^2)``; channels are offsets o = (oy, ox) in C order from
        ``-radius`` to ``radius``, so the centre channel is the plain inner product. The inputs'
        dtype, summed in float32 or wider.

    Raises:
        ValueError: if shapes differ or the radius is negative.
    """
    _check_features(source, target)
    if source.shape != target.shape:
        raise ValueError(
            f"local correlation wants equal shapes, got source {source.shape} and target "
            f"{target.shape}; resize one feature map first"
        )
    if radius < 0:
        raise ValueError(f"radius must be 0 or more pixels, got {radius}")
    height, width, channels = source.shape
    dtype = jnp.result_type(source, target)
    wide = jnp.promote_types(dtype, jnp.float32)
    features = source.astype(wide)
    padded = jnp.pad(target.astype(wide), [(radius, radius), (radius, radius), (0, 0)])

    # One oy at a time: all offsets at once would hold (2r+1)^2 copies of the target. The
    # checkpoint keeps autodiff from saving those copies.
    @jax.checkpoint
    def correlate_rows(start: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice(padded, (start, 0, 0), (height, width + 2 * radius, channels))
        columns = [rows[:, ox : ox + width] for ox in reversed(range(2 * radius + 1))]
        return jnp.stack([jnp.sum(features * column, axis=-1) for column in columns], axis=-1)

    scores = lax.map(correlate_rows, jnp.arange(2 * radius, -1, -1))  # (oy, y, x, ox)
    return jnp.moveaxis(scores, 0, 2).reshape(height, width, -1).astype(dtype)


def mutual_nearest(scores: jax.Array) -> jax.Array:
    """Finds the pairs in which each is the other's best match.

    Works for images and volumes alike: reshape a global correlation to two axes first. Among
    equal scores the first wins, so that no row and no column holds two pairs.

    Args:
        scores: ``(rows, columns)``, higher is better.

    Returns:
        ``(rows, columns)`` of bool; ``jnp.where(mutual_nearest(scores), scores, 0)`` filters.

    Raises:
        ValueError: if ``scores`` is not a matrix.
    """
    _check_matrix(scores)
    rows, columns = scores.shape
    is_best_of_row = jnp.argmax(scores, axis=1)[:, None] == jnp.arange(columns)
    is_best_of_column = jnp.argmax(scores, axis=0) == jnp.arange(rows)[:, None]
    return is_best_of_row & is_best_of_column


def soft_mutual_nearest(scores: jax.Array) -> jax.Array:
    """Weakens each score by how far it is from the best of its row and of its column.

        c_ij (c_ij / max_k c_kj) (c_ij / max_k c_ik)

    A mutual best pair keeps its score. Negative scores count as 0, which bounds the result and
    its gradient; the published form divides by the maxima plus 1e-5 instead.

    Args:
        scores: ``(rows, columns)``, higher is better; as for ``mutual_nearest``.

    Returns:
        Same shape, between 0 and the score; 0, with gradient 0, in a row or column without
        positive scores.

    Raises:
        ValueError: if ``scores`` is not a matrix.

    Reference: Rocco et al. 2018, Neighbourhood consensus networks.
    """
    _check_matrix(scores)
    positive = jnp.maximum(scores, 0)
    of_row = _ratio(positive, jnp.max(positive, axis=1, keepdims=True))
    of_column = _ratio(positive, jnp.max(positive, axis=0, keepdims=True))
    return positive * of_row * of_column


def _ratio(scores: jax.Array, best: jax.Array) -> jax.Array:
    return scores / jnp.where(best > 0, best, 1)


def soft_inlier_count(
    correlation: jax.Array, grid: jax.Array, *, normalized: bool = True
) -> jax.Array:
    """Measures how much of the correlation a warp explains.

        count = sum_pq m[p, q] C[p, q]  / sum_pq (m[p, q] + 1e-5)

    with m[., q] the image that is 1 at pixel q and 0 elsewhere, warped by the grid: the bilinear
    weight of source pixel q at the point that target pixel p sees. The mask is never built; row p
    of the numerator is C[p, .] as an image, sampled there.

    The grid is in coordinates of the feature map. The published code takes the transformation to
    live in a frame 227/210 larger, fitted to another network, for s = 227/210 the grid
    ``s * apply(parameters, pixel_grid(shape) / s)``; not done here. Nor is the mask dilated.

    Args:
        correlation: ``(y, x, y * x)``, from ``global_correlation_2d`` of equal shapes.
        grid: ``(y, x, 2)``, target pixel to source point, from ``affine_grid`` or another.
        normalized: whether to divide by the mask, as Jim-Net 2D does; False gives the sum of
            Rocco et al., which also rewards a warp that keeps more of the source in view.

    Returns:
        Scalar, float32 or wider; 0, with gradient 0, if the whole grid is outside.

    Raises:
        ValueError: if the shapes do not belong together.

    Reference: Rocco et al. 2018, End-to-end weakly-supervised semantic alignment.
    """
    if correlation.ndim != 3 or correlation.shape[2] != math.prod(correlation.shape[:2]):
        raise ValueError(
            f"correlation must be (y, x, y * x), got {correlation.shape}; both feature maps need "
            "the same size, and jax.vmap does a batch"
        )
    height, width, num_pixels = correlation.shape
    if grid.shape != (height, width, 2):
        raise ValueError(
            f"grid must have shape {(height, width, 2)}, got {grid.shape}; make it for the "
            "feature map, not for the image"
        )
    wide = jnp.promote_types(correlation.dtype, jnp.float32)
    maps = correlation.astype(wide).reshape(num_pixels, height, width)
    count = jnp.sum(jax.vmap(warp2d.sample)(maps, grid.reshape(num_pixels, 2)))
    if not normalized:
        return count
    mask = jnp.sum(warp2d.sample(jnp.ones((height, width), wide), grid))
    return count / (mask + MASK_FLOOR * num_pixels**2)


def _check_features(source: jax.Array, target: jax.Array) -> None:
    if source.ndim != 3 or target.ndim != 3 or source.shape[-1] != target.shape[-1]:
        raise ValueError(
            "correlation wants two feature maps (y, x, channels) with equal channels, got "
            f"{source.shape} and {target.shape}; use jax.vmap over a batch axis"
        )


def _check_matrix(scores: jax.Array) -> None:
    if scores.ndim != 2:
        raise ValueError(
            f"scores must be (rows, columns), got {scores.shape}; reshape the pixels of each "
            "image to one axis, or vmap a batch"
        )
