"""Volumes that stay in their files until rows of them are asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PIECE_BYTES = 2**27  # read at a time where all are wanted one after the other


@dataclass(frozen=True, eq=False)
class LazyVolumes:
    """Like an array ``(n, z, y, x)`` float32, of which rows are read when they are asked for.

    Whatever needs all of them at once is given pieces one after the other (``pieces``), or reads
    them into memory (``np.asarray``).

    Attributes:
        read: ``(m,) rows -> (m, z, y, x)`` float32, a new array; called by several threads.
        shape: ``(n, z, y, x)``.
    """

    read: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]

    __array_ufunc__ = None  # a scalar times this is this one's business

    @property
    def dtype(self) -> np.dtype:
        """Of what is read."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """What all of them take in memory."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.arange(len(self))[rows]
        return self.read(chosen) if np.ndim(chosen) else self.read(chosen[None])[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self.pieces():
            yield from piece

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, dtype or self.dtype)
        first = 0
        for piece in self.pieces():
            whole[first : first + len(piece)] = piece
            first += len(piece)
        return whole

    def __rmul__(self, factor: float) -> "LazyVolumes":
        return self.map(lambda volumes: factor * volumes)

    def pieces(self) -> Iterator[np.ndarray]:
        """All of them in order, as arrays of some at a time."""
        step = max(1, PIECE_BYTES * len(self) // max(1, self.nbytes))
        for first in range(0, len(self), step):
            yield self.read(np.arange(first, min(first + step, len(self))))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "LazyVolumes":
        """What a function makes of them, each by itself.

        Args:
            function: of ``(m, z, y, x)``, gives the same shape in float32.
        """
        return LazyVolumes(lambda rows: function(self.read(rows)), self.shape)

    def select(self, rows: np.ndarray) -> "LazyVolumes":
        """Those of some rows ``(m,)``, still not read."""
        shape = (len(rows), *self.shape[1:])
        return LazyVolumes(lambda chosen: self.read(rows[chosen]), shape)


Volumes = np.ndarray | LazyVolumes


def select_rows(array: Volumes, rows: np.ndarray) -> Volumes:
    """Rows ``(m,)`` of an array; of a lazy one, still not read."""
    return array.select(rows) if isinstance(array, LazyVolumes) else array[rows]


def pieces_of(array: Volumes) -> Iterator[np.ndarray]:
    """An array in pieces along its first axis, one after the other; one in memory is one piece."""
    return array.pieces() if isinstance(array, LazyVolumes) else iter([array])
