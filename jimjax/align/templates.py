"""The references in every orientation of a grid, as rows of a matrix.

Reading a slice by interpolation takes an order of magnitude more memory than the slice itself.
Templates are therefore read and inserted some rotations at a time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jimjax.align import slices
from jimjax.align.bands import Band, join, split
from jimjax.align.slices import Sums

CHUNK = 32  # rotations that are read or inserted at a time


class Templates(NamedTuple):
    """References in all orientations, class by class.

    Attributes:
        rows: ``(c * r, 2 * k)``, real parts, then imaginary parts.
        half_power: ``(g, c * r)``, half of what each mask lets through, over the noise.
    """

    rows: jax.Array
    half_power: jax.Array


class Totals(NamedTuple):
    """What templates and the particles added to them sum up to.

    Attributes:
        sums: ``(c, g, g, g)``, particles and their masks, over the noise.
        crossed: ``(k,)``, sum of ``Re conj(T) D``.
        explained: ``(k,)``, sum of ``|T|^2`` where measured.
    """

    sums: Sums
    crossed: jax.Array
    explained: jax.Array


def read(
    grids: jax.Array,
    masks: jax.Array,
    precision: jax.Array,
    rotations: jax.Array,
    band: Band,
    dtype: DTypeLike,
) -> Templates:
    """Reads the templates.

    Args:
        grids: ``(c, g, g, g)`` complex; see ``slices``.
        masks: ``(g, k)``, 1 where measured.
        precision: ``(k,)``, one over the noise's variance.
        rotations: ``(r, 3, 3)``, reference into particle.
        band: the coefficients.
        dtype: of the rows.
    """

    def one_rotation(rotation: jax.Array) -> tuple[jax.Array, jax.Array]:
        cuts = slices.cut(grids, rotation[None], band)[:, 0]
        return split(cuts).astype(dtype), (masks * precision) @ (jnp.abs(cuts) ** 2).T / 2

    rows, half_power = lax.map(one_rotation, rotations, batch_size=CHUNK)  # (r, c, 2 k), (r, g, c)
    rows = jnp.moveaxis(rows, 1, 0).reshape(-1, rows.shape[-1])
    return Templates(rows, jnp.transpose(half_power, (1, 2, 0)).reshape(len(masks), -1))


def insert(
    grids: jax.Array,
    masks: jax.Array,
    precision: jax.Array,
    rotations: jax.Array,
    moved: jax.Array,
    per_group: jax.Array,
    band: Band,
) -> Totals:
    """Inserts what was added up for each template, and compares it with the template.

    Args:
        grids: as given to ``read``; so are masks, precision, rotations and band.
        masks: ``(g, k)``.
        precision: ``(k,)``.
        rotations: ``(r, 3, 3)``.
        moved: ``(c * r, 2 * k)``, particles moved back, each weighted with its share.
        per_group: ``(c * r, g)``, sum of the shares of particles that have each mask.
        band: the coefficients.
    """
    moved = moved.reshape(len(grids), len(rotations), -1)
    per_group = per_group.reshape(len(grids), len(rotations), -1)

    def add_chunk(first: jax.Array | int, totals: Totals, *, size: int) -> Totals:
        def chunk(field: jax.Array, axis: int) -> jax.Array:
            return lax.dynamic_slice_in_dim(field, first, size, axis)

        turns, own = chunk(rotations, 0), join(chunk(moved, 1))
        occupied = chunk(per_group, 1) @ masks
        cuts = slices.cut(grids, turns, band)
        more = Totals(
            slices.insert(own * precision, occupied * precision, turns, band),
            jnp.sum((jnp.conj(cuts) * own).real, axis=(0, 1)),
            jnp.sum(jnp.abs(cuts) ** 2 * occupied, axis=(0, 1)),
        )
        return jax.tree.map(jnp.add, totals, more)

    size = min(CHUNK, len(rotations))
    num_chunks, rest = divmod(len(rotations), size)
    zeros = jnp.zeros(len(precision))
    nothing = Sums(jnp.zeros_like(grids), jnp.zeros(grids.shape, zeros.dtype))
    totals = lax.fori_loop(
        0,
        num_chunks,
        lambda number, totals: add_chunk(number * size, totals, size=size),
        Totals(nothing, zeros, zeros),
    )
    return add_chunk(num_chunks * size, totals, size=rest) if rest else totals
