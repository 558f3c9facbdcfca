"""The log of a training for TensorBoard as well."""

from numbers import Real
from pathlib import Path
from typing import Any

from jimjax.io.errors import InputError
from jimjax.train.loop import Log

FLUSH_SECONDS = 10  # after which events are in their file


class TensorBoardLog(Log):
    """A log whose numbers are also written as events, one curve for each stage and name.

    Args:
        path: of the log.
        folder: of the events.
        step: events after this one are of a run that has been taken back to it.

    Raises:
        InputError: if tensorboardX is not installed.
    """

    def __init__(self, path: str | Path, folder: str | Path, *, step: int = 0):
        super().__init__(path)
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError(
                "--tensorboard needs tensorboardX; install it, or 'jimjax[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    def write(self, **values: Any) -> None:
        """Writes a line, and an event for each number in it."""
        super().write(**values)
        for name, value in values.items():
            if isinstance(value, Real) and name not in ("step", "epoch"):
                tag = f"{values.get('stage', 'run')}/{name}"
                self._writer.add_scalar(tag, float(value), values["step"])

    def close(self) -> None:
        """Writes what is still on its way to the file."""
        self._writer.close()
