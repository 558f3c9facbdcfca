"""Feature correlation: how two feature maps are compared to find the pose between them."""

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops._precision import narrow, widen
from jimjax.ops.rotation import Pose


def l2_normalize(features: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """Scales each feature vector to unit length.

        f / sqrt(sum_c f_c^2 + eps)

    Args:
        features: ``(..., channels)``.
        eps: added under the root, in squared feature units; a zero vector stays zero and its
            gradient is finite.

    Returns:
        Same shape; lengths in [0, 1).
    """
    wide = widen(features)
    scaled = wide * lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + eps)
    return narrow(scaled, features)


def global_correlation(source: jax.Array, target: jax.Array) -> jax.Array:
    """Compares each target voxel with each source voxel.

        C[p, q] = <target(p), source(q)>

    Spatial position is the target's and channel is the source's; swap the arguments for the
    other branch.

    Args:
        source: ``(z, y, x, channels)``, usually from ``l2_normalize``.
        target: ``(z', y', x', channels)``.

    Returns:
        ``(z', y', x', z * y * x)``; channels are source voxels in C order.

    Raises:
        ValueError: if ranks or channels differ.
    """
    _check_features(source, target)
    flat = source.reshape(-1, source.shape[-1])
    return jnp.einsum("zyxc,nc->zyxn", target, flat, precision=lax.Precision.HIGHEST)


def local_correlation(source: jax.Array, target: jax.Array, *, radius: int) -> jax.Array:
    """Compares each source voxel with the target voxels in a cube around it.

        C[p, o] = <source(p), target(p - o)>,   |o|_inf <= radius;   0 outside the target

    Args:
        source: ``(z, y, x, channels)``.
        target: same shape.
        radius: half width of the cube, voxels.

    Returns:
        ``(z, y, x, (2 radius + 1)^3)``; channels are offsets o = (oz, oy, ox) in C order from
        ``-radius`` to ``radius``, so the centre channel is the plain inner product.

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
        raise ValueError(f"radius must be 0 or more voxels, got {radius}")
    depth, height, width, channels = source.shape
    padded = jnp.pad(target, [(radius, radius)] * 3 + [(0, 0)])
    rows_shape = (depth, height, width + 2 * radius, channels)

    # One (oz, oy) at a time: all of them at once compile for seconds and hold (2r+1)^2 copies of
    # the target. The checkpoint keeps autodiff from saving those copies.
    @jax.checkpoint
    def correlate_rows(offset: jax.Array) -> jax.Array:
        start = (radius - offset[0], radius - offset[1], 0, 0)
        rows = lax.dynamic_slice(padded, start, rows_shape)
        products = jnp.einsum("zyxc,zywc->zyxw", source, rows, precision=lax.Precision.HIGHEST)
        return _band(products, 2 * radius + 1)[..., ::-1]

    span = jnp.arange(-radius, radius + 1)
    offsets = jnp.stack(jnp.meshgrid(span, span, indexing="ij"), axis=-1).reshape(-1, 2)
    scores = lax.map(correlate_rows, offsets)  # (oz oy, z, y, x, ox)
    return jnp.moveaxis(scores, 0, 3).reshape(depth, height, width, -1)


def transform_regulariser(pose: Pose, *, radius: float) -> jax.Array:
    """Measures how far a pose moves the points of a ball, squared and integrated.

        L_R = integral over |x| <= 1 of |R x + s - x|^2 = (4 pi / 3) (2/5 (3 - tr R) + |s|^2)

    with s the shift in units of the ball's radius.

    Args:
        pose: rotation ``(3, 3)`` and shift ``(3,)`` in voxels.
        radius: radius of the ball, voxels; half the box to cover the particle.

    Returns:
        Scalar, 0 at the identity; at most ``32 pi / 15`` without shift.

    Reference: Jim-Net, eq. 3.
    """
    shift = pose.shift / radius
    # |R - I|^2 = 2 (3 - tr R) on SO(3), without its cancellation near the identity.
    turn = jnp.sum((pose.rotation - jnp.eye(3, dtype=pose.rotation.dtype)) ** 2) / 5
    return 4 * jnp.pi / 3 * (turn + jnp.sum(shift**2))


def _band(products: jax.Array, num_diagonals: int) -> jax.Array:
    """Reads ``products[..., x, x + j]`` for j < num_diagonals by a skewed reshape, no gather."""
    *lead, rows, columns = products.shape
    flat = products.reshape(*lead, rows * columns)
    flat = jnp.pad(flat, [(0, 0)] * len(lead) + [(0, rows)])
    return flat.reshape(*lead, rows, columns + 1)[..., :num_diagonals]


def _check_features(source: jax.Array, target: jax.Array) -> None:
    if source.ndim != 4 or target.ndim != 4 or source.shape[-1] != target.shape[-1]:
        raise ValueError(
            "correlation wants two feature maps (z, y, x, channels) with equal channels, got "
            f"{source.shape} and {target.shape}; use jax.vmap over a batch axis"
        )
