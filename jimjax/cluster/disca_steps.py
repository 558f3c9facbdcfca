"""The iterations of DISCA: classes from features, and an epoch that teaches them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from jimjax.cluster import assignment
from jimjax.cluster.disca_config import DiscaConfig
from jimjax.cluster.features import describe
from jimjax.data import batches
from jimjax.evaluate.clustering import match_labels
from jimjax.mesh import map_batch
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.models.yopo import BLOCK
from jimjax.ops import resample
from jimjax.ops.rotation import random_rotation
from jimjax.train.loop import Stage
from jimjax.train.state import Optimizer, TrainState, network_of
from jimjax.train.step import LossResult

MOST_CHANGED = 0.001  # share of the particles; fewer, and the classes are found


class Batch(NamedTuple):
    """Particles and the classes that they are believed to be in.

    Attributes:
        volumes: ``(batch, z, y, x)``, normalised.
        targets: ``(batch, k)``, 0 beyond the classes in use.
        is_used: ``(batch, k)``, 1 for classes in use.
    """

    volumes: np.ndarray
    targets: np.ndarray
    is_used: np.ndarray


class Memory(NamedTuple):
    """What goes from iteration to iteration; arrays of fixed shapes.

    Attributes:
        labels: ``(n,)`` int32, -1 before the first iteration.
        changed: share of the particles that the last iteration moved.
        best_index: Davies-Bouldin index of the best iteration so far.
        best_labels: ``(n,)`` int32, of it.
        best_params: of the network that described the particles then.
        best_stats: likewise.
    """

    labels: np.ndarray
    changed: np.ndarray
    best_index: np.ndarray
    best_labels: np.ndarray
    best_params: Any
    best_stats: Any

    @property
    def num_classes(self) -> int:
        """How many classes are in use; 0 before the first iteration."""
        return int(self.labels.max()) + 1


def initial_memory(num_particles: int, network: Network) -> Memory:
    """Nothing known yet."""
    nowhere = np.full(num_particles, -1, np.int32)
    params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
    return Memory(nowhere, _float(1), _float(np.inf), nowhere.copy(), params, stats)


def build_optimizer(config: DiscaConfig, num_particles: int) -> Optimizer:
    """NAdam, slower with each iteration."""
    per_iteration = batches.num_batches(num_particles, config.batch_size)
    schedule = optax.exponential_decay(
        config.learning_rate, per_iteration, config.learning_rate_decay, staircase=True
    )
    return Optimizer(optax.nadam(schedule), schedule)


def build_stage(
    config: DiscaConfig,
    network: Network,
    volumes: np.ndarray,
    mesh: Mesh,
    num_heads: int,
) -> Stage:
    """Lays out all iterations.

    Args:
        config: how.
        network: a YOPO; of its head no more classes are used than there are.
        volumes: ``(n, z, y, x)``, normalised.
        mesh: devices.
        num_heads: classes that the head has.

    Returns:
        A stage for ``loop.train`` with a ``Memory``.
    """
    num = len(volumes)
    key = jax.random.key(config.seed)

    def regroup(
        state: TrainState, iteration: int, memory: Memory
    ) -> tuple[TrainState, Memory, dict[str, float]]:
        current = network_of(network, state)
        features = describe(current, volumes).features
        group_key, head_key = jax.random.split(jax.random.fold_in(key, iteration))
        found, noted = find_classes(group_key, features, current, memory, config)
        if found.num_classes != memory.num_classes:
            targets = _targets(found.labels, num_heads, config, iteration)
            head = fit_head(head_key, features, *targets, config)
            state = state._replace(params=functional.replace_arrays(state.params, head))
        return state, found, noted

    def draw(iteration: int, memory: Memory) -> Iterator[Batch]:
        targets, is_used = _targets(memory.labels, num_heads, config, iteration)
        order = batches.index_batches(num, config.batch_size, seed=config.seed, epoch=iteration)
        for rows in order:
            yield Batch(volumes[rows], targets[rows], is_used[rows])

    return Stage(
        "disca",
        config.iterations,
        _make_loss(config, mesh),
        draw,
        batches.num_batches(num, config.batch_size),
        regroup,
        lambda memory: bool(memory.changed <= MOST_CHANGED),
    )


def find_classes(
    key: jax.Array, features: np.ndarray, network: Network, memory: Memory, config: DiscaConfig
) -> tuple[Memory, dict[str, float]]:
    """Groups the particles anew by what the network says of them.

    Classes keep their numbers from iteration to iteration where there are as many as before.

    Args:
        key: seeds the mixtures.
        features: ``(n, d)``.
        network: that says so.
        memory: of the last iteration.
        config: of DISCA.

    Returns:
        The new memory, and numbers to log.
    """
    rows = assignment.principal_axes(features, config.num_axes).project(features)
    is_first = memory.num_classes == 0
    labels = assignment.group(
        key,
        rows,
        config.candidates,
        num_starts=config.num_starts,
        current=None if is_first else memory.labels,
    )
    num_classes, changed = int(labels.max()) + 1, 1.0
    if num_classes == memory.num_classes:
        labels = match_labels(labels, memory.labels, num_classes)
        changed = float(np.mean(labels != memory.labels))
    index = assignment.davies_bouldin(rows, labels)
    if is_first or index < memory.best_index:
        params, stats = jax.tree.map(np.asarray, (network.params, network.stats))
        memory = memory._replace(
            best_index=_float(index), best_labels=labels, best_params=params, best_stats=stats
        )
    memory = memory._replace(labels=labels, changed=_float(changed))
    noted = {"num_classes": num_classes, "changed": changed, "davies_bouldin": index}
    return memory, {name: value for name, value in noted.items() if np.isfinite(value)}


def fit_head(
    key: jax.Array,
    features: np.ndarray,
    targets: np.ndarray,
    is_used: np.ndarray,
    config: DiscaConfig,
) -> dict[str, jax.Array]:
    """Trains a new head on features as they are.

    Args:
        key: seeds it.
        features: ``(n, d)``.
        targets: ``(n, k)``.
        is_used: ``(n, k)``.
        config: of DISCA.

    Returns:
        The arrays of the head under their names in the network.
    """
    order = [
        rows
        for epoch in range(config.head_epochs)
        for rows in batches.index_batches(
            len(features), config.batch_size, seed=config.seed, epoch=epoch
        )
    ]
    shape = features.shape[1], targets.shape[1]
    kernel = jax.nn.initializers.orthogonal()(key, shape)
    start = {"head.kernel": kernel, "head.bias": jnp.zeros(shape[1])}
    return _descend(start, features, targets, is_used, np.stack(order), config.head_rate)


@jax.jit
def _descend(
    head: dict[str, jax.Array],
    features: jax.Array,
    targets: jax.Array,
    is_used: jax.Array,
    order: jax.Array,
    rate: float,
) -> dict[str, jax.Array]:
    optimizer = optax.nadam(rate)

    def objective(head: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        logits = features[rows] @ head["head.kernel"] + head["head.bias"]
        return categorical_hinge(logits, targets[rows], is_used[rows])

    def step(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        head, state = carry
        updates, state = optimizer.update(jax.grad(objective)(head, rows), state, head)
        return (optax.apply_updates(head, updates), state), None

    return lax.scan(step, (head, optimizer.init(head)), order)[0][0]


def categorical_hinge(logits: jax.Array, targets: jax.Array, is_used: jax.Array) -> jax.Array:
    """How far the wanted class is from being ahead of all others by a margin of 1.

        max(0, 1 + max_j (1 - y_j) p_j - sum_j y_j p_j),   p = softmax of the logits

    Args:
        logits: ``(batch, k)``.
        targets: ``(batch, k)``, labels, perhaps smoothed.
        is_used: ``(batch, k)``, 1 for classes that there are.

    Returns:
        Scalar, the mean over the batch.
    """
    probabilities = jax.nn.softmax(jnp.where(is_used > 0, logits, -jnp.inf))
    wanted = jnp.sum(targets * probabilities, axis=1)
    others = jnp.max((1 - targets) * probabilities, axis=1)
    return jnp.mean(jnp.maximum(0, 1 + others - wanted))


def classify(network: Network, volumes: jax.Array) -> tuple[jax.Array, Any]:
    """Logits and new statistics in training; of a block only the result is kept for the gradient.

    Args:
        network: a YOPO.
        volumes: ``(batch, z, y, x)``.
    """

    def forward(params: Any, stats: Any, volumes: jax.Array) -> tuple[jax.Array, Any]:
        current = network._replace(params=params, stats=stats)
        found, stats = functional.apply(current, volumes, train=True)
        return found.logits, stats

    keep = jax.checkpoint_policies.save_only_these_names(BLOCK)
    return jax.checkpoint(forward, policy=keep)(network.params, network.stats, volumes)


def _targets(
    labels: np.ndarray, num_heads: int, config: DiscaConfig, iteration: int
) -> tuple[np.ndarray, np.ndarray]:
    num_classes = int(labels.max()) + 1
    smoothing = config.smoothing * config.smoothing_decay ** (iteration + 1)
    is_used = np.broadcast_to(np.arange(num_heads) < num_classes, (len(labels), num_heads))
    certain = np.eye(num_heads)[labels]
    targets = (1 - smoothing) * certain + smoothing * is_used / num_classes
    return targets.astype(np.float32), is_used.astype(np.float32)


def _float(number: float) -> np.ndarray:
    return np.array(number, np.float32)


def _make_loss(config: DiscaConfig, mesh: Mesh) -> Any:
    def turn(volume: jax.Array, key: jax.Array) -> jax.Array:
        turn_key, fill_key = jax.random.split(key)
        rotation = random_rotation(turn_key)
        turned = resample.rotate(volume, rotation, order=3)
        inside = resample.rotate(jnp.ones_like(volume), rotation)
        return turned * inside + jax.random.normal(fill_key, volume.shape) * (1 - inside)

    def loss(network: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        turn_key, noise_key = jax.random.split(key)
        keys = jax.random.split(turn_key, len(batch.volumes))
        turned = map_batch(turn, mesh)(batch.volumes, keys)
        volumes = jnp.concatenate([batch.volumes, turned])
        volumes *= 1 + config.noise * jax.random.normal(noise_key, volumes.shape)
        logits, stats = classify(network, volumes)
        targets, is_used = (jnp.concatenate([each] * 2) for each in batch[1:])
        return categorical_hinge(logits, targets, is_used), LossResult(stats, {})

    return loss
