"""From features to classes, against numpy and scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import davies_bouldin_score

from jimjax.cluster import assignment
from jimjax.cluster.assignment import (
    Assignment,
    Linear,
    davies_bouldin,
    fit_labels,
    group,
    principal_axes,
)
from jimjax.evaluate.clustering import clustering_accuracy

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def clouds():
    """Three clouds of 40 in 6 dimensions, and their labels."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    centres = 6 * np.eye(3, 6)
    return (centres[labels] + generator.normal(size=(120, 6))).astype(np.float32) + 50, labels


def test_coordinates_are_those_of_scikit_learn_in_units_of_the_first_axis(clouds):
    features, _ = clouds
    found = np.abs(principal_axes(features, 3).project(features))
    wanted = PCA(3).fit_transform(features.astype(float))
    wanted = np.abs(wanted / wanted[:, 0].std())
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_more_axes_than_features_or_particles_are_as_many_as_there_are(clouds):
    assert principal_axes(clouds[0], 99).directions.shape == (6, 6)
    assert principal_axes(clouds[0][:4], 99).directions.shape == (6, 4)


def test_classes_are_the_clouds_and_bic_counts_them(clouds):
    features, labels = clouds
    rows = principal_axes(features, 4).project(features)
    found = group(KEY, rows, (2, 3, 4), num_starts=5)
    assert found.max() + 1 == 3
    assert clustering_accuracy(found, labels) == 1.0


def test_current_labels_are_a_start(clouds):
    """One bad start alone joins clouds; the given labels are better."""
    features, labels = clouds
    rows = principal_axes(features, 4).project(features)
    found = group(KEY, rows, (3,), num_starts=1, current=labels)
    assert clustering_accuracy(found, labels) == 1.0


def test_posterior_of_other_particles_is_that_of_their_cloud(clouds):
    features, labels = clouds
    axes = principal_axes(features, 4)
    known = Assignment(axes, fit_labels(axes.project(features), labels))
    posterior = known.posterior(features + 0.1)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(posterior.argmax(axis=1), labels)


def test_identical_particles_are_one_class():
    same = np.tile(np.float32([1.0, 2.0, 3.0]), (10, 1))
    axes = principal_axes(same, 2)
    rows = axes.project(same)
    assert not rows.any()
    found = group(KEY, rows, (3,), num_starts=2)
    assert found.max() + 1 == 1
    assert np.isfinite(Assignment(axes, fit_labels(rows, found)).posterior(same)).all()


def test_as_many_classes_as_particles_is_possible_and_more_is_an_error(clouds):
    rows = clouds[0][:4]
    assert group(KEY, rows, (4,), num_starts=2).max() + 1 <= 4
    with pytest.raises(ValueError, match="num_components must be from 1 to the 4 rows"):
        group(KEY, rows, (5,), num_starts=2)


def test_one_class_is_one_class(clouds):
    found = group(KEY, clouds[0], (1,), num_starts=1)
    assert found.max() + 1 == 1
    assert davies_bouldin(clouds[0], found) == float("inf")


def test_index_agrees_with_loops(clouds):
    features, labels = clouds
    rows = principal_axes(features, 4).project(features).astype(float)
    means = [rows[labels == k].mean(axis=0) for k in range(3)]
    inverse = [
        np.linalg.inv(
            np.cov(rows[labels == k].T, bias=True) + assignment.REGULARIZATION * np.eye(4)
        )
        for k in range(3)
    ]
    within = [
        np.mean([(r - means[k]) @ inverse[k] @ (r - means[k]) for r in rows[labels == k]])
        for k in range(3)
    ]
    wanted = np.mean(
        [
            max(
                (within[i] + within[j])
                / sum((means[j] - means[i]) @ inverse[k] @ (means[j] - means[i]) for k in (i, j))
                for j in range(3)
                if j != i
            )
            for i in range(3)
        ]
    )
    np.testing.assert_allclose(davies_bouldin(rows, labels), wanted, rtol=1e-3)


def test_index_prefers_what_scikit_learn_prefers(clouds):
    features, labels = clouds
    shuffled = np.random.default_rng(1).permutation(labels)
    assert davies_bouldin(features, labels) < davies_bouldin(features, shuffled)
    assert davies_bouldin_score(features, labels) < davies_bouldin_score(features, shuffled)


def test_nearest_centre_is_the_class_of_the_largest_probability(clouds):
    features, labels = clouds
    found = Linear.from_centres(features + 100, labels)  # far from the origin
    centres = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
    points = np.random.default_rng(1).normal(size=(50, features.shape[1])) * 5
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    posterior = found.posterior(points + 100)
    np.testing.assert_array_equal(posterior.argmax(axis=1), nearest)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-6)


def test_probabilities_of_centres_are_those_of_spheres_of_one_variance(clouds):
    features, labels = clouds
    found = Linear.from_centres(features, labels).posterior(features[:5])
    centres = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
    variance = np.mean((features - centres[labels]) ** 2)
    squares = ((features[:5, None] - centres) ** 2).sum(axis=2)
    odds = np.exp(-(squares - squares.min(axis=1, keepdims=True)) / (2 * variance))
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), atol=1e-5)


def test_centres_of_identical_particles_are_finite():
    same = np.full((6, 3), 7.0)
    np.testing.assert_array_equal(
        Linear.from_centres(same, np.zeros(6, int)).posterior(same), np.ones((6, 1))
    )
