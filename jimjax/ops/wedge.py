"""Missing-wedge masks, evaluated analytically at rotated frequencies, and what they multiply.

A tomogram measures a Fourier direction k if the line through it lies inside the tilt range: the
beam is z, the tilt axis y, and the angle of the line is ``atan2(kz, kx)`` modulo 180 degrees.
Masks are half spectra, 1 = measured, equal at k and -k (Nyquist planes included).
"""

import jax
import jax.numpy as jnp

from jimjax.ops import fourier, frequency
from jimjax.ops._precision import narrow, widen

NYQUIST = 0.5  # cycles per voxel
EDGE_TOLERANCE = 1e-5  # distance to the wedge's face relative to |k|: float32 rotation error


def wedge_mask(
    shape: tuple[int, int, int],
    tilt_range: jax.Array,
    *,
    rotation: jax.Array | None = None,
    soft: jax.Array | float = 0.0,
) -> jax.Array:
    """Builds the mask of a volume that carries the pose rotation R: ``M(R^T k)``.

    M is 1 where the angle ``atan2(kz, kx)``, modulo 180 degrees, lies in the tilt range, edges
    included, and on the tilt axis (kx = kz = 0).

    Args:
        shape: ``(z, y, x)`` of the volume.
        tilt_range: ``(2,)``, smallest and largest tilt in degrees, within [-90, 90]. May be
            traced.
        rotation: ``(3, 3)`` on ``(x, y, z)`` columns; the identity if None.
        soft: degrees over which a raised cosine falls to 0 outside the measured region.

    Returns:
        ``(z, y, x // 2 + 1)``; 0 or 1 if ``soft`` is 0, else in [0, 1]. A Nyquist coefficient of
        an even axis stands for two frequencies; it takes the smaller value of the two.

    Raises:
        ValueError: if ``tilt_range`` is not ``(2,)`` or ``rotation`` not ``(3, 3)``.
    """
    return _evaluate(shape, tilt_range, rotation, soft, tilt_axis=1)


def dual_axis_mask(
    shape: tuple[int, int, int],
    tilt_range_y: jax.Array,
    tilt_range_x: jax.Array,
    *,
    rotation: jax.Array | None = None,
    soft: jax.Array | float = 0.0,
) -> jax.Array:
    """Builds the mask of a dual-axis tomogram: what either tilt series has measured.

    Args:
        shape: ``(z, y, x)`` of the volume.
        tilt_range_y: ``(2,)`` degrees, tilts about y: angle ``atan2(kz, kx)``.
        tilt_range_x: ``(2,)`` degrees, tilts about x: angle ``atan2(kz, ky)``.
        rotation: as in ``wedge_mask``.
        soft: as in ``wedge_mask``.

    Returns:
        ``(z, y, x // 2 + 1)`` in [0, 1], the larger of the two masks.

    Raises:
        ValueError: as ``wedge_mask``.
    """
    return jnp.maximum(
        _evaluate(shape, tilt_range_y, rotation, soft, tilt_axis=1),
        _evaluate(shape, tilt_range_x, rotation, soft, tilt_axis=0),
    )


def _evaluate(
    shape: tuple[int, int, int],
    tilt_range: jax.Array,
    rotation: jax.Array | None,
    soft: jax.Array | float,
    *,
    tilt_axis: int,
) -> jax.Array:
    tilt_range = jnp.asarray(tilt_range, jnp.result_type(float))
    if tilt_range.shape != (2,):
        raise ValueError(f"tilt_range must be (lowest, highest), got shape {tilt_range.shape}")
    if rotation is not None and jnp.shape(rotation) != (3, 3):
        raise ValueError(f"rotation must be (3, 3), got {jnp.shape(rotation)}; vmap a batch")
    axes = frequency.axis_frequencies(shape)
    # A Nyquist coefficient stands for a positive and a negative frequency.
    negative = [jnp.where(axis == NYQUIST, -NYQUIST, axis) for axis in axes]
    positive = [jnp.where(axis == -NYQUIST, NYQUIST, axis) for axis in axes]
    return jnp.minimum(
        _measured(negative, tilt_range, rotation, soft, tilt_axis),
        _measured(positive, tilt_range, rotation, soft, tilt_axis),
    )


def _measured(
    axes: list[jax.Array],
    tilt_range: jax.Array,
    rotation: jax.Array | None,
    soft: jax.Array | float,
    tilt_axis: int,
) -> jax.Array:
    """Weight of each frequency; elementwise, hence bitwise equal at k and -k."""
    kz, ky, kx = jnp.broadcast_arrays(*axes)
    horizontal, vertical = (kx, kz) if tilt_axis == 1 else (ky, kz)
    if rotation is not None:
        # Two components of R^T k.
        horizontal, vertical = (
            rotation[0, a] * kx + rotation[1, a] * ky + rotation[2, a] * kz
            for a in (1 - tilt_axis, 2)
        )
    low, high = jnp.deg2rad(tilt_range)
    middle, half = (low + high) / 2, (high - low) / 2
    along = jnp.abs(horizontal * jnp.cos(middle) + vertical * jnp.sin(middle))
    across = jnp.abs(vertical * jnp.cos(middle) - horizontal * jnp.sin(middle))
    # Signed distance to the nearer face of the wedge, positive outside.
    outside = across * jnp.cos(half) - along * jnp.sin(half)
    is_inside = outside <= EDGE_TOLERANCE * jnp.sqrt(kx * kx + ky * ky + kz * kz)
    if isinstance(soft, int | float) and soft == 0:  # no angles to compute
        return is_inside.astype(outside.dtype)
    beyond = jnp.arctan2(jnp.where(is_inside, 1.0, across), jnp.where(is_inside, 1.0, along)) - half
    return jnp.where(is_inside, 1.0, fourier.raised_cosine(jnp.rad2deg(beyond), soft))


def apply_mask(volume: jax.Array, mask: jax.Array) -> jax.Array:
    """Multiplies a volume's spectrum with a mask.

    Args:
        volume: ``(z, y, x)``.
        mask: ``(z, y, x // 2 + 1)``, real and centrosymmetric.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the mask does not fit the volume.
    """
    _check_mask("mask", mask, volume)
    filtered = jnp.fft.irfftn(jnp.fft.rfftn(widen(volume)) * widen(mask), s=volume.shape)
    return narrow(filtered, volume)


def impute(
    volume: jax.Array, volume_mask: jax.Array, other: jax.Array, other_mask: jax.Array
) -> jax.Array:
    """Fills what a volume has not measured with what another has.

        F = M_v V + (1 - M_v) M_o O

    Args:
        volume: ``(z, y, x)``.
        volume_mask: ``(z, y, x // 2 + 1)``, 1 where ``volume`` is measured.
        other: ``(z, y, x)``, in the same frame.
        other_mask: ``(z, y, x // 2 + 1)``, 1 where ``other`` is measured.

    Returns:
        ``(z, y, x)``; zero in Fourier space where neither is measured.

    Raises:
        ValueError: if shapes do not fit.
    """
    if jnp.shape(other) != jnp.shape(volume):
        raise ValueError(f"other must have volume's shape {volume.shape}, got {other.shape}")
    _check_mask("volume_mask", volume_mask, volume)
    _check_mask("other_mask", other_mask, volume)
    own_mask = widen(volume_mask)
    own = jnp.fft.rfftn(widen(volume)) * own_mask
    borrowed = jnp.fft.rfftn(widen(other)) * ((1 - own_mask) * widen(other_mask))
    filled = jnp.fft.irfftn(own + borrowed, s=volume.shape)
    return narrow(filled, volume)


def _check_mask(name: str, mask: jax.Array, volume: jax.Array) -> None:
    if jnp.ndim(volume) != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {jnp.shape(volume)}; vmap a batch")
    expected = frequency.half_shape(jnp.shape(volume))
    if jnp.shape(mask) != expected:
        raise ValueError(
            f"{name} of a volume {volume.shape} must be its half spectrum {expected}, "
            f"got {jnp.shape(mask)}"
        )
