"""From angstroms to voxels of the search, and its limits."""

import numpy as np
import pytest

from jimjax.io import InputError
from jimjax.tomogram.search import ScoreMaps
from jimjax.tomogram.template_matching import MatchOptions, pick_particles, plan_search


def test_resolution_follows_from_the_angle_step():
    plan = plan_search(MatchOptions(diameter=240.0, angle_step=20.0), 10.0)
    assert plan.resolution == pytest.approx(240 * np.pi / 9)
    assert plan.binning == 3  # 24 voxels of particle are 8
    assert plan.diameter == 8
    assert plan.cutoff == pytest.approx(30 / plan.resolution)


def test_resolution_is_not_beyond_nyquist():
    plan = plan_search(MatchOptions(diameter=100.0, angle_step=5.0, symmetry="O"), 10.0)
    assert (plan.resolution, plan.cutoff, plan.binning) == (20.0, 0.5, 1)


def test_symmetry_leaves_a_share_of_the_rotations():
    grids = {
        name: len(plan_search(MatchOptions(240.0, symmetry=name), 10.0).rotations)
        for name in ("C1", "D4")
    }
    assert grids["D4"] == pytest.approx(grids["C1"] / 8, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diameter": -1.0}, "the particle diameter must be positive"),
        ({"diameter": 30.0}, "the particle diameter must be 40 A or more"),
        ({"resolution": 15.0}, "the resolution must be 20 A or coarser"),
        ({"resolution": 30.0, "binning": 2}, "the resolution must be 40 A or coarser"),
        ({"binning": 0}, "the binning must be 1 or more"),
        ({"max_picks": 0}, "the number of picks must be 1 or more"),
        ({"angle_step": 0.1}, "the angle step must be 1 to 180 degrees"),
        ({"symmetry": "X7"}, "symmetry 'X7'"),
        ({"min_distance": 0.0}, "the distance between particles must be positive"),
        ({"max_bytes": 0.0}, "the memory must be positive"),
    ],
)
def test_options_out_of_range_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        plan_search(MatchOptions(**{"diameter": 200.0, **options}), 10.0)


@pytest.fixture
def maps():
    random = np.random.default_rng(0)
    scores = random.normal(0.2, 0.01, size=(20, 40, 40)).astype(np.float32)
    scores[10, 20, 30], scores[10, 21, 24], scores[2, 20, 20] = 0.9, 0.8, 0.95
    numbers = np.zeros(scores.shape, np.int32)
    numbers[10, 20, 30] = 3
    return ScoreMaps(scores, numbers, numbers // 3)


def test_picks_are_in_voxels_of_the_tomogram_and_whole_inside_it(maps):
    options = MatchOptions(diameter=160.0, binning=2, angle_step=30.0)
    plan = plan_search(options, 10.0)
    found = pick_particles(maps, plan, options)
    assert len(found.scores) == 1  # the second is nearer than a diameter, the third at the border
    np.testing.assert_allclose(found.positions, [[60, 40, 20]], atol=0.2)
    np.testing.assert_array_equal(found.rotations[0], plan.rotations[3])
    np.testing.assert_array_equal(found.references, [1])
    assert found.deviations[0] == pytest.approx(70, rel=0.1)
    assert found.threshold == pytest.approx(0.25, abs=0.005)


def test_distance_and_lowest_score_can_be_given(maps):
    options = MatchOptions(160.0, binning=2, angle_step=30.0, min_distance=100.0, min_score=0.85)
    plan = plan_search(options, 10.0)
    assert len(pick_particles(maps, plan, options).scores) == 1
    options = MatchOptions(160.0, binning=2, angle_step=30.0, min_distance=100.0)
    assert len(pick_particles(maps, plan, options).scores) == 2
