"""How particles are clustered by what a network learned of others."""

from dataclasses import dataclass

from jimjax.models.weights import Contrast


@dataclass(frozen=True)
class TransferConfig:
    """How particles are clustered by what a network learned of others.

    Attributes:
        contrast: of the protein in the particles, "dark" or "light".
        candidates: numbers of classes to choose from; the paper reports all of them.
        num_starts: of each k-means.
        seed: of all that is random.
    """

    contrast: Contrast = "dark"
    candidates: tuple[int, ...] = tuple(range(2, 11))
    num_starts: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be done."""
        if not self.candidates or min(self.candidates) < 1 or self.num_starts < 1:
            raise ValueError("candidates and num_starts need to be 1 or more")
        if len(self.candidates) > 1 and min(self.candidates) < 2:
            raise ValueError("one class cannot be compared with more; begin candidates with 2")


def small() -> TransferConfig:
    """For a small network as for any other: its sizes come with its weights."""
    return TransferConfig()
