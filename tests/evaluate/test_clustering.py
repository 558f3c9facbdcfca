"""Facts about clustering scores."""

from itertools import permutations

import numpy as np
import pytest

from jimjax.evaluate import clustering

NUM_CLASSES = 4


def _best_accuracy_by_trying(labels: np.ndarray, true_labels: np.ndarray, num: int) -> float:
    """Slow twin: tries every renaming of ``num`` clusters."""
    return max(
        np.mean(np.array(renaming)[labels] == true_labels) for renaming in permutations(range(num))
    )


def test_contingency_table_by_hand():
    table = clustering.contingency_table(np.array([5, 5, 9, 9, 9]), np.array([0, 0, 0, 2, 2]))
    np.testing.assert_array_equal(table, [[2, 0], [1, 2]])


def test_accuracy_by_hand_needs_one_cluster_per_class():
    # Cluster 0 -> class 0 (2 right), cluster 1 -> class 1 (2 right), cluster 2 has no class left.
    labels = np.array([0, 0, 1, 1, 2, 2])
    true_labels = np.array([0, 0, 1, 1, 1, 0])
    assert clustering.clustering_accuracy(labels, true_labels) == pytest.approx(4 / 6)


def test_accuracy_takes_the_best_matching_not_the_greedy_one():
    # Greedy takes the 5 first and gets 5 + 0; the best matching gets 4 + 4.
    table = np.array([[5, 4], [4, 0]])
    labels = np.repeat([0, 0, 1, 1], table.ravel())
    true_labels = np.repeat([0, 1, 0, 1], table.ravel())
    assert clustering.clustering_accuracy(labels, true_labels) == pytest.approx(8 / 13)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_equals_the_best_of_all_renamings(seed):
    labels, true_labels = np.random.default_rng(seed).integers(0, NUM_CLASSES, (2, 60))
    expected = _best_accuracy_by_trying(labels, true_labels, NUM_CLASSES)
    assert clustering.clustering_accuracy(labels, true_labels) == pytest.approx(expected)


def test_scores_are_perfect_under_any_numbering():
    true_labels = np.repeat(np.arange(NUM_CLASSES), 7)
    scores = clustering.score_clustering(np.array([17, 3, -1, 8])[true_labels], true_labels)
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))


def test_constant_prediction_scores_one_over_the_number_of_classes():
    true_labels = np.repeat(np.arange(NUM_CLASSES), 10)
    scores = clustering.score_clustering(np.zeros_like(true_labels), true_labels)
    expected = dict.fromkeys(scores, 0.0) | {"completeness": 1.0}
    expected |= dict.fromkeys(("clustering_accuracy", "balanced_accuracy"), 1 / NUM_CLASSES)
    assert scores == pytest.approx(expected, abs=1e-12)


def test_balanced_accuracy_counts_classes_alike_whatever_their_sizes():
    true_labels = np.repeat([0, 1], [90, 10])
    labels = np.repeat([0, 1, 0], [90, 5, 5])  # half of the small class is right
    assert clustering.balanced_accuracy(labels, true_labels) == pytest.approx(0.75)
    assert clustering.balanced_accuracy(np.zeros(100, int), true_labels) == pytest.approx(0.5)
    assert clustering.clustering_accuracy(np.zeros(100, int), true_labels) == pytest.approx(0.9)


@pytest.mark.parametrize("num_clusters", [2, 9])
def test_more_or_fewer_clusters_than_classes_are_matched(num_clusters):
    true_labels = np.arange(36) % NUM_CLASSES
    labels = np.arange(36) // NUM_CLASSES % num_clusters
    # Every cluster holds each class equally often, so each matched cluster gets one quarter right.
    counts = np.bincount(labels, minlength=num_clusters)
    expected = np.sort(counts)[::-1][:NUM_CLASSES].sum() / NUM_CLASSES / 36
    assert clustering.clustering_accuracy(labels, true_labels) == pytest.approx(expected)


def test_random_labels_have_adjusted_rand_index_near_zero():
    # Standard deviation of the index over draws is about 0.001 here; the bound is 5 of them.
    labels, true_labels = np.random.default_rng(0).integers(0, NUM_CLASSES, (2, 4000))
    assert abs(clustering.score_clustering(labels, true_labels)["ari"]) < 0.005


@pytest.mark.parametrize("seed", range(3))
def test_match_labels_undoes_a_permutation(seed):
    generator = np.random.default_rng(seed)
    reference = generator.integers(0, NUM_CLASSES, 50)
    permuted = generator.permutation(NUM_CLASSES)[reference]
    np.testing.assert_array_equal(
        clustering.match_labels(permuted, reference, NUM_CLASSES), reference
    )


@pytest.mark.parametrize("seed", range(3))
def test_match_labels_reaches_the_clustering_accuracy(seed):
    labels, reference = np.random.default_rng(seed).integers(0, NUM_CLASSES, (2, 40))
    matched = clustering.match_labels(labels, reference, NUM_CLASSES)
    assert np.mean(matched == reference) == clustering.clustering_accuracy(labels, reference)


def test_match_labels_moves_only_what_must_move():
    # Classes 1, 3, 4, 5 are empty; 0 and 2 must be exchanged.
    matched = clustering.match_labels(np.array([0, 0, 2, 2]), np.array([2, 2, 0, 0]), 6)
    np.testing.assert_array_equal(matched, [2, 2, 0, 0])


def test_match_labels_keeps_the_numbers_if_exchanging_them_gains_nothing():
    # Either numbering agrees with the reference once.
    matched = clustering.match_labels(np.array([1, 0]), np.array([1, 1]), 2)
    np.testing.assert_array_equal(matched, [1, 0])


def test_match_labels_returns_the_dtype_it_got():
    labels = np.array([0, 1], np.int32)
    assert clustering.match_labels(labels, np.array([1, 0]), 2).dtype == np.int32


def test_match_labels_rejects_a_label_out_of_range():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        clustering.match_labels(np.array([0, 2]), np.array([0, 1]), 2)


@pytest.mark.parametrize(
    ("labels", "true_labels", "message"),
    [
        ([0, 1], [0, 1, 1], "one entry a particle, got 2 and 3"),
        ([0.0, 1.0], [0, 1], "list of integers, got float64"),
        ([[0], [1]], [0, 1], r"of shape \(2, 1\)"),
    ],
)
def test_bad_labels_are_named(labels, true_labels, message):
    with pytest.raises(ValueError, match=message):
        clustering.clustering_accuracy(np.array(labels), np.array(true_labels))


def test_no_labels_is_an_error():
    with pytest.raises(ValueError, match="no labels to compare"):
        clustering.clustering_accuracy(np.zeros(0, int), np.zeros(0, int))
