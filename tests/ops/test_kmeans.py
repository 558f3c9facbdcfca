"""k-means against cases by hand and scikit-learn, and the cases that leave a cluster empty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from jimjax.ops import kmeans


def _clouds(seed, *, num_rows=200, num_features=3, num_clouds=4, spread=3.0, offset=0.0):
    generator = np.random.default_rng(seed)
    centres = spread * generator.normal(size=(num_clouds, num_features))
    labels = generator.integers(num_clouds, size=num_rows)
    noise = generator.normal(size=(num_rows, num_features))
    return jnp.asarray(centres[labels] + noise + offset, jnp.float32), labels


def test_two_pairs_on_a_line_are_two_clusters(compiled):
    x = jnp.array([[0.0], [2.0], [10.0], [12.0]])
    found = compiled(kmeans.refine)(x, jnp.array([[0.0], [3.0]]))
    np.testing.assert_allclose(found.centres, [[1.0], [11.0]], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1])
    np.testing.assert_allclose(found.inertia, 4.0, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_same_start_ends_where_scikit_learn_does(seed, offset):
    x, _ = _clouds(seed, offset=offset)
    start = x[:4]
    ours = kmeans.refine(x, start)
    rows = np.asarray(x, np.float64)
    theirs = KMeans(4, init=np.asarray(start, np.float64), n_init=1, tol=0).fit(rows)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.inertia, theirs.inertia_, rtol=1e-5)
    np.testing.assert_allclose(ours.centres, theirs.cluster_centers_, rtol=1e-5, atol=1e-5)


def test_weights_count_as_in_scikit_learn():
    x, _ = _clouds(3)
    weights = jnp.linspace(0.1, 3, 200)
    ours = kmeans.refine(x, x[:4], weights=weights)
    start = np.asarray(x[:4], np.float64)
    theirs = KMeans(4, init=start, n_init=1, tol=0).fit(
        np.asarray(x, np.float64), sample_weight=np.asarray(weights, np.float64)
    )
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.inertia, theirs.inertia_, rtol=1e-5)


def test_fit_is_as_tight_as_scikit_learn_with_as_many_starts(key):
    x, _ = _clouds(4, num_clouds=8)
    ours = kmeans.fit(key, x, num_clusters=8, num_init=10)
    theirs = KMeans(8, n_init=10, random_state=0).fit(x)
    assert ours.inertia < 1.02 * theirs.inertia_  # local optima differ by a per cent


def test_separate_clouds_are_found_under_jit_and_again(key):
    x, truth = _clouds(5, spread=30.0)
    found = jax.jit(lambda key, x: kmeans.fit(key, x, num_clusters=4))(key, x)
    pairs = set(zip(np.asarray(found.labels).tolist(), truth.tolist(), strict=True))
    assert len(pairs) == 4  # one found label for each true one
    again = kmeans.fit(key, x, num_clusters=4)
    np.testing.assert_array_equal(again.labels, found.labels)


def test_more_steps_never_raise_the_inertia():
    x, _ = _clouds(6, num_clouds=6, spread=1.0)
    inertia = [kmeans.refine(x, x[:6], max_iterations=n).inertia for n in range(1, 8)]
    assert np.all(np.diff(inertia) <= 1e-5 * inertia[0])
    assert inertia[-1] < inertia[0]


def test_labels_are_the_nearest_centres():
    x, _ = _clouds(7)
    found = kmeans.refine(x, x[:4], max_iterations=1)
    distance = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(found.centres), axis=2)
    np.testing.assert_array_equal(found.labels, distance.argmin(axis=1))
    np.testing.assert_allclose(found.inertia, (distance.min(axis=1) ** 2).sum(), rtol=1e-5)


def test_weight_zero_is_a_row_left_out_even_far_away():
    x, _ = _clouds(8)
    short = kmeans.refine(x, x[:4])
    padded = jnp.concatenate([x, jnp.full((5, 3), 1e3)])
    weights = jnp.concatenate([jnp.ones(200), jnp.zeros(5)])
    found = kmeans.refine(padded, x[:4], weights=weights)
    np.testing.assert_allclose(found.centres, short.centres, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.labels[:200], short.labels)


def test_padding_is_never_a_seed(key):
    x = jnp.array([[0.0], [0.0], [1.0], [50.0]])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    keys = jax.random.split(key, 50)
    seeds = jax.vmap(lambda key: kmeans.seed(key, x, num_clusters=3, weights=weights))(keys)
    # Two places for three seeds: both are taken, the third repeats one.
    assert jnp.all(seeds <= 1)
    assert jnp.all((seeds == 0).any(axis=1) & (seeds == 1).any(axis=1))


def test_second_seed_is_drawn_by_its_squared_distance(key):
    x = jnp.array([[0.0], [1.0], [3.0]])
    keys = jax.random.split(key, 3000)
    seeds = jax.vmap(lambda key: kmeans.seed(key, x, num_clusters=2))(keys)[..., 0]
    first = np.asarray(jnp.round(seeds[:, 0]))
    np.testing.assert_allclose(np.bincount(first.astype(int))[[0, 1, 3]] / 3000, 1 / 3, atol=0.035)
    after_zero = np.asarray(seeds[:, 1])[first == 0]
    # 1 : 9; four deviations of 0.9 among 1000 are 0.04.
    np.testing.assert_allclose(np.mean(after_zero > 2), 0.9, atol=0.04)


def test_empty_cluster_restarts_at_the_farthest_row():
    x = jnp.array([[0.0], [1.0], [2.0], [30.0]])
    # No row is nearest to 1000; the first step sends that centre to row 30.
    found = kmeans.refine(x, jnp.array([[0.0], [1000.0]]))
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 1])
    np.testing.assert_allclose(found.centres, [[1.0], [30.0]], rtol=1e-6)


def test_empty_cluster_never_restarts_at_a_padding_row():
    x = jnp.array([[0.0], [1.0], [2.0], [30.0], [500.0]])
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    found = kmeans.refine(x, jnp.array([[0.0], [1000.0]]), weights=weights)
    np.testing.assert_allclose(found.centres, [[1.0], [30.0]], rtol=1e-6)


def test_as_many_clusters_as_rows_gives_each_row_its_own(key):
    x, _ = _clouds(9, num_rows=6)
    found = kmeans.fit(key, x, num_clusters=6, num_init=1)
    assert len(set(np.asarray(found.labels).tolist())) == 6
    np.testing.assert_allclose(found.inertia, 0.0, atol=1e-8)


@pytest.mark.parametrize("places", [1, 2])
def test_fewer_different_rows_than_clusters_is_finite_and_exact(places, key):
    x = jnp.asarray(np.arange(20) % places, jnp.float32)[:, None] * jnp.array([3.0, 4.0]) + 7
    found = kmeans.fit(key, x, num_clusters=3, num_init=2)
    assert bool(jnp.all(jnp.isfinite(found.centres)))
    np.testing.assert_allclose(found.inertia, 0.0, atol=1e-8)


def test_bfloat16_rows_are_summed_in_float32(key):
    x = _clouds(10)[0].astype(jnp.bfloat16)
    narrow = kmeans.refine(x, x[:4])
    wide = kmeans.refine(x.astype(jnp.float32), x[:4].astype(jnp.float32))
    assert narrow.centres.dtype == jnp.float32
    np.testing.assert_array_equal(narrow.centres, wide.centres)


def test_batches_are_clustered_one_by_one(key):
    x = jnp.stack([_clouds(seed)[0] for seed in (11, 12)])
    keys = jax.random.split(key)
    both = jax.vmap(lambda key, x: kmeans.fit(key, x, num_clusters=3, num_init=2))(keys, x)
    for i in range(2):
        alone = kmeans.fit(keys[i], x[i], num_clusters=3, num_init=2)
        np.testing.assert_allclose(both.centres[i], alone.centres, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(both.labels[i], alone.labels)


def test_clusters_are_constants_for_autodiff(key):
    x, _ = _clouds(13)
    gradient = jax.grad(lambda x: kmeans.fit(key, x, num_clusters=2, num_init=1).inertia)(x)
    assert jnp.all(gradient == 0)


def test_bad_shapes_and_options_are_named(key):
    x = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="num_clusters must be from 1 to the 3 rows of x, got 4"):
        kmeans.fit(key, x, num_clusters=4)
    with pytest.raises(ValueError, match="num_init must be 1 or more, got 0"):
        kmeans.fit(key, x, num_clusters=2, num_init=0)
    with pytest.raises(ValueError, match="max_iterations must be 1 or more, got 0"):
        kmeans.refine(x, x[:2], max_iterations=0)
    with pytest.raises(ValueError, match=r"with 3 features, got shape \(3, 2\)"):
        kmeans.refine(x, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="each of the 3 rows"):
        kmeans.seed(key, x, num_clusters=2, weights=jnp.ones(2))
