"""How many classes mixtures find in features."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from jimjax.cluster.components import Criterion, count_classes, divide
from jimjax.evaluate.clustering import clustering_accuracy

NUM_EACH, NUM_CLASSES = 20, 3
TRUE = np.repeat(np.arange(NUM_CLASSES), NUM_EACH)


@dataclass(frozen=True)
class _Config:
    candidates: tuple[int, ...] = (2, 3, 4)
    criterion: Criterion = "left-out"
    count_axes: int = 3
    num_axes: int = 5
    num_starts: int = 3


@pytest.fixture(scope="module")
def features():
    """Three classes in a plane, and six axes more along which there is but noise."""
    generator = np.random.default_rng(0)
    centres = np.zeros((NUM_CLASSES, 8))
    centres[:, :2] = [[4, 0], [-2, 3.5], [-2, -3.5]]
    return (centres[TRUE] + generator.normal(size=(len(TRUE), 8))).astype(np.float32)


def test_left_out_particles_tell_how_many_classes_there_are(features):
    found = count_classes(jax.random.key(0), features, (4, 2, 3), num_axes=3, num_starts=3)
    assert found == NUM_CLASSES


def test_left_out_particles_see_what_the_criterion_cannot_pay_for(features):
    """A class costs 45 log n along eight axes, more than 20 particles earn."""
    priced = _Config(criterion="bic", num_axes=8)
    by_price = divide(jax.random.key(0), features, None, priced)
    assert len(set(by_price)) < NUM_CLASSES
    found = divide(jax.random.key(0), features, None, _Config(num_axes=3))
    assert clustering_accuracy(found, TRUE) >= 0.95


def test_single_candidate_is_not_questioned(features):
    found = divide(jax.random.key(0), features, None, _Config(candidates=(2,)))
    assert set(found) == {0, 1}


def test_identical_particles_are_one_class():
    same = np.ones((12, 8), np.float32)
    found = divide(jax.random.key(0), same, None, _Config())
    np.testing.assert_array_equal(found, np.zeros(12))
