"""How a subcommand ends early without a traceback."""

from pathlib import Path
from typing import Any

EXIT_FAILED, EXIT_INTERRUPTED = 1, 75  # 75: EX_TEMPFAIL of sysexits.h, "try again"


class Stop(Exception):  # noqa: N818 not always an error
    """Ends the program with one line and an exit code.

    Attributes:
        exit_code: of the process.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def how_to_go_on(command: Any) -> str:
    """What is kept of a command that was interrupted, and what to do next.

    Args:
        command: with its options, None if it had not begun; one that can be resumed has the option
            ``resume``, or says in ``goes_on_with`` what does instead.
    """
    command = getattr(command, "step", command)
    folder = getattr(command, "out", None)
    goes_on_with = getattr(command, "goes_on_with", None)
    if hasattr(command, "resume"):
        goes_on_with = "--resume"
    if goes_on_with is None or folder is None or not _has_begun(folder):
        return "nothing was saved, run it again"
    return f"saved in {folder}, go on with {goes_on_with}"


def _has_begun(folder: Path) -> bool:
    """Whether a folder, or one in it, holds what can be gone on with."""
    if not folder.is_dir():
        return False
    from jimjax.align.fit import STATE
    from jimjax.commands.benchmark import SETTINGS
    from jimjax.train.records import CONFIG

    places = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    return any((place / name).exists() for place in places for name in (CONFIG, STATE, SETTINGS))
