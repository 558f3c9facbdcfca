"""The command line: reads it, runs one subcommand, and turns mistakes into one line."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from jimjax.commands.align import Align, Refine
from jimjax.commands.average import Average
from jimjax.commands.benchmark import Benchmark
from jimjax.commands.cluster import Cluster
from jimjax.commands.compile import Compile
from jimjax.commands.demo import Demo
from jimjax.commands.doctor import Doctor
from jimjax.commands.edss3d import Edss3d
from jimjax.commands.evaluate import Evaluate
from jimjax.commands.export import Export
from jimjax.commands.fewshot import FewShot
from jimjax.commands.import_npz import Import
from jimjax.commands.match import Match
from jimjax.commands.pack import Pack
from jimjax.commands.predict import Predict
from jimjax.commands.report import Report
from jimjax.commands.segment import Segment
from jimjax.commands.simulate import Simulate
from jimjax.commands.stop import EXIT_FAILED, EXIT_INTERRUPTED, Stop, how_to_go_on
from jimjax.commands.train import Train
from jimjax.progress import Interrupted, interruptible

COMMANDS = {
    "doctor": Doctor,
    "simulate": Simulate,
    "match": Match,
    "pack": Pack,
    "align": Align,
    "refine": Refine,
    "cluster": Cluster,
    "fewshot": FewShot,
    "edss3d": Edss3d,
    "segment": Segment,
    "train": Train,
    "compile": Compile,
    "predict": Predict,
    "average": Average,
    "evaluate": Evaluate,
    "export": Export,
    "report": Report,
    "demo": Demo,
    "benchmark": Benchmark,
    "import": Import,
}
EXIT_MISTAKE, EXIT_KILLED = 2, 130
DESCRIPTION = "Joint alignment and clustering of cryo-electron subtomograms."
_FRAME = re.compile("[\u2500-\u257f]|-{3,}")  # box drawing, or dashes where it cannot be shown
_REPEATED = re.compile(r"(?i)\b(invalid choice|unrecognized options) \1\b")  # tyro says it twice


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The exit code: 0 for success, 2 for a mistake of the user (one line on stderr), 1 for
        training that cannot go on, a disk that fails or a device without memory, 75 for a command
        that was asked to stop by SIGTERM or Ctrl-C, 130 for one that was asked twice.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        import jimjax

        print(f"jimjax {jimjax.__version__}")
        return 0
    try:
        with interruptible():
            return _parse_and_run(arguments)
    except Interrupted as stop:
        return _complain(f"{stop}; {how_to_go_on(None)}", EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _complain("stopped", EXIT_KILLED)


def cache_folder() -> Path:
    """Where compiled programs are kept between runs; JAX_COMPILATION_CACHE_DIR overrides it."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "jimjax" / "xla"


def prepare_jax() -> None:
    """Sets what JAX reads when it is first imported: quiet, and with a cache on disk."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.suppress(OSError):  # without a place to write, everything is compiled anew
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _parse_and_run(arguments: list[str]) -> int:
    try:
        command = _parse(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    prepare_jax()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(command)


def _parse(arguments: list[str]) -> Any:
    """Returns a subcommand with its options; tyro's box of errors becomes one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="jimjax", description=DESCRIPTION, args=arguments
            )
    except SystemExit as stop:
        if stop.code:
            _complain(_usage_line(complaint.getvalue(), arguments))
        raise


def _usage_line(box: str, arguments: list[str]) -> str:
    text = re.sub(r"\s+", " ", _FRAME.sub(" ", box)).strip()
    text = text.partition(" For full helptext")[0].rstrip(".")
    text = _REPEATED.sub(r"\1", text)
    name = f" {arguments[0]}" if arguments and arguments[0] in COMMANDS else ""
    return f"{text}; see jimjax{name} --help"


def _run(command: Any) -> int:
    from jimjax.device_memory import describe_need, is_out_of_memory
    from jimjax.io.errors import FailureError, InputError

    try:
        command.run()
    except InputError as problem:
        return _complain(str(problem), EXIT_MISTAKE)
    except (PermissionError, FileExistsError, NotADirectoryError) as problem:
        return _complain(f"{problem.filename}: {problem.strerror}", EXIT_MISTAKE)
    except BrokenPipeError:  # the reader of stdout has gone, as with | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as problem:
        return _complain(str(problem), EXIT_FAILED)
    except Stop as stop:
        return _complain(str(stop), stop.exit_code)
    except Interrupted as stop:
        return _complain(f"{stop}; {how_to_go_on(command)}", EXIT_INTERRUPTED)
    except FailureError as problem:
        return _complain(str(problem), EXIT_FAILED)
    except RuntimeError as problem:
        if not is_out_of_memory(problem):
            raise
        return _complain(
            f"the device has not enough memory{describe_need(problem)}; use smaller boxes, smaller "
            "batches, fewer classes, or another device",
            EXIT_FAILED,
        )
    return 0


def _complain(text: str, code: int = EXIT_MISTAKE) -> int:
    print(f"jimjax: {' '.join(text.split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}")
