"""Opening what the user names, and replacing files in one step."""

import contextlib
import errno
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from jimjax.io.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PathLike = str | os.PathLike[str]

LOCK = "lock"
RETRY_DELAYS = (0.1, 0.5)  # seconds; a network file system that stalls answers soon or not at all
_PASSING_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN})


def open_input(path: PathLike, error: type[InputError] = InputError) -> BinaryIO:
    """Opens a regular file for reading only, as a binary stream.

    Args:
        path: file to open.
        error: class of the error that is raised.

    Raises:
        InputError: (of class ``error``) if the path is missing, forbidden or no regular file.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            # Asked before opening: opening a named pipe would wait for a writer.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise error(f"{path}: is no regular file; give the path of a file")
            return open(path, "rb")
        except OSError as problem:
            if problem.errno not in _PASSING_ERRORS or delay is None:
                raise error(f"{path}: cannot be read: {_reason(problem)}") from problem
            time.sleep(delay)
        except ValueError as problem:
            if isinstance(problem, InputError):
                raise
            raise error(f"{path!r}: is no file name: {problem}") from problem
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextlib.contextmanager
def replace_file(path: PathLike) -> Iterator[BinaryIO]:
    """Gives a stream whose bytes become the file ``path`` all at once, or not at all.

    The bytes go to a hidden file in the same folder, are flushed to disk, and then take the
    name ``path``. If anything fails, the hidden file is removed and ``path`` is as it was.

    Raises:
        InputError: if the folder does not exist or may not be written.
        OSError: if the disk is full or fails; the message names ``path``.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file to write")
    draft = path.parent / f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        with open(draft, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except PermissionError as problem:
        raise InputError(f"{path}: cannot be written: {_reason(problem)}") from problem
    except OSError as problem:
        raise OSError(problem.errno, f"{_reason(problem)}, while writing", str(path)) from problem
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


@contextlib.contextmanager
def hold_folder(folder: PathLike) -> Iterator[None]:
    """Keeps other processes that ask for it, also on other hosts, out of a folder.

    The operating system lets go of it however the process ends; a file ``LOCK`` stays behind,
    which means nothing by itself. Where there are no such locks (Windows, some network file
    systems) nobody is kept out.

    Raises:
        InputError: if another process has it, or nothing can be written there.
    """
    path = Path(folder) / LOCK
    try:
        stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 closed below
    except OSError as problem:
        raise InputError(f"{path}: cannot be written: {_reason(problem)}") from problem
    with stream:
        if _lock(stream):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
        yield


def _lock(stream: TextIO) -> bool:
    """Whether a file is locked by this process now; raises InputError if another one has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        stream.seek(0)
        owner = stream.read().strip() or "another process"
        folder = Path(stream.name).parent
        raise InputError(
            f"{folder}: {owner} is writing to it; wait for it, or stop it"
        ) from problem
    except OSError:  # a file system without locks
        return False
    return True


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)
