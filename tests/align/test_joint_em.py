"""Both steps of the joint EM against loops over everything, and what they find together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align import joint_em, slices
from jimjax.align.joint_em import Model, Observations
from jimjax.data.phantom import demo_phantoms, render
from jimjax.ops import rotation

BOX = 16
BAND = slices.make_band(BOX, 4.5)
SHIFTS = jnp.asarray([[0, 0, 0], [2, 0, -1], [0, -2, 1]], jnp.float32)
LOG_PRIOR = jnp.log(jnp.array([0.6, 0.3, 0.1]))
NUM_ROTATIONS = 20


@pytest.fixture(scope="module")
def rotations():
    return rotation.super_fibonacci(NUM_ROTATIONS)


@pytest.fixture(scope="module")
def volumes():
    return jnp.stack([render(m, (BOX,) * 3) for m in demo_phantoms(2, shape=(BOX,) * 3)])


@pytest.fixture(scope="module")
def masks():
    x, _, z = BAND.frequencies.T
    steep = np.abs(z) > 1.7 * np.abs(x)
    return jnp.asarray(np.stack([~steep, np.ones_like(steep)]), jnp.float32)


@pytest.fixture(scope="module")
def truth():
    random = np.random.default_rng(0)
    return {
        "class": random.integers(0, 2, 9),
        "rotation": random.integers(0, NUM_ROTATIONS, 9),
        "shift": random.integers(0, 3, 9),
        "group": random.integers(0, 2, 9),
    }


def observe(volumes, rotations, masks, truth, noise):
    templates = slices.cut(volumes, rotations, BAND)[truth["class"], truth["rotation"]]
    moved = templates * slices.phase_ramps(SHIFTS, BAND)[truth["shift"]]
    real, imaginary = jax.random.normal(jax.random.key(1), (2, *moved.shape)) * jnp.sqrt(noise)
    own = masks[truth["group"]]
    return Observations((moved + real + 1j * imaginary) * own, jnp.asarray(truth["group"]), masks)


@pytest.fixture(scope="module")
def power(volumes):
    return float(jnp.mean(jnp.abs(slices.take_spectra(volumes, BAND)) ** 2))


@pytest.fixture(scope="module")
def model(volumes, power):
    noise = power * jnp.linspace(2.0, 1.0, BAND.num_shells)
    return Model(volumes, noise, jnp.array([0.7, 0.3]))


@pytest.fixture(scope="module")
def observations(volumes, rotations, masks, truth, power):
    return observe(volumes, rotations, masks, truth, power)


def slow_scores(observations, model, rotations):
    """Log of prior times likelihood, (n, c, r, s), but for |D|^2: loops and complex numbers."""
    templates = np.asarray(slices.cut(model.volumes, rotations, BAND), complex)
    ramps = np.asarray(slices.phase_ramps(SHIFTS, BAND), complex)
    noise = np.asarray(model.noise, float)[BAND.shells]
    spectra, groups = np.asarray(observations.spectra, complex), np.asarray(observations.groups)
    scores = np.zeros((len(spectra), *templates.shape[:2], len(ramps)))
    for n, c, r, s in np.ndindex(scores.shape):
        seen = np.asarray(observations.masks)[groups[n]] * templates[c, r] * ramps[s]
        misfit = np.sum((np.abs(spectra[n] - seen) ** 2 - np.abs(spectra[n]) ** 2) / noise) / 2
        scores[n, c, r, s] = np.log(model.shares[c]) + LOG_PRIOR[s] - misfit
    return scores


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("block", [2, 4, 128])
def test_expectation_agrees_with_loops_for_any_block(
    observations, model, rotations, temperature, block
):
    expect = jax.jit(functools.partial(joint_em.expect, band=BAND, block=block))
    posterior, statistics = expect(
        observations, model, rotations, SHIFTS, LOG_PRIOR, temperature=temperature
    )
    scores = slow_scores(observations, model, rotations) / temperature
    flat = scores.reshape(len(scores), -1)
    highest = flat.max(axis=1)
    evidence = highest + np.log(np.exp(flat - highest[:, None]).sum(axis=1))
    np.testing.assert_allclose(posterior.evidence, evidence, rtol=1e-4, atol=1e-3)

    share = np.exp(scores - evidence[:, None, None, None])
    np.testing.assert_allclose(posterior.classes, share.sum(axis=(2, 3)), atol=2e-3)
    np.testing.assert_allclose(statistics.counts, share.sum(axis=(0, 2, 3)), atol=1e-2)
    best = posterior.best_class, posterior.best_rotation, posterior.best_shift
    np.testing.assert_allclose(
        scores[np.arange(len(scores)), *map(np.asarray, best)], highest, atol=1e-3
    )

    back = np.conj(np.asarray(slices.phase_ramps(SHIFTS, BAND)))
    spectra = np.einsum("ncrs,sk,nk->crk", share, back, np.asarray(observations.spectra))
    scale = np.abs(spectra).max()
    np.testing.assert_allclose(statistics.spectra.sum(axis=0), spectra, atol=2e-3 * scale)
    own = np.asarray(observations.masks)[np.asarray(observations.groups)]
    masks = np.einsum("ncrs,nk->crk", share, own)
    np.testing.assert_allclose(statistics.masks.sum(axis=0), masks, atol=1e-2)


def test_true_poses_are_found_in_little_noise(volumes, rotations, masks, truth, power, model):
    observations = observe(volumes, rotations, masks, truth, 0.01 * power)
    sure = model._replace(noise=jnp.full(BAND.num_shells, 0.01 * power))
    posterior, _ = joint_em.expect(observations, sure, rotations, SHIFTS, LOG_PRIOR, BAND)
    np.testing.assert_array_equal(posterior.best_class, truth["class"])
    np.testing.assert_array_equal(posterior.best_rotation, truth["rotation"])
    np.testing.assert_array_equal(posterior.best_shift, truth["shift"])
    np.testing.assert_allclose(posterior.classes.max(axis=1), 1, atol=1e-5)


def test_maximization_finds_volumes_and_noise(volumes, masks, power):
    """Of 400 particles of two classes whose references are known but weak."""
    random = np.random.default_rng(2)
    rotations = rotation.super_fibonacci(200)
    names = ("class", "rotation", "shift", "group")
    truth = {n: random.integers(0, top, 400) for n, top in zip(names, (2, 200, 3, 2), strict=True)}
    observations = observe(volumes, rotations, masks, truth, power)
    start = Model(0.9 * volumes, jnp.full(BAND.num_shells, 0.5 * power), jnp.full(2, 0.5))
    _, statistics = joint_em.expect(observations, start, rotations, SHIFTS, LOG_PRIOR, BAND)
    found = joint_em.maximize(statistics, start, rotations, BAND, support=jnp.ones((BOX,) * 3))
    np.testing.assert_allclose(found.noise[1:], power, rtol=0.15)
    spectra, wanted = (slices.take_spectra(v, BAND) for v in (found.volumes, volumes))
    for own, true in zip(np.asarray(spectra), np.asarray(wanted), strict=True):
        correlation = np.vdot(own, true).real / np.linalg.norm(own) / np.linalg.norm(true)
        assert correlation > 0.9


def test_class_that_dies_out_gets_half_of_the_largest():
    spectra = jnp.arange(12.0).reshape(2, 3, 2, 1) + 0j
    statistics = joint_em.Statistics(
        spectra, spectra.real, jnp.array([1.0, 50.0, 20.0]), jnp.ones(1), jnp.ones(1)
    )
    found, masks = joint_em.split_largest(statistics)
    first, second = np.asarray(spectra)
    np.testing.assert_array_equal(found, [first[1], second[1], first[2] + second[2]])
    np.testing.assert_array_equal(masks, found.real)
    alive = statistics._replace(counts=jnp.array([15.0, 50.0, 20.0]))
    np.testing.assert_array_equal(joint_em.split_largest(alive)[0], first + second)
