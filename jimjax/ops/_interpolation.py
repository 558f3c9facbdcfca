"""Interpolation on the voxels of a volume moved by an affine map: forward, transposed, derived."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.ops._divisors import largest_divisor
from jimjax.ops._linear import LinearMap
from jimjax.ops.spline import SPLINE_MARGIN

BOUNDARIES = ("constant", "nearest", "wrap")
MARGINS = {0: 1, 1: 1, 3: SPLINE_MARGIN}  # order -> voxels of border around the samples
SLAB = 2**15  # voxels whose indices and weights stay in cache
NUM_TAPS = {0: 1, 1: 2, 3: 4}  # order -> neighbours used along each axis


@functools.lru_cache(maxsize=256)
def sampler(
    order: int,
    boundary: str,
    shape: tuple[int, ...],
    padded_shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> LinearMap:
    """Interpolation in a padded volume: linear in it, with matrix and shift as parameters."""
    grid = _Grid(order, boundary, shape, padded_shape)
    return LinearMap(
        grid.gather,
        grid.scatter,
        grid.derivative,
        given=jax.ShapeDtypeStruct(padded_shape, dtype),
        out=jax.ShapeDtypeStruct(shape, dtype),
    )


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Where the voxels of a volume of some shape come from in its padded form."""

    order: int
    boundary: str
    shape: tuple[int, ...]
    padded_shape: tuple[int, ...]

    def gather(self, padded: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
        """Interpolates; on CPU slab by slab, whose indices stay in cache."""

        def slab(start: jax.Array | int, depth: int) -> jax.Array:
            positions = self.positions(matrix, shift, start, depth)
            base, weights, _ = _taps(self.order, self.padded_shape, positions)
            return _gather_sum(padded, base, weights).reshape(depth, *self.shape[1:])

        def in_slabs() -> jax.Array:
            starts = jnp.arange(0, self.shape[0], self.depth)
            return lax.map(lambda start: slab(start, self.depth), starts).reshape(self.shape)

        return self.by_platform(in_slabs, lambda: slab(0, self.shape[0]))

    def scatter(self, values: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
        """The transpose of ``gather``."""

        def add(start: jax.Array | int, depth: int, total: jax.Array) -> jax.Array:
            own = lax.dynamic_slice_in_dim(values, start, depth).reshape(-1)
            positions = self.positions(matrix, shift, start, depth)
            base, weights, _ = _taps(self.order, self.padded_shape, positions)
            return _scatter_add(total, self.padded_shape, own, base, weights)

        # Zeros that vary over the mesh axes that the values vary over.
        nothing = jnp.where(False, values.reshape(-1)[0], jnp.zeros((), values.dtype))
        empty = jnp.broadcast_to(nothing, math.prod(self.padded_shape))

        def in_slabs() -> jax.Array:
            return lax.fori_loop(
                0,
                self.shape[0] // self.depth,
                lambda index, total: add(index * self.depth, self.depth, total),
                empty,
            )

        whole = self.by_platform(in_slabs, lambda: add(0, self.shape[0], empty))
        return whole.reshape(self.padded_shape)

    def derivative(
        self, padded: jax.Array, parameters: Sequence[jax.Array], tangents: Sequence[jax.Array]
    ) -> jax.Array:
        """How the interpolated values change with matrix and shift.

        Interpolates the volume's differences along each axis with the next lower spline. The
        barriers keep XLA from computing indices once for all axes: on CPU it would write them to
        memory, which takes several times longer than computing them again.
        """
        positions, positions_dot = jax.jvp(self.positions, parameters, tangents)
        total = jnp.zeros(math.prod(self.shape), padded.dtype)
        for axis, position_dot in enumerate(positions_dot):
            differences = jnp.diff(padded, axis=axis)
            own = lax.optimization_barrier((*positions, axis))[:3]  # another one for each axis
            base, weights, slopes = _taps(self.order, padded.shape, own, differences.shape)
            weights[axis] = slopes[axis]
            total = total + _gather_sum(differences, base, weights) * position_dot
        return total.reshape(self.shape)

    @functools.cached_property
    def depth(self) -> int:
        """Planes of a slab: as many as fit, in equal slabs."""
        depth, height, width = self.shape
        return largest_divisor(depth, SLAB // max(1, height * width))

    def by_platform(
        self, in_slabs: Callable[[], jax.Array], whole: Callable[[], jax.Array]
    ) -> jax.Array:
        if self.depth == self.shape[0]:
            return whole()
        return lax.platform_dependent(cpu=in_slabs, default=whole)

    def positions(
        self,
        matrix: jax.Array,
        shift_xyz: jax.Array,
        start: jax.Array | int = 0,
        depth: int | None = None,
    ) -> tuple[jax.Array, ...]:
        """Where the voxels of some planes come from: z, y and x indices into the padded volume.

        A matrix product along x, although elementwise would do: XLA on CPU writes a product to
        memory instead of repeating it in every user, so that all users take the floor of the same
        bits; and its transpose is one pass over the volume.
        """
        is_clipped_inside = self.boundary == "nearest" and self.order < 3
        margin = 0 if is_clipped_inside else MARGINS[self.order]
        reach = margin - 1 if self.order == 3 else margin  # beyond it every sample is the same
        sizes = (depth or self.shape[0], *self.shape[1:])
        offset = -jnp.matmul(matrix, shift_xyz, precision=lax.Precision.HIGHEST)
        z, y, x = (
            (jnp.arange(size) + first - full // 2).astype(offset.dtype)
            for size, first, full in zip(sizes, (start, 0, 0), self.shape, strict=True)
        )
        basis = jnp.stack([x, jnp.ones_like(x)])
        positions = []
        for axis, size in enumerate(self.shape):
            row, constant = matrix[2 - axis], offset[2 - axis] + size // 2
            origin = row[2] * z[:, None] + row[1] * y[None, :] + constant
            line = jnp.stack([jnp.broadcast_to(row[0], origin.shape), origin], axis=-1)
            position = jnp.matmul(line, basis, precision=lax.Precision.HIGHEST).reshape(-1)
            if self.boundary == "wrap":
                inside = jnp.mod(position, size)  # up to and, by rounding, including size
            else:
                inside = jnp.clip(position, -reach, size - 1 + reach)
            positions.append(inside + margin)
        return tuple(positions)


def _gather_sum(padded: jax.Array, base: jax.Array, weights: list[list[jax.Array]]) -> jax.Array:
    """Sums the neighbours of each position under separable weights."""
    _, height, width = padded.shape
    flat = padded.reshape(-1)
    total = jnp.zeros_like(base, flat.dtype)
    for k, weight_z in enumerate(weights[0]):
        plane = 0.0
        for j, weight_y in enumerate(weights[1]):
            start = base + (k * height + j) * width
            row = sum(
                weight * flat.at[start + i].get(mode="promise_in_bounds")
                for i, weight in enumerate(weights[2])
            )
            plane = plane + weight_y * row
        total = total + weight_z * plane
    return total


def _scatter_add(
    flat: jax.Array,
    shape: tuple[int, ...],
    values: jax.Array,
    base: jax.Array,
    weights: list[list[jax.Array]],
) -> jax.Array:
    """The transpose of ``_gather_sum``, a row of x neighbours at a time."""
    _, height, width = shape
    row = jnp.stack(weights[2], axis=-1).astype(flat.dtype)
    windows = lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    for k, weight_z in enumerate(weights[0]):
        for j, weight_y in enumerate(weights[1]):
            start = base + (k * height + j) * width
            scaled = (values * (weight_z * weight_y).astype(values.dtype))[:, None] * row
            flat = lax.scatter_add(flat, start[:, None], scaled, windows, mode="promise_in_bounds")
    return flat


def _taps(
    order: int,
    shape: tuple[int, ...],
    positions: Sequence[jax.Array],
    stored_shape: tuple[int, ...] | None = None,
) -> tuple[jax.Array, list[list[jax.Array]], list[list[jax.Array]]]:
    """Flat index of the first neighbour, and per axis the weights and their derivatives.

    The index is into an array of ``stored_shape``, the padded volume's ``shape`` if None.
    """
    num_taps = NUM_TAPS[order]
    lead = (num_taps - 1) // 2  # neighbours before the position's own cell
    base, weights, slopes = 0, [], []
    for position, size, stride in zip(positions, shape, stored_shape or shape, strict=True):
        cell = jnp.floor(position + 0.5 if order == 0 else position)
        # Clipped as an integer: a NaN position must not become an address.
        first = jnp.clip(cell.astype(jnp.int32) - lead, 0, size - num_taps)
        fraction = position - (first + lead).astype(position.dtype)
        base = base * stride + first
        weights.append(_spline(order, fraction))
        slopes.append(_spline(order - 1, fraction) if order else [])
    return base, weights, slopes


def _spline(degree: int, f: jax.Array) -> list[jax.Array]:
    """Weights of the ``degree + 1`` neighbours at fraction ``f`` in [0, 1].

    The derivative of a B-spline is the next lower one applied to differences of coefficients.
    """
    g = 1 - f
    if degree == 0:
        return [jnp.ones_like(f)]
    if degree == 1:
        return [g, f]
    if degree == 2:
        return [g * g / 2, 0.5 + f * g, f * f / 2]
    return [g**3 / 6, 2 / 3 - f * f * (2 - f) / 2, 2 / 3 - g * g * (2 - g) / 2, f**3 / 6]
