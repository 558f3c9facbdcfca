"""The clustering branch of Jim-Net, tiny: what a fit finds, what it leaves alone."""

import dataclasses

import jax
import numpy as np
import pytest
import small_blobs
from small_blobs import BOX, LABELS, NUM, StopAfter
from small_networks import steerable

from jimjax.cluster import jimnet_cluster
from jimjax.cluster.jimnet_cluster import JimNetCluster
from jimjax.cluster.jimnet_cluster_config import JimNetClusterConfig
from jimjax.cluster.model import load_model, save_model
from jimjax.evaluate.clustering import clustering_accuracy
from jimjax.io.errors import InputError
from jimjax.models import functional, weights
from jimjax.models.weights import Description, Weights
from jimjax.progress import Interrupted

CONFIG = JimNetClusterConfig(
    preset="small",
    candidates=(2,),
    iterations=3,
    batch_size=8,
    learning_rate=1e-3,
    num_axes=2,
    num_starts=3,
    head_epochs=20,
    head_rate=3e-2,
)


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(jimnet_cluster.PRESETS, "small", steerable)
        yield


@pytest.fixture(scope="module")
def particles():
    return small_blobs.two_sizes()


@pytest.fixture(scope="module")
def donor():
    sizes = steerable(BOX, 7)
    return Weights(Description(sizes, "dark"), weights.build(sizes, jax.random.key(9)))


@pytest.fixture(scope="module")
def fitted(particles, donor):
    return JimNetCluster(CONFIG, weights=donor).fit(particles)


def test_blobs_of_two_sizes_are_two_classes(fitted):
    assert fitted.model_.num_classes == 2
    assert clustering_accuracy(fitted.labels_, LABELS) == 1.0


def test_prediction_is_the_head_of_the_network(fitted, particles):
    network = fitted.model_.weights.network
    volumes = fitted.model_._volumes(particles)
    found, _ = functional.describe(network, volumes, train=False)
    np.testing.assert_allclose(jax.nn.softmax(found.logits), fitted.probabilities_, atol=1e-5)


def test_extractors_learn_and_the_alignment_stays(fitted, donor):
    before, after = (
        functional.name_arrays(each.params)
        for each in (donor.network, fitted.model_.weights.network)
    )
    assert np.any(before["coarse.closing.kernel"] != after["coarse.closing.kernel"])
    assert np.any(before["fine.closing.kernel"] != after["fine.closing.kernel"])
    matching = [name for name in before if name.startswith("match_")]
    assert matching
    for name in matching:
        np.testing.assert_array_equal(before[name], after[name])


def test_interrupted_and_resumed_fit_is_the_uninterrupted_one(fitted, particles, donor, tmp_path):
    folder = tmp_path / "run"
    method = JimNetCluster(CONFIG, weights=donor)
    with pytest.raises(Interrupted, match="stopped at step 4 of 9"):
        method.fit(particles, folder=folder, progress=StopAfter(4))
    resumed = JimNetCluster(CONFIG, weights=donor).fit(particles, folder=folder, resume=True)
    np.testing.assert_array_equal(resumed.probabilities_, fitted.probabilities_)


def test_model_is_read_back(fitted, particles, tmp_path):
    save_model(tmp_path, fitted.model_)
    kept = load_model(tmp_path)
    np.testing.assert_array_equal(kept.predict_proba(particles), fitted.probabilities_)


def test_identical_particles_are_one_class(particles):
    same = dataclasses.replace(particles, volumes=np.tile(particles.volumes[:1], (NUM, 1, 1, 1)))
    found = JimNetCluster(dataclasses.replace(CONFIG, iterations=1)).fit(same)
    assert set(found.labels_) == {0}
    assert np.isfinite(found.probabilities_).all()


def test_more_classes_than_particles_are_an_error(particles):
    with pytest.raises(InputError, match="1 particles cannot be in 2 classes"):
        JimNetCluster(CONFIG).fit(particles.select([0]))
