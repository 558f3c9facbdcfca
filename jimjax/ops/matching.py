"""Feature correlation: how two feature maps are compared to find the pose between them."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jimjax.ops._linear import LinearMap, linear_map
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
    both = widen(source), widen(target)
    dtype = jnp.result_type(*both)
    scores = _correlate_near(radius, *(features.astype(dtype) for features in both))
    return narrow(scores, source)


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _correlate_near(radius: int, source: jax.Array, target: jax.Array) -> jax.Array:
    return _near_map(radius, source.shape, source.dtype)(source, target)


@functools.partial(_correlate_near.defjvp, symbolic_zeros=True)
def _correlate_near_jvp(
    radius: int,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array | SymbolicZero, jax.Array | SymbolicZero],
) -> tuple[jax.Array, jax.Array]:
    """Where both change, one transposed loop answers for both: they share the band."""
    (source, target), (source_dot, target_dot) = primals, tangents
    shape, dtype = source.shape, source.dtype
    out = _correlate_near(radius, source, target)
    if isinstance(target_dot, SymbolicZero):
        return out, _near_map(radius, shape, dtype)(source_dot, target)
    if isinstance(source_dot, SymbolicZero):
        return out, _near_map(radius, shape, dtype, swapped=True)(target_dot, source)
    both_dot = jnp.stack([source_dot, target_dot])
    return out, _near_map_of_both(radius, shape, dtype)(both_dot, source, target)


@functools.lru_cache(maxsize=256)
def _near_map(
    radius: int, shape: tuple[int, ...], dtype: jnp.dtype, *, swapped: bool = False
) -> LinearMap:
    """Local correlation as a linear map of the source or, swapped, of the target."""

    def apply(features: jax.Array, other: jax.Array) -> jax.Array:
        source, target = (other, features) if swapped else (features, other)
        return _correlate_rows(radius, source, target)

    def derivative(
        features: jax.Array, _: Sequence[jax.Array], tangents: Sequence[jax.Array]
    ) -> jax.Array:
        return _near_map(radius, shape, dtype, swapped=not swapped)(tangents[0], features)

    features = jax.ShapeDtypeStruct(shape, dtype)
    return linear_map(apply, derivative, features, features)


@functools.lru_cache(maxsize=256)
def _near_map_of_both(radius: int, shape: tuple[int, ...], dtype: jnp.dtype) -> LinearMap:
    """The derivative of local correlation: linear in the changes of source and target."""
    correlate = functools.partial(_correlate_rows, radius)

    def apply(changes: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        return jax.jvp(correlate, (source, target), (changes[0], changes[1]))[1]

    def derivative(
        changes: jax.Array, _: Sequence[jax.Array], tangents: Sequence[jax.Array]
    ) -> jax.Array:
        return _correlate_near(radius, changes[0], tangents[1]) + _correlate_near(
            radius, tangents[0], changes[1]
        )

    features = jax.ShapeDtypeStruct(shape, dtype)
    both = jax.ShapeDtypeStruct((2, *shape), dtype)
    return linear_map(apply, derivative, both, features, features)


def _correlate_rows(radius: int, source: jax.Array, target: jax.Array) -> jax.Array:
    """Rows of the source times rows of the target, of which a band is kept."""
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
