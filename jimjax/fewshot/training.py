"""Training on episodes of labelled particles, with a look at others after every epoch."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jimjax.cluster.features import describe, prepare
from jimjax.data.subtomograms import Subtomograms
from jimjax.fewshot import losses
from jimjax.fewshot.config import FewShotConfig
from jimjax.fewshot.episodes import check_classes, draw_rows, score_episodes
from jimjax.fewshot.losses import Method
from jimjax.fewshot.pretraining import FAMILY
from jimjax.fewshot.pretraining import QUERIES as MOLECULE_QUERIES
from jimjax.fewshot.pretraining import SHOTS as MOLECULE_SHOTS
from jimjax.io.errors import InputError
from jimjax.mesh import constrain_batch, data_mesh, replicate
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.models.weights import Weights
from jimjax.progress import Progress
from jimjax.train.loop import Stage
from jimjax.train.molecules import observe_views
from jimjax.train.pretraining import SIGNS
from jimjax.train.records import Known, Origin, Record
from jimjax.train.resume import train_recorded
from jimjax.train.state import Optimizer, TrainState, initial_state, network_of
from jimjax.train.step import LossFunction, LossResult

MIN_WAYS = 2  # classes of an episode
NUM_VALIDATED = 100  # episodes after each epoch, always the same


class Labelled(NamedTuple):
    """Particles and their classes.

    Attributes:
        volumes: ``(n, z, y, x)``, normalised.
        labels: ``(n,)``.
        tilt_ranges: ``(n, 2)`` degrees.
    """

    volumes: np.ndarray
    labels: np.ndarray
    tilt_ranges: np.ndarray


class Batch(NamedTuple):
    """An episode, and how the molecules beside it are observed.

    Attributes:
        volumes: ``(ways * members, z, y, x)``, class-major.
        tilt_ranges: ``(molecules, views, 2)`` degrees.
    """

    volumes: np.ndarray
    tilt_ranges: np.ndarray


class Memory(NamedTuple):
    """What goes from epoch to epoch.

    Attributes:
        best_accuracy: in validation, of the stage; -1 before the first.
        best_params: of the network that reached it.
        best_stats: likewise.
        waited: epochs since then.
    """

    best_accuracy: np.ndarray
    best_params: Any
    best_stats: Any
    waited: np.ndarray


def train(
    config: FewShotConfig,
    weights: Weights,
    base: Subtomograms,
    validation: Subtomograms | None,
    *,
    is_trained: bool,
    folder: Path | None,
    resume: bool,
    progress: Progress | None,
    command: str,
) -> Network:
    """Trains a network on episodes; ``FewShotClassifier.train`` has the arguments and errors.

    Args:
        config: how.
        weights: to begin with.
        base: with labels.
        validation: likewise, or None.
        is_trained: whether the weights are more than random numbers.
        folder: see there.
        resume: likewise.
        progress: likewise.
        command: as typed, for the record.
    """
    check_config(config)
    known = _checked(config, weights, base, "the particles to learn from")
    held_out = None
    if validation is not None:
        held_out = _checked(config, weights, validation, "the particles of validation")
    ways = min(config.ways, len(np.unique(known.labels)))
    mesh, sign = episode_mesh(config, ways), SIGNS[weights.description.contrast]
    stages = build_stages(
        config,
        weights.network,
        known,
        held_out,
        ways=ways,
        loss=lambda method: episode_loss(config, method, ways=ways, sign=sign, mesh=mesh),
        is_trained=is_trained,
    )
    record = None
    if folder is not None:
        known_of_others = () if held_out is None else held_out
        origin = Origin(config, base, Known.of(known.labels, *known_of_others), weights)
        record = Record(folder, origin, command, resume)
    last, memory = _run_stages(config, weights.network, stages, mesh, record, progress)
    if held_out is None:
        return last
    memory = judge(memory, last, validate(config, last, held_out, config.method))
    best = weights.network._replace(params=memory.best_params, stats=memory.best_stats)
    return jax.tree.map(jnp.asarray, best)


def _checked(
    config: FewShotConfig, weights: Weights, particles: Subtomograms, what: str
) -> Labelled:
    members = config.shots + config.queries
    labels = check_classes(particles.labels, MIN_WAYS, members, what)
    volumes = prepare(weights, particles, config.contrast)
    return Labelled(volumes, labels, particles.tilt_ranges)


def _run_stages(
    config: FewShotConfig,
    network: Network,
    stages: list[Stage],
    mesh: Mesh,
    record: Record | None,
    progress: Progress | None,
) -> tuple[Network, Memory]:
    optimizer = build_optimizer(config)
    state = replicate(initial_state(network, optimizer), mesh)
    memory = initial_memory(network)
    options = {
        "key": jax.random.key(config.seed),
        "optimizer": optimizer,
        "mesh": mesh,
        "progress": progress,
    }
    state, memory = train_recorded(record, network, state, memory, stages, **options)
    return network_of(network, state), memory


def check_config(config: FewShotConfig) -> None:
    """Refuses a configuration that makes no episodes.

    Raises:
        InputError: see above.
    """
    least = {"ways": MIN_WAYS, "shots": 1, "queries": 1, "episodes": 1, "epochs": 1}
    for name, number in (least | {"decay_epochs": 1, "patience": 1}).items():
        if getattr(config, name) < number:
            raise InputError(f"{name} must be {number} or more, got {getattr(config, name)}")


def initial_memory(network: Network) -> Memory:
    """Nothing known yet."""
    params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
    return Memory(np.full((), -1, np.float32), params, stats, np.zeros((), np.int32))


def build_optimizer(config: FewShotConfig) -> Optimizer:
    """Adam, slower every now and then, and as fast as at first when the second method begins."""
    falling = optax.exponential_decay(
        config.learning_rate,
        config.decay_epochs * config.episodes,
        config.rate_decay,
        staircase=True,
    )
    per_stage = config.epochs * config.episodes

    def schedule(step: jax.Array) -> jax.Array:
        return falling(step % per_stage)

    return Optimizer(optax.adam(schedule), schedule)


def episode_mesh(config: FewShotConfig, ways: int) -> Mesh:
    """As many devices as an episode can be shared by."""
    num = ways * (config.shots + config.queries)
    return data_mesh(math.gcd(num, config.molecules, len(jax.devices())))


def build_stages(
    config: FewShotConfig,
    network: Network,
    known: Labelled,
    validation: Labelled | None,
    *,
    ways: int,
    loss: Callable[[Method], LossFunction],
    is_trained: bool,
) -> list[Stage]:
    """Lays out the training.

    Args:
        config: how.
        network: static structure.
        known: of as many classes as ``ways``, or more.
        validation: likewise; None trains to the end.
        ways: classes in an episode.
        loss: of each method.
        is_trained: whether the network comes from weights; then ProtoNet-CE begins at once.

    Returns:
        A stage of each method, for ``loop.train`` with a ``Memory``.
    """
    optimizer = build_optimizer(config)
    methods: list[Method] = ["protonet"]
    if config.method == "protonet-ce":
        methods = ["protonet-ce"] if is_trained else ["protonet", "protonet-ce"]

    def stage(number: int, method: Method) -> Stage:
        def draw(epoch: int, memory: Any) -> Iterator[Batch]:
            del memory
            for index in range(config.episodes):
                yield draw_batch(config, known, ways, number * config.epochs + epoch, index)

        return Stage(
            method,
            config.epochs,
            loss(method),
            draw,
            config.episodes,
            _make_before_epoch(config, network, validation, method, optimizer),
            None if validation is None else lambda memory: memory.waited >= config.patience,
        )

    return [stage(number, method) for number, method in enumerate(methods)]


def draw_batch(config: FewShotConfig, known: Labelled, ways: int, epoch: int, index: int) -> Batch:
    """The episode of an epoch and index, and tilt ranges of the particles for molecules."""
    rows = draw_rows(
        known.labels,
        ways=ways,
        members=config.shots + config.queries,
        seed=config.seed,
        epoch=epoch,
        index=index,
    )
    generator = np.random.default_rng([config.seed, epoch, index, *b"tilt ranges"])
    shape = config.molecules, MOLECULE_SHOTS + MOLECULE_QUERIES
    observed = known.tilt_ranges[generator.integers(len(known.tilt_ranges), size=shape)]
    return Batch(known.volumes[rows.ravel()], observed)


def episode_loss(
    config: FewShotConfig, method: Method, *, ways: int, sign: float, mesh: Mesh
) -> LossFunction:
    """The loss of an episode and of the molecules beside it, an episode of their own.

    Args:
        config: how.
        method: what is learned.
        ways: classes in an episode.
        sign: of molecules, -1 for dark ones.
        mesh: devices.
    """

    def loss(network: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        volumes, box = batch.volumes, batch.volumes.shape[-1]
        if config.molecules:
            views = observe_views(key, batch.tilt_ranges, FAMILY, box=box, sign=sign, mesh=mesh)
            beside = views.reshape(-1, box, box, box)
            volumes = constrain_batch(jnp.concatenate([volumes, beside]), mesh)
        found, stats = functional.apply(network, volumes, train=True)
        episode, shown = jnp.split(found.features, [len(batch.volumes)])
        task = losses.make_task(episode.reshape(ways, -1, episode.shape[-1]), config.shots)
        value, metrics = losses.task_loss(network, task, method)
        if config.molecules:
            shown = shown.reshape(config.molecules, -1, shown.shape[-1])
            task = losses.make_task(shown, MOLECULE_SHOTS)
            other, noted = losses.task_loss(network, task, method)
            value += other
            metrics |= {f"molecule_{name}": each for name, each in noted.items()}
        return value, LossResult(stats, metrics)

    return loss


def validate(
    config: FewShotConfig, network: Network, validation: Labelled, method: Method
) -> float:
    """The accuracy of a network in the episodes of validation."""
    ways = min(config.ways, len(np.unique(validation.labels)))
    return score_episodes(
        network,
        describe(network, validation.volumes).features,
        validation.labels,
        method=method,
        ways=ways,
        shots=config.shots,
        queries=config.queries,
        num_episodes=NUM_VALIDATED,
        seed=config.seed,
    ).mean


def judge(memory: Memory, network: Network, accuracy: float) -> Memory:
    """Remembers a network if it is better than all before it."""
    accuracy = np.float32(accuracy)
    if accuracy <= memory.best_accuracy:
        return memory._replace(waited=np.array(memory.waited + 1))
    params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
    return Memory(np.array(accuracy), params, stats, np.zeros((), np.int32))


def _make_before_epoch(
    config: FewShotConfig,
    network: Network,
    validation: Labelled | None,
    method: Method,
    optimizer: Optimizer,
) -> Callable[[TrainState, int, Memory], tuple[TrainState, Memory, dict[str, float]]]:
    def before_epoch(
        state: TrainState, epoch: int, memory: Memory
    ) -> tuple[TrainState, Memory, dict[str, float]]:
        if epoch == 0:
            if memory.best_accuracy >= 0:  # the best of the method before
                best = jax.tree.map(jnp.asarray, (memory.best_params, memory.best_stats))
                state = state._replace(params=best[0], stats=best[1])
            state = state._replace(opt_state=optimizer.transformation.init(state.params))
            memory = memory._replace(
                best_accuracy=np.full((), -1, np.float32), waited=np.zeros((), np.int32)
            )
        if validation is None:
            return state, memory, {}
        current = network_of(network, state)
        accuracy = validate(config, current, validation, method)
        return state, judge(memory, current, accuracy), {"validation": accuracy}

    return before_epoch
