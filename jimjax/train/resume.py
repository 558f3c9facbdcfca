"""Training with checkpoints and a log in a folder, and going on with what it holds."""

import contextlib
from pathlib import Path
from typing import Any

from jimjax import distributed
from jimjax.io.files import hold_folder
from jimjax.models.functional import Network
from jimjax.train import loop
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.loop import Stage
from jimjax.train.records import Record, forget_after
from jimjax.train.state import TrainState
from jimjax.train.tensorboard import TensorBoardLog

METRICS, CHECKPOINTS, EVENTS = "metrics.jsonl", "checkpoints", "tensorboard"


def train_in_folder(
    folder: Path,
    network: Network,
    state: TrainState,
    memory: Any,
    stages: list[Stage],
    *,
    resume: bool,
    tensorboard: bool = False,
    **options: Any,
) -> tuple[TrainState, Any]:
    """Trains a network, saved in a folder as it goes.

    Args:
        folder: that exists.
        network: static structure.
        state: where to begin.
        memory: likewise; see ``loop.train``.
        stages: what to do.
        resume: begin where the newest checkpoint in the folder is, if there is one.
        tensorboard: also write the log's numbers as events into ``tensorboard`` in the folder.
        **options: of ``loop.train``.

    Returns:
        The final state and memory.

    Raises:
        InputError: if the checkpoint is of another network or memory, another process trains in
            the folder, or there is no tensorboardX.
        loop.TrainingError: if the loss stays non-finite.
        Interrupted: after SIGTERM or SIGINT, once the state is saved.
    """
    held = hold_folder(folder) if distributed.is_first() else contextlib.nullcontext()
    with held, open_checkpoints(folder / CHECKPOINTS) as checkpoints:
        if resume and checkpoints.latest_step is not None:
            saved = checkpoints.restore({"state": state, "memory": memory})
            state, memory = saved["state"], saved["memory"]
            if distributed.is_first():
                forget_after(folder / METRICS, int(state.step))
        log = loop.Log(folder / METRICS)
        if tensorboard and distributed.is_first():
            log = TensorBoardLog(folder / METRICS, folder / EVENTS, step=int(state.step))
        with contextlib.closing(log):
            return loop.train(
                network, state, memory, stages, checkpoints=checkpoints, log=log, **options
            )


def train_recorded(
    record: Record | None,
    network: Network,
    state: TrainState,
    memory: Any,
    stages: list[Stage],
    **options: Any,
) -> tuple[TrainState, Any]:
    """Trains a network, kept in a folder of its own if there is one.

    Args:
        record: of the folder, which is opened; None keeps nothing.
        network: static structure.
        state: where to begin.
        memory: likewise; see ``loop.train``.
        stages: what to do.
        **options: of ``loop.train``.

    Returns:
        The final state and memory.

    Raises:
        InputError: if the folder holds another run, or one that is not to be resumed.
        loop.TrainingError: if the loss stays non-finite.
        Interrupted: after SIGTERM or SIGINT, once the state is saved.
    """
    if record is None:
        return loop.train(network, state, memory, stages, **options)
    record.open()
    return train_in_folder(
        record.folder, network, state, memory, stages, resume=record.resume, **options
    )
