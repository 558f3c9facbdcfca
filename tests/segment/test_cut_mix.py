"""Boxes for CutMix: always boxes, of every side and at every place there may be."""

import functools

import jax
import numpy as np
import pytest

from jimjax.segment.cut_mix import cut_mix_box

SHAPE = (8, 12, 9)
SIDES = [range(2, 5), range(3, 7), range(3, 5)]  # from a quarter to a half of each


@pytest.fixture(scope="module")
def boxes():
    draw = jax.jit(jax.vmap(functools.partial(cut_mix_box, shape=SHAPE)))
    return np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))


def extents(box):
    """First and last place along each axis."""
    places = np.argwhere(box)
    return places.min(axis=0), places.max(axis=0)


def test_every_box_is_full_and_of_the_sides_wanted(boxes):
    for box in boxes[:300]:
        first, last = extents(box)
        sides = last - first + 1
        assert box.sum() == sides.prod()
        assert all(side in wanted for side, wanted in zip(sides, SIDES, strict=True))


def test_sides_and_places_are_equally_likely(boxes):
    found = np.array([extents(box) for box in boxes])
    for axis, (wanted, size) in enumerate(zip(SIDES, SHAPE, strict=True)):
        first, last = found[:, :, axis].T
        sides = last - first + 1
        # Counts of a binomial: at most n / 4 their variance.
        bound = 5 * np.sqrt(len(boxes) / 4)
        counts = np.bincount(sides)[wanted[0] :]
        np.testing.assert_allclose(counts, len(boxes) / len(wanted), atol=bound)
        places = np.bincount(first[sides == wanted[0]])
        assert len(places) == size - wanted[0] + 1
        expected = np.sum(sides == wanted[0]) / len(places)
        np.testing.assert_allclose(places, expected, atol=5 * np.sqrt(expected))


def test_sides_are_drawn_each_by_itself(boxes):
    found = np.array([extents(box) for box in boxes])
    sides = (found[:, 1] - found[:, 0] + 1).astype(float)
    correlations = np.corrcoef(sides.T) - np.eye(3)
    assert np.abs(correlations).max() < 5 / np.sqrt(len(boxes))


def test_shares_decide_the_sides(key):
    everything = cut_mix_box(key, SHAPE, low=1.0, high=1.0)
    assert everything.dtype == bool
    assert everything.all()
    half = cut_mix_box(key, (8, 8, 8), low=0.5, high=0.5)
    assert half.sum() == 64
    assert cut_mix_box(key, (100, 100, 100), low=0.29, high=0.29).sum() == 29**3  # 28.999...


def test_errors_say_what_was_wanted(key):
    for shares in ((0.0, 0.5), (0.5, 0.4), (0.5, 1.1)):
        with pytest.raises(ValueError, match="shares must be 0 < low <= high <= 1, got"):
            cut_mix_box(key, SHAPE, low=shares[0], high=shares[1])
    with pytest.raises(ValueError, match=r"no whole number of 9 voxels is between shares 0\.5"):
        cut_mix_box(key, (8, 8, 9), low=0.5, high=0.5)
