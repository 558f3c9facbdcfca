"""A network applied to particles: batches do not matter, the best pose is kept."""

import jax
import numpy as np
import pytest

from jimjax.align.inference import (
    Alignments,
    align_to_all,
    class_probabilities,
    describe,
    refine,
)

NUM, NUM_REFERENCES, BOX = 5, 2, 9
OPTIONS = {"num_proposals": 2, "cutoff": 0.25}


@pytest.fixture(scope="module")
def volumes(smooth_volumes):
    return smooth_volumes(NUM, BOX)


@pytest.fixture(scope="module")
def described(tiny_jimnet, volumes):
    return describe(tiny_jimnet, volumes, batch_size=NUM)


@pytest.fixture(scope="module")
def tilt_ranges():
    return np.tile(np.float32([-60, 60]), (NUM, 1))


@pytest.fixture(scope="module")
def aligned(tiny_jimnet, volumes, described, tilt_ranges):
    references = volumes[:NUM_REFERENCES]
    return align_to_all(
        tiny_jimnet, references, volumes, described.codes, tilt_ranges, batch_size=NUM, **OPTIONS
    )


def _assert_close(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        # Sums in another order, float32.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_descriptions_do_not_depend_on_the_batch_size(tiny_jimnet, volumes, described):
    _assert_close(describe(tiny_jimnet, volumes, batch_size=3), described)


def test_probabilities_of_a_particle_add_up_to_one(described):
    assert described.probabilities.shape == (NUM, 3)
    np.testing.assert_allclose(described.probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_alignments_do_not_depend_on_the_batch_size(
    tiny_jimnet, volumes, described, tilt_ranges, aligned
):
    references = volumes[:NUM_REFERENCES]
    found = align_to_all(
        tiny_jimnet, references, volumes, described.codes, tilt_ranges, batch_size=3, **OPTIONS
    )
    _assert_close(found, aligned)


def test_every_particle_is_aligned_to_every_reference_by_rotations(aligned):
    R = aligned.rotations
    assert R.shape == (NUM, NUM_REFERENCES, 3, 3)
    _assert_close(np.einsum("nkij,nklj->nkil", R, R), np.broadcast_to(np.eye(3), R.shape))


def test_reference_finds_itself(aligned):
    own = aligned.correlations[range(NUM_REFERENCES), range(NUM_REFERENCES)]
    labels, _ = aligned.best()
    assert list(labels[:NUM_REFERENCES]) == list(range(NUM_REFERENCES))
    assert own.min() > aligned.correlations[NUM_REFERENCES:].max()


def test_more_proposals_never_correlate_less(tiny_jimnet, volumes, described, tilt_ranges, aligned):
    single = align_to_all(
        tiny_jimnet,
        volumes[:NUM_REFERENCES],
        volumes,
        described.codes,
        tilt_ranges,
        batch_size=NUM,
        num_proposals=1,
        cutoff=OPTIONS["cutoff"],
    )
    # The first proposal is the reference as it is, whatever their number.
    assert np.all(aligned.correlations >= single.correlations - 1e-5)


@pytest.fixture(scope="module")
def refined(tiny_jimnet, volumes, tilt_ranges, aligned):
    labels, found = aligned.best()

    def run(num_steps, batch_size):
        return refine(
            tiny_jimnet,
            volumes[labels],
            volumes,
            tilt_ranges,
            found,
            num_steps=num_steps,
            batch_size=batch_size,
            cutoff=OPTIONS["cutoff"],
        )

    return run


def test_refined_poses_do_not_depend_on_the_batch_size(refined):
    _assert_close(refined(2, 3), refined(2, NUM))


def test_refined_poses_never_correlate_less(refined):
    before, after = refined(0, NUM), refined(3, NUM)
    assert np.all(after.correlations >= before.correlations)
    assert np.any(after.correlations > before.correlations)


def test_no_steps_of_refinement_leave_the_pose(refined, aligned):
    _, found = aligned.best()
    np.testing.assert_array_equal(refined(0, NUM).rotations, found.rotations)
    np.testing.assert_array_equal(refined(0, NUM).shifts, found.shifts)


def test_best_is_the_maximum_with_its_pose():
    correlations = np.array([[0.1, 0.5, 0.3], [0.9, -0.2, 0.8]])
    rotations = np.arange(2 * 3 * 9.0).reshape(2, 3, 3, 3)
    shifts = np.arange(2 * 3 * 3.0).reshape(2, 3, 3)
    labels, best = Alignments(rotations, shifts, correlations).best()
    assert list(labels) == [1, 0]
    np.testing.assert_array_equal(best.correlations, [0.5, 0.9])
    np.testing.assert_array_equal(best.rotations, [rotations[0, 1], rotations[1, 0]])
    np.testing.assert_array_equal(best.shifts, [shifts[0, 1], shifts[1, 0]])


def test_class_probabilities_follow_their_formula_and_ignore_negative_correlations():
    """Without a wedge and below Nyquist, (2 * 2 + 1)^3 = 125 numbers are compared."""
    full = np.array([[-90.0, 90.0]], np.float32)
    found = class_probabilities(np.array([[0.3, 0.2, -0.9]]), full, box=16, cutoff=2.1 / 16)
    density = (1 - np.array([0.3, 0.2, 0.0]) ** 2) ** (-125 / 2)
    np.testing.assert_allclose(found[0], density / density.sum(), rtol=1e-5)


def test_perfect_correlations_give_numbers():
    full = np.tile(np.float32([-60, 60]), (2, 1))
    found = class_probabilities(np.ones((2, 3)), full, box=8, cutoff=0.25)
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-5)
