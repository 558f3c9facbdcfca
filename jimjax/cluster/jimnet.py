"""Jim-Net as a method of clustering: particles go to the reference that they align to best.

The references are made of the particles themselves, with a network that learned on random
molecules how to describe and align any; see ``train.pretrained``. Nothing is trained here.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from jimjax.cluster.components import count_classes
from jimjax.cluster.estimator import Clusterer
from jimjax.cluster.features import describe
from jimjax.cluster.jimnet_config import JimNetConfig
from jimjax.cluster.model import Model, References
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.models.weights import Weights
from jimjax.progress import Progress
from jimjax.train.pretrained import adopt
from jimjax.train.records import Origin, Record

NUM_AXES, NUM_STARTS = 6, 5  # of the mixtures that count classes


class JimNet(Clusterer):
    """Clusters particles by aligning them to references that it makes of them.

    ``model_.align(particles)`` gives poses as well.

    Args:
        config: how.
        weights: of a Jim-Net.
        command: as typed, for the record in the folder.
    """

    def __init__(self, config: JimNetConfig, *, weights: Weights, command: str = ""):
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
        if folder is not None:
            origin = Origin(self.config, particles, weights=self._weights)
            Record(Path(folder), origin, self._command, resume).open()
        given = self._weights.description
        box = particles.volumes.shape[-1]
        sign = np.float32(1 if given.contrast == self.config.contrast else -1)
        seen = dataclasses.replace(particles, volumes=sign * particles.volumes)
        num_classes = self.max_classes
        if len(self.config.candidates) > 1:
            num_classes = self._count(normalize(seen.volumes))
        run = adopt(self._weights, seen, num_classes=num_classes, seed=self.config.seed)
        description = dataclasses.replace(
            given,
            config=dataclasses.replace(given.config, box=box),
            voxel_size=float(particles.voxel_size),
        )
        weights = Weights(description, self._weights.network)
        return Model(weights, References(run.references), self.config.contrast)

    def _count(self, volumes: np.ndarray) -> int:
        return count_classes(
            jax.random.key(self.config.seed),
            describe(self._weights.network, volumes).features,
            self.config.candidates,
            num_axes=NUM_AXES,
            num_starts=NUM_STARTS,
        )
