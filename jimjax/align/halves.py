"""Two half sets that never see each other, for a resolution that can be believed."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jimjax.align.fit import fit
from jimjax.align.fit_data import Options
from jimjax.align.fit_steps import PLAN, Nearby, Plan, Start, Sweep
from jimjax.data.subtomograms import Subtomograms
from jimjax.progress import Progress

HALF_PLAN: Plan = (
    Sweep(2.35, 576, 0.14, 0.07, 2),  # its band is what the halves have in common
    Sweep(3.0, 576, 0.14, 0.07, 4),
    *PLAN[2:],
)


def fit_halves(
    particles: Subtomograms,
    options: Options,
    start: Start,
    *,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    plan: Sequence[Sweep | Nearby] | None = None,
) -> Start:
    """Estimates poses anew, in each half set by itself.

    Particles keep their classes. Both halves begin with the given poses, but know them only
    through references that end at the first band of the plan; all poses are then searched again.
    What two half maps share beyond that band, they have from two independent sets of particles.

    Args:
        particles: with half sets.
        options: as for ``fit``.
        start: classes and poses of all particles together.
        progress: told of every iteration.
        mesh: devices that share the particles.
        plan: what to do; ``HALF_PLAN`` if None. It begins with a sweep.

    Returns:
        The given classes, and poses, each from its own half set.
    """
    found = Start(*(np.array(field) for field in start))
    for half in (1, 2):
        rows = np.flatnonzero(particles.halves == half)
        if len(rows) < 2 * options.num_classes:
            continue
        own = fit(
            particles.select(rows),
            dataclasses.replace(options, keep_classes=True),
            start=Start(*(field[rows] for field in start)),
            progress=None if progress is None else _Half(progress, half),
            mesh=mesh,
            plan=HALF_PLAN if plan is None else plan,
        )
        for field, new in zip(found, (own.labels, own.rotations, own.shifts), strict=True):
            field[rows] = new
    return found


class _Half:
    """The progress of one half as part of both."""

    def __init__(self, progress: Progress, half: int):
        self._progress, self._half = progress, half

    def update(self, stage: str, step: int, num_steps: int, metrics: dict[str, float]) -> None:
        """Takes note of a step of this half."""
        done = step + (self._half - 1) * num_steps
        self._progress.update(f"half {self._half} {stage}", done, 2 * num_steps, metrics)
