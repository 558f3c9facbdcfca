"""What is known of masks before any is seen: size, smoothness, and that aligned particles agree.

Pure functions of one example's probabilities ``(z, y, x)`` in [0, 1], with finite gradients.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-6
SMOOTHING = 1.0  # voxels squared: keeps the overlap of two empty masks defined


def size_penalty(probability: jax.Array, *, smallest: float, largest: float) -> jax.Array:
    """How far the size of a mask is from an interval, squared, in factors of e.

        relu(log(smallest / f))^2 + relu(log(f / largest))^2,   f = mean(p)

    Args:
        probability: ``(z, y, x)``.
        smallest: share of the box, above 0.
        largest: likewise, up to 1.

    Returns:
        Scalar; 0 inside the interval.

    Raises:
        ValueError: if the interval is empty.
    """
    if not 0 < smallest <= largest <= 1:
        raise ValueError(
            f"smallest and largest must be shares of the box with 0 < smallest <= largest <= 1, "
            f"got {smallest} and {largest}"
        )
    share = jnp.log(jnp.mean(probability) + EPSILON)
    below = jax.nn.relu(jnp.log(smallest + EPSILON) - share)
    return below**2 + jax.nn.relu(share - jnp.log(largest + EPSILON)) ** 2


def total_variation(probability: jax.Array) -> jax.Array:
    """How ragged a mask is: the mean step between neighbours along each axis, by its area.

        sum |dp| / (sum p^2)^(2/3)

    Args:
        probability: ``(z, y, x)``.

    Returns:
        Scalar; 6 for a solid cube inside the box, of any size, more for scattered voxels.
    """
    steps = sum(jnp.sum(jnp.abs(jnp.diff(probability, axis=axis))) for axis in range(3))
    return steps / (jnp.sum(probability**2) + SMOOTHING) ** (2 / 3)


def disagreement(first: jax.Array, second: jax.Array) -> jax.Array:
    """How little two soft masks overlap.

        1 - (2 sum(p q) + s) / (sum(p^2) + sum(q^2) + s),   s = 1

    Args:
        first: ``(z, y, x)``.
        second: same shape.

    Returns:
        Scalar in [0, 1); 0 for equal masks, soft or not, unlike the soft Dice loss.
    """
    shared = 2 * jnp.sum(first * second) + SMOOTHING
    return 1 - shared / (jnp.sum(first**2) + jnp.sum(second**2) + SMOOTHING)
