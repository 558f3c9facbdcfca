"""The iterations of DISCA: mixtures of the features, smoothed labels, turned copies, a hinge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jimjax.cluster.assignment import davies_bouldin, principal_axes
from jimjax.cluster.components import divide
from jimjax.cluster.disca_config import DiscaConfig
from jimjax.cluster.self_labelling import (
    Batch,
    Lessons,
    Method,
    head_for_other_classes,
    shuffled,
)
from jimjax.data import batches
from jimjax.mesh import map_batch
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.ops import resample
from jimjax.ops.rotation import random_rotation
from jimjax.train.state import Optimizer
from jimjax.train.step import LossFunction, LossResult

MOST_CHANGED = 0.001  # share of the particles; fewer, and the classes are found


def build_optimizer(config: DiscaConfig, num_particles: int) -> Optimizer:
    """NAdam, slower with each iteration."""
    per_iteration = batches.num_batches(num_particles, config.batch_size)
    schedule = optax.exponential_decay(
        config.learning_rate, per_iteration, config.learning_rate_decay, staircase=True
    )
    return Optimizer(optax.nadam(schedule), schedule)


def build_method(config: DiscaConfig, num_particles: int, mesh: Mesh, *, num_heads: int) -> Method:
    """What DISCA does in an iteration.

    Args:
        config: how.
        num_particles: how many there are.
        mesh: devices.
        num_heads: classes that the head of the network has.
    """

    def judge(features: np.ndarray, labels: np.ndarray) -> float:
        rows = principal_axes(features, config.num_axes).project(features)
        return davies_bouldin(rows, labels)

    return Method(
        name="disca",
        iterations=config.iterations,
        steps=batches.num_batches(num_particles, config.batch_size),
        group=lambda key, features, labels: divide(key, features, labels, config),
        judge=judge,
        teach=lambda labels, iteration: smoothed(labels, num_heads, config, iteration),
        new_head=head_for_other_classes(config, categorical_hinge),
        order=shuffled(num_particles, config.batch_size, config.seed),
        loss=_make_loss(config, mesh),
        most_changed=MOST_CHANGED,
    )


def smoothed(labels: np.ndarray, num_heads: int, config: DiscaConfig, iteration: int) -> Lessons:
    """Labels ``(n,)`` as probabilities, of which some is for all classes in use."""
    num_classes = int(labels.max()) + 1
    smoothing = config.smoothing * config.smoothing_decay ** (iteration + 1)
    is_used = np.broadcast_to(np.arange(num_heads) < num_classes, (len(labels), num_heads))
    certain = np.eye(num_heads)[labels]
    targets = (1 - smoothing) * certain + smoothing * is_used / num_classes
    return Lessons(targets.astype(np.float32), is_used.astype(np.float32))


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


def _make_loss(config: DiscaConfig, mesh: Mesh) -> LossFunction:
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
        found, stats = functional.apply(network, volumes, train=True)
        targets, is_used = (jnp.concatenate([each] * 2) for each in batch.lessons)
        return categorical_hinge(found.logits, targets, is_used), LossResult(stats, {})

    return loss
