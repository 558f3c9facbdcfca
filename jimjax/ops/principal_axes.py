"""The pose that a density has by itself: its centre of mass and its principal axes.

No other volume is compared with. Copies of one particle that were only turned and shifted come
to lie on each other; a particle without its missing wedge, or in noise, does so roughly.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops import resample
from jimjax.ops._precision import narrow, widen
from jimjax.ops.filters import gaussian
from jimjax.ops.rotation import Pose, invert

SMOOTHING = 0.05  # of the box: standard deviation of the Gaussian before anything is measured
LEVEL = 2.0  # standard deviations above the mean from which on a smoothed voxel has mass


def principal_pose(volume: jax.Array) -> Pose:
    """Finds centre of mass and principal axes of a density, with signs and without mirrors.

        w = max(0, G * v - mean - 2 std),   t = sum(w p) / sum(w),   C = sum(w (p - t)(p - t)^T)

    The columns of the rotation are the eigenvectors of C, the longest axis first. Of the eight
    choices of their signs, those with determinant +1 are rotations; the one is taken in which
    mass is skewed towards the positive ends of the two axes along which it is skewed most.

    A constant for autodiff: there is no gradient.

    Args:
        volume: ``(z, y, x)``, positive where there is mass. Smoothed by a twentieth of the box.

    Returns:
        Pose that carries the density with its mass centred and its long axis along x into
        ``volume``; the identity for a constant volume. Axes of equal length, and signs of a
        density that is symmetric along an axis, are decided by rounding.

    Raises:
        ValueError: if the volume is not three-dimensional.

    Reference: Zeng et al. 2018, J. Struct. Biol. 202; there every voxel has mass, and signs and
    mirror images are left to chance.
    """
    mass = _mass(lax.stop_gradient(widen(volume)))
    total = mass.sum()
    points = _places(volume.shape, mass.dtype)
    weights = mass.ravel() / jnp.where(total > 0, total, 1)
    center = _contract("n,ni->i", weights, points)
    offsets = points - center
    covariance = _contract("n,ni,nj->ij", weights, offsets, offsets)
    variances, axes = jnp.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    along = _contract("ni,ij->nj", offsets, axes)
    # Cubed last, after a division: a box of 200 voxels stays within float32.
    widths = jnp.sqrt(jnp.where(variances > 0, variances, 1))
    skewness = _contract("n,nj->j", weights, (along / widths) ** 3)
    axes = axes * jnp.where(skewness < 0, -1, 1)
    weakest = jnp.arange(3) == jnp.argmin(jnp.abs(skewness))
    is_mirrored = jnp.linalg.det(axes) < 0
    axes = axes * jnp.where(weakest & is_mirrored, -1, 1)
    return Pose(jnp.where(total > 0, axes, jnp.eye(3, dtype=axes.dtype)), center)


def normalize_pose(volume: jax.Array, *, order: int = 3) -> jax.Array:
    """Moves a density into its principal frame: mass centred, long axis along x.

    Args:
        volume: ``(z, y, x)``, positive where there is mass.
        order: of the interpolation, as in ``transform``.

    Returns:
        ``(z, y, x)``, the volume's mean where it was not seen; a constant volume as it is. Its
        gradient takes the pose as given.

    Raises:
        ValueError: if the volume is not three-dimensional or the order unknown.
    """
    wide = widen(volume)
    inverse = invert(principal_pose(wide))
    moved = resample.transform(wide, inverse, order=order, fill=jnp.mean(wide))
    return narrow(moved, volume)


def _mass(volume: jax.Array) -> jax.Array:
    """What stands out of the smoothed volume; zeros for a constant one."""
    smooth = gaussian(volume, SMOOTHING * max(volume.shape))
    centred = smooth - jnp.mean(smooth)
    deviation = jnp.std(smooth)
    # A mean is rounded: what is left of a constant volume is no contrast.
    rounding = 32 * jnp.finfo(volume.dtype).eps * jnp.max(jnp.abs(volume))
    return jnp.where(deviation > rounding, jnp.maximum(centred - LEVEL * deviation, 0), 0)


def _places(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Voxels as ``(n, 3)``, (x, y, z) from the box centre."""
    axes = [jnp.arange(size, dtype=dtype) - size // 2 for size in shape]
    z, y, x = jnp.meshgrid(*axes, indexing="ij")
    return jnp.stack([x.ravel(), y.ravel(), z.ravel()], axis=-1)


def _contract(formula: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(formula, *arrays, precision=lax.Precision.HIGHEST)
