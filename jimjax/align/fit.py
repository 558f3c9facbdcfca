"""Classes, poses and averages of particles from nothing but the particles.

First every particle is centred. Then the joint EM sweeps over a grid of rotations, from low
frequencies to higher ones; then every particle looks around its own pose, and at the twins of it.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jimjax.align import slices
from jimjax.align.fit_data import Banded, FitData, Options
from jimjax.align.fit_state import State, Store, fingerprint
from jimjax.align.fit_steps import begin, look_nearby, model_in, sweep
from jimjax.align.plans import PLAN, REFERENCE_PLAN, REFINE_PLAN, Nearby, Start, Sweep
from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.io.files import hold_folder
from jimjax.mesh import data_mesh
from jimjax.ops import symmetry
from jimjax.progress import Interrupted, Progress, check_stop, interruptible

STATE = "em_state.npz"


class Found(NamedTuple):
    """What is known of particles.

    Attributes:
        labels: ``(n,)`` int, most probable classes.
        probabilities: ``(n, c)``, of the classes; 0 and 1 where no sweep compared them.
        rotations: ``(n, 3, 3)``, reference into particle.
        shifts: ``(n, 3)``, (x, y, z), voxels.
        angle_deviations: ``(n,)``, posterior standard deviation about an axis, radians.
        shift_deviations: ``(n,)``, along an axis, voxels.
        evidence: ``(n,)``, log-likelihood ratio to noise alone, references without the particle.
        volumes: ``(c, z, y, x)``, references, low-passed at the last band.
        noise: ``(shells,)``.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    angle_deviations: np.ndarray
    shift_deviations: np.ndarray
    evidence: np.ndarray
    volumes: np.ndarray
    noise: np.ndarray


def fit(
    particles: Subtomograms,
    options: Options,
    *,
    references: np.ndarray | None = None,
    start: Start | None = None,
    folder: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    plan: Sequence[Sweep | Nearby] | None = None,
    watch: Callable[[str, State], None] | None = None,
) -> Found:
    """Estimates classes, poses and averages together; see ``joint_em``.

    With references only classes and poses are estimated, and how strong each shell of the
    references is in the particles.

    Args:
        particles: their poses and classes, if they have any, are not read.
        options: what to look for.
        references: ``(num_classes, z, y, x)`` of the particles' box and contrast.
        start: classes and poses to begin with instead of random ones; not with references.
        folder: where the state is kept after every iteration; nowhere if None.
        resume: go on from the state in the folder; the outcome is that of an uninterrupted run.
        progress: told of every iteration.
        mesh: devices that share the particles; all of them if None.
        plan: what to do; ``PLAN`` if None, with references ``REFERENCE_PLAN``, with a start
            ``REFINE_PLAN``.
        watch: told of every iteration's state.

    Returns:
        One row per particle.

    Raises:
        InputError: if there are too few particles, an option is out of range, or the state in
            the folder is of other particles, options or plan, or another process writes to it.
        ValueError: if both references and a start are given, or classes are to be kept without a
            start.
        Interrupted: after SIGTERM or SIGINT, with the state saved, if there is a folder.
    """
    check(particles, options, references)
    if references is not None and start is not None:
        raise ValueError("give references or a start, not both")
    if options.keep_classes and start is None:
        raise ValueError("keep_classes needs a start with the classes to keep")
    if plan is None:
        plan = PLAN if references is None else REFERENCE_PLAN
        plan = plan if start is None else REFINE_PLAN
    data = FitData(particles, options, references, mesh or data_mesh())
    store = None
    if folder is not None:
        store = Store(folder / STATE, fingerprint(particles, options, references, start, plan))
    state = store.load() if store is not None and resume else None
    if state is None:
        state = begin(data, plan[0], start)
    total, first = sum(part.iterations for part in plan), 0
    held = hold_folder(folder) if folder is not None else contextlib.nullcontext()
    try:
        with held, interruptible():
            for part in plan:
                last = first + part.iterations
                if int(state.done) < last:
                    banded = data.at(part.limit)
                    name = "sweep" if isinstance(part, Sweep) else "refine"
                    run = sweep if isinstance(part, Sweep) else look_nearby
                    for new in run(data, banded, part, state, first):
                        state = new
                        if store is not None:
                            store.save(state)
                        if progress is not None:
                            shown = {"evidence": float(state.evidence.mean())}
                            progress.update(name, int(state.done), total, shown)
                        if watch is not None:
                            watch(f"{name} {part.limit:g}", state)
                        check_stop()
                first = last
    except Interrupted:
        # Of the iteration that was under way nothing is kept; it is done again.
        raise Interrupted(f"stopped at iteration {int(state.done)} of {total}") from None
    return _finish(data, data.at(plan[-1].limit), state)


def _finish(data: FitData, banded: Banded, state: State) -> Found:
    grids = jnp.mean(model_in(data, state, banded).grids, axis=0)
    volumes = slices.make_volumes(grids, banded.band)
    return Found(
        state.labels,
        state.probabilities,
        state.rotations,
        state.shifts,
        state.angle_deviations,
        state.shift_deviations,
        state.evidence,
        np.asarray(volumes),
        state.noise,
    )


def check(particles: Subtomograms, options: Options, references: np.ndarray | None) -> None:
    """Raises unless there are enough particles, and options and references fit them.

    Raises:
        InputError: the first mistake found, as one sentence.
    """
    num, box = len(particles), particles.volumes.shape[-1]
    if options.num_classes < 1:
        raise InputError(f"the number of classes must be 1 or more, got {options.num_classes}")
    if references is None and num < 2 * options.num_classes:
        raise InputError(
            f"{num} particles are too few for {options.num_classes} classes; "
            f"give at least {2 * options.num_classes}"
        )
    if references is not None and references.shape != (options.num_classes, *[box] * 3):
        raise InputError(
            f"{options.num_classes} references of {box} x {box} x {box} voxels are needed, the box "
            f"of the particles, got {' x '.join(map(str, references.shape))}"
        )
    for number, reference in enumerate(() if references is None else references, start=1):
        if not np.isfinite(reference).all() or np.ptp(reference) == 0:
            raise InputError(f"reference {number} is constant, or not finite")
    try:
        symmetry.point_group(options.symmetry)
    except ValueError as problem:
        raise InputError(str(problem)) from problem
    if not 0 <= options.max_shift < box / 2:
        raise InputError(
            f"the largest shift must be from 0 to less than {box / 2:g} voxels, "
            f"got {options.max_shift:g}"
        )
    if options.diameter is not None:
        smallest, largest = 4 * particles.voxel_size, box * particles.voxel_size
        if not smallest <= options.diameter <= largest:
            raise InputError(
                f"the particle diameter must be from {smallest:g} to {largest:g} angstrom, the "
                f"size of the box, got {options.diameter:g}"
            )
