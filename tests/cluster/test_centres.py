"""k-means and silhouettes: by hand, and as good as those of all particles."""

import numpy as np
import pytest

from jimjax.cluster import centres
from jimjax.cluster.centres import divide, separation


def blobs(num_classes, num_each=20):
    """Features and classes; no two centres are nearer than 5 deviations."""
    labels = np.repeat(np.arange(num_classes), num_each)
    noise = np.random.default_rng(0).normal(size=(len(labels), 2))
    return (noise + 10 * labels[:, None] * [1, labels[-1] % 2]).astype(np.float32), labels


@pytest.mark.parametrize("num_classes", [2, 4])
def test_number_of_clusters_is_found(num_classes, key):
    features, labels = blobs(num_classes)
    found = divide(key, features, (2, 3, 4, 5), num_starts=5)
    assert found.dtype == np.int32
    assert len(set(zip(found, labels, strict=True))) == found.max() + 1 == num_classes


def test_empty_clusters_are_left_out(key):
    features = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    found = divide(key, features, (4,), num_starts=2)
    assert sorted(set(found)) == [0, 1]


def test_separation_of_two_pairs_by_hand(key):
    """Each point is 1 from its partner and 9 or 10 or 11 from the others: b is 10.5 or 9.5."""
    features = np.array([[0.0], [1.0], [10.0], [11.0]])
    wanted = np.mean([1 - 1 / 10.5, 1 - 1 / 9.5])
    np.testing.assert_allclose(separation(key, features, np.array([0, 0, 1, 1])), wanted)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_single_clusters_and_single_members_are_not_separated(labels, key):
    assert separation(key, np.eye(3), np.array(labels)) == -1


def test_separation_of_many_is_that_of_some(monkeypatch, key):
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 2
    features = generator.normal(size=(400, 3)) + 8 * labels[:, None]
    whole = separation(key, features, labels)
    monkeypatch.setattr(centres, "MAX_COMPARED", 100)
    part = separation(key, features, labels)
    assert part != whole
    np.testing.assert_allclose(part, whole, rtol=0.02)  # a quarter of the particles
