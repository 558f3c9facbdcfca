"""A trace of some steps of training, for XProf, TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any, Self

import jax


class Profile:
    """Traces ``count`` steps from step ``start`` on, the first of a run being 1.

    Args:
        folder: to write.
        start: first step.
        count: how many.
    """

    def __init__(self, folder: str | Path, start: int, count: int):
        self._folder, self._start, self._last = folder, start, start + count - 1
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def before(self, step: int) -> None:
        """Called before a step begins."""
        if step == self._start:
            jax.profiler.start_trace(self._folder)
            self._is_open = True

    def after(self, step: int, outcome: Any) -> None:
        """Called when a step has begun; the last one is waited for."""
        if self._is_open and step == self._last:
            jax.block_until_ready(outcome)
            self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            jax.profiler.stop_trace()
