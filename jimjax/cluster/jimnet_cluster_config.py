"""How the clustering branch of Jim-Net goes about it."""

from dataclasses import dataclass
from typing import Literal

from jimjax.cluster.components import Criterion
from jimjax.models.compute import PLAIN, Compute
from jimjax.models.weights import Contrast


@dataclass(frozen=True)
class JimNetClusterConfig:
    """How the clustering branch of Jim-Net goes about it.

    What is not published is as in the code of the two-dimensional Jim-Net, and in DISCA.

    Attributes:
        preset: sizes of the network, see ``models.jimnet``.
        contrast: of the protein in the particles, "dark" or "light".
        candidates: numbers of classes to choose from.
        criterion: what decides among them: "bic", the Bayesian information criterion, or
            "left-out", how well particles are foreseen that were left out; see ``components``.
        count_axes: principal axes of the features along which these are foreseen.
        iterations: mixtures, and an epoch after each.
        batch_size: particles per step; not published for particles.
        learning_rate: of Adam.
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
    iterations: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-4
    num_axes: int = 16
    num_starts: int = 5
    head_epochs: int = 10
    head_rate: float = 1e-4
    seed: int = 0
    compute: Compute = PLAIN


def small() -> JimNetClusterConfig:
    """For the small network: fewer iterations, and a new head that learns faster."""
    return JimNetClusterConfig(preset="small", iterations=10, criterion="left-out", head_rate=1e-2)
