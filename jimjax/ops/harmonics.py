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


def solid_harmonics(points: jax.Array, max_degree: int) -> tuple[jax.Array, ...]:
    """Evaluates the real solid harmonics r^l C_lm, smooth polynomials of the coordinates.

    Racah-normalised: the squares of one degree l sum to r^(2 l). Orders m run from -l (sine) to
    l (cosine).

    Args:
        points: ``(..., 3)``, ``(x, y, z)``.
        max_degree: highest l.

    Returns:
        One array ``(..., 2 l + 1)`` per degree, l = 0 first.

    Raises:
        ValueError: if the last axis is not 3 or the degree is negative.

    Reference: Helgaker, Jorgensen, Olsen 2000, Molecular Electronic-Structure Theory, 6.4.
    """
    if points.shape[-1:] != (3,):
        raise ValueError(f"points must be (..., 3), got shape {points.shape}")
    _check_degree(max_degree)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    squared = x * x + y * y + z * z
    cosine, sine = [jnp.ones_like(x)], [jnp.zeros_like(x)]
    for m in range(max_degree):
        cosine.append(x * cosine[m] - y * sine[m])
        sine.append(x * sine[m] + y * cosine[m])
    polar = _polar_polynomials(z, squared, max_degree)
    out = []
    for degree in range(max_degree + 1):
        scaled = [_normalization(degree, m) * polar[degree, m] for m in range(degree + 1)]
        negative = [scaled[m] * sine[m] for m in range(degree, 0, -1)]
        positive = [scaled[m] * cosine[m] for m in range(degree + 1)]
        out.append(jnp.stack([*negative, *positive], axis=-1))
    return tuple(out)


def rotation_matrices(rotation: jax.Array, max_degree: int) -> tuple[jax.Array, ...]:
    """Finds the matrices D_l with ``C_l(R p) = D_l C_l(p)`` for all points p.

    Args:
        rotation: ``(..., 3, 3)`` on ``(x, y, z)`` columns.
        max_degree: highest l.

    Returns:
        One orthogonal matrix ``(..., 2 l + 1, 2 l + 1)`` per degree, l = 0 first.

    Raises:
        ValueError: if ``rotation`` is not 3 x 3 or the degree is negative.
    """
    if rotation.shape[-2:] != (3, 3):
        raise ValueError(f"rotation must be (..., 3, 3), got shape {rotation.shape}")
    _check_degree(max_degree)
    probes = _probe_points(max_degree)
    turned = jnp.einsum(
        "...ij,nj->...ni",
        rotation,
        jnp.asarray(probes, rotation.dtype),
        precision=lax.Precision.HIGHEST,
    )
    with jax.ensure_compile_time_eval():
        before = solid_harmonics(jnp.asarray(probes), max_degree)
        inverses = [np.linalg.pinv(np.asarray(values, np.float64)) for values in before]
    return tuple(
        jnp.einsum(
            "...nm,kn->...mk",
            after,
            jnp.asarray(inverse, after.dtype),
            precision=lax.Precision.HIGHEST,
        )
        for inverse, after in zip(inverses, solid_harmonics(turned, max_degree), strict=True)
    )


def _probe_points(max_degree: int) -> np.ndarray:
    """Directions enough to tell the harmonics of a degree apart: a Fibonacci sphere."""
    num = 4 * (2 * max_degree + 1)
    height = 1 - (2 * np.arange(num) + 1) / num
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(num)
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)


def _polar_polynomials(
    z: jax.Array, squared: jax.Array, max_degree: int
) -> dict[tuple[int, int], jax.Array]:
    """The factors of the solid harmonics that depend on z and r^2, by (degree, order)."""
    polar = {}
    for m in range(max_degree + 1):
        polar[m, m] = jnp.full_like(z, math.prod(range(1, 2 * m, 2)))
        if m < max_degree:
            polar[m + 1, m] = (2 * m + 1) * z * polar[m, m]
        for degree in range(m + 2, max_degree + 1):
            one_below = (2 * degree - 1) * z * polar[degree - 1, m]
            two_below = (degree + m - 1) * squared * polar[degree - 2, m]
            polar[degree, m] = (one_below - two_below) / (degree - m)
    return polar


def _normalization(degree: int, order: int) -> float:
    ratio = math.factorial(degree - order) / math.factorial(degree + order)
    return math.sqrt((1 if order == 0 else 2) * ratio)


def _check_degree(max_degree: int) -> None:
    if max_degree < 0:
        raise ValueError(f"max_degree must be 0 or more, got {max_degree}")
