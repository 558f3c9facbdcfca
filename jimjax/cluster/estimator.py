"""What every clustering method can be asked, as scikit-learn's estimators are."""

import abc
from pathlib import Path
from typing import Self

import numpy as np

from jimjax.cluster.model import Model
from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.progress import Progress
from jimjax.train.run import Prediction


class Clusterer(abc.ABC):
    """A method that finds classes of particles without labels.

    Attributes:
        model_: what is left of ``fit``, also to be saved and loaded, see ``cluster.model``.
        features_: ``(n, d)`` of the particles that were fitted.
        poses_: of the particles that were fitted, where the method finds some.
        labels_: ``(n,)`` int32 classes of the particles that were fitted, from 0.
        probabilities_: ``(n, k)``, how probable each class is for them.
    """

    model_: Model
    features_: np.ndarray
    poses_: Prediction | None
    labels_: np.ndarray
    probabilities_: np.ndarray

    def fit(
        self,
        particles: Subtomograms,
        *,
        folder: str | Path | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> Self:
        """Finds classes.

        Args:
            particles: only volumes and tilt ranges are looked at.
            folder: where checkpoints and a log are kept; nowhere if None.
            resume: go on with what the folder holds; the outcome is that of an uninterrupted fit.
            progress: told of every step.

        Returns:
            Itself.

        Raises:
            InputError: if there are fewer particles than classes, the box does not suit the
                network, or the folder holds the fit of something else.
            Interrupted: after SIGTERM or SIGINT, with everything saved.
        """
        if len(particles) < self.max_classes:
            raise InputError(
                f"{len(particles)} particles cannot be in {self.max_classes} classes; ask for "
                "fewer classes"
            )
        self.model_ = self._fit(particles, folder, resume, progress)
        found = self.model_.classify(particles)
        self.features_ = found.features
        self.poses_ = found if isinstance(found, Prediction) else None
        self._keep(found.probabilities)
        return self

    def learn(self, probabilities: np.ndarray, references: np.ndarray) -> None:
        """Takes over what another method says of the particles that were fitted.

        Args:
            probabilities: ``(n, k)``, of its classes.
            references: ``(k, z, y, x)``, their averages.
        """
        self.model_ = self.model_.taught(self.features_, probabilities, references)
        self._keep(probabilities)

    def _keep(self, probabilities: np.ndarray) -> None:
        self.probabilities_ = probabilities
        self.labels_ = probabilities.argmax(axis=1).astype(np.int32)

    def transform(self, particles: Subtomograms) -> np.ndarray:
        """Features of particles, ``(n, d)``."""
        return self.model_.transform(particles)

    def predict_proba(self, particles: Subtomograms) -> np.ndarray:
        """Probabilities of the classes, ``(n, k)``."""
        return self.model_.predict_proba(particles)

    def predict(self, particles: Subtomograms) -> np.ndarray:
        """The most probable class of each particle, ``(n,)`` int32."""
        return self.model_.predict(particles)

    @property
    @abc.abstractmethod
    def max_classes(self) -> int:
        """The largest number of classes that it may find."""

    @abc.abstractmethod
    def _fit(
        self,
        particles: Subtomograms,
        folder: str | Path | None,
        resume: bool,
        progress: Progress | None,
    ) -> Model:
        """Finds classes; ``fit`` has the arguments."""
