"""ProtoNet3D and ProtoNet-CE as objects with scikit-learn's habits.

``fit`` takes a few labelled particles of the classes that are wanted and makes a prototype of
each; it is quick, trains nothing and may be repeated for other classes. What is learned from many
particles of other classes is ``train``, and may be left out where there are weights.

Reference: Li et al. 2020; Uddin et al. 2022, whose values are the defaults.
"""

from dataclasses import replace
from pathlib import Path
from typing import Self

import jax
import numpy as np

from jimjax.data.subtomograms import Subtomograms
from jimjax.fewshot import training
from jimjax.fewshot.config import FewShotConfig
from jimjax.fewshot.episodes import EpisodeAccuracy, check_classes, score_episodes
from jimjax.fewshot.model import Model, embed
from jimjax.fewshot.pretraining import PRESETS
from jimjax.io.errors import InputError
from jimjax.models.functional import computing
from jimjax.models.weights import Description, Weights, build
from jimjax.progress import Progress


class FewShotClassifier:
    """Classifies particles by a few labelled ones.

    Attributes:
        weights_: of the network, once there is one.
        model_: what is left of ``fit``, also to be saved and loaded, see ``fewshot.model``.
        classes_: ``(k,)`` numbers of the classes that were fitted, from 0, ascending.
        prototypes_: ``(k, d)``, their mean embeddings.

    Args:
        config: how.
        weights: of a ProtoNet to begin with; random ones of the preset, as published, if None.
        command: as typed, for the record of a training.
    """

    model_: Model
    classes_: np.ndarray
    prototypes_: np.ndarray

    def __init__(self, config: FewShotConfig, *, weights: Weights | None = None, command: str = ""):
        self.config, self._given, self._command = config, weights, command
        self.weights_ = weights

    def train(
        self,
        base: Subtomograms,
        *,
        validation: Subtomograms | None = None,
        folder: str | Path | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> Self:
        """Learns from particles of known classes, other than those to be told apart.

        Args:
            base: with labels.
            validation: with labels, of yet other classes, or the same particles: after every
                epoch the network answers for 100 episodes of them, the best one is kept, and a
                long time without a better one is the end. The last network is kept if None.
            folder: where checkpoints and a log are kept; nowhere if None.
            resume: go on with what the folder holds; the outcome is that of an uninterrupted
                training.
            progress: told of every step.

        Returns:
            Itself; what was fitted before is as it was.

        Raises:
            InputError: if there are too few classes or particles for episodes, the box does not
                suit the network, or the folder holds the training of something else.
            Interrupted: after SIGTERM or SIGINT, with everything saved.
        """
        base_weights = self._weights_for(base, self._given)
        network = training.train(
            self.config,
            base_weights,
            base,
            validation,
            is_trained=self._given is not None,
            folder=None if folder is None else Path(folder),
            resume=resume,
            progress=progress,
            command=self._command,
        )
        self.weights_ = base_weights._replace(network=network)
        return self

    def fit(self, support: Subtomograms) -> Self:
        """Makes a prototype of each class of labelled particles.

        Args:
            support: with labels, one particle of each class at least.

        Returns:
            Itself.

        Raises:
            InputError: if the particles have no classes, or box or voxel size are not those of
                the weights.
        """
        weights = self._weights_for(support, self.weights_)
        self.model_ = Model.from_support(
            weights, support, method=self.config.method, contrast=self.config.contrast
        )
        self.classes_, self.prototypes_ = self.model_.classes, self.model_.prototypes
        return self

    def transform(self, particles: Subtomograms) -> np.ndarray:
        """Embeds particles: ``(n, d)`` features."""
        return self.model_.transform(particles)

    def predict_proba(self, particles: Subtomograms) -> np.ndarray:
        """Probabilities ``(n, k)`` of the classes, in the order of ``classes_``."""
        return self.model_.predict_proba(particles)

    def predict(self, particles: Subtomograms) -> np.ndarray:
        """The number of the likeliest class of each particle, ``(n,)`` int32, from 0."""
        return self.model_.predict(particles)

    def evaluate(
        self,
        particles: Subtomograms,
        *,
        ways: int = 2,
        shots: int = 5,
        queries: int = 15,
        num_episodes: int = 100,
        seed: int = 0,
    ) -> EpisodeAccuracy:
        """Finds how well labelled particles are told apart in episodes; needs no ``fit``.

        Args:
            particles: with labels.
            ways: classes in an episode.
            shots: particles of each that make its prototype.
            queries: others of each that are classified.
            num_episodes: two or more.
            seed: draws the episodes.

        Returns:
            Mean accuracy and half the width of its 95 % confidence interval.

        Raises:
            InputError: if there are too few classes, particles or episodes.
        """
        labels = check_classes(
            particles.labels, ways, shots + queries, "the particles to be tested"
        )
        weights = self._weights_for(particles, self.weights_)
        return score_episodes(
            weights.network,
            embed(weights, particles, self.config.contrast),
            labels,
            method=self.config.method,
            ways=ways,
            shots=shots,
            queries=queries,
            num_episodes=num_episodes,
            seed=seed,
        )

    def _weights_for(self, particles: Subtomograms, weights: Weights | None) -> Weights:
        """Weights that say which particles they are for; random ones if there are none."""
        if weights is None:
            box = particles.volumes.shape[-1]
            try:
                sizes = PRESETS[self.config.preset](box)
            except ValueError as problem:
                raise InputError(f"particles of {box} voxels: {problem}") from problem
            network = build(sizes, jax.random.key(self.config.seed), self.config.compute)
            return Weights(Description(sizes, self.config.contrast, particles.voxel_size), network)
        weights = weights._replace(network=computing(weights.network, self.config.compute))
        if weights.description.voxel_size:
            return weights
        described = replace(weights.description, voxel_size=float(particles.voxel_size))
        return weights._replace(description=described)
