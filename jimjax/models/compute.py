"""How networks compute: nothing of what they are, and no part of their weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Compute:
    """How networks compute.

    Attributes:
        precision: of convolutions and of the maps between them. In "bfloat16" parameters,
            statistics, poses, scores and losses stay in float32.
        rematerialise: keep only what goes into each block of layers while training, and compute
            the rest anew for the gradient: less memory, a third more time. The outcome is the
            same within rounding.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    rematerialise: bool = False


PLAIN, SPARING = Compute(), Compute(rematerialise=True)
