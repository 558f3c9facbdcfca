"""How far a run is: a bar on a terminal, a line now and then elsewhere. All on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0


class ProgressLines:
    """Prints a line after the first step, about every ten seconds, and after the last."""

    def __init__(self) -> None:
        self._first_step = 0
        self._first_time: float | None = None
        self._printed = 0.0

    def update(self, stage: str, step: int, num_steps: int, metrics: dict[str, float]) -> None:
        """Takes note of a step; see ``jimjax.progress.Progress``."""
        now = time.monotonic()
        left = "unknown"
        if self._first_time is None:  # the first step is mostly compilation: it tells no speed
            self._first_step, self._first_time = step, now
        elif now - self._printed < SECONDS_BETWEEN_LINES and step < num_steps:
            return
        else:
            seconds_a_step = (now - self._first_time) / (step - self._first_step)
            left = _clock(seconds_a_step * (num_steps - step))
        self._printed = now
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{stage}: step {step}/{num_steps}, {shown}, ETA {left}", file=sys.stderr, flush=True)


class ProgressBar:
    """Moves a bar with the time left."""

    def __init__(self, bar: Progress):
        self._bar = bar
        self._task = bar.add_task("compiling", total=None, shown="")

    def update(self, stage: str, step: int, num_steps: int, metrics: dict[str, float]) -> None:
        """Takes note of a step; see ``jimjax.progress.Progress``."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._bar.update(
            self._task, description=stage, completed=step, total=num_steps, shown=shown
        )


class Silence:
    """Shows nothing: another process does."""

    def update(self, stage: str, step: int, num_steps: int, metrics: dict[str, float]) -> None:
        """Does nothing."""


@contextmanager
def open_progress() -> Iterator[ProgressBar | ProgressLines | Silence]:
    """Gives what shows progress on this stderr."""
    from jimjax import distributed

    if not distributed.is_first():
        yield Silence()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield ProgressBar(bar)


def say(text: str) -> None:
    """Prints what is being done, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
