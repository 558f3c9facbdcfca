"""What the joint EM does: it centres particles, sweeps over all poses, and looks near the best."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.align import bands, slices
from jimjax.align.bands import Band
from jimjax.align.centring import centre_particles
from jimjax.align.fit_data import Banded, FitData, measure
from jimjax.align.fit_state import State
from jimjax.align.frames import is_half_turn, tell_frames
from jimjax.align.joint_em import Model, Observations, Statistics
from jimjax.align.local_em import Hypotheses, Weighed
from jimjax.align.plans import Nearby, Start, Sweep
from jimjax.align.slices import Sums
from jimjax.align.twins import find_twins
from jimjax.io.errors import InputError
from jimjax.ops.rotation import Pose, compose, super_fibonacci

COOLING = 0.75  # of the temperature of the log-likelihoods, in each iteration
MOVING_TEMPERATURE = 1.5  # below, a particle's centre follows its best shift
SHIFT_DEVIATION = 0.09  # particle diameters, of a shift from the centre found so far
FIRST_STEPS = np.deg2rad(6.0), 0.5  # of lattices, radians and voxels
TWIN_STEPS = 3.0  # of the lattice around a twin, in steps of that around the pose
NUM_TWINS = 2
LEAST_CERTAINTY = 4.0  # that a class is in two frames, standard deviations


def begin(data: FitData, first: Sweep | Nearby, start: Start | None) -> State:
    """Centres, and the first references."""
    temperature = first.temperature if isinstance(first, Sweep) else 1.0
    if start is not None:
        banded = data.at(first.limit)
        model = _model_of_poses(data, banded, *start)
        gains = np.empty(0, np.float32)
        return _first_state(data, model, gains, *start, temperature=temperature)
    num, num_classes = data.num, data.options.num_classes
    found = centre_particles(
        data.measured, max_shift=data.options.max_shift, diameter=data.diameter
    )
    labels = np.argsort(np.argsort(found.sizes)) * num_classes // num
    rotations = np.asarray(super_fibonacci(num))[data.random.permutation(num)]
    banded = data.at(first.limit)
    if data.references is None:
        model = _model_of_poses(data, banded, labels, rotations, found.shifts)
        gains = np.empty(0, np.float32)
    else:
        gains = _first_gains(data, banded, found.shifts)
        model = Model(np.empty(0, np.complex64), measure(banded)[0])
    return _first_state(
        data, model, gains, labels, rotations, found.shifts, temperature=temperature
    )


def _first_state(
    data: FitData,
    model: Model,
    gains: np.ndarray,
    labels: np.ndarray,
    rotations: np.ndarray,
    shifts: np.ndarray,
    *,
    temperature: float,
) -> State:
    num = data.num
    labels = np.asarray(labels, np.int32)
    rotations, shifts = np.asarray(rotations, np.float32), np.asarray(shifts, np.float32)
    nothing = np.empty(0, np.float32)
    return _forget_nearby(
        State(
            done=np.array(0),
            temperature=np.array(temperature),
            grids=np.asarray(model.grids),
            gains=gains,
            noise=np.asarray(model.noise),
            centres=shifts,
            labels=labels,
            probabilities=np.eye(data.options.num_classes, dtype=np.float32)[labels],
            rotations=rotations,
            shifts=shifts,
            angle_deviations=np.full(num, np.inf, np.float32),
            shift_deviations=np.full(num, np.inf, np.float32),
            evidence=np.full(num, -np.inf, np.float32),
            nearby_classes=nothing,
            nearby_rotations=nothing,
            nearby_shifts=nothing,
            angle_steps=nothing,
            shift_steps=nothing,
        )
    )


def _forget_nearby(state: State) -> State:
    """Where to look nearby if nothing is known but the pose."""
    angle, shift = FIRST_STEPS
    return state._replace(
        nearby_classes=state.labels[:, None],
        nearby_rotations=state.rotations[:, None],
        nearby_shifts=state.shifts[:, None],
        angle_steps=np.full((len(state.labels), 1), angle, np.float32),
        shift_steps=np.full((len(state.labels), 1), shift, np.float32),
    )


def _model_of_poses(
    data: FitData, banded: Banded, labels: np.ndarray, rotations: np.ndarray, shifts: np.ndarray
) -> Model:
    """References that particles in given poses add up to."""
    band, observations = banded.band, banded.observations
    num_classes = data.options.num_classes
    noise, energy, total = measure(banded)
    precision = (1 / noise)[band.shells]
    back = jnp.conj(bands.phase_ramps(data.deal(shifts), band))
    weights = observations.is_real[..., None] * precision
    moved = observations.spectra * back * weights
    measured = observations.masks[observations.groups] * weights

    def insert(fold: tuple[jax.Array, ...]) -> Sums:
        moved, measured, labels, rotations = fold
        return slices.insert_own(
            moved[:, None], measured[:, None], labels, rotations[:, None], band,
            num_classes=num_classes,
        )  # fmt: skip

    sums = jax.lax.map(insert, (moved, measured, data.deal(labels), data.deal(rotations)))
    counts, nothing = jnp.ones((data.num_folds, num_classes)), jnp.zeros(band.num_shells)
    statistics = Statistics(sums, counts, energy, nothing, nothing, total)
    return banded.update(statistics, Model(sums.spectra, noise))[0]


def _first_gains(data: FitData, banded: Banded, shifts: np.ndarray) -> np.ndarray:
    """How strong the references are in the particles, where turning them changes least."""
    band, observations = banded.band, banded.observations
    own = jnp.mean(bands.take_spectra(data.references, band).real, axis=0)
    isotropic = bands.per_shell(own, band) / np.bincount(band.shells)
    lowest = np.flatnonzero(band.shells < 2)
    template = isotropic[band.shells][lowest]
    back = jnp.conj(bands.phase_ramps(data.deal(shifts), band))
    weights = observations.is_real[..., None]
    seen = jnp.sum((observations.spectra * back * weights).real, axis=(0, 1))[lowest]
    measured = jnp.sum(observations.masks[observations.groups] * weights, axis=(0, 1))[lowest]
    gain = float(template @ seen / ((template**2) @ measured))
    if not gain > 0:
        raise InputError(
            "the references are light where the particles are dark, or the other way round; "
            "invert the contrast of one of them"
        )
    return np.full(band.num_shells, gain, np.float32)


def model_in(data: FitData, state: State, banded: Banded) -> Model:
    """The state's model in the band; shells beyond its own are taken to be noise."""
    band = banded.band
    if data.references is None:
        fold, count = state.grids.shape[:2]
        flat = jnp.asarray(state.grids).reshape(fold * count, *state.grids.shape[2:])
        grids = slices.widen_grids(flat, band).reshape(fold, count, *[band.side] * 3)
    else:
        gains = np.pad(state.gains, (0, max(0, band.num_shells - len(state.gains))), "edge")
        own = slices.make_grids(data.references, band) * gains[slices.grid_shells(band)]
        grids = jnp.broadcast_to(own, (data.num_folds, *own.shape))
    known = min(len(state.noise), band.num_shells)
    noise = jnp.concatenate([state.noise[:known], measure(banded)[0][known:]])
    return Model(grids, noise)


def _keep(data: FitData, state: State, model: Model, gain: jax.Array) -> State:
    """The state with a new model; ``gain`` is what its references were multiplied with."""
    noise = np.asarray(model.noise)
    if data.references is None:
        return state._replace(grids=np.asarray(model.grids), noise=noise)
    gains = np.pad(state.gains, (0, max(0, len(noise) - len(state.gains))), "edge")[: len(noise)]
    return state._replace(gains=gains * np.asarray(gain), noise=noise)


def sweep(data: FitData, banded: Banded, part: Sweep, state: State, first: int) -> Iterator[State]:
    """Weighs all classes, rotations and shifts, and finds the next references.

    Args:
        data: particles.
        banded: the same inside the part's band.
        part: what to do.
        state: to go on from.
        first: iterations that were done when the part began.

    Yields:
        The state after each iteration.
    """
    rotations = super_fibonacci(part.num_rotations)
    grid = _shift_grid(part.radius * data.diameter, part.step * data.diameter)
    shifts = jnp.asarray(grid, jnp.float32)
    log_prior = jnp.asarray(
        -0.5 * (grid**2).sum(axis=1) / (SHIFT_DEVIATION * data.diameter) ** 2, jnp.float32
    )
    is_possible = np.eye(data.options.num_classes, dtype=bool)[state.labels]
    is_possible |= not data.options.keep_classes
    of_class = data.deal(np.where(is_possible, 0, -np.inf).astype(np.float32))
    model = model_in(data, state, banded)
    farthest = data.options.max_shift + part.radius * data.diameter

    while int(state.done) < first + part.iterations:
        observations = _move_back(banded.observations, data.deal(state.centres), banded.band)
        posterior, statistics = banded.expect(
            observations, model, rotations, shifts, log_prior, of_class,
            jnp.float32(state.temperature),
        )  # fmt: skip
        model, gain = banded.update(statistics, model)
        found = jax.tree.map(data.collect, posterior)
        temperature = max(1.0, float(state.temperature) * COOLING)
        moved = state.centres + grid[found.best_shift]
        is_moving = temperature < MOVING_TEMPERATURE
        state = _keep(data, state, model, gain)._replace(
            done=np.array(int(state.done) + 1),
            temperature=np.array(temperature),
            centres=np.clip(moved, -farthest, farthest) if is_moving else state.centres,
            labels=found.best_class,
            probabilities=found.classes,
            rotations=np.asarray(rotations)[found.best_rotation],
            shifts=moved,
            evidence=found.evidence,
        )
        yield _forget_nearby(state)


@functools.partial(jax.jit, static_argnames="band")
def _move_back(observations: Observations, shifts: jax.Array, band: Band) -> Observations:
    """Particles moved by the opposite of shifts ``(f, n, 3)``, voxels."""
    ramps = jnp.conj(bands.phase_ramps(shifts, band))
    return observations._replace(spectra=observations.spectra * ramps)


def look_nearby(
    data: FitData, banded: Banded, part: Nearby, state: State, first: int
) -> Iterator[State]:
    """Weighs rotations and shifts near the poses, and finds the next references.

    Args:
        data: particles.
        banded: the same inside the part's band.
        part: what to do.
        state: to go on from.
        first: iterations that were done when the part began.

    Yields:
        The state after each iteration.
    """
    model = model_in(data, state, banded)
    if int(state.done) == first:
        state, model = _suppose(data, banded, part, state, model)
    hypotheses = Hypotheses(*(data.deal(field) for field in state[-len(Hypotheses._fields) :]))
    while int(state.done) < first + part.iterations:
        weighed, statistics = banded.expect_nearby(banded.observations, model, hypotheses)
        model, gain = banded.update(statistics, model)
        hypotheses = weighed.hypotheses
        found = jax.tree.map(data.collect, weighed)
        own = _pick(found, found.evidence.argmax(axis=1))
        state = _keep(data, state, model, gain)._replace(
            done=np.array(int(state.done) + 1),
            labels=own.hypotheses.classes,
            rotations=own.hypotheses.rotations,
            shifts=own.hypotheses.shifts,
            angle_deviations=own.angle_deviations,
            shift_deviations=own.shift_deviations,
            evidence=own.evidence,
            nearby_classes=found.hypotheses.classes,
            nearby_rotations=found.hypotheses.rotations,
            nearby_shifts=found.hypotheses.shifts,
            angle_steps=found.hypotheses.angle_steps,
            shift_steps=found.hypotheses.shift_steps,
        )
        yield state


def _pick(weighed: Weighed, chosen: np.ndarray) -> Weighed:
    """One hypothesis of each particle; fields without folds."""
    rows = np.arange(len(chosen))
    return jax.tree.map(lambda field: field[rows, chosen], weighed)


def _suppose(
    data: FitData, banded: Banded, part: Nearby, state: State, model: Model
) -> tuple[State, Model]:
    """Looks around the pose of each particle, and if asked for, around its twins."""
    rows = np.arange(data.num)
    # What is known of the best hypothesis is kept; the first time all are alike.
    same = np.all(state.nearby_rotations == state.rotations[:, None], axis=(2, 3))
    kept = [steps[rows, same.argmax(axis=1)] for steps in (state.angle_steps, state.shift_steps)]
    num_twins = NUM_TWINS if part.with_twins else 0
    if num_twins:
        twins = find_twins(
            model.grids[0], banded.band, num_twins=num_twins, max_shift=0.1 * data.diameter
        ).poses
        if data.references is None:
            state, model = _unmix(data, banded, state, model, twins)
    found = [Pose(jnp.asarray(state.rotations), jnp.asarray(state.shifts, jnp.float32))]
    steps = [kept]
    for number in range(num_twins):
        own = Pose(*(field[state.labels, number] for field in twins))
        found.append(jax.vmap(compose)(found[0], own))
        wider = (TWIN_STEPS * own for own in kept)
        steps.append([np.minimum(*pair) for pair in zip(wider, FIRST_STEPS, strict=True)])
    rotations, shifts = (np.stack(fields, axis=1) for fields in zip(*found, strict=True))
    angle_steps, shift_steps = (
        np.stack(fields, axis=1).astype(np.float32) for fields in zip(*steps, strict=True)
    )
    state = state._replace(
        nearby_classes=np.repeat(state.labels[:, None], len(found), axis=1),
        nearby_rotations=rotations,
        nearby_shifts=shifts,
        angle_steps=angle_steps,
        shift_steps=shift_steps,
    )
    return state, model


def _unmix(
    data: FitData, banded: Banded, state: State, model: Model, twins: Pose
) -> tuple[State, Model]:
    """Gives particles that were posed in the frame of a twin ``(c, m)`` the poses of the others."""
    is_half = np.asarray(jax.vmap(jax.vmap(is_half_turn))(twins.rotation))
    if not is_half.any():
        return state, model
    half = Pose(*(field[np.arange(len(field)), is_half.argmax(axis=1)] for field in twins))
    poses = Pose(jnp.asarray(state.rotations), jnp.asarray(state.shifts, jnp.float32))
    frames = tell_frames(
        banded.observations,
        model.noise,
        data.deal(state.labels),
        jax.tree.map(data.deal, poses),
        jax.tree.map(jnp.asarray, half),
        banded.band,
        radius=data.diameter / 2,
    )
    is_sure = is_half.any(axis=1) & (np.asarray(frames.certainty) > LEAST_CERTAINTY)
    is_other = is_sure[state.labels] & (data.collect(frames.scores) < 0)
    if not is_other.any():
        return state, model
    turned = jax.vmap(compose)(poses, Pose(*(field[state.labels] for field in half)))
    rotations, shifts = (
        np.where(is_other.reshape(-1, *[1] * (own.ndim - 1)), new, own)
        for own, new in zip(poses, turned, strict=True)
    )
    again = _model_of_poses(data, banded, state.labels, rotations, shifts)
    is_changed = np.isin(np.arange(len(is_sure)), state.labels[is_other])
    grids = jnp.where(is_changed[:, None, None, None], again.grids, model.grids)
    return state._replace(rotations=rotations, shifts=shifts), model._replace(grids=grids)


def _shift_grid(radius: float, step: float) -> np.ndarray:
    count = int(radius / step + 1e-6)
    axis = np.arange(-count, count + 1) * step
    grid = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    return grid[np.linalg.norm(grid, axis=1) <= radius * (1 + 1e-6)]
