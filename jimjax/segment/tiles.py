"""A function of boxes, applied to a tomogram of any size in memory for one layer of boxes.

Boxes overlap, and where they do, what the function made of each is averaged. A network knows
least where a box ends, because it does not see what lies beyond: values there have no weight,
and those further in have a weight that grows smoothly, so that no seam is left. The same boxes
can be drawn to train on.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jimjax.data.batches import num_batches
from jimjax.progress import Progress

MARGIN = 4  # of the overlap of two boxes, one part in so many counts for nothing at either end


class _Axis(NamedTuple):
    """Where tiles lie along one axis, and what their voxels count.

    Attributes:
        before: voxels of its mirror image before the volume.
        after: likewise, after it.
        starts: first voxel of each tile, from that of the mirror image.
        weights: ``(num_tiles, box)`` float32; those of one voxel in all its tiles add up to 1.
    """

    before: int
    after: int
    starts: tuple[int, ...]
    weights: np.ndarray


class _Column(NamedTuple):
    """The tiles of one place in y and x.

    Attributes:
        place: of the tile in a layer.
        y_weights: ``(box,)``, what its voxels count along y.
        x_weights: likewise along x.
    """

    place: tuple[slice, slice, slice]
    y_weights: np.ndarray
    x_weights: np.ndarray


def blend(
    function: Callable[[np.ndarray], ArrayLike],
    read: Callable[[int, int], np.ndarray],
    shape: tuple[int, int, int],
    *,
    box: int,
    stride: int,
    batch_size: int,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """Covers a volume with overlapping cubes and averages what a function makes of them.

        out(p) = sum_t w_t(p) f(t)(p),   sum_t w_t(p) = 1 at every voxel p

    Cubes t begin every ``stride`` voxels along each axis; the last ones are pulled back to end
    with the volume. Along an axis shorter than ``box`` the volume goes on as its mirror image at
    both ends, the border voxel seen twice. Weights are products of one for each axis, which is

    - 0 within ``m = (box - stride) // 4`` voxels of a face where another cube goes on,
    - rising from there as sin^2, over the rest of the overlap but its last ``m`` voxels,
    - not reduced at faces on the border of the volume, where there is no other cube,

    and divided by their sum over all cubes. So a function that gives back what it is given gives
    the volume, and one that commutes with translations and looks no more than ``m`` voxels away
    gives what it makes of the whole volume, its treatment of the border included.

    Sections are read in order and each once, at most ``box`` in one call; a slab is given as soon
    as no further cube reaches it. Beside what ``function`` itself takes, that needs, with ``y``
    and ``x`` not less than ``box`` and however many sections there are,

        4 y x (2 box + 3 stride) + 16 batch_size box^3 bytes:

    sections and sums of one layer of cubes, the sections that come, the slabs that go, and the
    cubes of a batch with their results.

    Args:
        function: of ``(batch_size, box, box, box)`` float32, gives the same shape, real; each
            cube by itself. It is always asked about that many, so that it compiles once; what
            fills up the last batch of a layer is its last cube again.
        read: of ``(first, last)``, gives the sections ``first`` to ``last - 1`` along z,
            ``(last - first, y, x)``, as `jimjax.io.mrc.VolumeReader.read` does.
        shape: ``(z, y, x)`` of the volume.
        box: side of the cubes, voxels.
        stride: from one cube to the next, voxels, up to ``box``.
        batch_size: cubes at a time; has no influence on the result.
        progress: told of every batch, and of the sections that are done.

    Returns:
        An iterator over slabs ``(sections, y, x)`` float32, in order along z; each is a new array.

    Raises:
        ValueError: if an option is out of range; while iterating, if ``read`` or ``function``
            give another shape.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    axes = _plan_axes(shape, box, stride)
    return _slabs(function, _padded(read, shape, axes), axes, batch_size, progress)


def draw_cubes(
    read: Callable[[int, int], np.ndarray],
    shape: tuple[int, int, int],
    *,
    box: int,
    stride: int,
    max_cubes: int,
    seed: int,
) -> np.ndarray:
    """Draws some of the cubes that `blend` asks its function about, each at most once.

    All of them if there are no more than ``max_cubes``. Sections are read in order, those of one
    layer of cubes at a time and only where a cube was drawn, which with ``y`` and ``x`` not less
    than ``box`` needs no more than

        4 y x box + 4 max_cubes box^3 bytes.

    Args:
        read: as in `blend`.
        shape: ``(z, y, x)`` of the volume.
        box: side of the cubes, voxels.
        stride: from one cube to the next, voxels, up to ``box``.
        max_cubes: to draw, 1 or more.
        seed: of the draw, 0 or more.

    Returns:
        ``(n, box, box, box)`` float32, from the first layer to the last.

    Raises:
        ValueError: if an option is out of range, or ``read`` gives another shape.
    """
    if max_cubes < 1:
        raise ValueError(f"max_cubes must be 1 or more, got {max_cubes}")
    axes = _plan_axes(shape, box, stride)
    z, y, x = (axis.starts for axis in axes)
    num = len(z) * len(y) * len(x)
    drawn = np.random.default_rng(seed).choice(num, min(num, max_cubes), replace=False)
    layers, *columns = np.unravel_index(np.sort(drawn), (len(z), len(y), len(x)))
    read_padded = _padded(read, shape, axes)
    cubes = np.empty((len(drawn), box, box, box), np.float32)
    for layer in np.unique(layers):
        sections = read_padded(z[layer], z[layer] + box)
        for row in np.flatnonzero(layers == layer):
            first_y, first_x = y[columns[0][row]], x[columns[1][row]]
            cubes[row] = sections[:, first_y : first_y + box, first_x : first_x + box]
    return cubes


def _plan_axes(shape: tuple[int, int, int], box: int, stride: int) -> tuple[_Axis, ...]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (z, y, x) of 1 voxel or more, got {shape}")
    if not 1 <= stride <= box:
        raise ValueError(f"stride must be from 1 to the box of {box} voxels, got {stride}")
    return tuple(_plan(int(length), box, stride) for length in shape)


def _plan(length: int, box: int, stride: int) -> _Axis:
    padded = max(length, box)
    before = (padded - length) // 2
    last = padded - box
    starts = tuple(min(start, last) for start in range(0, last + stride, stride))
    windows = np.ones((len(starts), box))
    rise = _rise(box, stride)
    windows[1:] *= rise
    windows[:-1] *= rise[::-1]
    totals = np.zeros(padded)
    for start, window in zip(starts, windows, strict=True):
        totals[start : start + box] += window
    weights = [
        window / totals[start : start + box] for start, window in zip(starts, windows, strict=True)
    ]
    return _Axis(before, padded - length - before, starts, np.asarray(weights, np.float32))


def _rise(box: int, stride: int) -> np.ndarray:
    """Weights ``(box,)`` from 0 at the first voxels to 1 where the overlap less a margin ends."""
    overlap = box - stride
    margin = overlap // MARGIN
    width = max(overlap - 2 * margin, 1)
    fraction = (np.arange(box) + 0.5 - margin) / width
    return np.sin(np.pi / 2 * np.clip(fraction, 0, 1)) ** 2


def _padded(
    read: Callable[[int, int], np.ndarray], shape: tuple[int, int, int], axes: tuple[_Axis, ...]
) -> Callable[[int, int], np.ndarray]:
    """Reads sections of the volume and its mirror image, by their numbers in both together."""
    widths = [(axis.before, axis.after) for axis in axes]
    num_mirrored = sum(widths[0])  # if there are any, all sections are read at once

    def read_padded(first: int, last: int) -> np.ndarray:
        last -= num_mirrored
        sections = np.asarray(read(first, last), np.float32)
        if sections.shape != (last - first, *shape[1:]):
            raise ValueError(
                f"sections {first} to {last - 1} must have shape {(last - first, *shape[1:])},"
                f" read gave {sections.shape}"
            )
        return np.pad(sections, widths, mode="symmetric")  # always a copy

    return read_padded


def _slabs(
    function: Callable[[np.ndarray], ArrayLike],
    read: Callable[[int, int], np.ndarray],
    axes: tuple[_Axis, ...],
    batch_size: int,
    progress: Progress | None,
) -> Iterator[np.ndarray]:
    z, box = axes[0], axes[0].weights.shape[1]
    columns = _columns(*axes[1:])
    steps, num_steps = itertools.count(1), len(z.starts) * num_batches(len(columns), batch_size)
    inner = tuple(slice(axis.before, -axis.after or None) for axis in axes)
    layer = read(0, box)
    sums = np.zeros_like(layer)
    for number, start in enumerate(z.starts):
        if number:
            num_done = start - z.starts[number - 1]
            yield sums[:num_done][inner].copy()
            _advance(sums, num_done)
            _advance(layer, num_done)
            sums[-num_done:] = 0
            layer[-num_done:] = read(start + box - num_done, start + box)
        for first in range(0, len(columns), batch_size):
            batch = columns[first : first + batch_size]
            _add(sums, layer, function, batch, z.weights[number], batch_size)
            if progress is not None:
                progress.update("segmenting", next(steps), num_steps, {"sections": float(start)})
    yield sums[inner]


def _columns(y: _Axis, x: _Axis) -> list[_Column]:
    pairs = itertools.product(*(zip(axis.starts, axis.weights, strict=True) for axis in (y, x)))
    return [
        _Column((slice(None), slice(a, a + len(u)), slice(b, b + len(v))), u, v)
        for (a, u), (b, v) in pairs
    ]


def _advance(sections: np.ndarray, num: int) -> None:
    """Moves sections to the front over the first ``num``, one by one to take no memory."""
    for place in range(len(sections) - num):
        sections[place] = sections[place + num]


def _add(
    sums: np.ndarray,
    layer: np.ndarray,
    function: Callable[[np.ndarray], ArrayLike],
    columns: list[_Column],
    weights: np.ndarray,
    batch_size: int,
) -> None:
    """Adds what the function makes of a batch of cubes; the last fills it up and is added once."""
    filled = columns + columns[-1:] * (batch_size - len(columns))
    cubes = np.stack([layer[column.place] for column in filled])
    results = np.asarray(function(cubes), np.float32)
    if results.shape != cubes.shape:
        raise ValueError(f"function must keep the shape {cubes.shape}, it gave {results.shape}")
    for column, result in zip(columns, results, strict=False):
        weight = weights[:, None, None] * column.y_weights[:, None] * column.x_weights
        sums[column.place] += weight * result
