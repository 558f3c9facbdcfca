"""Saving and restoring a run. The only module that knows Orbax."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jimjax import distributed
from jimjax.io.errors import InputError, InputWarning
from jimjax.io.files import replace_file

NUM_KEPT = 2  # the newest, and one before it in case the newest is damaged
CHECKSUMS = "checksums.json"
REASON_LENGTH = 300  # characters of a message about a checkpoint that does not fit


class Checkpoints:
    """The checkpoints of one run, numbered by step; saves are atomic."""

    def __init__(self, folder: str | Path):
        for name in ("orbax", "absl"):  # what goes wrong is raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._folder = Path(folder).absolute()
        self._damaged: set[int] = set()
        self._writing = 0, 0  # step and bytes of the last save
        self._has_failed = False
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(NUM_KEPT),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest saved step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, tree: Any) -> None:
        """Saves a pytree of arrays under a step; one already saved is left, unless damaged.

        Raises:
            OSError: if it cannot be written, as on a full disk; those before it are whole.
        """
        is_saved = step in self._steps() and step not in self._damaged
        if not is_saved:
            self._writing = step, sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
            with self._written():
                self._checkpointer.save(step, tree, force=True, overwrite=step in self._damaged)
            self._damaged.discard(step)
            if distributed.is_first():
                _write_checksums(self._folder / str(step))

    def restore(self, like: Any) -> Any:
        """Restores the newest checkpoint that is whole, onto the shapes and devices of ``like``.

        One that is damaged is left where it is, and said to be.

        Raises:
            InputError: if there is none, or none that can be read has the structure of ``like``.
        """
        problems: dict[int, str] = {}
        for step in self._steps():
            problem = _find_fault(self._folder / str(step))
            if problem is not None:
                problems[step] = problem
                continue
            try:
                restored = self._checkpointer.load(step, jax.tree.map(_abstract, like))
                jax.tree.map(_check_shape, restored, like)  # Orbax does not check numpy arrays
            except (ValueError, KeyError, TypeError, OSError) as problem:
                problems[step] = f"does not fit this configuration: {_reason(problem)}"
                continue
            for own, reason in problems.items():
                told = f"checkpoint {own} {reason}; going on from {step}"
                warnings.warn(told, InputWarning, stacklevel=2)
            self._damaged.update(problems)
            return restored
        if not problems:
            raise InputError("the run has no checkpoint yet; train it first")
        raise InputError("; ".join(f"checkpoint {own} {why}" for own, why in problems.items()))

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Tells in one line what Orbax raises."""
        try:
            yield
        except (OSError, ValueError) as problem:
            self._has_failed = True
            code = re.search(r"os_error_code='(\d+)'", str(problem))
            why = _reason(problem) if code is None else os.strerror(int(code[1])).lower()
            step, needed = self._writing
            free = shutil.disk_usage(self._folder).free
            raise OSError(
                f"checkpoint {self._folder / str(step)} could not be written: {why} "
                f"({needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free); --resume goes on "
                "from the one before it"
            ) from problem

    def _steps(self) -> list[int]:
        """What is saved, the newest first."""
        return sorted((saved.step for saved in self._checkpointer.checkpoints), reverse=True)

    def close(self) -> None:
        """Waits for saves in flight and lets go of the folder.

        Raises:
            OSError: if the last one could not be written.
        """
        # What a save has told Orbax tells once more.
        told = contextlib.suppress(OSError, ValueError) if self._has_failed else self._written()
        with told:
            self._checkpointer.close()


@contextlib.contextmanager
def open_checkpoints(folder: str | Path) -> Iterator[Checkpoints]:
    """Opens a folder of checkpoints for the duration of a ``with`` block."""
    checkpoints = Checkpoints(folder)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _write_checksums(folder: Path) -> None:
    """Tensorstore would read a flipped bit as a number, so files are told by their hashes."""
    text = json.dumps(_checksums(folder), indent=2)
    with replace_file(folder / CHECKSUMS) as stream:
        stream.write(text.encode())


def _find_fault(folder: Path) -> str | None:
    """Why a checkpoint must not be read: links, which tensorstore follows, or changed files."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            return f"holds a symbolic link, {path.relative_to(folder)}, which is not followed"
    damaged = _find_damage(folder)
    return None if damaged is None else f"is damaged, first in {damaged}"


def _find_damage(folder: Path) -> str | None:
    """The first file that changed; a run killed before it wrote checksums is believed."""
    if not (folder / CHECKSUMS).exists():
        return None
    try:
        kept = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except ValueError:
        return CHECKSUMS
    found = _checksums(folder)
    return min((name for name, digest in kept.items() if found.get(name) != digest), default=None)


def _checksums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in files
        if path.name != CHECKSUMS
    }


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _reason(problem: Exception) -> str:
    """Orbax may say it with every array of the state in one line."""
    lines = str(problem).splitlines() or [type(problem).__name__]
    return textwrap.shorten(lines[0], REASON_LENGTH)


def _check_shape(found: Any, wanted: Any) -> None:
    if found.shape != wanted.shape:
        raise ValueError(f"an array has shape {found.shape} where {wanted.shape} is wanted")
