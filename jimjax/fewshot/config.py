"""How a ProtoNet is trained on classes that are known."""

from dataclasses import dataclass
from typing import Literal

from jimjax.fewshot.losses import Method
from jimjax.models.compute import PLAIN, Compute
from jimjax.models.weights import Contrast


@dataclass(frozen=True)
class FewShotConfig:
    """How it goes about it; the defaults are the published values.

    Attributes:
        method: "protonet", or "protonet-ce", whose training begins with the other's.
        preset: sizes of the network, see ``models.protonet``, where there are no weights.
        contrast: of the protein in the particles, "dark" or "light".
        ways: classes in an episode of the training; fewer where there are not so many.
        shots: particles of each that make its prototype.
        queries: others of each that are asked about.
        molecules: random ones beside each episode, an episode of their own, that keep alive what
            tells other classes apart; 0 as published. A few classes are soon known by heart.
        episodes: per epoch.
        epochs: at most, of each method.
        learning_rate: of the first epochs.
        rate_decay: what it is multiplied with now and then.
        decay_epochs: how many epochs lie between.
        patience: epochs without a better accuracy in validation after which training is over.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    method: Method = "protonet"
    preset: Literal["small", "paper"] = "paper"
    contrast: Contrast = "dark"
    ways: int = 5
    shots: int = 5
    queries: int = 15
    molecules: int = 0
    episodes: int = 25
    epochs: int = 100
    learning_rate: float = 1e-3
    rate_decay: float = 0.5
    decay_epochs: int = 20
    patience: int = 20
    seed: int = 0
    compute: Compute = PLAIN


def small() -> FewShotConfig:
    """For the small network with the weights that come along: two minutes on two cores."""
    return FewShotConfig(
        preset="small", queries=5, molecules=8, epochs=4, learning_rate=2e-4, decay_epochs=2
    )
