"""A network learns the classes that its own features propose.

Every iteration describes all particles, divides the descriptions into classes, and trains the
network for an epoch to say which class each particle is in. DISCA, DeepCluster and the clustering
branch of Jim-Net do that; they differ in what a ``Method`` holds.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jimjax.cluster.features import describe
from jimjax.data import batches
from jimjax.evaluate.clustering import match_labels
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.train.loop import Stage
from jimjax.train.state import TrainState, network_of
from jimjax.train.step import LossFunction

# (logits, targets, is_used), each (batch, k) -> scalar; never looks at logits of unused classes.
Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Lessons(NamedTuple):
    """What the network is to say of particles.

    Attributes:
        targets: ``(n, k)`` probabilities, 0 beyond the classes in use.
        is_used: ``(n, k)``, 1 for classes in use.
    """

    targets: np.ndarray
    is_used: np.ndarray


class Batch(NamedTuple):
    """Particles and what the network is to say of them.

    Attributes:
        volumes: ``(batch, z, y, x)``, normalised.
        lessons: of them.
    """

    volumes: np.ndarray
    lessons: Lessons


class Best(NamedTuple):
    """The best iteration so far.

    Attributes:
        index: of its classes, lower is better.
        labels: ``(n,)`` int32.
        params: of the network that described the particles then.
        stats: likewise.
    """

    index: np.ndarray
    labels: np.ndarray
    params: Any
    stats: Any


class Memory(NamedTuple):
    """What goes from iteration to iteration; arrays of fixed shapes.

    Attributes:
        labels: ``(n,)`` int32, -1 before the first iteration.
        changed: share of the particles that the last iteration moved.
        best: None where the last iteration is what counts.
    """

    labels: np.ndarray
    changed: np.ndarray
    best: Best | None

    @property
    def num_classes(self) -> int:
        """How many classes are in use; 0 before the first iteration."""
        return int(self.labels.max()) + 1


NewHead = Callable[[jax.Array, np.ndarray, Lessons, bool], dict[str, jax.Array]]


class Method(NamedTuple):
    """What such methods differ in.

    Attributes:
        name: as logged.
        iterations: at most.
        steps: of an epoch.
        group: ``(key, features, labels) -> labels`` from 0, no class empty; given are those of the
            last iteration, or None.
        judge: ``(features, labels) -> index``, lower is better; None if the last iteration is the
            one that counts.
        teach: ``(labels, iteration) -> lessons``.
        new_head: ``(key, features, lessons, is_other) -> arrays`` to put in the network, by their
            names there; ``is_other`` where the number of classes is another than before.
        order: ``(labels, iteration) -> rows`` of each batch of an epoch.
        loss: of a ``Batch``.
        most_changed: share of the particles that may still move when the classes are found; None
            to do all iterations.
    """

    name: str
    iterations: int
    steps: int
    group: Callable[[jax.Array, np.ndarray, np.ndarray | None], np.ndarray]
    judge: Callable[[np.ndarray, np.ndarray], float] | None
    teach: Callable[[np.ndarray, int], Lessons]
    new_head: NewHead
    order: Callable[[np.ndarray, int], Iterator[np.ndarray]]
    loss: LossFunction
    most_changed: float | None = None


def initial_memory(num_particles: int, network: Network, *, keeps_best: bool) -> Memory:
    """Nothing known yet."""
    nowhere = np.full(num_particles, -1, np.int32)
    best = None
    if keeps_best:
        params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
        best = Best(_float(np.inf), nowhere.copy(), params, stats)
    return Memory(nowhere, _float(1), best)


def build_stage(method: Method, network: Network, volumes: np.ndarray, *, seed: int) -> Stage:
    """Lays out all iterations of a method.

    Args:
        method: see there.
        network: with a linear ``head`` after its features.
        volumes: ``(n, z, y, x)``, normalised.
        seed: of the grouping.

    Returns:
        A stage for ``loop.train`` with a ``Memory``.
    """
    key = jax.random.key(seed)

    def regroup(
        state: TrainState, iteration: int, memory: Memory
    ) -> tuple[TrainState, Memory, dict[str, float]]:
        current = network_of(network, state)
        features = describe(current, volumes).features
        group_key, head_key = jax.random.split(jax.random.fold_in(key, iteration))
        found, noted = find_classes(group_key, features, current, memory, method)
        lessons = method.teach(found.labels, iteration)
        is_other = found.num_classes != memory.num_classes
        if head := method.new_head(head_key, features, lessons, is_other):
            state = state._replace(params=functional.replace_arrays(state.params, head))
        return state, found, noted

    def draw(iteration: int, memory: Memory) -> Iterator[Batch]:
        lessons = method.teach(memory.labels, iteration)
        for rows in method.order(memory.labels, iteration):
            known = Lessons(*(each[rows] for each in lessons))
            yield Batch(batches.Taken(rows, volumes), known)

    def is_over(memory: Memory) -> bool:
        return method.most_changed is not None and bool(memory.changed <= method.most_changed)

    return Stage(method.name, method.iterations, method.loss, draw, method.steps, regroup, is_over)


def find_classes(
    key: jax.Array, features: np.ndarray, network: Network, memory: Memory, method: Method
) -> tuple[Memory, dict[str, float]]:
    """Groups the particles anew by what the network says of them.

    Classes keep their numbers from iteration to iteration where there are as many as before.

    Args:
        key: seeds the grouping.
        features: ``(n, d)``.
        network: that says so.
        memory: of the last iteration.
        method: see there.

    Returns:
        The new memory, and numbers to log.
    """
    is_first = memory.num_classes == 0
    labels = method.group(key, features, None if is_first else memory.labels)
    num_classes, changed = int(labels.max()) + 1, 1.0
    if num_classes == memory.num_classes:
        labels = match_labels(labels, memory.labels, num_classes)
        changed = float(np.mean(labels != memory.labels))
    noted, best = {"num_classes": num_classes, "changed": changed}, memory.best
    if method.judge is not None:
        noted["index"] = method.judge(features, labels)
        if is_first or noted["index"] < best.index:
            params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
            best = Best(_float(noted["index"]), labels, params, stats)
    noted = {name: value for name, value in noted.items() if np.isfinite(value)}
    return Memory(labels, _float(changed), best), noted


def certain(labels: np.ndarray, num_heads: int) -> Lessons:
    """Lessons of labels ``(n,)`` as they are, of at most ``num_heads`` classes."""
    is_used = np.broadcast_to(np.arange(num_heads) <= labels.max(), (len(labels), num_heads))
    return Lessons(np.eye(num_heads, dtype=np.float32)[labels], is_used.astype(np.float32))


def shuffled(
    num_particles: int, batch_size: int, seed: int
) -> Callable[[np.ndarray, int], Iterator[np.ndarray]]:
    """The order of an epoch in which every particle is seen once."""

    def order(labels: np.ndarray, iteration: int) -> Iterator[np.ndarray]:
        del labels
        return batches.index_batches(num_particles, batch_size, seed=seed, epoch=iteration)

    return order


def cross_entropy(logits: jax.Array, targets: jax.Array, is_used: jax.Array) -> jax.Array:
    """Mean cross entropy of the softmax over the classes in use to targets.

    Args:
        logits: ``(batch, k)``.
        targets: ``(batch, k)``.
        is_used: ``(batch, k)``, 1 for classes that there are.
    """
    known = jax.nn.log_softmax(jnp.where(is_used > 0, logits, -jnp.inf))
    each = jnp.where(is_used > 0, targets * jnp.where(is_used > 0, known, 0), 0)
    return -jnp.mean(jnp.sum(each, axis=1))


def fit_head(
    key: jax.Array,
    features: np.ndarray,
    lessons: Lessons,
    score: Score,
    *,
    epochs: int,
    batch_size: int,
    rate: float,
) -> dict[str, jax.Array]:
    """Trains a new head on features as they are.

    Args:
        key: seeds it, and the order of the particles.
        features: ``(n, d)``.
        lessons: of them.
        score: to minimise.
        epochs: how many.
        batch_size: particles per step.
        rate: learning rate.

    Returns:
        The arrays of the head under their names in the network.
    """
    head_key, order_key = jax.random.split(key)
    seed = int(jax.random.randint(order_key, (), 0, np.iinfo(np.int32).max))
    order = [
        rows
        for epoch in range(epochs)
        for rows in batches.index_batches(len(features), batch_size, seed=seed, epoch=epoch)
    ]
    shape = features.shape[1], lessons.targets.shape[1]
    kernel = jax.nn.initializers.orthogonal()(head_key, shape)
    start = {"head.kernel": kernel, "head.bias": jnp.zeros(shape[1])}
    return _descend(start, features, lessons, np.stack(order), rate, score=score)


class HeadConfig(Protocol):
    """How a head is trained: epochs, particles per step, learning rate."""

    head_epochs: int
    batch_size: int
    head_rate: float


def head_for_other_classes(config: HeadConfig, score: Score) -> NewHead:
    """The ``new_head`` of methods that keep theirs as long as there are as many classes."""

    def new_head(
        key: jax.Array, features: np.ndarray, lessons: Lessons, is_other: bool
    ) -> dict[str, jax.Array]:
        if not is_other:
            return {}
        return fit_head(
            key,
            features,
            lessons,
            score,
            epochs=config.head_epochs,
            batch_size=config.batch_size,
            rate=config.head_rate,
        )

    return new_head


@functools.partial(jax.jit, static_argnames="score")
def _descend(
    head: dict[str, jax.Array],
    features: jax.Array,
    lessons: Lessons,
    order: jax.Array,
    rate: float,
    *,
    score: Score,
) -> dict[str, jax.Array]:
    optimizer = optax.nadam(rate)

    def objective(head: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        logits = features[rows] @ head["head.kernel"] + head["head.bias"]
        return score(logits, *(each[rows] for each in lessons))

    def step(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        head, state = carry
        updates, state = optimizer.update(jax.grad(objective)(head, rows), state, head)
        return (optax.apply_updates(head, updates), state), None

    return lax.scan(step, (head, optimizer.init(head)), order)[0][0]


def _float(number: float) -> np.ndarray:
    return np.array(number, np.float32)
