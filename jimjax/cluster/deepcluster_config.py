"""How DeepCluster goes about it."""

from dataclasses import dataclass
from typing import Literal

from jimjax.models.compute import PLAIN, SPARING, Compute
from jimjax.models.weights import Contrast


@dataclass(frozen=True)
class DeepClusterConfig:
    """How DeepCluster goes about it; the defaults are the published values.

    Attributes:
        preset: sizes of the network, see ``models.yopo``.
        contrast: of the protein in the particles, "dark" or "light".
        candidates: numbers of classes to choose from, by the silhouette. Published is one number,
            several times that of the true classes.
        iterations: k-means, and an epoch after each.
        batch_size: particles per step, equally many of each class.
        learning_rate: of gradient descent.
        momentum: of all but the head, which begins anew in every iteration.
        weight_decay: of everything.
        num_axes: principal axes of the features.
        num_starts: of k-means, which ends when nothing moves; published are 20 steps of one.
        max_shift: largest shift of a particle along each axis, as a share of the box. Published
            are random crops of photographs; this is three of 32 voxels.
        noise: standard deviation that is added to particles of unit deviation.
        seed: of all that is random.
        compute: precision, and whether memory is saved; see there.
    """

    preset: Literal["small", "paper"] = "paper"
    contrast: Contrast = "dark"
    candidates: tuple[int, ...] = (5, 10, 20)
    iterations: int = 200
    batch_size: int = 256
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-5
    num_axes: int = 256
    num_starts: int = 1
    max_shift: float = 3 / 32
    noise: float = 0.3
    seed: int = 0
    compute: Compute = SPARING


def small() -> DeepClusterConfig:
    """For the small network, that begins with weights: few iterations, a hundredth of the rate."""
    return DeepClusterConfig(
        preset="small",
        compute=PLAIN,
        iterations=8,
        batch_size=64,
        learning_rate=5e-4,
        num_axes=16,
        num_starts=20,
    )
