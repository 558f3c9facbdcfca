"""DISCA: a network learns the classes that a mixture of its own features proposes.

Every iteration describes all particles, fits mixtures of several numbers of components to the
descriptions, and trains the network for an epoch to say which component each particle, and a
turned copy of it, belongs to. The iteration whose classes are furthest apart is kept.

Reference: Zeng et al. 2023, DISCA, and its published code. Turned copies are drawn uniformly from
all rotations and filled with noise, as the paper says; the code's are neither.
"""

from pathlib import Path

import jax
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
from jimjax.models import yopo
from jimjax.models.functional import Network
from jimjax.models.weights import Description, Weights, build, transplant
from jimjax.progress import Progress
from jimjax.train import loop
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.records import begin_folder, check_folder, forget_after
from jimjax.train.state import TrainState, initial_state

PRESETS = {"small": yopo.small, "paper": yopo.paper}
METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


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
        volumes = self._volumes(particles)
        network = self._network(volumes.shape[-1])
        optimizer = disca_steps.build_optimizer(self.config, len(volumes))
        mesh = data_mesh()
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
            _, memory = loop.train(network, state, memory, [stage], **options)
            return self._finish(network, volumes, particles.voxel_size, memory)
        folder = Path(folder)
        check_folder(self.config, particles, None, folder, resume)
        if not resume:
            begin_folder(self.config, particles, None, folder, self._command)
        with open_checkpoints(folder / CHECKPOINTS) as checkpoints:
            if resume and checkpoints.latest_step is not None:
                saved = checkpoints.restore({"state": state, "memory": memory})
                state = TrainState(*saved["state"])
                memory = Memory(*saved["memory"])
                forget_after(folder / METRICS, int(state.step))
            options |= {"checkpoints": checkpoints, "log": loop.Log(folder / METRICS)}
            _, memory = loop.train(network, state, memory, [stage], **options)
        return self._finish(network, volumes, particles.voxel_size, memory)

    def _volumes(self, particles: Subtomograms) -> np.ndarray:
        is_negated = self._weights is not None and (
            self._weights.description.contrast != self.config.contrast
        )
        return normalize(particles.volumes) * np.float32(-1 if is_negated else 1)

    def _network(self, box: int) -> Network:
        try:
            sizes = PRESETS[self.config.preset](box, self.max_classes)
        except ValueError as problem:
            raise InputError(f"particles of {box} voxels: {problem}") from problem
        network = build(sizes, jax.random.key(self.config.seed))
        return network if self._weights is None else transplant(self._weights, network)

    def _finish(
        self, network: Network, volumes: np.ndarray, voxel_size: float, memory: Memory
    ) -> Model:
        best = network._replace(params=memory.best_params, stats=memory.best_stats)
        best = jax.tree.map(jax.numpy.asarray, best)
        features = describe(best, volumes).features
        axes = principal_axes(features, self.config.num_axes)
        mixture = fit_labels(axes.project(features), np.asarray(memory.best_labels))
        given = (
            self.config.contrast if self._weights is None else self._weights.description.contrast
        )
        sizes = PRESETS[self.config.preset](volumes.shape[-1], self.max_classes)
        weights = Weights(Description(sizes, given, voxel_size), best)
        return Model(weights, Assignment(axes, mixture), self.config.contrast)
