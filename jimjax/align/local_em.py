"""The joint EM near poses that are known already: each particle on a small lattice of its own.

Rotations and shifts around a hypothesis form a lattice whose spacing follows the width of the
posterior, so that poses come out finer than any grid that all particles could share, and with
their uncertainty.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.align import bands, slices
from jimjax.align.bands import Band, join, per_shell, split
from jimjax.align.joint_em import Model, Observations, Statistics, add_folds, cut_blocks
from jimjax.ops.rotation import from_rotation_vector

REACH = 2  # lattice steps from the middle to the farthest point
STEP_PER_DEVIATION = 0.9  # of the lattice, in standard deviations of the posterior
SMALLEST_STEPS = 1e-3, 1e-3  # radians and voxels; below, float32 decides
NUM_INSERTED = 8  # of a lattice's rotations, the most probable, that references are made of


class Hypotheses(NamedTuple):
    """Where the poses of particles are looked for: m places for each.

    Attributes:
        classes: ``(f, n, m)`` int.
        rotations: ``(f, n, m, 3, 3)``, reference into particle.
        shifts: ``(f, n, m, 3)``, voxels (x, y, z).
        angle_steps: ``(f, n, m)``, of the lattice of rotations, radians.
        shift_steps: ``(f, n, m)``, of the lattice of shifts, voxels.
    """

    classes: jax.Array
    rotations: jax.Array
    shifts: jax.Array
    angle_steps: jax.Array
    shift_steps: jax.Array


class Weighed(NamedTuple):
    """Hypotheses moved to the mean of their posterior, and how probable each is.

    Attributes:
        hypotheses: with the lattice steps to use next.
        evidence: ``(f, n, m)``, log of the likelihood, summed over the lattice's volume.
        angle_deviations: ``(f, n, m)``, posterior standard deviation about one axis, radians.
        shift_deviations: ``(f, n, m)``, the same along one axis, voxels.
    """

    hypotheses: Hypotheses
    evidence: jax.Array
    angle_deviations: jax.Array
    shift_deviations: jax.Array


def expect_nearby(
    observations: Observations,
    model: Model,
    hypotheses: Hypotheses,
    band: Band,
    *,
    block: int = 16,
) -> tuple[Weighed, Statistics]:
    """Weighs rotations and shifts around every hypothesis.

    Args:
        observations: particles.
        model: what they are compared with.
        hypotheses: where to look. Those of one particle must lie apart, for each counts with its
            whole lattice.
        band: the coefficients.
        block: particles at a time; the memory is that of some ``40 * block * m * k`` floats.

    Returns:
        The hypotheses, moved, and the sums of the particles weighted with their posteriors.
    """
    precision = (1 / model.noise)[band.shells]
    num, block = observations.spectra.shape[1], min(block, observations.spectra.shape[1])

    def one_fold(own: tuple) -> tuple[Weighed, Statistics]:
        spectra, groups, is_real, grids, hypotheses = own
        look = _look_around(grids, observations.masks, precision, band)

        def look_at_block(sums: tuple, own: tuple) -> tuple[tuple, Weighed]:
            (spectra, groups, hypotheses), is_real = own
            seen = jax.vmap(look)(spectra, groups, hypotheses)
            own_share = jax.nn.softmax(seen.evidence, axis=1) * is_real[:, None]
            more = _sum_up(
                seen, own_share, observations.masks[groups], hypotheses.classes, precision, band,
                num_classes=len(grids),
            )  # fmt: skip
            energy = is_real @ jnp.abs(spectra) ** 2
            sums = jax.tree.map(jnp.add, sums, (*more, energy))
            return sums, _conclude(hypotheses, seen)

        blocks = cut_blocks((spectra, groups, hypotheses), is_real, block)
        zeros = jnp.zeros(grids.shape), jnp.zeros(len(band.shells))
        begin = slices.Sums(zeros[0] + 0j, zeros[0]), jnp.zeros(len(grids)), *[zeros[1]] * 3
        (sums, counts, crossed, explained, energy), parts = lax.scan(look_at_block, begin, blocks)
        members = jnp.zeros(len(observations.masks)).at[groups].add(is_real)
        weighed = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:num], parts)
        return weighed, Statistics(
            sums,
            counts,
            per_shell(energy + explained - 2 * crossed, band),
            per_shell(crossed, band),
            per_shell(explained, band),
            per_shell(members @ observations.masks, band),
        )

    folds = observations.spectra, observations.groups, observations.is_real
    weighed, statistics = lax.map(one_fold, (*folds, model.grids, hypotheses))
    return weighed, add_folds(statistics)


class _Seen(NamedTuple):
    """What a lattice shows; leading axes particle and hypothesis."""

    evidence: jax.Array
    share: jax.Array  # (j,) of each rotation
    turn: jax.Array  # (3,) mean, lattice steps
    turn_variance: jax.Array
    move: jax.Array  # (3,) mean, lattice steps
    move_variance: jax.Array
    moved: jax.Array  # (j, k) expected spectrum moved back, at each rotation
    rotations: jax.Array  # (j, 3, 3)
    crossed: jax.Array  # (k,) expected Re conj(T) D
    explained: jax.Array  # (k,) expected |T|^2 where measured


def make_lattice() -> np.ndarray:
    """The integer points within ``REACH`` of the origin: ``(33, 3)``."""
    axis = np.arange(-REACH, REACH + 1)
    points = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    return points[np.linalg.norm(points, axis=1) <= REACH].astype(np.float32)


def _look_around(
    grids: jax.Array, masks: jax.Array, precision: jax.Array, band: Band
) -> Callable[[jax.Array, jax.Array, Hypotheses], _Seen]:
    lattice = jnp.asarray(make_lattice())

    def look(spectrum: jax.Array, group: jax.Array, own: Hypotheses) -> _Seen:
        turns = jax.vmap(from_rotation_vector)(own.angle_steps * lattice)
        rotations = jnp.einsum("rij,jk->rik", turns, own.rotations, precision="highest")
        templates = slices.cut_own(grids, own.classes[None], rotations[None], band)[0]
        shifts = own.shifts + own.shift_steps * lattice
        back = split(spectrum * jnp.conj(bands.phase_ramps(shifts, band)))
        power = jnp.abs(templates) ** 2 * masks[group]
        scores = split(templates * precision) @ back.T - (power @ precision)[:, None] / 2
        evidence = jax.nn.logsumexp(scores)
        posterior = jnp.exp(scores - evidence)
        share, moves = posterior.sum(axis=1), posterior.sum(axis=0)
        moved = join(posterior @ back)  # times the share
        turn, move = share @ lattice, moves @ lattice
        return _Seen(
            evidence + 3 * jnp.log(own.angle_steps * own.shift_steps),
            share,
            turn,
            jnp.mean(share @ (lattice - turn) ** 2),
            move,
            jnp.mean(moves @ (lattice - move) ** 2),
            moved,
            rotations,
            jnp.sum((jnp.conj(templates) * moved).real, axis=0),
            share @ power,
        )

    return jax.vmap(look, (None, None, 0))


def _sum_up(
    seen: _Seen,
    own_share: jax.Array,
    masks: jax.Array,
    classes: jax.Array,
    precision: jax.Array,
    band: Band,
    *,
    num_classes: int,
) -> tuple[slices.Sums, jax.Array, jax.Array, jax.Array]:
    """Sums over a block ``(n, m)``: inserted, counts, crossed and explained."""
    flat = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), (seen, own_share, classes))
    seen, own_share, classes = flat
    masks = jnp.repeat(masks, len(classes) // len(masks), axis=0)
    share, chosen = lax.top_k(seen.share, NUM_INSERTED)
    scale = own_share / jnp.sum(share, axis=1)  # as if the others were as these
    moved = jnp.take_along_axis(seen.moved, chosen[:, :, None], axis=1) * scale[:, None, None]
    measured = (share * scale[:, None])[:, :, None] * masks[:, None]
    rotations = jnp.take_along_axis(seen.rotations, chosen[:, :, None, None], axis=1)
    sums = slices.insert_own(
        moved * precision, measured * precision, classes, rotations, band, num_classes=num_classes
    )
    counts = jnp.zeros(num_classes).at[classes].add(own_share)
    return sums, counts, own_share @ seen.crossed, own_share @ seen.explained


def _conclude(hypotheses: Hypotheses, seen: _Seen) -> Weighed:
    def turned(own: Hypotheses, turn: jax.Array) -> jax.Array:
        turn = from_rotation_vector(turn * own.angle_steps)
        return jnp.matmul(turn, own.rotations, precision="highest")

    angle, shift = map(_untruncate, (seen.turn_variance, seen.move_variance))
    steps = [
        jnp.maximum(step * jnp.clip(STEP_PER_DEVIATION * deviation, 0.5, 2.0), smallest)
        for step, deviation, smallest in zip(
            (hypotheses.angle_steps, hypotheses.shift_steps),
            (angle, shift),
            SMALLEST_STEPS,
            strict=True,
        )
    ]
    moved = Hypotheses(
        hypotheses.classes,
        jax.vmap(jax.vmap(turned))(hypotheses, seen.turn),
        hypotheses.shifts + seen.move * hypotheses.shift_steps[..., None],
        *steps,
    )
    deviations = angle * hypotheses.angle_steps, shift * hypotheses.shift_steps
    return Weighed(moved, seen.evidence, *deviations)


def _untruncate(variance: jax.Array) -> jax.Array:
    """Standard deviation of the Gaussian of which a lattice shows a variance, lattice steps."""
    lattice = make_lattice()
    deviations = np.linspace(0.3, 2.0, 35)
    weights = np.exp(-np.sum(lattice**2, axis=1) / (2 * deviations[:, None] ** 2))
    shares = weights / weights.sum(axis=1, keepdims=True)
    shown = np.mean(shares @ lattice**2, axis=1)
    # Below, the lattice is too coarse to tell: what it shows is between 0 and the first.
    return jnp.interp(variance, np.append(0, shown), np.append(0, deviations))
