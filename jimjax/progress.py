"""How long computations tell how far they are, and are asked to stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Interrupted(Exception):  # noqa: N818 not an error
    """The run was asked to stop, and has saved itself."""


class Progress(Protocol):
    """Shows how far a run is."""

    def update(self, stage: str, step: int, num_steps: int, metrics: dict[str, float]) -> None:
        """Called after every step with the numbers of the whole run."""


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a question that a loop asks after each step."""
    asked: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if asked:  # a second signal means now
            raise KeyboardInterrupt
        asked.append(number)

    handled = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, remember) for number in handled}
    except ValueError:  # not the main thread: signals are somebody else's
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
