"""How fast training is, and what it waits for."""

import contextlib
import time
from collections.abc import Callable, Iterator

from jimjax.train.costs import peak_flops


class Meter:
    """Times the epochs of one run.

    Args:
        clock: seconds from some moment on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._began = clock, clock()
        self._stepped = 0.0  # seconds of all epochs
        self._flops = 0.0  # of a step, on each device
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Counts from here on."""
        self._epoch_began = self._clock()
        self._num_steps = self._num_particles = 0
        self._waited = self._epoch_compiled = 0.0

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Around a compilation, whose time is no step's."""
        began = self._clock()
        yield
        self._epoch_compiled += self._clock() - began

    def know(self, flops: float) -> None:
        """Learns how many operations a step is, on each device."""
        self._flops = flops

    def fed(self, seconds: float, *, was_idle: bool) -> None:
        """A batch was made.

        Args:
            seconds: that it took.
            was_idle: the devices had nothing to do when it was there; then they may have waited
                all that time for it, otherwise not at all.
        """
        self._waited += seconds if was_idle else 0.0

    def stepped(self, num_particles: int) -> None:
        """A step was begun."""
        self._num_steps += 1
        self._num_particles += num_particles

    def end_epoch(self) -> dict[str, float]:
        """What there is to log once the last step has ended.

        Returns:
            step_seconds: mean of the epoch's steps, and what they are fed with.
            particles_per_second: rows of batches, on all devices.
            input_wait_share: of that time at most, in which devices wait for input.
            compile_seconds: of this epoch, not among the steps'.
            goodput: share of the time since the run began in which there were steps.
            flop_utilisation: operations of convolutions and products, over what the devices could
                do in bfloat16; where that is known.
        """
        if not self._num_steps:
            return {}
        seconds = self._clock() - self._epoch_began - self._epoch_compiled
        self._stepped += seconds
        told = {
            "step_seconds": seconds / self._num_steps,
            "particles_per_second": self._num_particles / seconds,
            "input_wait_share": self._waited / seconds,
            "compile_seconds": self._epoch_compiled,
            "goodput": self._stepped / (self._clock() - self._began),
        }
        peak = peak_flops()
        if peak is not None and self._flops:
            told["flop_utilisation"] = self._flops * self._num_steps / seconds / peak
        return told
