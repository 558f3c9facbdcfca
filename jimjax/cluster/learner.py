"""What the methods share that train a network on the very particles that they cluster."""

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.cluster.assignment import Assignment, Linear
from jimjax.cluster.estimator import Clusterer
from jimjax.cluster.model import Model
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh, replicate
from jimjax.models.functional import Network
from jimjax.models.weights import Contrast, Description, NetworkConfig, Weights, build, transplant
from jimjax.progress import Progress
from jimjax.train.loop import Stage
from jimjax.train.records import Origin, Record
from jimjax.train.resume import train_recorded
from jimjax.train.state import Optimizer, initial_state, network_of


class LearnerConfig(Protocol):
    """What every such method is told.

    Attributes:
        preset: sizes of the network.
        contrast: of the protein in the particles.
        candidates: numbers of classes to choose from.
        seed: of all that is random.
    """

    preset: str
    contrast: Contrast
    candidates: tuple[int, ...]
    seed: int


class Plan(NamedTuple):
    """How a network is trained.

    Attributes:
        stages: of ``loop.train``.
        memory: that they begin with.
        optimizer: for all of them.
    """

    stages: list[Stage]
    memory: Any
    optimizer: Optimizer


class Learner(Clusterer):
    """A method that trains a network on the particles that it clusters.

    Args:
        config: how.
        weights: of a network to begin with, all but its head; random ones, as published, if None.
        command: as typed, for the record in the folder.
    """

    presets: ClassVar[Mapping[str, Callable[[int, int], NetworkConfig]]]

    def __init__(self, config: LearnerConfig, *, weights: Weights | None = None, command: str = ""):
        self.config, self._weights, self._command = config, weights, command

    @property
    def max_classes(self) -> int:
        """The largest number of classes that it may find."""
        return max(self.config.candidates)

    @property
    def num_outputs(self) -> int:
        """How many outputs the head of the network has."""
        return self.max_classes

    @abc.abstractmethod
    def plan(self, network: Network, volumes: np.ndarray, mesh: Mesh) -> Plan:
        """Lays out the training.

        Args:
            network: to begin with.
            volumes: ``(n, z, y, x)``, normalised.
            mesh: devices.
        """

    @abc.abstractmethod
    def conclude(
        self, network: Network, memory: Any, volumes: np.ndarray
    ) -> tuple[Network, Assignment | Linear]:
        """Chooses what is kept: a network, and the classes of what it says.

        Args:
            network: at the end of the training.
            memory: likewise.
            volumes: ``(n, z, y, x)``, normalised.
        """

    def _fit(
        self,
        particles: Subtomograms,
        folder: str | Path | None,
        resume: bool,
        progress: Progress | None,
    ) -> Model:
        wanted = self.config.contrast
        given = wanted if self._weights is None else self._weights.description.contrast
        volumes = (1 if given == wanted else -1) * normalize(particles.volumes)
        description = Description(self._sizes(volumes.shape[-1]), given, particles.voxel_size)
        network = build(description.config, jax.random.key(self.config.seed), self.config.compute)
        if self._weights is not None:
            network = transplant(self._weights, network)
        network, memory = self._train(network, volumes, particles, folder, resume, progress)
        network, assignment = self.conclude(network, memory, volumes)
        return Model(Weights(description, network), assignment, wanted)

    def _sizes(self, box: int) -> NetworkConfig:
        try:
            return self.presets[self.config.preset](box, self.num_outputs)
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
    ) -> tuple[Network, Any]:
        mesh = data_mesh()
        stages, memory, optimizer = self.plan(network, volumes, mesh)
        # A step consumes the state that it is given, and the weights are not ours.
        state = jax.tree.map(jnp.copy, initial_state(network, optimizer))
        state = replicate(state, mesh)
        options = {
            "key": jax.random.key(self.config.seed),
            "optimizer": optimizer,
            "mesh": mesh,
            "progress": progress,
        }
        record = None
        if folder is not None:
            origin = Origin(self.config, particles, weights=self._weights)
            record = Record(Path(folder), origin, self._command, resume)
        state, memory = train_recorded(record, network, state, memory, stages, **options)
        return network_of(network, state), memory
