"""Jim-Net without its alignment: the clustering branch alone, as the paper's ablation has it.

The network describes each particle beside itself, F(x, x), and its head learns the classes of a
Gaussian mixture of the descriptions. What counts in the end is the head.

Reference: Zeng, Howe, Xu 2021, Jim-Net, algorithm 1 without the pairs, table 2 "Jim-Net (cluster)".
"""

from typing import ClassVar

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jimjax.cluster.assignment import Linear
from jimjax.cluster.components import divide
from jimjax.cluster.jimnet_cluster_config import JimNetClusterConfig
from jimjax.cluster.learner import Learner, Plan
from jimjax.cluster.self_labelling import (
    Batch,
    Memory,
    Method,
    build_stage,
    certain,
    cross_entropy,
    head_for_other_classes,
    initial_memory,
    shuffled,
)
from jimjax.data.batches import num_batches
from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.train.jimnet import PRESETS
from jimjax.train.state import adam
from jimjax.train.step import LossResult


class JimNetCluster(Learner):
    """Clusters particles by what a Jim-Net says of each, without aligning any.

    Its ``config`` is a ``JimNetClusterConfig``; see ``Learner`` for the other arguments.
    """

    presets: ClassVar = PRESETS

    def plan(self, network: Network, volumes: np.ndarray, mesh: Mesh) -> Plan:
        """All iterations."""
        del mesh
        config, num = self.config, len(volumes)
        method = _build_method(config, num, num_heads=self.num_outputs)
        stage = build_stage(method, network, volumes, seed=config.seed)
        memory = initial_memory(num, network, keeps_best=False)
        return Plan([stage], memory, adam(optax.constant_schedule(config.learning_rate)))

    def conclude(
        self, network: Network, memory: Memory, volumes: np.ndarray
    ) -> tuple[Network, Linear]:
        """The network in the end and its head, as far as that is in use."""
        del volumes
        arrays, num = functional.name_arrays(network.params), memory.num_classes
        kernel, bias = (np.asarray(arrays[name]) for name in ("head.kernel", "head.bias"))
        return network, Linear(np.ascontiguousarray(kernel[:, :num]), bias[:num])


def _build_method(config: JimNetClusterConfig, num_particles: int, *, num_heads: int) -> Method:
    return Method(
        name="jimnet-cluster",
        iterations=config.iterations,
        steps=num_batches(num_particles, config.batch_size),
        group=lambda key, features, labels: divide(key, features, labels, config),
        judge=None,
        teach=lambda labels, iteration: certain(labels, num_heads),
        new_head=head_for_other_classes(config, cross_entropy),
        order=shuffled(num_particles, config.batch_size, config.seed),
        loss=_loss,
    )


def _loss(network: Network, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossResult]:
    del key
    found, stats = functional.describe(network, batch.volumes, train=True)
    return cross_entropy(found.logits, *batch.lessons), LossResult(stats, {})
