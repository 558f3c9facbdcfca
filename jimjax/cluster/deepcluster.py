"""DeepCluster in three dimensions: a network learns the clusters k-means finds in what it says.

Every epoch begins with k-means of the features along their principal axes, each of variance 1 and
each particle of length 1, and with a new head; particles are drawn equally often from all
clusters, so that none swallows the others.

Reference: Caron et al. 2018, DeepCluster, and its published code. Particles have no colours to get
rid of, so there is no Sobel filter; the network is a YOPO; what is kept for new particles is a
Gaussian mixture with one covariance, fitted to the last clusters.
"""

from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jimjax.cluster import centres
from jimjax.cluster.assignment import REGULARIZATION, Assignment, principal_axes
from jimjax.cluster.augmentation import perturb_all
from jimjax.cluster.deepcluster_config import DeepClusterConfig
from jimjax.cluster.features import describe
from jimjax.cluster.learner import Learner, Plan
from jimjax.cluster.self_labelling import (
    Batch,
    Lessons,
    Memory,
    Method,
    build_stage,
    certain,
    cross_entropy,
    initial_memory,
)
from jimjax.data.batches import num_batches
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.ops import mixture
from jimjax.train.state import Optimizer
from jimjax.train.step import LossFunction, LossResult
from jimjax.train.supervised import draw_balanced
from jimjax.train.yopo import PRESETS

HEAD_SPREAD = 0.01  # standard deviation of a new head's weights
FLAT = 1e-6  # of the largest variance; an axis along which there is less tells nothing
HEAD = "head."  # names of its arrays begin with it


class DeepCluster(Learner):
    """Clusters particles as DeepCluster does; features are those of a YOPO.

    Its ``config`` is a ``DeepClusterConfig``; see ``Learner`` for the other arguments.
    """

    presets: ClassVar = PRESETS

    def plan(self, network: Network, volumes: np.ndarray, mesh: Mesh) -> Plan:
        """All iterations."""
        config, num = self.config, len(volumes)
        method = _build_method(config, num, mesh, num_heads=self.num_outputs)
        stage = build_stage(method, network, volumes, seed=config.seed)
        memory = initial_memory(num, network, keeps_best=False)
        return Plan([stage], memory, build_optimizer(config, network))

    def conclude(
        self, network: Network, memory: Memory, volumes: np.ndarray
    ) -> tuple[Network, Assignment]:
        """The network as it is in the end, and a mixture fitted to its clusters."""
        config, features = self.config, describe(network, volumes).features
        key = jax.random.fold_in(jax.random.key(config.seed), config.iterations)
        labels = group(key, features, config)
        axes = principal_axes(features, config.num_axes)
        fitted = mixture.m_step(
            jnp.asarray(axes.project(features)),
            jax.nn.one_hot(labels, labels.max() + 1),
            covariance="tied",
            regularization=REGULARIZATION,
        )
        return network, Assignment(axes, fitted)


def build_optimizer(config: DeepClusterConfig, network: Network) -> Optimizer:
    """Gradient descent with momentum, but none for the head."""
    names = functional.name_arrays(network.params)
    has_momentum = jax.tree.unflatten(
        jax.tree.structure(network.params), [not name.startswith(HEAD) for name in names]
    )
    descent = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.masked(optax.trace(config.momentum), has_momentum),
        optax.scale(-config.learning_rate),
    )
    return Optimizer(descent, optax.constant_schedule(config.learning_rate))


def group(key: jax.Array, features: np.ndarray, config: DeepClusterConfig) -> np.ndarray:
    """Divides whitened features ``(n, d)`` by k-means; ``(n,)`` labels from 0, none empty."""
    rows = whiten(features, config.num_axes)
    return centres.divide(key, rows, config.candidates, num_starts=config.num_starts)


def whiten(features: np.ndarray, num_axes: int) -> np.ndarray:
    """Coordinates of features along principal axes, each of variance 1, each row of length 1.

    Args:
        features: ``(n, d)``.
        num_axes: how many at most; axes without spread are left at 0.

    Returns:
        ``(n, p)`` float32.
    """
    rows = principal_axes(features, num_axes).project(features).astype(np.float64)
    variance = rows.var(axis=0)
    is_flat = variance <= FLAT * variance.max()
    rows = np.where(is_flat, 0, rows / np.sqrt(np.where(is_flat, 1, variance)))
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)


def _build_method(
    config: DeepClusterConfig, num_particles: int, mesh: Mesh, *, num_heads: int
) -> Method:
    steps = num_batches(num_particles, config.batch_size)

    def new_head(
        key: jax.Array, features: np.ndarray, lessons: Lessons, is_other: bool
    ) -> dict[str, jax.Array]:
        del lessons, is_other
        kernel = HEAD_SPREAD * jax.random.normal(key, (features.shape[1], num_heads))
        return {"head.kernel": kernel, "head.bias": jnp.zeros(num_heads)}

    def order(labels: np.ndarray, iteration: int) -> Iterator[np.ndarray]:
        drawn = draw_balanced(labels, steps * config.batch_size, seed=config.seed, epoch=iteration)
        return iter(drawn.reshape(steps, config.batch_size))

    return Method(
        name="deepcluster",
        iterations=config.iterations,
        steps=steps,
        group=lambda key, features, labels: group(key, features, config),
        judge=None,
        teach=lambda labels, iteration: certain(labels, num_heads),
        new_head=new_head,
        order=order,
        loss=_make_loss(config, mesh),
    )


def _make_loss(config: DeepClusterConfig, mesh: Mesh) -> LossFunction:
    change = perturb_all(mesh, max_shift=config.max_shift, noise=config.noise)

    def loss(network: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossResult]:
        found, stats = functional.apply(network, change(key, batch.volumes), train=True)
        return cross_entropy(found.logits, *batch.lessons), LossResult(stats, {})

    return loss
