"""Saving and restoring a run. The only module that knows Orbax."""

import contextlib
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jimjax.io.errors import InputError

NUM_KEPT = 2  # the newest, and one before it in case the newest is damaged
REASON_LENGTH = 300  # characters of a message about a checkpoint that does not fit


class Checkpoints:
    """The checkpoints of one run, numbered by step; saves are atomic."""

    def __init__(self, folder: str | Path):
        for name in ("orbax", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(NUM_KEPT),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest saved step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, tree: Any) -> None:
        """Saves a pytree of arrays under a step; a step already saved is left as it is."""
        if self.latest_step != step:
            self._checkpointer.save(step, tree, force=True)

    def restore(self, like: Any) -> Any:
        """Restores the newest checkpoint onto the shapes and devices of ``like``.

        Raises:
            InputError: if there is none, or it does not have the structure of ``like``.
        """
        if self.latest_step is None:
            raise InputError("the run has no checkpoint yet; train it first")
        abstract = jax.tree.map(_abstract, like)
        try:
            restored = self._checkpointer.load(self.latest_step, abstract)
            jax.tree.map(_check_shape, restored, like)  # Orbax does not check numpy arrays
            return restored
        except (ValueError, KeyError, TypeError) as problem:
            # Orbax may say it with every array of the state in one line.
            reason = textwrap.shorten(str(problem).splitlines()[0], REASON_LENGTH)
            raise InputError(
                f"checkpoint {self.latest_step} does not fit this configuration: {reason}"
            ) from problem

    def close(self) -> None:
        """Waits for saves in flight and lets go of the folder."""
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


def _check_shape(found: Any, wanted: Any) -> None:
    if found.shape != wanted.shape:
        raise ValueError(f"an array has shape {found.shape} where {wanted.shape} is wanted")
