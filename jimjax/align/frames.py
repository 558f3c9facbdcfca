"""Particles of one class that were posed in two frames, half a turn apart, told apart again.

Where half a turn T leaves a density nearly as it is, a particle may be posed in its own frame or
in the twin of it. Of particles so mixed

    D_n = A_n (v + s_n d) + noise,   T v = v,   T d = -d,   s_n = 1 or -1

with A_n the slice in the pose, v the average and d what tells the frames apart. An average of as
many in one frame as in the other is v alone, in which all find both frames equal: there EM stays.
But d is the first principal component of what v leaves unexplained, and finding it needs no start.
Both poses of a particle, its own and its twin's, measure it.

Each half of the particles finds d by itself. If that is more than noise, the other half's
particles vary along it by more than noise.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.align import bands, slices
from jimjax.align.bands import Band
from jimjax.align.joint_em import Observations, cut_blocks
from jimjax.ops.rotation import Pose, compose, geodesic_angle

NUM_STEPS, NUM_JOINT_STEPS = 15, 5  # of the power iteration: in halves, then of all particles
HALF_TURN = 20.0  # degrees that a turn, taken twice, may miss the identity by


class Frames(NamedTuple):
    """Which particles belong to the other frame.

    Attributes:
        scores: ``(f, n)``, how much better a particle fits the frame of its pose than the other;
            positive for most of a class.
        certainty: ``(c,)``, by how many standard deviations the particles of a class vary more
            than noise along what tells the frames apart. Below some 3 scores mean nothing.
    """

    scores: jax.Array
    certainty: jax.Array


class _Views(NamedTuple):
    """Particles in both frames; leading axes block and particle."""

    spectra: jax.Array  # (2, k), moved back
    weights: jax.Array  # (k,), one over the noise where measured; 0 for what only fills up
    rotations: jax.Array  # (2, 3, 3)
    ramps: jax.Array  # (2, k), of the shifts


def is_half_turn(rotation: jax.Array) -> jax.Array:
    """Whether a rotation ``(3, 3)``, taken twice, is nearly none."""
    twice = jnp.matmul(rotation, rotation, precision="highest")
    return geodesic_angle(twice, jnp.eye(3)) < np.deg2rad(HALF_TURN)


@functools.partial(jax.jit, static_argnames=("band", "radius", "block"))
def tell_frames(
    observations: Observations,
    noise: jax.Array,
    labels: jax.Array,
    poses: Pose,
    twins: Pose,
    band: Band,
    *,
    radius: float,
    block: int = 64,
) -> Frames:
    """Tells the frames of every class apart.

    Args:
        observations: particles; even and odd folds are the halves.
        noise: ``(shells,)``, variance of the real part of a coefficient, also of the imaginary.
        labels: ``(f, n)`` int, their classes.
        poses: ``(f, n)``, reference into particle.
        twins: ``(c,)``, of each class half a turn that leaves it nearly as it is.
        band: the coefficients.
        radius: of the sphere that the densities are in, voxels.
        block: particles at a time; the memory is five times that of the particles, and that of
            some ``20 * block * k`` floats.
    """
    num_classes, shape = len(twins.shift), labels.shape
    halves = jnp.broadcast_to(jnp.arange(shape[0])[:, None] % 2, shape)
    fields = observations.spectra, observations.groups, labels, poses, halves
    fields, is_real = jax.tree.map(
        lambda field: field.reshape(-1, *field.shape[2:]), (fields, observations.is_real)
    )
    fields, is_real = cut_blocks(fields, is_real, block)
    weights = observations.masks * (1 / noise)[band.shells]

    def view(own: tuple) -> _Views:
        (spectra, groups, labels, poses, _), is_real = own
        turned = jax.vmap(compose)(poses, jax.tree.map(lambda field: field[labels], twins))
        both = jax.tree.map(lambda *pair: jnp.stack(pair, axis=1), poses, turned)
        ramps = bands.phase_ramps(both.shift, band)
        moved = spectra[:, None] * jnp.conj(ramps)
        return _Views(moved, weights[groups] * is_real[:, None], both.rotation, ramps)

    views, labels = lax.map(view, (fields, is_real)), fields[2]
    average = _average(views, jnp.ones(labels.shape), labels, num_classes, band, radius)

    def leave_unexplained(own: tuple[_Views, jax.Array]) -> jax.Array:
        views, labels = own
        seen = slices.cut_own(average, labels, views.rotations, band)
        left = views.spectra - seen * (views.weights > 0)[:, None]
        return left * jnp.array([1.0, -1.0])[:, None]  # d is the other way in the twin

    views = views._replace(spectra=lax.map(leave_unexplained, (views, labels)))

    def find_parts(
        signs: jax.Array, keys: jax.Array, num_keys: int, num_steps: int
    ) -> tuple[jax.Array, jax.Array]:
        def step(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            parts = _average(views, state[0], keys, num_keys, band, radius)
            along = _project(views, parts, keys, band)[0] * is_real
            power = jnp.zeros(num_keys).at[keys].add(along**2)
            members = jnp.zeros(num_keys).at[keys].add(is_real)
            scale = jnp.sqrt(power / jnp.maximum(members, 1))[keys]
            return along / jnp.where(scale > 0, scale, 1), parts

        empty = jnp.zeros((num_keys, *[band.side] * 3), views.spectra.dtype)
        return lax.fori_loop(0, num_steps, step, (signs, empty))

    def add(values: jax.Array) -> jax.Array:
        return jnp.zeros(num_classes).at[labels].add(values * is_real)

    is_second = fields[4] == 1
    signs = jax.random.rademacher(jax.random.key(0), labels.shape, jnp.float32)
    keys = labels + num_classes * is_second
    parts = find_parts(signs, keys, 2 * num_classes, NUM_STEPS)[1]
    (first, first_power), (second, second_power) = (
        _project(views, parts, labels + start, band) for start in (0, num_classes)
    )
    other = jnp.where(is_second, first, second)
    power = jnp.where(is_second, first_power, second_power)
    members = jnp.maximum(add(jnp.ones(labels.shape)), 1)
    excess = add(other**2 / jnp.where(power > 0, power, 1)) - members

    # The halves need not mean the same frame by the same sign.
    signs = jnp.sign(first + jnp.sign(add(first * second))[labels] * second)
    scores = find_parts(signs, labels, num_classes, NUM_JOINT_STEPS)[0]
    scores *= jnp.where(add(jnp.sign(scores)) < 0, -1, 1)[labels]
    scores = scores.reshape(-1)[: np.prod(shape)].reshape(shape)
    return Frames(scores, excess / jnp.sqrt(2 * members))


def _average(
    views: _Views,
    factors: jax.Array,
    keys: jax.Array,
    num_keys: int,
    band: Band,
    radius: float,
) -> jax.Array:
    """Densities of particles that are multiplied with factors: grids, one for each key."""

    def insert(total: slices.Sums, own: tuple) -> tuple[slices.Sums, None]:
        views, factors, keys = own
        weights = jnp.broadcast_to(views.weights[:, None], views.spectra.shape)
        values = views.spectra * weights * factors[:, None, None]
        more = slices.insert_own(values, weights, keys, views.rotations, band, num_classes=num_keys)
        return jax.tree.map(jnp.add, total, more), None

    zeros = jnp.zeros((num_keys, *[band.side] * 3), views.weights.dtype)
    sums, _ = lax.scan(insert, slices.Sums(zeros + 0j, zeros), (views, factors, keys))
    alone = jax.tree.map(lambda field: field[:, None], sums)  # each with its own prior
    return jax.vmap(lambda own: slices.solve(own, band, radius=radius)[0])(alone)


def _project(
    views: _Views, parts: jax.Array, keys: jax.Array, band: Band
) -> tuple[jax.Array, jax.Array]:
    """Products of particles with parts by key, and their variance if there is only noise."""

    def one_block(own: tuple[_Views, jax.Array]) -> tuple[jax.Array, jax.Array]:
        views, keys = own
        seen = slices.cut_own(parts, keys, views.rotations, band)
        products = (jnp.conj(seen) * views.spectra).real
        # One particle is seen twice: its noise counts once.
        pattern = seen[:, 0] * views.ramps[:, 0] - seen[:, 1] * views.ramps[:, 1]
        along = jnp.sum(products * views.weights[:, None], axis=(1, 2))
        return along, jnp.sum(jnp.abs(pattern) ** 2 * views.weights, axis=1)

    return lax.map(one_block, (views, keys))
