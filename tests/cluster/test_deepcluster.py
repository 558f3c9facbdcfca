"""DeepCluster, tiny: what k-means is given, how the network is taught, what a fit finds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_blobs
from small_blobs import BOX, LABELS, NUM, StopAfter

from jimjax.cluster import deepcluster
from jimjax.cluster.deepcluster import DeepCluster
from jimjax.cluster.deepcluster_config import DeepClusterConfig
from jimjax.cluster.model import load_model, save_model
from jimjax.evaluate.clustering import clustering_accuracy
from jimjax.io.errors import InputError
from jimjax.models import functional, weights
from jimjax.progress import Interrupted

CONFIG = DeepClusterConfig(
    preset="small",
    candidates=(2,),
    iterations=3,
    batch_size=8,
    learning_rate=1e-2,
    num_axes=3,
    num_starts=3,
    noise=0.1,
)


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(deepcluster.PRESETS, "small", small_blobs.yopo)
        yield


@pytest.fixture(scope="module")
def particles():
    return small_blobs.two_sizes()


@pytest.fixture(scope="module")
def fitted(particles):
    return DeepCluster(CONFIG).fit(particles)


def test_blobs_of_two_sizes_are_two_classes(fitted):
    assert fitted.model_.num_classes == 2
    assert clustering_accuracy(fitted.labels_, LABELS) == 1.0
    np.testing.assert_allclose(fitted.probabilities_.sum(axis=1), 1, rtol=1e-5)


def test_interrupted_and_resumed_fit_is_the_uninterrupted_one(fitted, particles, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped at step 4 of 9"):
        DeepCluster(CONFIG).fit(particles, folder=folder, progress=StopAfter(4))
    resumed = DeepCluster(CONFIG).fit(particles, folder=folder, resume=True)
    np.testing.assert_array_equal(resumed.probabilities_, fitted.probabilities_)
    assert np.any(
        DeepCluster(dataclasses.replace(CONFIG, seed=1)).fit(particles).features_
        != fitted.features_
    )


def test_model_is_read_back(fitted, particles, tmp_path):
    save_model(tmp_path, fitted.model_)
    kept = load_model(tmp_path)
    np.testing.assert_array_equal(kept.predict_proba(particles), fitted.probabilities_)


def test_number_of_classes_may_be_chosen(particles):
    config = dataclasses.replace(CONFIG, candidates=(2, 3, 4), num_axes=1, iterations=1)
    found = DeepCluster(config).fit(particles)
    assert found.model_.num_classes == 2
    assert found.model_.weights.description.config.num_classes == 4


def test_identical_particles_are_one_class(particles):
    same = dataclasses.replace(particles, volumes=np.tile(particles.volumes[:1], (NUM, 1, 1, 1)))
    found = DeepCluster(CONFIG).fit(same)
    assert set(found.labels_) == {0}
    assert np.isfinite(found.probabilities_).all()


def test_more_classes_than_particles_are_an_error(particles):
    with pytest.raises(InputError, match="1 particles cannot be in 2 classes"):
        DeepCluster(CONFIG).fit(particles.select([0]))


def test_whitened_features_have_length_one_and_no_preferred_axis():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(400, 3)) * [10.0, 1.0, 0.1] + 5
    rows = deepcluster.whiten(features, 3)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(3) / 3, atol=0.05)


def test_axes_without_spread_are_left_out_of_whitening():
    features = np.outer([1.0, -1.0, 1.0, -1.0], [3.0, 0.0])
    rows = deepcluster.whiten(features, 2)
    np.testing.assert_allclose(np.abs(rows), [[1, 0]] * 4, atol=1e-6)
    np.testing.assert_array_equal(deepcluster.whiten(np.ones((4, 2)), 2), np.zeros((4, 2)))


def test_only_the_head_forgets_its_direction():
    """A second step without gradient: all but the head moves on by its momentum."""
    network = weights.build(small_blobs.yopo(BOX, 2), jax.random.key(0))
    config = dataclasses.replace(CONFIG, learning_rate=1.0, momentum=0.5, weight_decay=0.0)
    descent = deepcluster.build_optimizer(config, network).transformation
    slope = jax.tree.map(jnp.ones_like, network.params)
    first, state = descent.update(slope, descent.init(network.params), network.params)
    still = jax.tree.map(jnp.zeros_like, slope)
    second = functional.name_arrays(descent.update(still, state, network.params)[0])
    for name, moved in functional.name_arrays(first).items():
        np.testing.assert_array_equal(moved, -1)
        np.testing.assert_array_equal(second[name], 0 if name.startswith("head.") else -0.5)
