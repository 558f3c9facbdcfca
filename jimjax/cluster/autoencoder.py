"""Clusters of the codes from which an autoencoder can draw particles again.

Codes have to tell where a particle is and how it is turned as well as what it is, and k-means
does not know which of it matters: in the principal frame (``normalize_pose``) there is less to
tell.

Reference: Zeng et al. 2018, J. Struct. Biol. 202. There particles are as they are; here each has
zero mean and unit deviation, so that one learning rate and one weight of sparsity suit all.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.cluster.assignment import Linear
from jimjax.cluster.autoencoder_config import AutoencoderConfig
from jimjax.cluster.centres import divide
from jimjax.cluster.estimator import Clusterer
from jimjax.cluster.features import describe
from jimjax.cluster.model import Model
from jimjax.data.batches import map_chunks
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.io.errors import InputError
from jimjax.models import autoencoder, functional
from jimjax.models.autoencoder import Autoencoder3DConfig
from jimjax.models.functional import Network
from jimjax.models.weights import Contrast, Description, Weights, build, transplant
from jimjax.progress import Progress
from jimjax.train.loop import TrainingError
from jimjax.train.patience import Errors, train_best
from jimjax.train.records import Origin, Record

PRESETS = {"small": autoencoder.small, "paper": autoencoder.paper}
CONTRAST: Contrast = "light"  # that the network sees: protein is positive
CHUNK = 64  # particles at a time; has no influence on the result


class Autoencoder(Clusterer):
    """Clusters particles by k-means of the codes of an Autoencoder3D.

    Args:
        config: how.
        weights: of an Autoencoder3D to begin with; random ones, as published, if None.
        command: as typed, for the record in the folder.
    """

    def __init__(
        self, config: AutoencoderConfig, *, weights: Weights | None = None, command: str = ""
    ):
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
        config = self.config
        sign = 1 if config.contrast == CONTRAST else -1
        volumes = sign * normalize(particles.volumes)
        description = Description(self._sizes(volumes.shape[-1]), CONTRAST, particles.voxel_size)
        network = build(description.config, jax.random.key(config.seed), config.compute)
        if self._weights is not None:
            network = transplant(_checked(self._weights), network)
        record = None
        if folder is not None:
            record = Record(
                Path(folder), Origin(config, particles, None, self._weights), self._command, resume
            )
        errors = _make_errors(config.sparsity)
        prepared = prepare(network, volumes)
        network = train_best(
            "autoencoder", network, prepared, errors, config, record=record, progress=progress
        )
        features = describe(network, volumes).features
        if np.ptp(features, axis=0).max() == 0 < np.ptp(prepared, axis=0).max():
            raise TrainingError(
                "the autoencoder learned to describe all particles alike; lower learning_rate or "
                "sparsity in the configuration, or choose another seed"
            )
        labels = divide(
            jax.random.key(config.seed), features, config.candidates, num_starts=config.num_starts
        )
        assignment = Linear.from_centres(features, labels)
        return Model(Weights(description, network), assignment, config.contrast)

    def _sizes(self, box: int) -> Autoencoder3DConfig:
        try:
            return PRESETS[self.config.preset](box, is_pose_normalized=self.config.normalize_pose)
        except ValueError as problem:
            raise InputError(f"particles of {box} voxels: {problem}") from problem


def prepare(network: Network, volumes: np.ndarray) -> np.ndarray:
    """Volumes ``(n, z, y, x)`` as a network that has a method ``prepare`` takes them."""

    def ask(rows: np.ndarray) -> jax.Array:
        return _prepare(network, volumes[rows])

    return map_chunks(ask, len(volumes), min(CHUNK, len(volumes)))


@jax.jit
def _prepare(network: Network, volumes: jax.Array) -> jax.Array:
    return functional.apply(network, volumes, train=False, method="prepare")[0]


def _make_errors(sparsity: float) -> Errors:
    def errors(network: Network, prepared: jax.Array) -> jax.Array:
        """Mean squared error of each particle drawn again, and the sum of its code."""
        found, _ = functional.apply(network, prepared, train=True, method="reconstruct")
        missed = jnp.mean((found.decoded - prepared) ** 2, axis=(1, 2, 3))
        return missed + sparsity * jnp.sum(found.features, axis=1)  # ReLU: none is negative

    return errors


def _checked(weights: Weights) -> Weights:
    if weights.description.contrast != CONTRAST:
        raise InputError(
            "weights of an autoencoder must be of light protein, these are of dark; it turns "
            "dark particles over by itself"
        )
    return weights
