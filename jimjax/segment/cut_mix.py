"""CutMix: a box of one volume put into another.

Swapping low amplitudes, the other change of appearance that consistency is learned from, is
``ops.swap_amplitude``; in a box of 32 it needs a fraction of 0.25 or more.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

ROUNDING = 1e-9  # of a side; 0.29 of 100 voxels are 29


def cut_mix_box(
    key: jax.Array, shape: tuple[int, int, int], *, low: float = 0.25, high: float = 0.5
) -> jax.Array:
    """Draws a box inside a volume.

    Each of its sides is drawn by itself, all whole numbers of voxels from ``low`` to ``high`` of
    the volume's being equally likely; so are all places at which it is inside.

    Args:
        key: of the box.
        shape: ``(z, y, x)`` of the volume.
        low: smallest share of a side, above 0.
        high: largest share, at most 1.

    Returns:
        ``(z, y, x)`` booleans, true inside the box: ``jnp.where(box, other, volume)`` mixes.

    Raises:
        ValueError: if the shares are out of order or no whole number of voxels is between them.

    Reference: Xu et al. 2023, ASC: appearance and structure consistency, whose shares these are.
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"shares must be 0 < low <= high <= 1, got {low} and {high}")
    is_inside = jnp.ones(shape, bool)
    for axis, (own, size) in enumerate(zip(jax.random.split(key, 3), shape, strict=True)):
        shortest, longest = math.ceil(low * size - ROUNDING), math.floor(high * size + ROUNDING)
        if shortest > longest:
            raise ValueError(
                f"no whole number of {size} voxels is between shares {low} and {high}; "
                "set them further apart"
            )
        side_key, place_key = jax.random.split(own)
        side = jax.random.randint(side_key, (), shortest, longest + 1)
        start = jax.random.randint(place_key, (), 0, size - side + 1)
        place = lax.broadcasted_iota(int, shape, axis)
        is_inside &= (place >= start) & (place < start + side)
    return is_inside
