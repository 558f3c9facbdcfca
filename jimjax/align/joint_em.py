"""Joint expectation-maximisation: classes, rotations and shifts of all particles at once.

    D_n(k) = m_n(k) exp(-2 pi i k.s) V_c(R_r^T k) + noise,   noise ~ N(0, sigma^2(|k|)) in each of
    real and imaginary part, m_n the wedge of particle n

Nothing is decided: every particle counts in every class, rotation and shift as much as its
posterior says. Both steps are matrix products of particles by coefficients by templates, over
blocks of particles and one shift at a time, so that nothing of the size particles x templates x
shifts is ever held.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.align import slices
from jimjax.align.slices import Band

DYING = 0.3  # of an equal share of the particles, below which a class is given up
NOISE_FLOOR = 1e-3  # of the mean noise variance, in a shell where the templates explain all


class Observations(NamedTuple):
    """Particles inside a band.

    Attributes:
        spectra: ``(n, k)`` complex, zero where not measured.
        groups: ``(n,)`` int, which of the masks.
        masks: ``(g, k)``, 1 where measured.
    """

    spectra: jax.Array
    groups: jax.Array
    masks: jax.Array


class Model(NamedTuple):
    """What the particles are believed to show.

    Attributes:
        volumes: ``(c, z, y, x)``, cubes.
        noise: ``(shells,)``, variance of the real part of a coefficient, also of the imaginary.
        shares: ``(c,)``, prior probability of each class.
    """

    volumes: jax.Array
    noise: jax.Array
    shares: jax.Array


class Posterior(NamedTuple):
    """What is known of each particle.

    Attributes:
        classes: ``(n, c)`` probabilities.
        best_class: ``(n,)`` int, of the most probable pose.
        best_rotation: ``(n,)`` int, into the rotations.
        best_shift: ``(n,)`` int, into the shifts.
        evidence: ``(n,)``, log of the likelihood, but for a constant of the particle.
    """

    classes: jax.Array
    best_class: jax.Array
    best_rotation: jax.Array
    best_shift: jax.Array
    evidence: jax.Array


class Statistics(NamedTuple):
    """All that the next model needs of the particles.

    Attributes:
        spectra: ``(2, c, r, k)`` complex, particles moved back and weighted with their
            posteriors; those of every other block apart, so that a class can be split.
        masks: ``(2, c, r, k)``, their masks so weighted.
        counts: ``(c,)``, particles of each class.
        energy: ``(shells,)``, sum of ``|D|^2``.
        measured: ``(shells,)``, number of measured coefficients.
    """

    spectra: jax.Array
    masks: jax.Array
    counts: jax.Array
    energy: jax.Array
    measured: jax.Array


def expect(
    observations: Observations,
    model: Model,
    rotations: jax.Array,
    shifts: jax.Array,
    log_prior: jax.Array,
    band: Band,
    *,
    temperature: jax.Array | float = 1.0,
    block: int = 128,
) -> tuple[Posterior, Statistics]:
    """Weighs every class, rotation and shift of every particle.

    Args:
        observations: particles.
        model: what they are compared with.
        rotations: ``(r, 3, 3)``, reference into particle, equally probable.
        shifts: ``(s, 3)``, voxels (x, y, z).
        log_prior: ``(s,)``, of the shifts.
        band: the coefficients.
        temperature: 1 or more; by what log-likelihoods are divided, so that early, wrong
            references do not decide.
        block: particles at a time; the memory is that of some ``block * c * r`` and of some
            ``4 * c * r * k`` floats.

    Returns:
        The posterior and its sums.
    """
    num, num_groups = len(observations.spectra), len(observations.masks)
    templates = _make_templates(observations.masks, model, rotations, band)
    moves = _Moves(jnp.arange(len(shifts)), jnp.conj(slices.phase_ramps(shifts, band)), log_prior)

    def weigh_block(sums: tuple[jax.Array, jax.Array], own: tuple) -> tuple[tuple, Posterior]:
        spectra, groups, is_real, fold = own
        score = functools.partial(_score, templates, temperature, spectra, groups)
        found = _survey(score, moves, len(spectra))
        weighted, per_group = sums
        moved, occupied = _add_up(score, moves, spectra, found.evidence, is_real, weighted[fold])
        member = jax.nn.one_hot(groups, num_groups)
        sums = weighted.at[fold].set(moved), per_group.at[fold].add(occupied.T @ member)
        per_class = occupied.reshape(len(spectra), len(model.volumes), -1).sum(axis=2)
        pose = found.template // len(rotations), found.template % len(rotations), found.move
        return sums, Posterior(per_class, *pose, found.evidence)

    fields = observations.spectra, observations.groups, jnp.ones(num)
    blocks = tuple(_cut_blocks(field, block) for field in fields)
    count = len(templates.rows)
    zeros = jnp.zeros((2, *templates.rows.shape)), jnp.zeros((2, count, num_groups))
    folds = jnp.arange(len(blocks[0])) % 2
    (weighted, per_group), parts = lax.scan(weigh_block, zeros, (*blocks, folds))
    posterior = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:num], parts)

    shape = (2, len(model.volumes), len(rotations), -1)
    real, imaginary = jnp.split(weighted, 2, axis=-1)
    members = jnp.bincount(observations.groups, length=num_groups)
    return posterior, Statistics(
        (real + 1j * imaginary).reshape(shape),
        (per_group @ observations.masks).reshape(shape),
        posterior.classes.sum(axis=0),
        _per_shell(jnp.sum(jnp.abs(observations.spectra) ** 2, axis=0), band),
        _per_shell(members @ observations.masks, band),
    )


class _Templates(NamedTuple):
    rows: jax.Array  # (c r, 2 k): real parts, imaginary parts
    prior: jax.Array  # (g, c r): log prior, less half the power that the mask lets through
    precision: jax.Array  # (k,)


class _Moves(NamedTuple):
    index: jax.Array  # (s,)
    back: jax.Array  # (s, k) complex
    log_prior: jax.Array  # (s,)


class _Found(NamedTuple):
    evidence: jax.Array
    best: jax.Array
    template: jax.Array
    move: jax.Array


def _make_templates(masks: jax.Array, model: Model, rotations: jax.Array, band: Band) -> _Templates:
    precision = (1 / model.noise)[band.shells]
    flat = slices.cut(model.volumes, rotations, band).reshape(-1, len(band.shells))
    power = (masks * precision) @ (jnp.abs(flat) ** 2).T
    prior = jnp.repeat(jnp.log(model.shares), len(rotations)) - power / 2
    return _Templates(jnp.concatenate([flat.real, flat.imag], axis=-1), prior, precision)


def _score(
    templates: _Templates,
    temperature: jax.Array | float,
    spectra: jax.Array,
    groups: jax.Array,
    move: _Moves,
) -> jax.Array:
    """Log of prior times likelihood of every template, at one shift: ``(n, c r)``."""
    products = _move_back(spectra * templates.precision, move) @ templates.rows.T
    return (products + templates.prior[groups] + move.log_prior) / temperature


def _move_back(spectra: jax.Array, move: _Moves) -> jax.Array:
    moved = spectra * move.back
    return jnp.concatenate([moved.real, moved.imag], axis=-1)


def _survey(score: Callable[[_Moves], jax.Array], moves: _Moves, num: int) -> _Found:
    """The evidence of each particle, and its most probable template and shift."""

    def look(found: _Found, move: _Moves) -> tuple[_Found, None]:
        scores = score(move)
        highest, where = scores.max(axis=1), scores.argmax(axis=1)
        is_better = highest > found.best
        return _Found(
            jnp.logaddexp(found.evidence, jax.nn.logsumexp(scores, axis=1)),
            jnp.where(is_better, highest, found.best),
            jnp.where(is_better, where, found.template),
            jnp.where(is_better, move.index, found.move),
        ), None

    never, nowhere = jnp.full(num, -jnp.inf), jnp.zeros(num, int)
    return lax.scan(look, _Found(never, never, nowhere, nowhere), moves)[0]


def _add_up(
    score: Callable[[_Moves], jax.Array],
    moves: _Moves,
    spectra: jax.Array,
    evidence: jax.Array,
    is_real: jax.Array,
    total: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Adds particles, moved back, to the templates' sums; also each one's share in each."""

    def add(sums: tuple[jax.Array, jax.Array], move: _Moves) -> tuple[tuple, None]:
        share = jnp.exp(score(move) - evidence[:, None]) * is_real[:, None]
        return (sums[0] + share.T @ _move_back(spectra, move), sums[1] + share), None

    return lax.scan(add, (total, jnp.zeros((len(spectra), len(total)))), moves)[0]


def _cut_blocks(field: jax.Array, block: int) -> jax.Array:
    padded = jnp.pad(field, [(0, -len(field) % block)] + [(0, 0)] * (field.ndim - 1))
    return padded.reshape(-1, block, *field.shape[1:])


def _per_shell(values: jax.Array, band: Band) -> jax.Array:
    return jax.ops.segment_sum(values, band.shells, num_segments=band.num_shells)


def maximize(
    statistics: Statistics,
    model: Model,
    rotations: jax.Array,
    band: Band,
    *,
    support: jax.Array,
) -> Model:
    """Finds the model that explains the weighted particles best.

    Args:
        statistics: of ``expect``.
        model: that they were taken with.
        rotations: as given to ``expect``.
        band: as given to ``expect``.
        support: ``(z, y, x)``, what volumes are multiplied with.

    Returns:
        The next model.
    """
    precision = (1 / model.noise)[band.shells]
    spectra, masks = split_largest(statistics)
    sums = slices.insert(spectra * precision, masks * precision, rotations, band)
    volumes = slices.solve(sums, band) * support
    templates = slices.cut(volumes, rotations, band)
    crossed = jnp.sum((jnp.conj(templates) * spectra).real, axis=(0, 1))
    explained = jnp.sum(jnp.abs(templates) ** 2 * masks, axis=(0, 1))
    left = statistics.energy + _per_shell(explained - 2 * crossed, band)
    noise = left / (2 * jnp.maximum(statistics.measured, 1))
    noise = jnp.maximum(noise, NOISE_FLOOR * jnp.mean(noise))
    return Model(volumes, noise, jnp.full_like(statistics.counts, 1 / len(volumes)))


def split_largest(statistics: Statistics) -> tuple[jax.Array, jax.Array]:
    """Sums of both folds; a class that is dying out gets one fold of the largest instead.

    Returns:
        ``(c, r, k)`` complex spectra, and masks.
    """
    counts = statistics.counts
    smallest, largest = jnp.argmin(counts), jnp.argmax(counts)
    is_dying = counts[smallest] < DYING * jnp.mean(counts)

    def together(folds: jax.Array) -> jax.Array:
        first, second = folds
        whole = first + second
        split = whole.at[smallest].set(first[largest]).at[largest].set(second[largest])
        return jnp.where(is_dying, split, whole)

    return together(statistics.spectra), together(statistics.masks)
