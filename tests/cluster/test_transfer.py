"""Transfer: k-means of what a trained network says, how many clusters, and how good they are."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.metrics import homogeneity_score, v_measure_score
from small_blobs import BOX, LABELS, NUM, two_sizes

from jimjax.cluster.model import load_model, save_model
from jimjax.cluster.transfer import Transfer, sweep
from jimjax.cluster.transfer_config import TransferConfig
from jimjax.evaluate.clustering import clustering_accuracy
from jimjax.io.errors import InputError
from jimjax.models import weights
from jimjax.models.deepfinder import DeepFinderConfig
from jimjax.models.weights import Description, Weights

CONFIG = TransferConfig(candidates=(2,), num_starts=3)
AUTO = dataclasses.replace(CONFIG, candidates=(2, 3, 4))


@pytest.fixture(scope="module")
def particles():
    return two_sizes(noise=0.02)


@pytest.fixture(scope="module")
def encoder():
    """Untrained; a convolution and statistics over the box tell blobs of two sizes apart."""
    sizes = DeepFinderConfig(
        box=BOX,
        size=BOX,
        widths=((4,), (6,)),
        hidden_width=8,
        dense_width=6,
        num_classes=3,
        kernel="isotropic",
        pools=("max", "mean", "std"),
    )
    return Weights(Description(sizes, "dark"), weights.build(sizes, jax.random.key(0)))


@pytest.fixture(scope="module")
def fitted(particles, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return Transfer(CONFIG, weights=encoder, command="typed").fit(particles, folder=folder), folder


def test_blobs_of_two_sizes_are_two_classes(fitted):
    found, _ = fitted
    assert clustering_accuracy(found.labels_, LABELS) == 1.0
    np.testing.assert_allclose(found.probabilities_.sum(axis=1), 1, rtol=1e-5)


def test_other_particles_are_told_apart_as_well(fitted, particles):
    found, _ = fitted
    moved = dataclasses.replace(particles, volumes=np.rot90(particles.volumes, axes=(1, 2)))
    np.testing.assert_array_equal(found.predict(moved), found.labels_)


def test_number_of_classes_is_found(particles, encoder):
    found = Transfer(AUTO, weights=encoder).fit(particles)
    assert found.model_.num_classes == 2
    assert clustering_accuracy(found.labels_, LABELS) == 1.0


def test_model_is_read_back(fitted, particles, tmp_path):
    save_model(tmp_path, fitted[0].model_)
    kept = load_model(tmp_path)
    np.testing.assert_array_equal(kept.predict_proba(particles), fitted[0].probabilities_)


def test_folder_of_another_fit_is_an_error_and_of_the_same_goes_on(fitted, particles, encoder):
    found, folder = fitted
    with pytest.raises(InputError, match="already holds a run"):
        Transfer(CONFIG, weights=encoder).fit(particles, folder=folder)
    with pytest.raises(InputError, match="its configuration differs"):
        Transfer(AUTO, weights=encoder).fit(particles, folder=folder, resume=True)
    again = Transfer(CONFIG, weights=encoder).fit(particles, folder=folder, resume=True)
    np.testing.assert_array_equal(again.labels_, found.labels_)


def test_light_protein_is_negated_for_weights_of_dark(fitted, particles, encoder):
    negated = dataclasses.replace(particles, volumes=-particles.volumes)
    light = Transfer(dataclasses.replace(CONFIG, contrast="light"), weights=encoder).fit(negated)
    np.testing.assert_array_equal(light.labels_, fitted[0].labels_)


def test_truth_is_not_looked_at(fitted, particles, encoder):
    told = dataclasses.replace(particles, labels=np.zeros(NUM, np.int32))
    np.testing.assert_array_equal(
        Transfer(CONFIG, weights=encoder).fit(told).labels_, fitted[0].labels_
    )


def test_particles_that_the_weights_are_not_for_are_errors(particles, encoder):
    small = dataclasses.replace(particles, volumes=particles.volumes[:, 1:, 1:, 1:])
    with pytest.raises(InputError, match="for boxes of 12 voxels, these have 11"):
        Transfer(CONFIG, weights=encoder).fit(small)
    scaled = Weights(dataclasses.replace(encoder.description, voxel_size=12.0), encoder.network)
    with pytest.raises(InputError, match="for 12 A per voxel, these particles are at 10 A"):
        Transfer(CONFIG, weights=scaled).fit(particles)


def test_more_classes_than_particles_are_an_error(particles, encoder):
    with pytest.raises(InputError, match="3 particles cannot be in 4 classes"):
        Transfer(AUTO, weights=encoder).fit(particles.select(range(3)))


@pytest.mark.parametrize("config", [CONFIG, AUTO])
def test_identical_particles_are_one_class(config, particles, encoder):
    same = dataclasses.replace(particles, volumes=np.tile(particles.volumes[:1], (NUM, 1, 1, 1)))
    found = Transfer(config, weights=encoder).fit(same)
    assert set(found.labels_) == {0}
    assert np.isfinite(found.probabilities_).all()


def test_as_many_classes_as_particles_are_one_each(particles, encoder):
    config = dataclasses.replace(CONFIG, candidates=(3,))
    found = Transfer(config, weights=encoder).fit(particles.select(range(3)))
    assert sorted(found.labels_) == [0, 1, 2]
    assert np.isfinite(found.probabilities_).all()


def test_one_class_may_be_asked_for(particles, encoder):
    one = Transfer(dataclasses.replace(CONFIG, candidates=(1,)), weights=encoder).fit(particles)
    assert set(one.labels_) == {0}


@pytest.mark.parametrize(
    ("candidates", "message"),
    [((), "need to be 1 or more"), ((0,), "need to be 1 or more"), ((1, 2), "begin .* with 2")],
)
def test_impossible_candidates_are_errors(candidates, message):
    with pytest.raises(ValueError, match=message):
        TransferConfig(candidates=candidates)


def test_sweep_agrees_with_scikit_learn_where_clusters_are_clear():
    """Four clusters in pairs: two clusters are complete but mixed, four are perfect."""
    generator = np.random.default_rng(0)
    true = np.repeat(np.arange(4), 10)
    centres = np.array([[0, 0], [1, 0], [20, 0], [21, 0]])
    features = (centres[true] + 0.05 * generator.normal(size=(40, 2))).astype(np.float32)
    two, four = sweep(features, true, (2, 4))
    np.testing.assert_allclose(
        two, (2, homogeneity_score(true, true // 2), 1, v_measure_score(true, true // 2))
    )
    assert four == (4, 1, 1, 1)
