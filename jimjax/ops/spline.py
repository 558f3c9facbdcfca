"""Cubic B-spline coefficients of a volume, for each way it may go on outside its box."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SPLINE_POLE = np.sqrt(3.0) - 2.0  # Unser et al. 1993, cubic B-spline
SPLINE_GAIN = np.sqrt(3.0)  # -6 pole / (1 - pole^2)
SPLINE_MARGIN = 12  # voxels; the pole to this power is 1.4e-7, float32 resolution


def spline_prefilter(volume: jax.Array, *, boundary: str = "constant") -> jax.Array:
    """Computes the cubic B-spline coefficients of a volume that goes on outside its box.

        c = sqrt(3) sum_j pole^|i - j| v_j   along each axis, over all j,   pole = sqrt(3) - 2

    The sum over the infinite signal is exact: geometric series take in what lies outside the
    box. ``SPLINE_MARGIN`` voxels of coefficients are kept on each side, beyond which they are
    those of a constant to float32 rounding (or repeat, for "wrap").

    Args:
        volume: ``(z, y, x)``.
        boundary: what surrounds the volume: "constant" zeros, "nearest" its border voxels,
            "wrap" copies of itself.

    Returns:
        ``(z + 24, y + 24, x + 24)``.

    Raises:
        ValueError: if the volume is not three-dimensional or the boundary is unknown.

    Reference: Unser, Aldroubi, Eden 1993, B-spline signal processing, part II.
    """
    coefficients = jnp.asarray(volume)
    if coefficients.ndim != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {coefficients.shape}; vmap a batch")
    if not jnp.issubdtype(coefficients.dtype, jnp.floating):
        coefficients = coefficients.astype(float)
    for axis in range(3):
        matrix = jnp.asarray(
            _prefilter_matrix(coefficients.shape[axis], boundary), coefficients.dtype
        )
        filtered = jnp.tensordot(
            matrix, coefficients, axes=(1, axis), precision=lax.Precision.HIGHEST
        )
        coefficients = jnp.moveaxis(filtered, 0, axis)
    return coefficients


def _prefilter_matrix(size: int, boundary: str) -> np.ndarray:
    """Prefilters one axis, ``(size + 24, size)``, float64."""
    steps = np.arange(-SPLINE_MARGIN, size + SPLINE_MARGIN)[:, None] - np.arange(size)
    if boundary == "wrap":
        # Voxel j stands at j + m size for every m: two geometric series meet at each i.
        steps = steps % size
        return (
            SPLINE_GAIN
            * (SPLINE_POLE**steps + SPLINE_POLE ** (size - steps))
            / (1 - SPLINE_POLE**size)
        )
    matrix = SPLINE_GAIN * SPLINE_POLE ** np.abs(steps)
    if boundary == "nearest":
        # The border voxels also stand for all voxels before the first and after the last.
        matrix[:, 0] += SPLINE_GAIN * _tail(-steps[:, 0])
        matrix[:, -1] += SPLINE_GAIN * _tail(steps[:, -1])
    elif boundary != "constant":
        raise ValueError(f'boundary must be "constant", "nearest" or "wrap", got {boundary!r}')
    return matrix


def _tail(outside: np.ndarray) -> np.ndarray:
    """Sums ``pole^|d - m|`` over the voxels m = 1, 2, ... outside, seen from voxel d.

    Inside, at d <= 0, this is one geometric series; outside, it is the series of the whole line
    less that of the voxels up to 0.
    """
    whole_line = (1 + SPLINE_POLE) / (1 - SPLINE_POLE)
    series = SPLINE_POLE / (1 - SPLINE_POLE)
    inside = series * SPLINE_POLE ** np.maximum(-outside, 0)
    beyond = whole_line - SPLINE_POLE ** np.maximum(outside, 0) / (1 - SPLINE_POLE)
    return np.where(outside <= 0, inside, beyond)
