"""DISCA: a network learns the classes that a mixture of its own features proposes.

Every iteration describes all particles, fits mixtures of several numbers of components to the
descriptions, and trains the network for an epoch to say which component each particle, and a
turned copy of it, belongs to. The iteration whose classes are furthest apart is kept.

Reference: Zeng et al. 2023, DISCA, and its published code. Turned copies are drawn uniformly from
all rotations and filled with noise, as the paper says; the code's are neither.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.cluster import disca_steps
from jimjax.cluster.assignment import Assignment, fit_labels, principal_axes
from jimjax.cluster.features import describe
from jimjax.cluster.learner import Learner, Plan
from jimjax.cluster.self_labelling import Memory, build_stage, initial_memory
from jimjax.models.functional import Network
from jimjax.train.yopo import PRESETS


class Disca(Learner):
    """Clusters particles as DISCA does; features are those of a YOPO.

    Its ``config`` is a ``DiscaConfig``; see ``Learner`` for the other arguments.
    """

    presets: ClassVar = PRESETS

    def plan(self, network: Network, volumes: np.ndarray, mesh: Mesh) -> Plan:
        """All iterations."""
        config, num = self.config, len(volumes)
        method = disca_steps.build_method(config, num, mesh, num_heads=self.num_outputs)
        stage = build_stage(method, network, volumes, seed=config.seed)
        memory = initial_memory(num, network, keeps_best=True)
        return Plan([stage], memory, disca_steps.build_optimizer(config, num))

    def conclude(
        self, network: Network, memory: Memory, volumes: np.ndarray
    ) -> tuple[Network, Assignment]:
        """The network of the best iteration, and a mixture that begins with its labels."""
        best = memory.best
        network = network._replace(params=best.params, stats=best.stats)
        network = jax.tree.map(jnp.asarray, network)
        features = describe(network, volumes).features
        axes = principal_axes(features, self.config.num_axes)
        return network, Assignment(axes, fit_labels(axes.project(features), best.labels))
