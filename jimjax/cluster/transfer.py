"""Transfer: a network that was taught to tell simulated classes apart describes new particles.

Its head is left out; k-means divides the features of particles whose classes nobody knows. The
number of classes is given, or is that whose clusters are the most compact and furthest apart.

Reference: Moebel and Kervrann 2022, who report all numbers of clusters and choose none; they take
the features as they are, and so does this.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from sklearn.metrics import homogeneity_completeness_v_measure

from jimjax.cluster.assignment import Linear
from jimjax.cluster.centres import divide
from jimjax.cluster.estimator import Clusterer
from jimjax.cluster.features import describe, prepare
from jimjax.cluster.model import Model
from jimjax.cluster.transfer_config import TransferConfig
from jimjax.data.subtomograms import Subtomograms
from jimjax.models.weights import Weights
from jimjax.progress import Progress
from jimjax.train.records import Origin, Record

NUM_STARTS = 10  # of k-means in a sweep


class Transfer(Clusterer):
    """Clusters particles by the features of a network that was trained on others.

    Args:
        config: how.
        weights: of a network that describes single particles; see ``train.supervised`` for how
            to train one, ``models.keras_weights`` for published ones, and
            ``models.weights.load_shipped("deepfinder_small")`` for one that comes along.
        command: as typed, for the record in the folder.
    """

    def __init__(self, config: TransferConfig, *, weights: Weights, command: str = ""):
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
        weights, config = self._weights, self.config
        if not weights.description.voxel_size:  # of random molecules, which have no scale
            scaled = replace(weights.description, voxel_size=particles.voxel_size)
            weights = weights._replace(description=scaled)
        volumes = prepare(weights, particles, config.contrast)
        if folder is not None:
            origin = Origin(config, particles, weights=self._weights)
            Record(Path(folder), origin, self._command, resume).open()
        features = describe(weights.network, volumes).features
        key = jax.random.key(config.seed)
        labels = divide(key, features, config.candidates, num_starts=config.num_starts)
        return Model(weights, Linear.from_centres(features, labels), config.contrast)


class SweepRow(NamedTuple):
    """How well so many clusters agree with the truth; all from 0 to 1.

    Attributes:
        num_classes: clusters asked for.
        homogeneity: 1 if no cluster has particles of two classes.
        completeness: 1 if no class has particles in two clusters.
        v_measure: their harmonic mean.
    """

    num_classes: int
    homogeneity: float
    completeness: float
    v_measure: float


def sweep(
    features: np.ndarray, true_labels: np.ndarray, numbers: Sequence[int], *, seed: int = 0
) -> list[SweepRow]:
    """Divides features into several numbers of clusters and judges each by the truth.

    Args:
        features: ``(n, d)``.
        true_labels: ``(n,)``.
        numbers: of clusters.
        seed: of k-means.

    Returns:
        A row for each number, in that order.

    Raises:
        ValueError: if there are fewer rows than clusters.

    Reference: Moebel and Kervrann 2022, figures 2 C and D.
    """
    rows = []
    for number in numbers:
        labels = divide(jax.random.key(seed), features, (number,), num_starts=NUM_STARTS)
        scores = homogeneity_completeness_v_measure(true_labels, labels)
        rows.append(SweepRow(number, *map(float, scores)))
    return rows
