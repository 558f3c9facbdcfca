"""How long computations tell how far they are, and are asked to stop.

SIGTERM and SIGINT end a command by `Interrupted`, wherever it is, so that every ``with`` block is
left in order; where JAX is at work, as soon as it is done with what it was called for. Where
something has to be completed first, such as a step of training and its checkpoint, `stop_request`
holds the signal back, and the loop asks for it. A second signal is never held back.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

_HANDLED = (signal.SIGTERM, signal.SIGINT)
# Packages whose compiled parts do not survive an exception at any moment, and half an import.
FRAGILE = ("jax", "flax", "orbax", "importlib", "_frozen_importlib")


class Interrupted(BaseException):
    """The program was asked to stop; like KeyboardInterrupt, ``except Exception`` lets it pass."""

    def __init__(self, message: str = "stopped"):
        super().__init__(message)


class Progress(Protocol):
    """Shows how far a run is."""

    def update(self, stage: str, step: int, num_steps: int, metrics: dict[str, float]) -> None:
        """Called after every step with the numbers of the whole run."""


class _Listener:
    """What the signals since the outermost block have asked for."""

    def __init__(self) -> None:
        self.is_asked = False
        self.num_holding = 0  # blocks that hold a signal back
        self._traced_by = sys.gettrace()  # a debugger, or what measures coverage

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self.is_asked:  # a second signal means now
            raise KeyboardInterrupt
        self.is_asked = True
        if self.num_holding:
            return
        stack = []
        while frame is not None:
            stack.append(frame)
            frame = frame.f_back
        is_foreign = [each.f_globals.get("__name__", "").startswith(FRAGILE) for each in stack]
        if not any(is_foreign):
            raise Interrupted
        # At the next line of what has called them, as a debugger would halt there.
        outermost = len(stack) - 1 - is_foreign[::-1].index(True)
        for each in stack[outermost + 1 :]:
            each.f_trace = self._deliver
        sys.settrace(_ignore)

    def _deliver(self, frame: FrameType, event: str, argument: Any) -> None:
        self.end()
        if not self.num_holding:
            raise Interrupted

    def end(self) -> None:
        """Waits for no line any more."""
        if sys.gettrace() is _ignore:
            sys.settrace(self._traced_by)


def _ignore(frame: FrameType, event: str, argument: Any) -> None:
    """Follows no function that is called anew."""


# Signal handlers belong to the process, and so does what they have heard.
_listeners: list[_Listener] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGTERM and SIGINT into `Interrupted`; a second one into KeyboardInterrupt."""
    with _listening():
        yield


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a question that a loop asks after each step.

    What is asked for but not seen by the loop, the next `check_stop` sees.
    """
    with _listening() as listener:
        listener.num_holding += 1
        try:
            yield lambda: listener.is_asked
        finally:
            listener.num_holding -= 1


@contextmanager
def let_stop() -> Iterator[None]:
    """Lets signals through again inside `stop_request`, where nothing has to be completed.

    Raises:
        Interrupted: also if one is held back already.
    """
    if not _listeners:
        yield
        return
    listener = _listeners[-1]
    held, listener.num_holding = listener.num_holding, 0
    try:
        check_stop()
        yield
    finally:
        listener.num_holding = held


def is_stop_requested() -> bool:
    """Whether a signal has come that nothing has followed yet."""
    return bool(_listeners) and _listeners[-1].is_asked


def check_stop() -> None:
    """Raises if a signal has been held back, or was lost in code that lets nothing through.

    Raises:
        Interrupted: see above.
    """
    if is_stop_requested():
        raise Interrupted


@contextmanager
def _listening() -> Iterator[_Listener]:
    """Handles signals for the duration of the outermost of such blocks."""
    if _listeners:
        yield _listeners[-1]
        return
    listener = _Listener()
    try:
        before = {number: signal.signal(number, listener.hear) for number in _HANDLED}
    except ValueError:  # not the main thread: signals are somebody else's
        yield listener
        return
    _listeners.append(listener)
    try:
        yield listener
    finally:
        _listeners.remove(listener)
        listener.end()
        for number, handler in before.items():
            signal.signal(number, handler)
