"""The loop that trains every network: stages of epochs of steps, saved as they go."""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.mesh import replicate, split_batch
from jimjax.models.functional import Network
from jimjax.progress import Interrupted, Progress, stop_request
from jimjax.train.checkpoint import Checkpoints
from jimjax.train.state import Optimizer, TrainState
from jimjax.train.step import LossFunction, make_step

MAX_BAD_STEPS = 3  # non-finite steps in a row after which a run stops


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


class Stage(NamedTuple):
    """A part of training with its own loss.

    Attributes:
        name: as logged.
        num_epochs: how often ``before_epoch`` runs.
        loss: what to minimise.
        batches: ``(epoch, memory) -> batches`` of one epoch, the same ones each time it is
            asked; every array has the batch first.
        steps_per_epoch: how many batches that is.
        before_epoch: ``(state, epoch, memory) -> (state, memory, metrics)``, the work between
            epochs; the step of the state stays.
        is_over: ``memory -> bool``, asked after ``before_epoch``; where it says so, the steps
            that are left of the stage are counted as done.
    """

    name: str
    num_epochs: int
    loss: LossFunction
    batches: Callable[[int, Any], Iterable[Any]]
    steps_per_epoch: int
    before_epoch: (
        Callable[[TrainState, int, Any], tuple[TrainState, Any, dict[str, float]]] | None
    ) = None
    is_over: Callable[[Any], bool] | None = None


class Log:
    """Appends one JSON object per line to a file; None keeps nothing."""

    def __init__(self, path: str | Path | None):
        self._path = path

    def write(self, **values: Any) -> None:
        """Writes a line."""
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(values) + "\n")


def train(
    network: Network,
    state: TrainState,
    memory: Any,
    stages: list[Stage],
    *,
    key: jax.Array,
    optimizer: Optimizer,
    mesh: Mesh,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
) -> tuple[TrainState, Any]:
    """Trains a network through its stages, going on from where ``state.step`` says.

    Args:
        network: static structure.
        state: where to begin; restored from a checkpoint to resume.
        memory: pytree of numpy arrays that ``before_epoch`` hands from epoch to epoch, such as
            cluster labels.
        stages: what to do.
        key: all randomness of the steps.
        optimizer: for all stages.
        mesh: devices.
        checkpoints: where to save at the end of each epoch, and when asked to stop.
        log: where metrics go, a line per epoch.
        progress: told of every step.

    Returns:
        The final state and memory.

    Raises:
        TrainingError: if the loss stays non-finite.
        Interrupted: after SIGTERM or SIGINT, once the state is saved.
    """
    log = log or Log(None)
    total = sum(stage.num_epochs * stage.steps_per_epoch for stage in stages)
    state = replicate(state, mesh)
    done = int(state.step)
    started = time.monotonic()
    first = 0  # step at which the epoch begins
    num_bad = 0  # non-finite steps in a row, also across epochs
    with stop_request() as is_asked_to_stop, jax.set_mesh(mesh):
        for stage in stages:
            step = make_step(network, stage.loss, optimizer)
            for epoch in range(stage.num_epochs):
                last = first + stage.steps_per_epoch
                if done >= last:
                    first = last
                    continue
                noted: dict[str, float] = {}
                if stage.before_epoch is not None and done == first:
                    state, memory, noted = stage.before_epoch(state, epoch, memory)
                    state = replicate(state, mesh)
                    if stage.is_over is not None and stage.is_over(memory):
                        done = first + (stage.num_epochs - epoch) * stage.steps_per_epoch
                        state = state._replace(step=jnp.full_like(state.step, done))
                        log.write(stage=stage.name, epoch=epoch, step=done, **noted)
                        _save(checkpoints, done, state, memory)
                        first = last
                        continue
                collected: list[dict[str, jax.Array]] = []
                for index, batch in enumerate(stage.batches(epoch, memory)):
                    if first + index < done:
                        continue
                    state, metrics = step(state, split_batch(batch, mesh), key)
                    collected.append(metrics)
                    done += 1
                    if progress is not None:
                        shown = {"loss": float(metrics["loss"])}
                        progress.update(stage.name, done, total, shown)
                    num_bad = 0 if bool(metrics["is_finite"]) else num_bad + 1
                    _check_finite(num_bad, stage.name, done)
                    # An epoch that is complete is logged before the run stops.
                    if done < last and is_asked_to_stop():
                        _stop(checkpoints, done, total, state, memory)
                if done != last:
                    raise TrainingError(
                        f"stage '{stage.name}' gave {done - first} batches in epoch {epoch}, "
                        f"{stage.steps_per_epoch} were promised"
                    )
                log.write(
                    stage=stage.name,
                    epoch=epoch,
                    step=done,
                    seconds=round(time.monotonic() - started, 3),
                    **_means(collected),
                    **noted,
                )
                if is_asked_to_stop():
                    _stop(checkpoints, done, total, state, memory)
                _save(checkpoints, done, state, memory)
                first = last
    return state, memory


def _save(checkpoints: Checkpoints | None, step: int, state: TrainState, memory: Any) -> None:
    if checkpoints is not None:
        checkpoints.save(step, {"state": state, "memory": memory})


def _stop(
    checkpoints: Checkpoints | None, step: int, total: int, state: TrainState, memory: Any
) -> NoReturn:
    _save(checkpoints, step, state, memory)
    raise Interrupted(f"stopped at step {step} of {total}")


def _check_finite(num_bad: int, stage: str, step: int) -> None:
    if num_bad >= MAX_BAD_STEPS:
        raise TrainingError(
            f"loss or gradient not finite in stage '{stage}' for {MAX_BAD_STEPS} steps up to "
            f"step {step}; lower the learning rate, or look for extreme voxels in the particles"
        )


def _means(collected: list[dict[str, jax.Array]]) -> dict[str, float]:
    if not collected:
        return {}
    names = [name for name in collected[0] if name != "is_finite"]
    means = {name: float(np.mean([float(m[name]) for m in collected])) for name in names}
    return {name: value for name, value in means.items() if math.isfinite(value)}
