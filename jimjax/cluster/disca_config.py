"""How DISCA goes about it."""

from dataclasses import dataclass
from typing import Literal

from jimjax.cluster.components import Criterion
from jimjax.models.compute import PLAIN, SPARING, Compute
from jimjax.models.weights import Contrast


@dataclass(frozen=True)
class DiscaConfig:
    """How DISCA goes about it; the defaults are the published values.

    Attributes:
        preset: sizes of the network, see ``models.yopo``.
        contrast: of the protein in the particles, "dark" or "light".
        candidates: numbers of classes to choose from.
        criterion: what decides among them: "bic", the Bayesian information criterion, or
            "left-out", how well particles are foreseen that were left out; see ``components``.
        count_axes: principal axes of the features along which these are foreseen.
        iterations: at most.
        batch_size: particles per step; as many turned copies are beside them.
        learning_rate: of the first iteration.
        learning_rate_decay: what it is multiplied with after each iteration.
        smoothing: share of a label that is spread over all classes.
        smoothing_decay: what that is multiplied with in each iteration.
        noise: standard deviation of the factor, 1 on average, that each voxel is multiplied with.
        num_axes: principal axes of the features.
        num_starts: of the fit of each mixture.
        head_epochs: training of a new head alone, on features as they are.
        head_rate: learning rate of that.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    preset: Literal["small", "paper"] = "paper"
    contrast: Contrast = "dark"
    candidates: tuple[int, ...] = (5, 10, 20)
    criterion: Criterion = "bic"
    count_axes: int = 6
    iterations: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-5
    learning_rate_decay: float = 0.95
    smoothing: float = 0.2
    smoothing_decay: float = 0.9
    noise: float = 1.0
    num_axes: int = 16
    num_starts: int = 5
    head_epochs: int = 10
    head_rate: float = 1e-4
    seed: int = 0
    compute: Compute = SPARING


def small() -> DiscaConfig:
    """For the small network: ten times the published learning rates, for a tenth of the steps."""
    return DiscaConfig(
        preset="small", compute=PLAIN, criterion="left-out", learning_rate=1e-4, head_rate=1e-2
    )
