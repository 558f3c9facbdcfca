"""How a pre-trained Jim-Net clusters."""

from dataclasses import dataclass

from jimjax.models.weights import Contrast


@dataclass(frozen=True)
class JimNetConfig:
    """How a pre-trained Jim-Net is applied.

    Attributes:
        contrast: of the protein in the particles, "dark" or "light".
        candidates: numbers of classes to choose from, by mixtures of the features.
        seed: of all that is random.
    """

    contrast: Contrast = "dark"
    candidates: tuple[int, ...] = (5, 10, 20)
    seed: int = 0


def small() -> JimNetConfig:
    """For the weights that come along; there is nothing to train."""
    return JimNetConfig()
