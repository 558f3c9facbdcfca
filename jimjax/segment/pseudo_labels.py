"""Rough masks of particles from their intensities alone: a Gaussian mixture over the voxels.

A volume is smoothed, its voxels are taken as draws from two normal distributions, and those that
more likely came from the darker one are the particle. Where the particle lies plays no part, so
that noise is labelled too, and the mixture ends a particle where noise begins: without noise, in
the halo that the missing wedge leaves. Two things that are known of particles correct this: one
part of the labels is the particle (``central_component``), and it ends at half of its height
(``high_part``).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.data.batches import map_chunks
from jimjax.ops import filters, mixture
from jimjax.ops.mixture import Mixture

TAIL = 2.0  # deviations from the mean beyond which voxels are the particle's to begin with
NUM_STEPS = 60  # of EM; the likelihood of a voxel then changes by less than 1e-5
REGULARIZATION = 1e-6  # added to variances, of a volume of unit variance
PEAK_SHARE = 0.02  # of a part's voxels that are as high as its height
CENTRE_WIDTH = 0.2  # of the box: how far from its middle a particle may well lie
CHUNK = 16  # volumes at a time; has no influence on the result


def voxel_mixture(volume: jax.Array, *, sigma: float, sign: float) -> tuple[Mixture, jax.Array]:
    """Fits two normal distributions to the voxels of a smoothed volume.

    Expectation maximisation from what is ``TAIL`` deviations darker than the mean, and the rest.
    Tails decide, not the highest likelihood: that often belongs to a narrow and a wide distribution
    of the same mean, which tell the particle from nothing.

    Args:
        volume: ``(z, y, x)``.
        sigma: of the Gaussian that it is smoothed with, voxels.
        sign: -1 where the particle is dark, 1 where it is light.

    Returns:
        The mixture, of the smoothed volume at zero mean and unit deviation times ``sign``, its
        second component the one of the higher mean; and ``(z, y, x)``, how probably each voxel is
        of that one. A constant volume has no particle: 0 throughout.
    """
    smooth = sign * filters.gaussian(volume, sigma)
    deviation = jnp.std(smooth)
    is_flat = deviation <= 1e-6 * (1 + jnp.abs(jnp.mean(smooth)))
    scaled = (smooth - jnp.mean(smooth)) / jnp.where(is_flat, 1.0, deviation)
    rows = scaled.reshape(-1, 1)

    def fit(responsibilities: jax.Array) -> Mixture:
        return mixture.m_step(
            rows, responsibilities, covariance="diagonal", regularization=REGULARIZATION
        )

    def step(_: int, model: Mixture) -> Mixture:
        return fit(jnp.exp(mixture.e_step(rows, model).log_responsibilities))

    is_tail = rows[:, 0] > TAIL
    begun = fit(jnp.stack([~is_tail, is_tail], axis=1).astype(rows.dtype))
    fitted = lax.fori_loop(0, NUM_STEPS, step, begun)
    order = jnp.argsort(fitted.means[:, 0])
    fitted = Mixture(*(field[order] for field in fitted))
    posterior = jnp.exp(mixture.e_step(rows, fitted).log_responsibilities[:, 1])
    return fitted, jnp.where(is_flat, 0.0, posterior).reshape(volume.shape)


def central_component(mask: jax.Array) -> jax.Array:
    """Keeps of a mask the one connected part that is largest and nearest to the middle.

    Voxels hang together through faces. A part counts as much as a Gaussian about the middle of the
    box, of ``CENTRE_WIDTH`` times its side, gives its voxels in sum.

    Args:
        mask: ``(z, y, x)`` boolean.

    Returns:
        ``(z, y, x)`` boolean; empty if the mask is.
    """
    places = jnp.arange(1, mask.size + 1).reshape(mask.shape)
    names = _spread(jnp.where(mask, places, 0), mask)
    weights = jnp.where(mask, _centrality(mask.shape), 0.0)
    shares = jnp.zeros(mask.size + 1).at[names.ravel()].add(weights.ravel())
    return mask & (names == jnp.argmax(shares))


def high_part(values: jax.Array, mask: jax.Array, *, height: float) -> jax.Array:
    """Keeps the voxels of a mask that reach a share of the height above what is around it.

        v > b + height (h - b),   b the mean outside, h what ``PEAK_SHARE`` of the inside exceed

    Args:
        values: ``(z, y, x)``, high where the particle is.
        mask: same shape, boolean.
        height: 0 to 1; 0.5 is where a blurred body has its edge.

    Returns:
        ``(z, y, x)`` boolean; empty if the mask is.
    """
    inside, outside = jnp.sum(mask), jnp.sum(~mask)
    around = jnp.sum(jnp.where(mask, 0.0, values)) / jnp.maximum(outside, 1)
    ordered = jnp.sort(jnp.where(mask, values, -jnp.inf).ravel(), descending=True)
    peak = ordered[(PEAK_SHARE * inside).astype(int)]
    return mask & (values > around + height * (peak - around))


def pseudo_labels(
    volumes: np.ndarray, *, sigma: float, sign: float, is_shared: bool = True
) -> np.ndarray:
    """How probably each voxel of particles is of their darker (lighter) component.

    Args:
        volumes: ``(n, z, y, x)``.
        sigma: as of ``voxel_mixture``.
        sign: likewise.
        is_shared: as of ``batches.map_chunks``.

    Returns:
        ``(n, z, y, x)`` float32.
    """
    label = functools.partial(_label_chunk, sigma=sigma, sign=sign)
    return map_chunks(lambda rows: label(volumes[rows]), len(volumes), CHUNK, is_shared=is_shared)


def corrected_labels(
    volumes: np.ndarray,
    labels: np.ndarray,
    *,
    sigma: float,
    sign: float,
    height: float,
    is_shared: bool = True,
) -> np.ndarray:
    """Pseudo-labels inside the high part of their central component, and 0 elsewhere.

    Args:
        volumes: ``(n, z, y, x)``.
        labels: of ``pseudo_labels``.
        sigma: as there.
        sign: as there.
        height: as of ``high_part``; 0 leaves the whole component.
        is_shared: as of ``batches.map_chunks``.

    Returns:
        ``(n, z, y, x)`` float32.
    """
    correct = functools.partial(_correct_chunk, sigma=sigma, sign=sign, height=height)
    return map_chunks(
        lambda rows: correct(volumes[rows], labels[rows]),
        len(volumes),
        CHUNK,
        is_shared=is_shared,
    )


def central_components(masks: np.ndarray) -> np.ndarray:
    """``central_component`` of each of ``(n, z, y, x)`` boolean masks."""
    return map_chunks(lambda rows: _clean_chunk(masks[rows]), len(masks), CHUNK)


@functools.partial(jax.jit, static_argnames=("sigma", "sign"))
def _label_chunk(volumes: jax.Array, *, sigma: float, sign: float) -> jax.Array:
    fit = functools.partial(voxel_mixture, sigma=sigma, sign=sign)
    return jax.vmap(lambda volume: fit(volume)[1])(volumes)


@functools.partial(jax.jit, static_argnames=("sigma", "sign", "height"))
def _correct_chunk(
    volumes: jax.Array, labels: jax.Array, *, sigma: float, sign: float, height: float
) -> jax.Array:
    def correct(volume: jax.Array, label: jax.Array) -> jax.Array:
        kept = central_component(label > 0.5)
        if height > 0:
            kept = high_part(sign * filters.gaussian(volume, sigma), kept, height=height)
        return jnp.where(kept, label, 0.0)

    return jax.vmap(correct)(volumes, labels)


@jax.jit
def _clean_chunk(masks: jax.Array) -> jax.Array:
    return jax.vmap(central_component)(masks)


def _spread(names: jax.Array, mask: jax.Array) -> jax.Array:
    """Gives all voxels of a part the highest name in it."""

    def widen(names: jax.Array) -> jax.Array:
        for axis in range(names.ndim):
            for step in (1, -1):
                moved = jnp.roll(names, step, axis)
                edge = 0 if step == 1 else names.shape[axis] - 1
                place = lax.broadcasted_iota(jnp.int32, names.shape, axis)
                names = jnp.where(mask, jnp.maximum(names, jnp.where(place == edge, 0, moved)), 0)
        return names

    def is_changing(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(state[0] != state[1])

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return widen(state[0]), state[0]

    return lax.while_loop(is_changing, step, (widen(names), names))[0]


def _centrality(shape: tuple[int, ...]) -> jax.Array:
    squares = [((jnp.arange(size) - size // 2) / (CENTRE_WIDTH * size)) ** 2 for size in shape]
    total = sum(
        square.reshape([-1 if axis == place else 1 for place in range(len(shape))])
        for axis, square in enumerate(squares)
    )
    return jnp.exp(-total / 2)
