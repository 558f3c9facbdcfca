"""How clustering by an autoencoder goes about it."""

from dataclasses import dataclass
from typing import Literal

from jimjax.io.errors import InputError
from jimjax.models.compute import PLAIN, Compute
from jimjax.models.weights import Contrast
from jimjax.train.patience import check_schedule


@dataclass(frozen=True)
class AutoencoderConfig:
    """How clustering by an autoencoder goes about it; the defaults are the published values.

    Attributes:
        preset: sizes of the network, see ``models.autoencoder``.
        contrast: of the protein in the particles, "dark" or "light".
        candidates: numbers of classes; of several, that of the best mean silhouette. Published
            are 100, of which a user selects some, or as many as there are known to be.
        normalize_pose: whether particles are first moved into their principal frame.
        epochs: at most.
        batch_size: particles per step.
        learning_rate: of Adam, in the first step.
        learning_rate_decay: the rate is divided by 1 plus this times the step.
        sparsity: weight of the sum of a particle's code, beside the mean squared error.
        validation: share of the particles that only say when to end, drawn at random (published:
            the last ones).
        patience: epochs without a gain on these, after which training ends.
        num_starts: of k-means.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    preset: Literal["small", "paper"] = "paper"
    contrast: Contrast = "dark"
    candidates: tuple[int, ...] = (100,)
    normalize_pose: bool = False
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    learning_rate_decay: float = 2e-6
    sparsity: float = 1e-4
    validation: float = 0.1
    patience: int = 20
    num_starts: int = 100
    seed: int = 0
    compute: Compute = PLAIN

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        check_schedule(self)
        if self.num_starts < 1 or min(self.candidates) < 1:
            raise InputError("num_starts and candidates must be 1 or more")


def small() -> AutoencoderConfig:
    """For the small network: particles in their own frame, and fewer but smaller steps of them."""
    return AutoencoderConfig(
        preset="small", normalize_pose=True, epochs=30, batch_size=32, learning_rate=2e-3
    )
