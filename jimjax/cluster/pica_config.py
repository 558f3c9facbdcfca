"""How PICA goes about it."""

from dataclasses import dataclass
from typing import Literal

from jimjax.models.compute import PLAIN, SPARING, Compute
from jimjax.models.weights import Contrast


@dataclass(frozen=True)
class PicaConfig:
    """How PICA goes about it; the defaults are the published values.

    Attributes:
        preset: sizes of the network, see ``models.yopo``.
        contrast: of the protein in the particles, "dark" or "light".
        candidates: the number of classes; one, as nothing here tells a better from a worse one.
        epochs: of the head for the classes, and as many of the other.
        batch_size: particles per step; their changed copies are beside them.
        learning_rate: of Adam.
        balance: weight of the classes' being of equal size.
        num_parts: outputs of the other head, which divides the particles into more parts.
        num_copies: changed copies of each particle.
        max_shift: largest shift of a copy along each axis, as a share of the box. Published are
            random crops of photographs; this is three of 32 voxels.
        noise: standard deviation that is added to copies of unit deviation.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    preset: Literal["small", "paper"] = "paper"
    contrast: Contrast = "dark"
    candidates: tuple[int, ...] = (10,)
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 1e-4
    balance: float = 2.0
    num_parts: int = 70
    num_copies: int = 3
    max_shift: float = 3 / 32
    noise: float = 0.3
    seed: int = 0
    compute: Compute = SPARING


def small() -> PicaConfig:
    """For the small network: one copy, fewer epochs, ten times the learning rate."""
    return PicaConfig(
        preset="small",
        compute=PLAIN,
        epochs=10,
        batch_size=64,
        learning_rate=1e-3,
        num_parts=20,
        num_copies=1,
    )
