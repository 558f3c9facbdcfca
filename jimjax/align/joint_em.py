"""Joint expectation-maximisation: classes, rotations and shifts of all particles at once.

    D_n(k) = m_n(k) exp(-2 pi i k.s) V_c(R_r^T k) + noise,   noise ~ N(0, sigma^2(|k|)) in each of
    real and imaginary part, m_n the wedge of particle n

Nothing is decided: every particle counts in every class, rotation and shift as much as its
posterior says. Both steps are matrix products of particles by coefficients by templates, over
blocks of particles and one shift at a time, so that nothing of the size particles x templates x
shifts is ever held.

Particles are dealt into folds, and those of a fold are compared with what the other folds add up
to: noise that went into a reference is never found again in it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jimjax.align import bands, slices, templates
from jimjax.align.bands import Band, per_shell, split
from jimjax.align.slices import Sums
from jimjax.align.templates import Templates

DYING = 0.3  # of an equal share of the particles, below which a class is given up
NOISE_FLOOR = 1e-3  # of the mean noise variance, in a shell where the templates explain all


class Observations(NamedTuple):
    """Particles inside a band, dealt into folds of equal size.

    Attributes:
        spectra: ``(f, n, k)`` complex, zero where not measured.
        groups: ``(f, n)`` int, which of the masks.
        is_real: ``(f, n)``, 1, or 0 for what only fills up a fold.
        masks: ``(g, k)``, 1 where measured.
    """

    spectra: jax.Array
    groups: jax.Array
    is_real: jax.Array
    masks: jax.Array


class Model(NamedTuple):
    """What the particles are believed to show.

    Attributes:
        grids: ``(f, c, g, g, g)`` complex, what each fold is compared with; see ``slices``.
        noise: ``(shells,)``, variance of the real part of a coefficient, also of the imaginary.
    """

    grids: jax.Array
    noise: jax.Array


class Posterior(NamedTuple):
    """What is known of each particle.

    Attributes:
        classes: ``(f, n, c)`` probabilities.
        best_class: ``(f, n)`` int, of the most probable pose.
        best_rotation: ``(f, n)`` int, into the rotations.
        best_shift: ``(f, n)`` int, into the shifts.
        evidence: ``(f, n)``, log of the likelihood, but for a constant of the particle.
    """

    classes: jax.Array
    best_class: jax.Array
    best_rotation: jax.Array
    best_shift: jax.Array
    evidence: jax.Array


class Statistics(NamedTuple):
    """All that the next model needs of the particles.

    Attributes:
        sums: ``(f, c, g, g, g)``, particles moved back and weighted with their posteriors, and
            their masks so weighted, both over the noise's variance.
        counts: ``(f, c)``, particles of each class.
        unexplained: ``(shells,)``, sum of ``|D - T|^2``.
        crossed: ``(shells,)``, sum of ``Re conj(T) D``.
        explained: ``(shells,)``, sum of ``|T|^2`` where measured.
        measured: ``(shells,)``, number of measured coefficients.
    """

    sums: Sums
    counts: jax.Array
    unexplained: jax.Array
    crossed: jax.Array
    explained: jax.Array
    measured: jax.Array


def expect(
    observations: Observations,
    model: Model,
    rotations: jax.Array,
    shifts: jax.Array,
    log_prior: jax.Array,
    band: Band,
    *,
    class_log_prior: jax.Array | None = None,
    temperature: jax.Array | float = 1.0,
    block: int = 64,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Posterior, Statistics]:
    """Weighs every class, rotation and shift of every particle.

    Args:
        observations: particles.
        model: what they are compared with.
        rotations: ``(r, 3, 3)``, reference into particle, equally probable.
        shifts: ``(s, 3)``, voxels (x, y, z).
        log_prior: ``(s,)``, of the shifts.
        band: the coefficients.
        class_log_prior: ``(f, n, c)``, of the classes of each particle, minus infinity where it
            cannot belong; None if all are as probable.
        temperature: 1 or more; by what log-likelihoods are divided, so that early, wrong
            references do not decide.
        block: particles at a time; besides what is given and returned, the memory is that of
            up to ``10 * c * r * k`` and ``4 * c * r * block`` floats.
        dtype: in which particles and templates are multiplied; sums are float32. bfloat16 is
            quicker on accelerators, and moves a log-likelihood by some thousandths of itself.

    Returns:
        The posterior and its sums.
    """

    if class_log_prior is None:
        class_log_prior = jnp.zeros((*observations.groups.shape, model.grids.shape[1]))

    def one_fold(own: tuple) -> tuple[Posterior, Statistics]:
        return _expect_fold(
            *own,
            observations.masks,
            model.noise,
            rotations,
            shifts,
            log_prior,
            band,
            temperature=temperature,
            block=min(block, observations.spectra.shape[1]),
            dtype=dtype,
        )

    folds = observations.spectra, observations.groups, class_log_prior, observations.is_real
    posterior, statistics = lax.map(one_fold, (*folds, model.grids))
    return posterior, add_folds(statistics)


def add_folds(statistics: Statistics) -> Statistics:
    """Adds up what is not kept for each fold; statistics with a leading fold axis."""
    return statistics._replace(
        **{
            name: getattr(statistics, name).sum(axis=0)
            for name in ("unexplained", "crossed", "explained", "measured")
        }
    )


class _Moves(NamedTuple):
    index: jax.Array  # (s,)
    back: jax.Array  # (s, k) complex
    log_prior: jax.Array  # (s,)


class _Found(NamedTuple):
    evidence: jax.Array
    best: jax.Array
    template: jax.Array
    move: jax.Array


def _expect_fold(
    spectra: jax.Array,
    groups: jax.Array,
    class_log_prior: jax.Array,
    is_real: jax.Array,
    grids: jax.Array,
    masks: jax.Array,
    noise: jax.Array,
    rotations: jax.Array,
    shifts: jax.Array,
    log_prior: jax.Array,
    band: Band,
    *,
    temperature: jax.Array | float,
    block: int,
    dtype: DTypeLike,
) -> tuple[Posterior, Statistics]:
    num, num_groups, num_classes = len(spectra), len(masks), len(grids)
    precision = (1 / noise)[band.shells]
    shown = templates.read(grids, masks, precision, rotations, band, dtype)
    moves = _Moves(jnp.arange(len(shifts)), jnp.conj(bands.phase_ramps(shifts, band)), log_prior)

    def weigh_block(sums: tuple[jax.Array, jax.Array], own: tuple) -> tuple[tuple, Posterior]:
        (spectra, groups, of_class), is_real = own
        prior = jnp.repeat(of_class, len(rotations), axis=1)
        weighted = spectra * precision
        score = functools.partial(_score, shown, temperature, weighted, groups, prior)
        found = _survey(score, moves, len(spectra))
        moved, occupied = _add_up(score, moves, spectra, found.evidence, is_real, sums[0], dtype)
        per_group = sums[1] + occupied.T @ jax.nn.one_hot(groups, num_groups)
        per_class = occupied.reshape(len(spectra), num_classes, -1).sum(axis=2)
        pose = found.template // len(rotations), found.template % len(rotations), found.move
        return (moved, per_group), Posterior(per_class, *pose, found.evidence)

    blocks = cut_blocks((spectra, groups, class_log_prior), is_real, block)
    zeros = jnp.zeros(shown.rows.shape), jnp.zeros((len(shown.rows), num_groups))
    (moved, per_group), parts = lax.scan(weigh_block, zeros, blocks)
    posterior = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:num], parts)

    totals = templates.insert(grids, masks, precision, rotations, moved, per_group, band)
    members = jnp.zeros(num_groups).at[groups].add(is_real)
    energy = is_real @ jnp.abs(spectra) ** 2
    return posterior, Statistics(
        totals.sums,
        posterior.classes.sum(axis=0),
        per_shell(energy + totals.explained - 2 * totals.crossed, band),
        per_shell(totals.crossed, band),
        per_shell(totals.explained, band),
        per_shell(members @ masks, band),
    )


def _score(
    shown: Templates,
    temperature: jax.Array | float,
    weighted: jax.Array,
    groups: jax.Array,
    prior: jax.Array,
    move: _Moves,
) -> jax.Array:
    """Log of prior times likelihood of every template, at one shift: ``(n, c r)``."""
    products = _multiply(split(weighted * move.back), shown.rows.T, shown.rows.dtype)
    return (products - shown.half_power[groups] + move.log_prior + prior) / temperature


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
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Adds particles, moved back, to the templates' sums; also each one's share in each."""

    def add(sums: tuple[jax.Array, jax.Array], move: _Moves) -> tuple[tuple, None]:
        share = jnp.exp(score(move) - evidence[:, None]) * is_real[:, None]
        moved = _multiply(share.T, split(spectra * move.back), dtype)
        return (sums[0] + moved, sums[1] + share), None

    return lax.scan(add, (total, jnp.zeros((len(spectra), len(total)))), moves)[0]


def _multiply(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A matrix product with factors of a type and float32 sums; float32 means all of its bits."""
    return jnp.matmul(
        a.astype(dtype), b.astype(dtype), precision="highest", preferred_element_type=jnp.float32
    )


def cut_blocks(fields: Any, is_real: jax.Array, block: int) -> tuple[Any, jax.Array]:
    """Cuts the first axis of all arrays into blocks; what fills up the last one is not real."""
    missing = -len(is_real) % block

    def cut(field: jax.Array, mode: str) -> jax.Array:
        padded = jnp.pad(field, [(0, missing)] + [(0, 0)] * (field.ndim - 1), mode)
        return padded.reshape(-1, block, *field.shape[1:])

    return jax.tree.map(lambda field: cut(field, "edge"), fields), cut(is_real, "constant")


def maximize(
    statistics: Statistics, band: Band, *, radius: float, group: jax.Array | None = None
) -> Model:
    """Finds the model that explains the weighted particles best.

    Args:
        statistics: of ``expect``.
        band: as given to ``expect``.
        radius: of the sphere that the densities are in, voxels.
        group: ``(order, 3, 3)``, the symmetry of all classes; none if None.

    Returns:
        The next model; each fold's grids are made of the other folds.
    """
    sums = jax.tree.map(leave_one_out, split_largest(statistics))
    folded = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), sums)
    grids = slices.solve(folded, band, radius=radius, group=group)
    return Model(grids.reshape(sums.spectra.shape), estimate_noise(statistics))


def rescale(statistics: Statistics, model: Model, band: Band) -> tuple[Model, jax.Array]:
    """Fits the strength of given references, and the noise, to the weighted particles.

    Args:
        statistics: of ``expect`` with the model.
        model: whose grids keep their shape.
        band: as given to ``expect``.

    Returns:
        The next model, and what each shell of the grids was multiplied with, ``(shells,)``.
    """
    crossed, explained = statistics.crossed, statistics.explained
    gain = jnp.where(explained > 0, crossed / jnp.where(explained > 0, explained, 1), 1)
    grids = model.grids * gain[slices.grid_shells(band)]
    energy = statistics.unexplained - explained + 2 * crossed
    left = energy + explained * gain**2 - 2 * crossed * gain
    return Model(grids, estimate_noise(statistics._replace(unexplained=left))), gain


def estimate_noise(statistics: Statistics) -> jax.Array:
    """Variance per shell, from what is left: ``(shells,)``."""
    noise = statistics.unexplained / (2 * jnp.maximum(statistics.measured, 1))
    return jnp.maximum(noise, NOISE_FLOOR * jnp.mean(noise))


def leave_one_out(parts: jax.Array) -> jax.Array:
    """What all others add up to, along the first axis; a single one stays."""
    return parts.sum(axis=0, keepdims=True) - parts if len(parts) > 1 else parts


def split_largest(statistics: Statistics) -> Sums:
    """The sums; but a class that is dying out shares the largest: every other fold each."""
    counts = statistics.counts.sum(axis=0)
    smallest, largest = jnp.argmin(counts), jnp.argmax(counts)
    is_dying = counts[smallest] < DYING * jnp.mean(counts)

    def share(parts: jax.Array) -> jax.Array:
        is_even = (jnp.arange(len(parts)) % 2 == 0).reshape(-1, *[1] * (parts.ndim - 2))
        whole = parts[:, largest]
        divided = parts.at[:, smallest].set(2 * whole * is_even)
        divided = divided.at[:, largest].set(2 * whole * ~is_even)
        return jnp.where(is_dying, divided, parts)

    return jax.tree.map(share, statistics.sums)
