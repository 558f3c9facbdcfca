"""Noise like that of other volumes: how strong it is, and how to draw it.

What varies fastest in a volume is mostly noise. Vox-UDA measures that in unlabelled volumes, and
adds as much to volumes whose labels it knows.

Reference: Li et al., Vox-UDA: voxel-wise unsupervised domain adaptation for cryo-electron
subtomogram segmentation, sections III-A and IV-C2.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops._precision import narrow, widen
from jimjax.ops.spectrum import highpass

VOX_UDA_FRACTION = 0.244  # of the Fourier coefficients; Vox-UDA, section IV-A

Noise = Literal["gaussian", "poisson", "speckle"]
Order = Literal["average-first", "mean-of-variances"]


def noise_variance(
    volumes: jax.Array, *, fraction: float = VOX_UDA_FRACTION, order: Order = "average-first"
) -> jax.Array:
    """Measures how strong the noise in the fastest part of volumes is.

    The residual of a volume is its ``highpass``. "average-first", as published, is the variance
    over the box of the average residual; "mean-of-variances" the average of each residual's
    variance. Independent noise averages out: then the first is a share 1/n of the second, and the
    more volumes, the less noise it finds. Of equal volumes both are the same. White noise of
    variance s^2 leaves ``fraction * s^2`` in a residual.

    Args:
        volumes: ``(n, z, y, x)``.
        fraction: part of the coefficients that the residual keeps; see ``highpass_mask``.
        order: "average-first" or "mean-of-variances".

    Returns:
        Scalar, in squared units of the volumes.

    Raises:
        ValueError: if the volumes are not four-dimensional or there are none, the fraction is not
            in (0, 1] or the order is unknown.
    """
    if jnp.ndim(volumes) != 4 or not len(volumes):
        raise ValueError(
            f"volumes must be (n, z, y, x), one or more, got shape {jnp.shape(volumes)}"
        )
    wide = widen(volumes)
    if order == "average-first":
        return jnp.var(highpass(jnp.mean(wide, axis=0), fraction=fraction))
    if order == "mean-of-variances":
        residuals = jax.vmap(lambda volume: highpass(volume, fraction=fraction))(wide)
        return jnp.mean(jnp.var(residuals, axis=(1, 2, 3)))
    raise ValueError(f"order must be among {get_args(Order)}, got {order!r}")


def draw_noise(
    key: jax.Array,
    volume: jax.Array,
    variance: jax.Array | float,
    *,
    kind: Noise = "gaussian",
) -> jax.Array:
    """Adds random noise of zero mean to a volume, independent in each voxel.

        gaussian   v + e,   e of variance s^2
        poisson    v + (k - s) sqrt(s),   k counts of rate s: variance s^2 as well, but skewed
        speckle    v + v e:   variance v^2 s^2, hence s^2 on average if the mean of v^2 is 1

    For Poisson noise Vox-UDA states the rate alone. Counts as they are would have the mean s and
    the variance s, and compare kinds of noise at different strengths.

    Args:
        key: of the noise; for "poisson" of JAX's default kind, threefry.
        volume: ``(z, y, x)``.
        variance: scalar s^2 >= 0, in squared units of the volume. May be traced.
        kind: "gaussian", "poisson" or "speckle".

    Returns:
        ``(z, y, x)``, the noisy volume; as it was if the variance is 0.

    Raises:
        ValueError: if the kind is unknown.

    Reference: Vox-UDA, equations 5, 6 and 15, and section IV-C2.
    """
    if kind not in get_args(Noise):
        raise ValueError(f"kind must be among {get_args(Noise)}, got {kind!r}")
    wide = widen(volume)
    deviation = _root(jnp.asarray(variance, wide.dtype))
    if kind == "poisson":
        counts = jax.random.poisson(key, lax.stop_gradient(deviation), wide.shape)
        noise = (counts - deviation) * _root(deviation)
    else:
        noise = deviation * jax.random.normal(key, wide.shape, wide.dtype)
        noise = noise * wide if kind == "speckle" else noise
    return narrow(wide + noise, volume)


def _root(value: jax.Array) -> jax.Array:
    """A square root whose gradient is 0 at 0."""
    is_positive = value > 0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, value, 1)), 0)
