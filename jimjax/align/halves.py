"""Two half sets that never see each other, for a resolution that can be believed."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.align.fit import fit
from jimjax.align.fit_data import Options
from jimjax.align.plans import HALF_PLAN, Nearby, Start, Sweep
from jimjax.data.subtomograms import Subtomograms
from jimjax.ops.procrustes import nearest_rotation
from jimjax.ops.rotation import Pose
from jimjax.progress import Progress

AGREEMENT = 15.0  # degrees, of particles that say the same of how their class was turned
MOST_COMPARED = 500  # particles


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
    At last each class of a half is moved as a whole to where most of its particles began: where
    a density nearly looks like itself when turned, the halves may have settled in different frames.

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
        poses = Pose(own.rotations, own.shifts)
        for label in np.unique(own.labels):
            members = own.labels == label
            begun = Pose(*(field[rows[members]] for field in start[1:]))
            ended = Pose(*(field[members] for field in poses))
            for field, new in zip(found[1:], _move_back(ended, begun), strict=True):
                field[rows[members]] = new
    return found


def _move_back(poses: Pose, begun: Pose) -> Pose:
    """Poses ``(n,)`` in the frame of what they were, as most of them agree on it."""
    turns = np.einsum("nji,njk->nik", begun.rotation, poses.rotation)
    moves = np.einsum("nji,nj->ni", begun.rotation, poses.shift - begun.shift)
    flat = turns.reshape(-1, 9)
    sample = flat[np.random.default_rng(0).permutation(len(flat))[:MOST_COMPARED]]
    are_near = flat @ sample.T > 1 + 2 * np.cos(np.deg2rad(AGREEMENT))
    agreeing = are_near[:, are_near.sum(axis=0).argmax()]
    turn = np.asarray(nearest_rotation(jnp.asarray(turns[agreeing].mean(axis=0))))
    rotations = poses.rotation @ turn.T
    return Pose(rotations, poses.shift - rotations @ moves[agreeing].mean(axis=0))


class _Half:
    """The progress of one half as part of both."""

    def __init__(self, progress: Progress, half: int):
        self._progress, self._half = progress, half

    def update(self, stage: str, step: int, num_steps: int, metrics: dict[str, float]) -> None:
        """Takes note of a step of this half."""
        done = step + (self._half - 1) * num_steps
        self._progress.update(f"half {self._half} {stage}", done, 2 * num_steps, metrics)
