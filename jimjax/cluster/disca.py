"""DISCA: a network learns the classes that a mixture of its own features proposes.

Every iteration describes all particles, fits mixtures of several numbers of components to the
descriptions, and trains the network for an epoch to say which component each particle, and a
turned copy of it, belongs to. The iteration whose classes are furthest apart is kept.

Reference: Zeng et al. 2023, DISCA, and its published code. Turned copies are drawn uniformly from
all rotations and filled with noise, as the paper says; the code's are neither.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.cluster import disca_steps
from jimjax.cluster.assignment import Assignment, fit_labels, principal_axes
from jimjax.cluster.disca_config import DiscaConfig
from jimjax.cluster.disca_steps import Memory
from jimjax.cluster.estimator import Clusterer
from jimjax.cluster.features import describe
from jimjax.cluster.model import Model
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh, replicate
from jimjax.models.functional import Network
from jimjax.models.weights import Description, Weights, build, transplant
from jimjax.models.yopo import YopoConfig
from jimjax.progress import Progress
from jimjax.train import loop
from jimjax.train.records import begin_folder, check_folder
from jimjax.train.resume import train_in_folder
from jimjax.train.state import initial_state
from jimjax.train.yopo import PRESETS


class Disca(Clusterer):
    """Clusters particles as DISCA does; features are those of a YOPO.

    Args:
        config: how.
        weights: of a YOPO to begin with, all but its head; random ones, as published, if None.
        command: as typed, for the record in the folder.
    """

    def __init__(self, config: DiscaConfig, *, weights: Weights | None = None, command: str = ""):
        self.config, self._weights, self._command = config, weights, command

    @property
    def max_classes(self) -> int:
        """The largest number of classes that it may find."""
        return max(self.config.candidates)

    def _fit(
        self,
        particles: Subtomograms,
        folder: str | Path | None,
        resume: bool,
        progress: Progress | None,
    ) -> Model:
        given = (
            self.config.contrast if self._weights is None else self._weights.description.contrast
        )
        sign = 1 if given == self.config.contrast else -1
        volumes = sign * normalize(particles.volumes)
        description = Description(self._sizes(volumes.shape[-1]), given, particles.voxel_size)
        network = build(description.config, jax.random.key(self.config.seed))
        if self._weights is not None:
            network = transplant(self._weights, network)
        memory = self._train(network, volumes, particles, folder, resume, progress)
        best = network._replace(params=memory.best_params, stats=memory.best_stats)
        best = jax.tree.map(jnp.asarray, best)
        features = describe(best, volumes).features
        axes = principal_axes(features, self.config.num_axes)
        mixture = fit_labels(axes.project(features), memory.best_labels)
        return Model(Weights(description, best), Assignment(axes, mixture), self.config.contrast)

    def _sizes(self, box: int) -> YopoConfig:
        try:
            return PRESETS[self.config.preset](box, self.max_classes)
        except ValueError as problem:
            raise InputError(f"particles of {box} voxels: {problem}") from problem

    def _train(
        self,
        network: Network,
        volumes: np.ndarray,
        particles: Subtomograms,
        folder: str | Path | None,
        resume: bool,
        progress: Progress | None,
    ) -> Memory:
        mesh = data_mesh()
        optimizer = disca_steps.build_optimizer(self.config, len(volumes))
        state = replicate(initial_state(network, optimizer), mesh)
        memory = disca_steps.initial_memory(len(volumes), network)
        stage = disca_steps.build_stage(self.config, network, volumes, mesh, self.max_classes)
        options = {
            "key": jax.random.key(self.config.seed),
            "optimizer": optimizer,
            "mesh": mesh,
            "progress": progress,
        }
        if folder is None:
            return loop.train(network, state, memory, [stage], **options)[1]
        folder = Path(folder)
        check_folder(self.config, particles, None, folder, resume)
        if not resume:
            begin_folder(self.config, particles, None, folder, self._command)
        return train_in_folder(folder, network, state, memory, [stage], resume=resume, **options)[1]
