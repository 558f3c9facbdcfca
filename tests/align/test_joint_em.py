"""Both steps of the joint EM against loops over everything, and what they find together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import NUM_FOLDS, NUM_ROTATIONS, PER_FOLD, model_of, observe

from jimjax.align import bands, joint_em, slices

LOG_PRIOR = jnp.log(jnp.array([0.6, 0.3, 0.1]))


@pytest.fixture(scope="module")
def observations(world):
    return observe(world, world.truth, world.power, num_real=NUM_FOLDS * PER_FOLD - 1)


@pytest.fixture(scope="module")
def model(world):
    noise = world.power * jnp.linspace(2.0, 1.0, world.band.num_shells)
    model = model_of(world, noise)
    return model._replace(grids=model.grids.at[1].multiply(0.9))  # folds have their own


def slow_scores(world, observations, model, fold):
    """Log of prior times likelihood, (n, c, r, s), but for |D|^2: loops and complex numbers."""
    templates = np.asarray(slices.cut(model.grids[fold], world.rotations, world.band), complex)
    ramps = np.asarray(bands.phase_ramps(world.shifts, world.band), complex)
    noise = np.asarray(model.noise, float)[world.band.shells]
    spectra, groups = np.asarray(observations.spectra[fold], complex), observations.groups[fold]
    scores = np.zeros((len(spectra), *templates.shape[:2], len(ramps)))
    for n, c, r, s in np.ndindex(scores.shape):
        seen = np.asarray(observations.masks)[groups[n]] * templates[c, r] * ramps[s]
        misfit = np.sum((np.abs(spectra[n] - seen) ** 2 - np.abs(spectra[n]) ** 2) / noise) / 2
        scores[n, c, r, s] = LOG_PRIOR[s] - misfit
    return scores


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("block", [2, 128])
def test_expectation_agrees_with_loops_for_any_block(
    world, observations, model, temperature, block
):
    expect = jax.jit(functools.partial(joint_em.expect, band=world.band, block=block))
    poses = world.rotations, world.shifts, LOG_PRIOR
    posterior, statistics = expect(observations, model, *poses, temperature=temperature)
    noise = np.asarray(model.noise)[world.band.shells]
    unexplained = np.zeros(len(noise))
    for fold in range(NUM_FOLDS):
        own = jax.tree.map(lambda field, fold=fold: np.asarray(field[fold]), posterior)
        scores = slow_scores(world, observations, model, fold) / temperature
        flat = scores.reshape(len(scores), -1)
        highest = flat.max(axis=1)
        evidence = highest + np.log(np.exp(flat - highest[:, None]).sum(axis=1))
        np.testing.assert_allclose(own.evidence, evidence, rtol=1e-4, atol=1e-3)
        best = own.best_class, own.best_rotation, own.best_shift
        found = scores[np.arange(len(scores)), *best]
        np.testing.assert_allclose(found, highest, atol=1e-3)

        is_real = np.asarray(observations.is_real[fold])
        share = np.exp(scores - evidence[:, None, None, None]) * is_real[:, None, None, None]
        np.testing.assert_allclose(own.classes, share.sum(axis=(2, 3)), atol=2e-3)
        counts = share.sum(axis=(0, 2, 3))
        np.testing.assert_allclose(statistics.counts[fold], counts, atol=1e-2)

        spectra = np.asarray(observations.spectra[fold])
        ramps = np.asarray(bands.phase_ramps(world.shifts, world.band))
        moved = np.einsum("ncrs,sk,nk->crk", share, np.conj(ramps), spectra)
        masks = np.asarray(observations.masks)[observations.groups[fold]]
        weights = np.einsum("ncrs,nk->crk", share, masks)
        expected = slices.insert(moved / noise, weights / noise, world.rotations, world.band)
        for name in ("spectra", "weights"):
            wanted = np.asarray(getattr(expected, name))
            found = getattr(statistics.sums, name)[fold]
            np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())

        templates = slices.cut(model.grids[fold], world.rotations, world.band)
        seen = np.einsum("nk,crk,sk->ncrsk", masks, templates, ramps)
        left = np.abs(spectra[:, None, None, None] - seen) ** 2
        unexplained += np.einsum("ncrs,ncrsk->k", share, left)
    expected = bands.per_shell(jnp.asarray(unexplained), world.band)
    np.testing.assert_allclose(statistics.unexplained, expected, rtol=2e-3)
    real = np.asarray(observations.is_real)[..., None]
    every = np.sum(np.asarray(observations.masks)[observations.groups] * real, axis=(0, 1))
    measured = bands.per_shell(jnp.asarray(every), world.band)
    np.testing.assert_allclose(statistics.measured, measured, rtol=1e-4)


def test_true_poses_are_found_in_little_noise(world):
    observations = observe(world, world.truth, 0.01 * world.power)
    posterior, _ = joint_em.expect(
        observations,
        model_of(world, 0.01 * world.power),
        world.rotations,
        world.shifts,
        LOG_PRIOR,
        world.band,
    )
    np.testing.assert_array_equal(posterior.best_class, world.truth["class"])
    np.testing.assert_array_equal(posterior.best_rotation, world.truth["rotation"])
    np.testing.assert_array_equal(posterior.best_shift, world.truth["shift"])
    np.testing.assert_allclose(posterior.classes.max(axis=2), 1, atol=1e-5)


def test_bfloat16_finds_nearly_the_same(world, observations, model):
    poses = world.rotations, world.shifts, LOG_PRIOR
    full, half = (
        joint_em.expect(observations, model, *poses, world.band, dtype=dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_allclose(half[0].evidence, full[0].evidence, rtol=0.02, atol=0.3)
    assert np.any(np.asarray(half[0].evidence) != np.asarray(full[0].evidence))
    np.testing.assert_allclose(half[0].classes, full[0].classes, atol=0.1)
    scale = np.abs(full[1].sums.spectra).max()
    np.testing.assert_allclose(half[1].sums.spectra, full[1].sums.spectra, atol=0.1 * scale)


@pytest.fixture(scope="module")
def many(world):
    random = np.random.default_rng(2)
    tops = {"class": 2, "rotation": NUM_ROTATIONS, "shift": 3, "group": 2}
    truth = {name: random.integers(0, top, (NUM_FOLDS, 200)) for name, top in tops.items()}
    return observe(world, truth, world.power)


def test_maximization_finds_volumes_and_noise(world, many):
    """Of 400 particles whose references are known but weak."""
    start = model_of(world, 0.5 * world.power)
    start = start._replace(grids=0.9 * start.grids)
    poses = world.rotations, world.shifts, LOG_PRIOR
    _, statistics = joint_em.expect(many, start, *poses, world.band)
    found = joint_em.maximize(statistics, world.band, radius=6.0)
    np.testing.assert_allclose(found.noise[1:], world.power, rtol=0.15)
    for fold in range(NUM_FOLDS):
        spectra, wanted = (
            bands.take_spectra(volumes, world.band)
            for volumes in (slices.make_volumes(found.grids[fold], world.band), world.volumes)
        )
        for own, true in zip(np.asarray(spectra), np.asarray(wanted), strict=True):
            correlation = np.vdot(own, true).real / np.linalg.norm(own) / np.linalg.norm(true)
            assert correlation > 0.85


def test_a_fold_is_compared_with_the_others_only(world, many):
    model = model_of(world, world.power)
    poses = world.rotations, world.shifts, LOG_PRIOR
    changed = many._replace(spectra=many.spectra.at[0].multiply(-1.0))
    models = [
        joint_em.maximize(
            joint_em.expect(each, model, *poses, world.band)[1]._replace(
                counts=jnp.ones((NUM_FOLDS, 2))
            ),
            world.band,
            radius=6.0,
        )
        for each in (many, changed)
    ]
    difference = jnp.abs(models[0].grids - models[1].grids).max(axis=(1, 2, 3, 4))
    scale = jnp.abs(models[0].grids).max()
    # The common prior and noise change a little, its own fold's particles do not count.
    assert difference[0] < 0.3 * scale < difference[1]


def test_rescaling_finds_the_strength_of_references(world, many):
    start = model_of(world, world.power)
    start = start._replace(grids=0.5 * start.grids)
    poses = world.rotations, world.shifts, LOG_PRIOR
    model, total = start, 1.0
    for _ in range(4):
        _, statistics = joint_em.expect(many, model, *poses, world.band)
        model, gain = joint_em.rescale(statistics, model, world.band)
        total = total * gain
    np.testing.assert_allclose(total, 2.0, rtol=0.15)
    np.testing.assert_allclose(model.noise[1:], world.power, rtol=0.15)
    applied = jnp.asarray(total)[slices.grid_shells(world.band)]
    np.testing.assert_allclose(model.grids, start.grids * applied, rtol=1e-3, atol=1e-2)


def test_class_that_dies_out_shares_the_largest():
    spectra = jnp.arange(1.0, 13.0).reshape(4, 3, 1, 1, 1) + 0j
    nothing = jnp.ones(1)
    counts = jnp.array([[0.2, 12, 5]] * 4)
    statistics = joint_em.Statistics(
        slices.Sums(spectra, spectra.real), counts, nothing, nothing, nothing, nothing
    )
    found = joint_em.split_largest(statistics)
    largest = np.asarray(spectra)[:, 1]
    is_even = np.array([1, 0, 1, 0]).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(found.spectra[:, 0], 2 * largest * is_even)
    np.testing.assert_array_equal(found.spectra[:, 1], 2 * largest * (1 - is_even))
    np.testing.assert_array_equal(found.spectra[:, 2], spectra[:, 2])
    np.testing.assert_array_equal(found.weights, found.spectra.real)
    alive = statistics._replace(counts=jnp.array([[4.0, 12, 5]] * 4))
    np.testing.assert_array_equal(joint_em.split_largest(alive).spectra, spectra)


def test_classes_of_no_probability_get_nothing(world, observations, model):
    poses = world.rotations, world.shifts, LOG_PRIOR, world.band
    only_first = jnp.zeros((*observations.groups.shape, 2)).at[..., 1].set(-jnp.inf)
    posterior, statistics = joint_em.expect(observations, model, *poses, class_log_prior=only_first)
    alone = model._replace(grids=model.grids[:, :1])
    expected, sums = joint_em.expect(observations, alone, *poses)
    np.testing.assert_array_equal(posterior.best_class, 0)
    np.testing.assert_allclose(posterior.evidence, expected.evidence, rtol=1e-5)
    np.testing.assert_allclose(statistics.counts[:, 0], sums.counts[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(statistics.counts[:, 1], 0)
    assert np.all(np.isfinite(statistics.sums.spectra))


def test_memory_is_that_of_the_templates_and_a_block():
    """As the docstring says, and as the compiler lays it out; nothing is run."""
    band = bands.Band(32, 6.5)
    num_classes, num_rotations, num, block, num_k = 3, 600, 500, 128, len(band.shells)

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    observations = joint_em.Observations(
        array(2, num, num_k, dtype=jnp.complex64),
        array(2, num, dtype=jnp.int32),
        array(2, num),
        array(1, num_k),
    )
    grids = array(2, num_classes, *[band.side] * 3, dtype=jnp.complex64)
    model = joint_em.Model(grids, array(band.num_shells))
    compiled = (
        jax.jit(functools.partial(joint_em.expect, band=band, block=block))
        .lower(observations, model, array(num_rotations, 3, 3), array(9, 3), array(9))
        .compile()
    )
    templates = num_classes * num_rotations
    stated = 4 * (10 * templates * num_k + 4 * templates * block)
    assert compiled.memory_analysis().temp_size_in_bytes < stated
