"""Bilateral filters: means over a small window that leave out what differs, so that edges stay.

All take one volume ``[z, y, x]`` and count only neighbours inside the box. For a whole tomogram
see ``filters.in_slabs``.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jimjax.ops._precision import widen

VOX_UDA_SIGMA_SPACE = 120.0  # voxels; Vox-UDA, section IV-A
VOX_UDA_SIGMA_RANGE = 1.2  # units of the gradient of a standardised volume; likewise
OUTSIDE = 1e18  # guide beyond the box: its weight is exactly 0, its square still a float32


def bilateral(
    volume: jax.Array, *, sigma_space: float, sigma_range: jax.Array | float, radius: int = 1
) -> jax.Array:
    """Averages each voxel with those neighbours that resemble it, so that edges stay.

        out(p) = sum_q w_pq v_q / sum_q w_pq
        w_pq = exp(-|p - q|^2 / (2 sigma_space^2)) exp(-(v_p - v_q)^2 / (2 sigma_range^2))

    over the q inside the box with ``|p - q|_inf <= radius``.

    Args:
        volume: ``(z, y, x)``.
        sigma_space: voxels.
        sigma_range: in units of the volume, above 0. May be traced and differentiated.
        radius: half width of the window, voxels; 1 for 3^3.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the volume is not three-dimensional, the radius negative or sigma_space not
            positive.

    Reference: Tomasi & Manduchi 1998, Bilateral filtering for gray and color images; Vox-UDA,
    eq. 8.
    """
    values = widen(_as_volume(volume))
    guide = values / jnp.asarray(sigma_range, values.dtype)
    return _average(values, (guide,), sigma_space, radius).astype(volume.dtype)


def gradient_bilateral(
    volume: jax.Array,
    *,
    sigma_space: float = VOX_UDA_SIGMA_SPACE,
    sigma_range: jax.Array | float = VOX_UDA_SIGMA_RANGE,
    radius: int = 1,
    gradient: str = "laplacian",
) -> jax.Array:
    """Averages each voxel with neighbours of a similar gradient (improved bilateral filter).

        w_pq = exp(-|p - q|^2 / (2 sigma_space^2)) exp(-|g_p - g_q|^2 / (2 sigma_range^2))
        g_a(p) = L(p + e_a) - L(p - e_a),   a = x, y, z,   L the Laplacian (eqs. 10 to 12)

    Both ``L`` and ``g`` continue the volume beyond its faces by its outermost voxels.

    Args:
        volume: ``(z, y, x)``; the default sigma_range is meant for mean 0 and deviation 1.
        sigma_space: voxels; the published 120 gives all of the window the same weight.
        sigma_range: in units of the gradient, above 0. May be traced and differentiated.
        radius: half width of the window, voxels; 1 for 3^3.
        gradient: ``"laplacian"`` for the equations; ``"sobel"`` for Sobel derivatives of the
            volume itself, which the paper's implementation note names.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: as ``bilateral``, or if the gradient is unknown.

    Reference: Vox-UDA, eqs. 8 to 14. The left sides there are to be read as v'_p.
    """
    gradients = {"laplacian": _laplacian_gradient, "sobel": _sobel_gradient}
    if gradient not in gradients:
        raise ValueError(f'gradient must be "laplacian" or "sobel", got {gradient!r}')
    values = widen(_as_volume(volume))
    scale = 1 / jnp.asarray(sigma_range, values.dtype)
    guide = tuple(scale * component for component in gradients[gradient](values))
    return _average(values, guide, sigma_space, radius).astype(volume.dtype)


def _laplacian_gradient(volume: jax.Array) -> list[jax.Array]:
    """Central differences of the Laplacian along x, y and z."""
    laplacian = sum(jnp.diff(_steps(volume, axis), axis=axis) for axis in range(3))
    return [_central_difference(laplacian, axis) for axis in (2, 1, 0)]


def _sobel_gradient(volume: jax.Array) -> list[jax.Array]:
    """Sobel derivatives along x, y and z: -1 0 1, smoothed across by 1 2 1."""
    derivatives = []
    for axis in (2, 1, 0):
        derivative = _central_difference(volume, axis)
        for other in {0, 1, 2} - {axis}:
            # 1 2 1 is four times the voxel plus its second difference.
            derivative = 4 * derivative + jnp.diff(_steps(derivative, other), axis=other)
        derivatives.append(derivative)
    return derivatives


def _central_difference(volume: jax.Array, axis: int) -> jax.Array:
    """Next minus previous voxel: the sum of the two steps around each voxel."""
    steps = _steps(volume, axis)
    before, after = ([(0, 0)] * 3 for _ in range(2))
    before[axis], after[axis] = (1, 0), (0, 1)
    # Of two paddings, so that the transpose is one padding and two slices: see _guided_mean_jvp.
    sums = jnp.pad(steps, before) + jnp.pad(steps, after)
    return lax.slice_in_dim(sums, 1, 1 + volume.shape[axis], axis=axis)


def _steps(volume: jax.Array, axis: int) -> jax.Array:
    """Differences of neighbours, 0 at both faces, where the volume goes on unchanged.

    Padding the differences with zeros instead of the volume with its faces: the gradient of the
    latter is several times slower on CPU.
    """
    pads = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    return jnp.pad(jnp.diff(volume, axis=axis), pads)


def _average(
    values: jax.Array, guide: tuple[jax.Array, ...], sigma_space: float, radius: int
) -> jax.Array:
    """Mean over the window under weights ``exp(-|guide_p - guide_q|^2 / 2)`` and of distance."""
    if radius < 0 or not sigma_space > 0:
        raise ValueError(
            "radius must be 0 or more voxels and sigma_space above 0, got "
            f"{radius} and {sigma_space}"
        )
    return _guided_mean(_Window(radius, sigma_space), values, guide)


class _Window(NamedTuple):
    """The neighbourhood; hashable, so that it can be static."""

    radius: int
    sigma_space: float

    def offsets(self) -> list[tuple[int, ...]]:
        """Of all neighbours but the voxel itself, whose weight is 1."""
        span = range(-self.radius, self.radius + 1)
        return [offset for offset in itertools.product(span, repeat=3) if any(offset)]

    def pad(self, array: jax.Array, value: float) -> jax.Array:
        return jnp.pad(array, self.radius, constant_values=value)

    def neighbour(self, padded: jax.Array, offset: tuple[int, ...]) -> jax.Array:
        """The neighbour of each voxel at an offset."""
        start = [self.radius + step for step in offset]
        stop = [n - self.radius + step for n, step in zip(padded.shape, offset, strict=True)]
        return lax.slice(padded, start, stop)

    def place(self, array: jax.Array, offset: tuple[int, ...]) -> jax.Array:
        """The adjoint of ``neighbour``."""
        pads = [(self.radius + step, self.radius - step, 0) for step in offset]
        return lax.pad(array, jnp.zeros((), array.dtype), pads)

    def weights(
        self, guide: tuple[jax.Array, ...], *, copy: int
    ) -> Callable[[tuple[int, ...]], jax.Array]:
        """Returns a function from offset to weights; 0 outside the box.

        On CPU, XLA computes weights inside the loop that sums them, unless another loop wants
        them too: then it writes all of them to memory, which takes several times longer than
        computing them again. So each loop has a ``copy`` of its own, equal to the last bit: the
        guide in other units, by a power of two.
        """
        unit = 2.0**copy
        own = [component * unit for component in guide]
        near = [self.pad(component, OUTSIDE) for component in own]

        def weight(offset: tuple[int, ...]) -> jax.Array:
            squares = sum(
                (a - self.neighbour(b, offset)) ** 2 for a, b in zip(own, near, strict=True)
            )
            distance = sum(step * step for step in offset) / self.sigma_space**2
            return jnp.exp(-0.5 / unit**2 * squares - 0.5 * distance)

        return weight


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _guided_mean(window: _Window, values: jax.Array, guide: tuple[jax.Array, ...]) -> jax.Array:
    near_values, weights = window.pad(values, 0), window.weights(guide, copy=0)
    total, norm = values, jnp.ones_like(values)
    for offset in window.offsets():
        weight = weights(offset)
        total = total + weight * window.neighbour(near_values, offset)
        norm = norm + weight
    return total / norm


@functools.partial(_guided_mean.defjvp, symbolic_zeros=True)
def _guided_mean_jvp(
    window: _Window,
    primals: tuple[jax.Array, tuple[jax.Array, ...]],
    tangents: tuple[jax.Array | SymbolicZero, tuple[jax.Array | SymbolicZero, ...]],
) -> tuple[jax.Array, jax.Array]:
    """Forward rule whose transpose is fast: reverse mode executes only the transpose.

    What voxel q gives to the mean at p = q + offset is placed into a larger box, then summed and
    cropped: transposed, one padding and slices, where the transpose of slices would be as many
    paddings. The checkpoints make reverse mode compute weights again instead of keeping them all.
    """
    values, guide = primals
    values_dot, guide_dot = tangents
    mean = _guided_mean(window, values, guide)
    weights = window.weights(guide, copy=1)
    # Inverted, because XLA keeps the result of a division, but repeats sums in all their users.
    scale = 1 / sum((weights(offset) for offset in window.offsets()), jnp.ones_like(mean))
    tangent = jnp.zeros_like(mean)
    if not isinstance(values_dot, SymbolicZero):
        tangent = tangent + _move_values(window, guide, scale, values_dot)
    for component, component_dot in enumerate(guide_dot):
        if not isinstance(component_dot, SymbolicZero):
            tangent = tangent + _move_guide(
                window, component, values, guide, mean, scale, component_dot
            )
    return mean, tangent


@functools.partial(jax.checkpoint, static_argnums=0)
def _move_values(
    window: _Window, guide: tuple[jax.Array, ...], scale: jax.Array, values_dot: jax.Array
) -> jax.Array:
    """The mean's tangent by the values, the weights held."""
    near_scale, weights = window.pad(scale, 0), window.weights(guide, copy=2)
    placed = window.place(scale * values_dot, (0, 0, 0))
    for offset in window.offsets():
        given = weights(offset) * window.neighbour(near_scale, offset)
        placed = placed + window.place(given * values_dot, offset)
    return window.neighbour(placed, (0, 0, 0))


@functools.partial(jax.checkpoint, static_argnums=(0, 1))
def _move_guide(
    window: _Window,
    component: int,
    values: jax.Array,
    guide: tuple[jax.Array, ...],
    mean: jax.Array,
    scale: jax.Array,
    guide_dot: jax.Array,
) -> jax.Array:
    """The mean's tangent by one component of the guide, the values held."""
    weights = window.weights(guide, copy=3 + component)
    near_values, near_mean, near_scale, near_guide = (
        window.pad(array, value)
        for array, value in ((values, 0), (mean, 0), (scale, 0), (guide[component], 0))
    )
    placed, own = jnp.zeros_like(near_mean), jnp.zeros_like(mean)
    for offset in window.offsets():
        slope = weights(offset) * (guide[component] - window.neighbour(near_guide, offset))
        given = slope * window.neighbour(near_scale, offset)
        given = given * (window.neighbour(near_mean, offset) - values)
        placed = placed + window.place(given * guide_dot, offset)
        own = own + slope * (mean - window.neighbour(near_values, offset))
    return window.neighbour(placed, (0, 0, 0)) + own * scale * guide_dot


def _as_volume(volume: jax.Array) -> jax.Array:
    volume = jnp.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {volume.shape}; vmap a batch")
    return volume if jnp.issubdtype(volume.dtype, jnp.floating) else volume.astype(float)
