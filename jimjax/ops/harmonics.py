"""Solid harmonics and how rotations act on them: correlation over all of SO(3) as a product.

A function of direction, expanded in harmonics, is rotated by one small matrix per degree. The
correlation of two expansions over a whole grid of rotations is therefore a matrix product of
sums of their outer products with those matrices.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def solid_harmonics(points: jax.Array, degree: int) -> tuple[jax.Array, ...]:
    """Evaluates the real solid harmonics r^l C_lm, smooth polynomials of the coordinates.

    Racah-normalised: the squares of one degree sum to r^(2 l). Orders run from -l (sine) to l
    (cosine).

    Args:
        points: ``(..., 3)``, ``(x, y, z)``.
        degree: highest l.

    Returns:
        One array ``(..., 2 l + 1)`` per degree, l = 0 first.

    Raises:
        ValueError: if the last axis is not 3 or the degree is negative.

    Reference: Helgaker, Jorgensen, Olsen 2000, Molecular Electronic-Structure Theory, 6.4.
    """
    if points.shape[-1] != 3 or degree < 0:
        raise ValueError(f"points must be (..., 3) and degree >= 0, got {points.shape}, {degree}")
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    squared = x * x + y * y + z * z
    cosine, sine = [jnp.ones_like(x)], [jnp.zeros_like(x)]
    for m in range(degree):
        cosine.append(x * cosine[m] - y * sine[m])
        sine.append(x * sine[m] + y * cosine[m])
    polar = _polar_polynomials(z, squared, degree)
    out = []
    for l in range(degree + 1):  # noqa: E741 the field's letter
        scale = [_normalization(l, m) for m in range(l + 1)]
        negative = [scale[m] * polar[l, m] * sine[m] for m in range(l, 0, -1)]
        positive = [scale[m] * polar[l, m] * cosine[m] for m in range(l + 1)]
        out.append(jnp.stack([*negative, *positive], axis=-1))
    return tuple(out)


def rotation_matrices(rotation: jax.Array, degree: int) -> tuple[jax.Array, ...]:
    """Finds the matrices D_l with ``C_l(R p) = D_l C_l(p)`` for all points p.

    Args:
        rotation: ``(..., 3, 3)`` on ``(x, y, z)`` columns.
        degree: highest l.

    Returns:
        One orthogonal matrix ``(..., 2 l + 1, 2 l + 1)`` per degree, l = 0 first.

    Raises:
        ValueError: if ``rotation`` is not 3 x 3 or the degree is negative.
    """
    if rotation.shape[-2:] != (3, 3):
        raise ValueError(f"rotation must be (..., 3, 3), got {rotation.shape}")
    probes = _probe_points(degree)
    turned = jnp.einsum("...ij,nj->...ni", rotation, probes, precision=lax.Precision.HIGHEST)
    with jax.ensure_compile_time_eval():
        before = [np.asarray(h, np.float64) for h in solid_harmonics(jnp.asarray(probes), degree)]
    return tuple(
        jnp.einsum(
            "...nm,kn->...mk",
            after,
            np.linalg.pinv(values).astype(np.float32),
            precision=lax.Precision.HIGHEST,
        )
        for values, after in zip(before, solid_harmonics(turned, degree), strict=True)
    )


def _probe_points(degree: int) -> np.ndarray:
    """Directions enough to tell the harmonics of a degree apart: a Fibonacci sphere."""
    num = 4 * (2 * degree + 1)
    height = 1 - (2 * np.arange(num) + 1) / num
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(num)
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)
    return points.astype(np.float32)


def _polar_polynomials(
    z: jax.Array, squared: jax.Array, degree: int
) -> dict[tuple[int, int], jax.Array]:
    """The factors of the solid harmonics that depend on z and r^2, by (l, m)."""
    polar = {}
    for m in range(degree + 1):
        polar[m, m] = jnp.full_like(z, math.prod(range(1, 2 * m, 2)))
        if m < degree:
            polar[m + 1, m] = (2 * m + 1) * z * polar[m, m]
        for l in range(m + 2, degree + 1):  # noqa: E741
            above = (2 * l - 1) * z * polar[l - 1, m]
            polar[l, m] = (above - (l + m - 1) * squared * polar[l - 2, m]) / (l - m)
    return polar


def _normalization(l: int, m: int) -> float:  # noqa: E741
    return math.sqrt((1 if m == 0 else 2) * math.factorial(l - m) / math.factorial(l + m))
