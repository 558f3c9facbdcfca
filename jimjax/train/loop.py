"""The loop that trains every network: stages of epochs of steps, saved as they go."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax import distributed
from jimjax.device_memory import describe_need, is_out_of_memory
from jimjax.io.errors import FailureError
from jimjax.mesh import replicate, split_state, whole
from jimjax.models.functional import Network
from jimjax.progress import Interrupted, Progress, let_stop, stop_request
from jimjax.train.checkpoint import Checkpoints
from jimjax.train.feeding import Feeder
from jimjax.train.meter import Meter
from jimjax.train.profile import Profile
from jimjax.train.program import compile_step, device_bytes, lack_of_memory
from jimjax.train.state import Optimizer, TrainState
from jimjax.train.step import LossFunction, make_step

MAX_BAD_STEPS = 3  # non-finite steps in a row after which a run stops


class TrainingError(FailureError):
    """Training cannot go on; the message says at which step and why."""


class Stage(NamedTuple):
    """A part of training with its own loss.

    Attributes:
        name: as logged.
        num_epochs: how often ``before_epoch`` runs.
        loss: what to minimise.
        batches: ``(epoch, memory) -> batches`` of one epoch, the same ones each time it is
            asked; every array has the batch first. What is large is best ``batches.Taken``: then
            it is on the devices beforehand or read ahead, and not read for steps that are done.
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
    """Appends one JSON object per line to a file, of the first process; None keeps nothing."""

    def __init__(self, path: str | Path | None):
        self._path = path

    def write(self, **values: Any) -> None:
        """Writes a line."""
        if self._path is not None and distributed.is_first():
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Called when there are no more lines; these are in the file already."""


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
    profile: Profile | None = None,
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
        log: where metrics go, a line per epoch; among them those of ``Meter.end_epoch``.
        progress: told of every step.
        profile: traces some of them.

    Returns:
        The final state and memory.

    Raises:
        TrainingError: if a step does not fit into the memory, or the loss stays non-finite.
        Interrupted: after SIGTERM or SIGINT, once the state is saved.
    """
    total = sum(stage.num_epochs * stage.steps_per_epoch for stage in stages)
    state = split_state(state, mesh)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    with stop_request() as is_asked_to_stop, profile or nullcontext():
        outer = _Outer(
            total,
            replicate(key, mesh),
            mesh,
            Feeder(mesh),
            checkpoints,
            log or Log(None),
            progress,
            profile,
            distributed.Vote(is_asked_to_stop),
        )
        run = _Run(outer, state, memory)
        first = 0  # step at which the epoch begins
        for stage in stages:
            made = make_step(network, stage.loss, optimizer, state_sharding=sharding)
            step = _Step(made, stage.name)
            for epoch in range(stage.num_epochs):
                run.epoch(stage, epoch, first, step)
                first += stage.steps_per_epoch
    return run.state, run.memory


class _Outer(NamedTuple):
    """What a run has to do with, and does not change."""

    total: int
    key: jax.Array
    mesh: Mesh
    feeder: Feeder
    checkpoints: Checkpoints | None
    log: Log
    progress: Progress | None
    profile: Profile | None
    is_asked_to_stop: Callable[[], bool]


class _Step:
    """A step that is compiled when it is first asked for."""

    def __init__(self, step: Any, name: str):
        self._step, self._name, self._run = step, name, None

    def __call__(
        self, meter: Meter, state: TrainState, batch: Any, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if self._run is None:
            with meter.compiling():
                compiled = compile_step(self._step, state, batch, key)
            if lack := lack_of_memory(compiled, device_bytes()):
                raise TrainingError(f"stage '{self._name}': {lack}")
            self._run = compiled.program.run
            meter.know(compiled.program.flops / compiled.num_devices)
        return self._run(state, batch, key)


class _Run:
    """A run under way.

    The host is one step ahead: it makes the next batch while devices are at work, and looks at
    what a step gave when the next one has begun.
    """

    def __init__(self, outer: _Outer, state: TrainState, memory: Any):
        self._outer, self.state, self.memory = outer, state, memory
        self._done = int(state.step)
        self._num_bad = 0  # non-finite steps in a row, also across epochs
        self._began = time.monotonic()
        self._meter = Meter()
        self._batch_size = 0  # of the last step

    def epoch(self, stage: Stage, epoch: int, first: int, step: _Step) -> None:
        """Runs what is left of an epoch, whose first step is ``first``."""
        if self._done >= first + stage.steps_per_epoch:
            return
        try:
            self._epoch(stage, epoch, first, step)
        except Interrupted:
            if self._done > first:  # else it goes on as it was before the work between epochs
                self._save()
            raise Interrupted(f"stopped at step {self._done} of {self._outer.total}") from None

    def _epoch(self, stage: Stage, epoch: int, first: int, step: _Step) -> None:
        last = first + stage.steps_per_epoch
        noted: dict[str, float] = {}
        if stage.before_epoch is not None and self._done == first:
            own = whole(self.state, self._outer.mesh)
            with _interruptible():
                changed, memory, noted = stage.before_epoch(own, epoch, self.memory)
            self.memory = distributed.from_first(memory)
            if changed is not own:
                self.state = split_state(changed, self._outer.mesh)
            if stage.is_over is not None and stage.is_over(self.memory):
                self._finish_early(stage, epoch, first, noted)
                return
        with jax.set_mesh(self._outer.mesh), self._memory_watched(stage):
            collected = self._steps(stage, epoch, first, step)
        if self._done != last:
            raise TrainingError(
                f"stage '{stage.name}' gave {self._done - first} batches in epoch {epoch}, "
                f"{stage.steps_per_epoch} were promised"
            )
        self._outer.log.write(
            stage=stage.name,
            epoch=epoch,
            step=self._done,
            seconds=round(time.monotonic() - self._began, 3),
            **_means(collected),
            **self._meter.end_epoch(),
            **noted,
        )
        if self._outer.is_asked_to_stop():
            raise Interrupted
        self._save()

    def _steps(
        self, stage: Stage, epoch: int, first: int, step: _Step
    ) -> list[dict[str, jax.Array]]:
        """The steps of an epoch that are not done yet, and what they gave."""
        outer, collected = self._outer, []
        self._meter.begin_epoch()
        batches = outer.feeder.feed(stage.batches(epoch, self.memory), self._done - first)
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                break
            self._batch_size = len(jax.tree.leaves(batch)[0])
            was_idle = not collected or collected[-1]["loss"].is_ready()
            self._meter.fed(time.monotonic() - began, was_idle=was_idle)
            if outer.profile is not None:
                outer.profile.before(self._done + 1)
            self.state, metrics = step(self._meter, self.state, batch, outer.key)
            self._meter.stepped(self._batch_size)
            if collected:
                self._check(collected[-1], stage, self._done)
            self._done += 1
            if outer.profile is not None:
                outer.profile.after(self._done, metrics)
            if outer.progress is not None:
                # Of the step before, so that this one is not waited for.
                known = collected[-1:] or [metrics]
                shown = {"loss": float(known[0]["loss"])}
                outer.progress.update(stage.name, self._done, outer.total, shown)
            collected.append(metrics)
            # An epoch that is complete is logged before the run stops.
            if self._done < first + stage.steps_per_epoch and outer.is_asked_to_stop():
                raise Interrupted
        if collected:
            self._check(collected[-1], stage, self._done)
        return collected

    def _finish_early(self, stage: Stage, epoch: int, first: int, noted: dict[str, float]) -> None:
        self._done = first + (stage.num_epochs - epoch) * stage.steps_per_epoch
        step = jnp.full_like(self.state.step, self._done)
        self.state = self.state._replace(step=step)
        self._outer.log.write(stage=stage.name, epoch=epoch, step=self._done, **noted)
        self._save()

    def _check(self, metrics: dict[str, jax.Array], stage: Stage, step: int) -> None:
        """Waits for a step, and stops where too many in a row gave no number."""
        self._num_bad = 0 if bool(metrics["is_finite"]) else self._num_bad + 1
        if self._num_bad >= MAX_BAD_STEPS:
            raise TrainingError(
                f"loss or gradient not finite in stage '{stage.name}' for {MAX_BAD_STEPS} steps up "
                f"to step {step}; lower the learning rate, or look for extreme voxels in the "
                "particles"
            )

    @contextmanager
    def _memory_watched(self, stage: Stage) -> Iterator[None]:
        """Says in one line that a step does not fit into the memory of the device."""
        try:
            yield
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            half = self._batch_size // 2
            remedy = f"try a batch size of {half}" if half else "use smaller boxes"
            raise TrainingError(
                f"stage '{stage.name}' with batches of {self._batch_size} does not fit into the "
                f"memory of the device{describe_need(problem)}; {remedy}"
            ) from problem

    def _save(self) -> None:
        if self._outer.checkpoints is not None:
            saved = {"state": self.state, "memory": self.memory}
            self._outer.checkpoints.save(self._done, saved)


def _interruptible() -> AbstractContextManager[None]:
    """For work whose outcome is not kept yet; one of several processes must not leave alone."""
    return let_stop() if jax.process_count() == 1 else nullcontext()


def _means(collected: list[dict[str, jax.Array]]) -> dict[str, float]:
    if not collected:
        return {}
    names = [name for name in collected[0] if name != "is_finite"]
    means = {name: float(np.mean([float(m[name]) for m in collected])) for name in names}
    return {name: value for name, value in means.items() if math.isfinite(value)}
