"""How an EDSS3D is taught."""

from dataclasses import dataclass
from typing import Literal

from jimjax.io.errors import InputError
from jimjax.models.compute import PLAIN, Compute
from jimjax.models.edss3d import HIGHEST_CLASS
from jimjax.train.patience import check_schedule


@dataclass(frozen=True)
class Edss3dTraining:
    """How an EDSS3D is taught; the defaults are the published values.

    Attributes:
        clusters: numbers of those to segment, from 1, as in rlnClassNumber.
        preset: sizes of the network, see ``models.edss3d``.
        threshold: of particles drawn again by the autoencoder, normalised, from which on a voxel
            is the particle's.
        balance_voxels: whether the loss counts each class, background too, as if there were
            equally many voxels of it. Published code computes such weights and does not use them.
        epochs: at most.
        batch_size: particles per step.
        learning_rate: of Adam, in the first step.
        learning_rate_decay: the rate is divided by 1 plus this times the step.
        validation: share of the particles that only say when to end, drawn at random.
        patience: epochs without a gain on these, after which training ends.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    clusters: tuple[int, ...] = (1,)
    preset: Literal["small", "paper"] = "paper"
    threshold: float = 0.5
    balance_voxels: bool = False
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    learning_rate_decay: float = 0.0
    validation: float = 0.1
    patience: int = 20
    seed: int = 0
    compute: Compute = PLAIN

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        check_schedule(self)
        numbers = ", ".join(map(str, self.clusters))
        if not self.clusters or len(set(self.clusters)) < len(self.clusters):
            raise InputError(f"clusters must be one or more different numbers, got {numbers}")
        if not 1 <= min(self.clusters) <= max(self.clusters) <= HIGHEST_CLASS:
            raise InputError(f"clusters must be from 1 to {HIGHEST_CLASS}, got {numbers}")


def small() -> Edss3dTraining:
    """For the small network: smaller batches and a higher learning rate."""
    return Edss3dTraining(preset="small", batch_size=16, learning_rate=3e-3)
