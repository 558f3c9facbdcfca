import numpy as np
import pytest

from jimjax.tomogram.picks import background, find_picks


def peaks_at(*places, shape=(12, 20, 20)):
    """Parabolic peaks of heights 1, 0.9, 0.8 ... at (x, y, z)."""
    z, y, x = np.indices(shape)
    scores = np.full(shape, -9.0)
    for rank, (px, py, pz) in enumerate(places):
        squares = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
        scores = np.maximum(scores, 1 - 0.1 * rank - 0.1 * squares)
    return scores


def test_peaks_are_found_between_voxels():
    places = (4.3, 5.0, 6.2), (14.0, 12.6, 5.0)
    picks = find_picks(peaks_at(*places), threshold=0.5, min_distance=3)
    np.testing.assert_allclose(picks.positions, places, atol=1e-9)
    np.testing.assert_array_equal(picks.voxels, [[6, 5, 4], [5, 13, 14]])
    assert np.all(np.diff(picks.scores) < 0)


def test_of_two_close_peaks_the_higher_is_picked():
    scores = peaks_at((10, 10, 6), (5, 10, 6), (15, 10, 6))
    assert len(find_picks(scores, threshold=0, min_distance=5.1).scores) == 1
    assert len(find_picks(scores, threshold=0, min_distance=5).scores) == 3


def test_a_suppressed_peak_suppresses_nothing():
    scores = peaks_at((4, 10, 6), (8, 10, 6), (12, 10, 6))
    picks = find_picks(scores, threshold=0, min_distance=6)
    np.testing.assert_array_equal(picks.positions[:, 0], [4, 12])


def test_threshold_margin_and_number_limit_the_picks():
    scores = peaks_at((10, 10, 6), (3, 10, 6), (15, 15, 6))
    assert len(find_picks(scores, threshold=0.85, min_distance=2).scores) == 2
    assert len(find_picks(scores, threshold=0, min_distance=2, margin=4).scores) == 2
    picks = find_picks(scores, threshold=0, min_distance=2, max_picks=1)
    np.testing.assert_array_equal(picks.positions, [[10, 10, 6]])


def test_nothing_above_the_threshold_is_no_pick():
    picks = find_picks(peaks_at((10, 10, 6)), threshold=2, min_distance=2)
    assert picks.positions.shape == (0, 3)


def test_background_is_that_of_a_normal_distribution_with_outliers():
    values = np.random.default_rng(0).normal(0.2, 0.05, size=20000)
    values[:400] = 9.0
    level = background(values)
    assert level.level == pytest.approx(0.2, abs=0.005)
    assert level.deviation == pytest.approx(0.05, rel=0.05)


def test_a_flat_map_is_not_a_volume():
    with pytest.raises(ValueError, match=r"scores must be \(z, y, x\)"):
        find_picks(np.zeros((3, 3)), threshold=0, min_distance=1)
