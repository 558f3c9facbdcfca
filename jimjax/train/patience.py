"""Training until particles that were kept apart gain nothing more; the best weights are kept."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jimjax.data.batches import index_batches, map_chunks, num_batches
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh, replicate
from jimjax.models.functional import Network
from jimjax.progress import Progress
from jimjax.train.loop import Stage
from jimjax.train.records import Record
from jimjax.train.resume import train_recorded
from jimjax.train.state import Optimizer, TrainState, initial_state, network_of
from jimjax.train.step import LossResult

KERAS_EPSILON = 1e-7  # of Adam

# (network, examples) -> (n,), what each example adds to the loss; of a network without statistics.
Errors = Callable[[Network, Any], jax.Array]


class Schedule(Protocol):
    """What a configuration has to say of such training.

    Attributes:
        epochs: at most.
        batch_size: examples per step.
        learning_rate: of Adam, in the first step.
        learning_rate_decay: the rate is divided by 1 plus this times the step.
        validation: share of the examples that are kept apart.
        patience: epochs without a gain on these, after which training ends.
        seed: of all that is random.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_decay: float
    validation: float
    patience: int
    seed: int


class Best(NamedTuple):
    """The best network so far.

    Attributes:
        error: of the examples kept apart.
        waited: epochs since then.
        params: of it.
        stats: likewise.
    """

    error: np.ndarray
    waited: np.ndarray
    params: Any
    stats: Any


def check_schedule(schedule: Schedule) -> None:
    """Refuses numbers of a configuration that mean nothing.

    Raises:
        InputError: if so.
    """
    if min(schedule.epochs, schedule.batch_size, schedule.patience) < 1:
        raise InputError("epochs, batch_size and patience must be 1 or more")
    if not 0 < schedule.validation < 1:
        raise InputError(f"validation must be between 0 and 1, got {schedule.validation:g}")


def train_best(
    name: str,
    network: Network,
    examples: Any,
    errors: Errors,
    schedule: Schedule,
    *,
    record: Record | None = None,
    progress: Progress | None = None,
) -> Network:
    """Trains a network and returns the best of the networks that it was after each epoch.

    Args:
        name: of the stage, as logged.
        network: to begin with.
        examples: pytree of ``(n, ...)`` arrays.
        errors: what is minimised, on average.
        schedule: see there.
        record: a folder to write to; nothing is written if None.
        progress: told of every step.

    Returns:
        The network.

    Raises:
        InputError: if the folder holds another run.
        loop.TrainingError: if the loss stays non-finite.
        Interrupted: after SIGTERM or SIGINT, with everything saved.
    """
    num = len(jax.tree.leaves(examples)[0])
    kept, used = _split(num, schedule)
    judge = _judge(errors, jax.tree.map(lambda leaf: leaf[kept], examples), schedule.batch_size)
    optimizer, mesh = _adam(schedule), data_mesh()
    stage = _build_stage(name, network, examples, used, errors, judge, schedule)
    state = replicate(initial_state(network, optimizer), mesh)
    params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
    memory = Best(np.array(np.inf, np.float32), np.array(0, np.int32), params, stats)
    options = {
        "key": jax.random.key(schedule.seed),
        "optimizer": optimizer,
        "mesh": mesh,
        "progress": progress,
    }
    state, memory = train_recorded(record, network, state, memory, [stage], **options)
    # The last epoch was not judged yet, unless training ended before it.
    best, _ = _update(memory, network_of(network, state), judge)
    return jax.tree.map(jnp.asarray, network._replace(params=best.params, stats=best.stats))


def _split(num: int, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Rows kept apart and rows trained on, at random; a single row is both."""
    generator = np.random.default_rng([schedule.seed, *b"validation"])
    order = generator.permutation(num)
    if num < 2:
        return order, order
    num_kept = int(np.clip(round(schedule.validation * num), 1, num - 1))
    return np.sort(order[:num_kept]), np.sort(order[num_kept:])


def _judge(errors: Errors, kept: Any, batch_size: int) -> Callable[[Network], float]:
    num = len(jax.tree.leaves(kept)[0])
    compiled = jax.jit(errors)

    def judge(network: Network) -> float:
        def ask(rows: np.ndarray) -> jax.Array:
            return compiled(network, jax.tree.map(lambda leaf: leaf[rows], kept))

        return float(map_chunks(ask, num, min(batch_size, num)).mean())

    return judge


def _adam(schedule: Schedule) -> Optimizer:
    def rate(step: jax.Array) -> jax.Array:
        return schedule.learning_rate / (1 + schedule.learning_rate_decay * step)

    return Optimizer(optax.adam(rate, eps=KERAS_EPSILON), rate)


def _build_stage(
    name: str,
    network: Network,
    examples: Any,
    used: np.ndarray,
    errors: Errors,
    judge: Callable[[Network], float],
    schedule: Schedule,
) -> Stage:
    def loss(network: Network, batch: Any, key: jax.Array) -> tuple[jax.Array, LossResult]:
        del key
        return jnp.mean(errors(network, batch)), LossResult(network.stats, {})

    def draw(epoch: int, memory: Best) -> Iterator[Any]:
        del memory
        order = index_batches(len(used), schedule.batch_size, seed=schedule.seed, epoch=epoch)
        for rows in order:
            yield jax.tree.map(lambda leaf, rows=used[rows]: leaf[rows], examples)

    def compare(
        state: TrainState, epoch: int, memory: Best
    ) -> tuple[TrainState, Best, dict[str, float]]:
        del epoch
        best, error = _update(memory, network_of(network, state), judge)
        return state, best, {"validation": error} if np.isfinite(error) else {}

    return Stage(
        name,
        schedule.epochs,
        loss,
        draw,
        num_batches(len(used), schedule.batch_size),
        compare,
        lambda memory: bool(memory.waited >= schedule.patience),
    )


def _update(best: Best, network: Network, judge: Callable[[Network], float]) -> tuple[Best, float]:
    error = judge(network)
    if error < best.error:
        params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
        return Best(np.array(error, np.float32), np.array(0, np.int32), params, stats), error
    return best._replace(waited=np.array(best.waited + 1, np.int32)), error
