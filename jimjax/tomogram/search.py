"""Template matching: every rotation of a few templates at every place of a tomogram.

The score is the correlation coefficient of a turned template with what the tomogram has inside a
soft sphere there, both filtered alike: band-limited, without what the tilt series has not measured,
and whitened by the tomogram's own power spectrum, which makes the correlation a matched filter.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from scipy.fft import next_fast_len

from jimjax.mesh import AXIS, data_mesh, split_batch
from jimjax.ops import resample
from jimjax.progress import Progress
from jimjax.tomogram import matched_filter
from jimjax.tomogram.tiles import Triple, plan_tiles, read_tiles

FLAT = 0.1  # of the tomogram's standard deviation: where there is less, the score is damped
ROTATIONS_AT_ONCE = 2
ROTATIONS_PER_STEP = 64  # between two reports of progress
BYTES_PER_VOXEL = 100  # of a tile, on its device


class ScoreMaps(NamedTuple):
    """The best template and rotation at each voxel of a tomogram.

    Attributes:
        scores: ``(z, y, x)`` float32 in [-1, 1].
        rotations: ``(z, y, x)`` int32, number in the list of rotations.
        references: ``(z, y, x)`` int32, number of the template.
    """

    scores: np.ndarray
    rotations: np.ndarray
    references: np.ndarray


class _Best(NamedTuple):
    """The best in the core of a tile so far.

    Attributes:
        score: its score.
        number: of the template and rotation that gave it, counted together.
    """

    score: jax.Array
    number: jax.Array


class _Tile(NamedTuple):
    """A tile made ready.

    Attributes:
        spectrum: transform of the filtered tile.
        inverse_deviation: one over the standard deviation under the mask around each voxel of
            the core.
    """

    spectrum: jax.Array
    inverse_deviation: jax.Array


class _Filter(NamedTuple):
    """What tiles and templates are filtered and masked with; cubes of one side.

    Attributes:
        kernel: in real space, about the centre voxel.
        response: half spectrum of the kernel about voxel 0.
        mask: soft sphere about the centre voxel, of sum 1.
    """

    kernel: jax.Array
    response: jax.Array
    mask: jax.Array


class _Chunk(NamedTuple):
    """Rotations of one template.

    Attributes:
        template: cube, masked, on a ground of 0.
        rotations: ``(num, few, 3, 3)``, a few tried at once.
        numbers: ``(num, few)``, of template and rotation together.
    """

    template: jax.Array
    rotations: jax.Array
    numbers: jax.Array


def match_templates(
    tomogram: np.ndarray,
    templates: Sequence[np.ndarray],
    rotations: np.ndarray,
    *,
    diameter: float,
    tilt_range: tuple[float, float],
    cutoff: float = 0.5,
    max_bytes: float = 2**31,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> ScoreMaps:
    """Scores every voxel of a tomogram as the centre of a particle.

        score(p) = max over R, k of  sum_x m(x) u(x) v(p + x) / sqrt(sum m u^2 * sum m v^2),
        u = h * (template_k turned by R),  v = h * tomogram,  both zero-mean under m

    Neither the tomogram's scale nor its mean matters. At the border it goes on as its mirror image.
    Tiles are spread over the devices.

    Args:
        tomogram: ``(z, y, x)``, at least as large as the mask; beam z, tilt axis y.
        templates: cubes of any sides, centred on voxel ``n // 2``, with the tomogram's voxel size
            and contrast.
        rotations: ``(num, 3, 3)``, carry the template into the tomogram.
        diameter: of the spherical mask, voxels; its edge falls to 0 over a further tenth.
        tilt_range: lowest and highest tilt, degrees.
        cutoff: of the band, cycles per voxel.
        max_bytes: of memory on each device; decides the size of the tiles. The host holds
            the tomogram and 20 bytes per voxel besides.
        mesh: devices; all if None.
        progress: told after every few rotations.

    Returns:
        Maps of the tomogram's shape.

    Raises:
        ValueError: if shapes do not fit, an option is out of range, or ``max_bytes`` too small.
    """
    side = matched_filter.mask_side(diameter)
    _check(tomogram, templates, rotations, side, cutoff)
    mesh = data_mesh() if mesh is None else mesh
    tiling = plan_tiles(tomogram.shape, side, max_bytes=max_bytes, voxel_bytes=BYTES_PER_VOXEL)
    scaled = _standardized(tomogram)
    mask = matched_filter.soft_mask(side, diameter)
    kernel = matched_filter.whitening_kernel(scaled, side, cutoff=cutoff, tilt_range=tilt_range)
    response = np.fft.rfftn(np.fft.ifftshift(kernel)).astype(np.complex64)
    filters = _Filter(kernel, response, mask / mask.sum())
    fitted = [matched_filter.fit_template(template, diameter) for template in templates]
    chunks = list(_chunks(fitted, rotations))
    maps = _Best(np.empty(tomogram.shape, np.float32), np.empty(tomogram.shape, np.int32))
    # A mask needs half its side around the core, and the filter as much around that.
    tiles = read_tiles(scaled, tiling, before=2 * (side // 2), after=side - 1)
    groups = [tiling.starts[n : n + mesh.size] for n in range(0, len(tiling.starts), mesh.size)]
    sides = {"core": tiling.core, "shape": tiling.shape, "mesh": mesh}
    for done, starts in enumerate(groups):
        tile = _prepare(_spread([next(tiles) for _ in starts], mesh), filters, **sides)
        best = _nothing(tiling.core, mesh)
        for number, chunk in enumerate(chunks):
            best = _improve(best, tile, filters, chunk, **sides)
            if progress is not None:
                score = {"best": float(best.score.max())}  # waits for the device as well
                steps = done * len(chunks) + number + 1, len(groups) * len(chunks)
                progress.update("matching", *steps, score)
        for start, *found in zip(starts, *map(np.asarray, best), strict=False):
            place = tuple(slice(a, a + n) for a, n in zip(start, tiling.core, strict=True))
            maps.score[place], maps.number[place] = found
    return ScoreMaps(maps.score, maps.number % len(rotations), maps.number // len(rotations))


def _chunks(templates: list[np.ndarray], rotations: np.ndarray) -> Iterator[_Chunk]:
    """Cuts the search into calls of one shape.

    The last rotation fills up the last chunk under its own number.
    """
    rotations = np.asarray(rotations, np.float32)
    at_once = min(ROTATIONS_AT_ONCE, len(rotations))
    size = at_once * min(ROTATIONS_PER_STEP // at_once, -(-len(rotations) // at_once))
    for label, template in enumerate(templates):
        for first in range(0, len(rotations), size):
            rows = np.minimum(np.arange(first, first + size), len(rotations) - 1)
            rows = rows.reshape(-1, at_once)
            numbers = (rows + label * len(rotations)).astype(np.int32)
            yield _Chunk(template, rotations[rows], numbers)


def _spread(tiles: list[np.ndarray], mesh: Mesh) -> jax.Array:
    """One tile to each device; the first ones again, if there are fewer."""
    return split_batch(np.stack([tiles[n % len(tiles)] for n in range(mesh.size)]), mesh)


def _nothing(core: Triple, mesh: Mesh) -> _Best:
    shape = mesh.size, *core
    best = _Best(np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32))
    return split_batch(best, mesh)


@partial(jax.jit, static_argnames=("core", "shape", "mesh"))
def _prepare(
    tiles: jax.Array, filters: _Filter, *, core: Triple, shape: Triple, mesh: Mesh
) -> _Tile:
    """Filters tiles and measures how much varies under the mask."""
    longer = tuple(next_fast_len(side, real=True) for side in tiles.shape[1:])

    def prepare(tile: jax.Array, filters: _Filter) -> _Tile:
        wide = jnp.fft.rfftn(tile, s=longer)
        filtered = _cropped(_correlate(wide, filters.kernel, longer), shape)
        spectrum = jnp.fft.rfftn(filtered)
        mean = _cropped(_correlate(spectrum, filters.mask, shape), core)
        squares = jnp.fft.rfftn(filtered**2)
        variance = _cropped(_correlate(squares, filters.mask, shape), core) - mean**2
        return _Tile(spectrum, lax.rsqrt(jnp.maximum(variance, FLAT**2)))

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.vmap(prepare, in_axes=(0, None))
    return jax.shard_map(mapped, mesh=mesh, in_specs=(split, whole), out_specs=split)(
        tiles, filters
    )


@partial(jax.jit, static_argnames=("core", "shape", "mesh"), donate_argnums=0)
def _improve(
    best: _Best,
    tile: _Tile,
    filters: _Filter,
    chunk: _Chunk,
    *,
    core: Triple,
    shape: Triple,
    mesh: Mesh,
) -> _Best:
    """Tries the rotations of a chunk on one tile per device."""

    def improve(best: _Best, tile: _Tile, filters: _Filter, chunk: _Chunk) -> _Best:
        def try_few(best: _Best, few: tuple[jax.Array, jax.Array]) -> tuple[_Best, None]:
            rotations, numbers = few
            turned = jax.vmap(lambda R: _turned(chunk.template, R, filters))(rotations)
            found = jax.vmap(lambda one: _correlate(tile.spectrum, one, shape))(turned)
            scores = found[(slice(None), *(slice(side) for side in core))] * tile.inverse_deviation
            for score, number in zip(scores, numbers, strict=True):
                better = score > best.score
                best = _Best(
                    jnp.where(better, score, best.score), jnp.where(better, number, best.number)
                )
            return best, None

        return lax.scan(try_few, best, (chunk.rotations, chunk.numbers))[0]

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.vmap(improve, in_axes=(0, 0, None, None))
    specs = split, split, whole, whole
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=split)(
        best, tile, filters, chunk
    )


def _turned(template: jax.Array, rotation: jax.Array, filters: _Filter) -> jax.Array:
    """Turns and filters a template; zero mean and unit variance under the mask, times the mask."""
    turned = resample.rotate(template, rotation, order=3)
    filtered = jnp.fft.irfftn(jnp.fft.rfftn(turned) * filters.response, s=turned.shape)
    centred = filtered - jnp.sum(filters.mask * filtered)
    variance = jnp.sum(filters.mask * centred**2)
    return filters.mask * centred * lax.rsqrt(jnp.where(variance > 0, variance, 1.0))


def _correlate(spectrum: jax.Array, small: jax.Array, shape: Triple) -> jax.Array:
    """``out(p) = sum_i small[i] volume(p + i)``, i from the first voxel of the small one."""
    return jnp.fft.irfftn(spectrum * jnp.conj(jnp.fft.rfftn(small, s=shape)), s=shape)


def _cropped(volume: jax.Array, shape: Triple) -> jax.Array:
    return volume[tuple(slice(side) for side in shape)]


def _standardized(tomogram: np.ndarray) -> np.ndarray:
    """Zero mean and unit standard deviation; sections one by one, in double precision."""
    means = np.array([section.mean(dtype=np.float64) for section in tomogram])
    mean = means.mean()
    squares = [section.var(dtype=np.float64) for section in tomogram]
    deviation = np.sqrt(np.mean(squares + (means - mean) ** 2))
    if not deviation > 0:
        raise ValueError("the tomogram is constant or not finite; there is nothing to find in it")
    return ((tomogram - np.float32(mean)) / np.float32(deviation)).astype(np.float32)


def _check(
    tomogram: np.ndarray,
    templates: Sequence[np.ndarray],
    rotations: np.ndarray,
    side: int,
    cutoff: float,
) -> None:
    if np.ndim(tomogram) != 3 or min(tomogram.shape) < side:
        raise ValueError(
            f"the tomogram must be (z, y, x) with {side} voxels or more along each axis, to hold a "
            f"particle and its mask, got shape {np.shape(tomogram)}"
        )
    for template in templates:
        if np.ndim(template) != 3 or len(set(np.shape(template))) != 1:
            raise ValueError(f"a template must be a cube, got shape {np.shape(template)}")
    if len(templates) == 0:
        raise ValueError("there must be one template or more")
    if np.ndim(rotations) != 3 or np.shape(rotations)[1:] != (3, 3):
        raise ValueError(f"rotations must be (num, 3, 3), got shape {np.shape(rotations)}")
    if not 0 < cutoff <= 0.5:
        raise ValueError(f"cutoff must be in (0, 0.5] cycles per voxel, got {cutoff}")
