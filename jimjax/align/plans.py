"""What the joint EM can begin with, and the plans by which it goes on."""

from typing import NamedTuple

import numpy as np


class Sweep(NamedTuple):
    """Iterations over a grid of rotations and shifts.

    Attributes:
        limit: of the band, cycles per particle diameter.
        num_rotations: of the grid.
        radius: of the shifts about the particle's centre, particle diameters.
        step: between shifts, particle diameters.
        iterations: how many.
        temperature: of the log-likelihoods at first, if a plan begins with it; above 1 where
            classes and poses may be wrong. It falls to 1.
    """

    limit: float
    num_rotations: int
    radius: float
    step: float
    iterations: int
    temperature: float = 1.0


class Nearby(NamedTuple):
    """Iterations near the poses.

    Attributes:
        limit: of the band, cycles per particle diameter.
        iterations: how many.
        with_twins: whether the twins of each pose are looked at too.
    """

    limit: float
    iterations: int
    with_twins: bool = False


Plan = tuple[Sweep | Nearby, ...]


def _refine(twin_stages: int) -> Plan:
    """Iterations near the poses; what is a twin changes as averages improve."""
    twins = [Nearby(4.35, 2, with_twins=True)] * twin_stages
    return (Nearby(4.35, 5), *twins, Nearby(5.7, 3))


REFINE_PLAN: Plan = _refine(4)
PLAN: Plan = (
    Sweep(2.35, 576, 0.14, 0.07, 12, temperature=2.0),
    Sweep(3.0, 576, 0.14, 0.07, 8),
    Sweep(3.7, 1152, 0.095, 0.0475, 4),
    Sweep(4.35, 1152, 0.095, 0.0475, 2),
    *REFINE_PLAN,
)
# What a network leaves to do: of some particles the class or the pose is still to be found.
FINISH_PLAN: Plan = (Sweep(3.7, 1152, 0.095, 0.0475, 1), *_refine(3))
# What classes leave to do, of which some may be two, or two be one, and whose poses may be wrong.
CLASSES_PLAN: Plan = (
    Sweep(2.35, 576, 0.14, 0.07, 6, temperature=2.0),
    Sweep(3.0, 576, 0.14, 0.07, 4),
    Sweep(3.7, 1152, 0.095, 0.0475, 2),
    Sweep(4.35, 1152, 0.095, 0.0475, 1),
    *_refine(3),
)
REFERENCE_PLAN: Plan = (
    Sweep(3.7, 1152, 0.19, 0.0475, 1),
    Sweep(4.35, 2304, 0.095, 0.0475, 2),
    Sweep(5.7, 4608, 0.095, 0.0475, 1),
    Nearby(5.7, 3),
    *[Nearby(5.7, 2, with_twins=True)] * 2,
    Nearby(7.0, 3),
)
HALF_PLAN: Plan = (
    Sweep(2.35, 576, 0.14, 0.07, 2),  # its band is what the halves have in common
    Sweep(3.0, 576, 0.14, 0.07, 4),
    *PLAN[2:],
)


class Start(NamedTuple):
    """What is already known of particles.

    Attributes:
        labels: ``(n,)`` int.
        rotations: ``(n, 3, 3)``, reference into particle.
        shifts: ``(n, 3)``, (x, y, z), voxels.
    """

    labels: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
