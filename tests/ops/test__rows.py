"""Rows of a table: what is asked of them whole, and split over four devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.ops import _rows as rows

# Prints the largest difference between four devices, with three rows of padding, and one.
CLUSTERING_ON_FOUR_DEVICES = """
import functools
import json
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from jimjax.ops import _rows as rows
from jimjax.ops import kmeans, mixture

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
random = np.random.default_rng(0)
blobs = 6 * random.normal(size=(3, 3))[random.integers(3, size=61)]
x = np.float32(blobs + random.normal(size=(61, 3)) + 100)
weights = np.float32(random.integers(1, 4, size=61))
padded, counted = np.pad(x, ((0, 3), (0, 0))), np.pad(weights, (0, 3))
key = jax.random.key(0)

def split(function, out_specs, *replicated):
    function = functools.partial(function, axis_name="data")
    specs = (P("data"), P("data"), *(P() for _ in replicated))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs)
    return jax.jit(mapped)(padded, counted, *replicated)

def difference(one, four):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True)
    return max(float(np.max(np.abs(a - b) / (1 + np.abs(a)))) for a, b in pairs)

def highest(x, weights, axis_name=None):
    return rows.highest(x, weights, 20, axis_name=axis_name)

def cluster(x, weights, axis_name=None):
    return kmeans.fit(key, x, num_clusters=3, num_init=2, weights=weights, axis_name=axis_name)

def fit(x, weights, axis_name=None):
    options = {"num_components": 3, "covariance": "tied", "num_init": 2}
    return mixture.fit(key, x, weights=weights, axis_name=axis_name, **options)

def refine(x, weights, start, axis_name=None):
    end, score = mixture.refine(
        x, start, max_iterations=8, tolerance=0.0, weights=weights, axis_name=axis_name
    )
    return end, score, mixture.bic(x, end, weights=weights, axis_name=axis_name)

found = {
    "highest": difference(highest(padded, counted), split(highest, P())),
    "kmeans": difference(
        cluster(padded, counted), split(cluster, kmeans.KMeans(P(), P("data"), P()))
    ),
    "fit": difference(fit(padded, counted), split(fit, P())),
}
# Component 2 has no row and must restart at the same one.
means = np.stack([x[0], x[1], x[1] + 1e4])
for kind, covariances in {
    "full": np.tile(9 * np.eye(3), (3, 1, 1)),
    "tied": 9 * np.eye(3)[None],
    "diagonal": np.full((3, 1, 3), 9.0),
}.items():
    start = mixture.Mixture(*map(jnp.float32, (np.log(np.ones(3) / 3), means, covariances)))
    found[kind] = difference(jax.jit(refine)(x, weights, start), split(refine, P(), start))
print(json.dumps(found))
"""


def test_sixteen_bit_rows_are_widened_and_double_ones_kept(x64):
    assert rows.as_table(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32
    assert rows.as_table(jnp.ones((2, 3), jnp.float64)).dtype == jnp.float64


def test_weighted_mean_is_taken_away_and_padding_does_not_count(compiled):
    x = jnp.array([[0.0, 1.0], [4.0, 5.0], [99.0, 99.0]])
    centred = compiled(rows.centre)(x, jnp.array([3.0, 1.0, 0.0]))
    np.testing.assert_allclose(centred.origin, [1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(centred.x[:2], [[-1.0, -1.0], [3.0, 3.0]], rtol=1e-6)


def test_rows_without_any_weight_stay_where_they_are():
    x = jnp.ones((2, 2))
    np.testing.assert_array_equal(rows.centre(x, jnp.zeros(2)).x, x)


def test_highest_scores_come_first_and_the_earlier_of_equal_ones(compiled):
    x = jnp.arange(8.0).reshape(4, 2)
    best, found = compiled(lambda x, s: rows.highest(x, s, 3))(x, jnp.array([2.0, 5.0, 2.0, 1.0]))
    np.testing.assert_array_equal(best, [5.0, 2.0, 2.0])
    np.testing.assert_array_equal(found, x[jnp.array([1, 0, 2])])


def test_rows_are_drawn_as_often_as_their_chance(key):
    num = 4000
    chances = jnp.array([1.0, 0.0, 3.0, 6.0])
    x = jnp.arange(4.0)[:, None]
    drawn = jax.vmap(lambda key: rows.draw(key, x, chances))(jax.random.split(key, num))
    share = np.bincount(np.asarray(drawn[:, 0], int), minlength=4) / num
    # Four deviations of a share of 0.6 among 4000 are 0.03.
    np.testing.assert_allclose(share, [0.1, 0.0, 0.3, 0.6], atol=0.03)
    assert share[1] == 0


def test_first_row_is_drawn_if_none_has_a_chance(key):
    assert rows.draw(key, jnp.array([[7.0], [8.0]]), jnp.zeros(2)) == 7.0


def test_whole_rows_are_on_one_device_and_sums_stay():
    assert rows.num_devices() == 1
    assert rows.sum_devices(3.0) == 3.0


def test_bad_tables_and_weights_are_named():
    with pytest.raises(ValueError, match=r"table .* with 3 features, got shape \(4, 2\)"):
        rows.as_table(jnp.zeros((4, 2)), num_features=3)
    with pytest.raises(ValueError, match=r"any number of features, got shape \(4,\)"):
        rows.as_table(jnp.zeros(4))
    with pytest.raises(ValueError, match=r"each of the 4 rows, got shape \(3,\)"):
        rows.centre(jnp.zeros((4, 2)), jnp.ones(3))


@pytest.mark.slow
def test_clustering_on_four_devices_is_clustering_on_one():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", CLUSTERING_ON_FOUR_DEVICES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"highest", "kmeans", "fit", "full", "tied", "diagonal"}
    assert max(found.values()) < 1e-5, found
