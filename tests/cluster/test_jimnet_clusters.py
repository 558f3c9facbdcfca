"""Jim-Net as a method of clustering: references are made, kept, and posed against."""

import dataclasses

import numpy as np
import pytest
from small_networks import steerable

from jimjax.cluster.jimnet import JimNet
from jimjax.cluster.jimnet_config import JimNetConfig
from jimjax.cluster.model import Model, References, load_model, save_model
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.io.errors import InputError
from jimjax.models.weights import Description, Weights
from jimjax.train import pretrained

BOX, NUM = 9, 12
CONFIG = JimNetConfig(candidates=(2,))


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "ROUNDS", 1)
        patch.setattr(pretrained, "NUM_PROPOSALS", 1)
        yield


@pytest.fixture(scope="module")
def weights(tiny_jimnet):
    return Weights(Description(steerable(BOX, num_classes=3), "dark"), tiny_jimnet)


@pytest.fixture(scope="module")
def particles():
    """Two volumes, a blob and a bar, each seen six times with a little noise."""
    z, y, x = np.indices((BOX,) * 3) - BOX // 2
    blob, bar = np.exp(-(x**2 + y**2 + z**2) / 3), np.exp(-(x**2) / 12 - (y**2 + z**2) / 1.5)
    volumes = -np.stack([blob, bar])[np.arange(NUM) % 2]
    volumes = volumes + 0.02 * np.random.default_rng(0).normal(size=volumes.shape)
    return Subtomograms(
        volumes=volumes.astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=("",) * NUM,
        halves=np.arange(NUM) % 2 + 1,
    )


@pytest.fixture(scope="module")
def fitted(particles, weights):
    return JimNet(CONFIG, weights=weights).fit(particles)


@pytest.fixture(scope="module")
def known(particles, weights):
    """A model whose references are the two volumes."""
    references = References(normalize(particles.volumes[:2]))
    described = dataclasses.replace(weights.description, voxel_size=10.0)
    return Model(weights._replace(description=described), references, "dark")


def test_particles_go_to_the_reference_that_they_look_like(known, particles):
    found = known.classify(particles)
    np.testing.assert_array_equal(found.probabilities.argmax(axis=1), np.arange(NUM) % 2)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert found.features.shape == (NUM, 8)


def test_noise_belongs_to_no_reference_more_than_to_another(known, particles):
    noise = np.random.default_rng(1).normal(size=particles.volumes.shape).astype(np.float32)
    found = known.predict_proba(dataclasses.replace(particles, volumes=noise))
    assert found.max(axis=1).mean() < known.predict_proba(particles).max(axis=1).mean()


def test_fit_says_what_its_model_says(fitted, particles):
    assert fitted.model_.num_classes == 2
    np.testing.assert_array_equal(fitted.predict(particles), fitted.labels_)
    np.testing.assert_allclose(fitted.transform(particles), fitted.features_, atol=1e-5)


def test_model_is_read_back_with_its_poses(fitted, particles, tmp_path):
    save_model(tmp_path, fitted.model_)
    kept = load_model(tmp_path)
    np.testing.assert_array_equal(kept.predict_proba(particles), fitted.probabilities_)
    found, wanted = kept.align(particles), fitted.model_.align(particles)
    np.testing.assert_array_equal(found.rotations, wanted.rotations)
    np.testing.assert_array_equal(found.labels, fitted.labels_)


def test_light_protein_is_negated_for_dark_weights(fitted, particles, weights):
    negated = dataclasses.replace(particles, volumes=-particles.volumes)
    light = JimNet(dataclasses.replace(CONFIG, contrast="light"), weights=weights).fit(negated)
    np.testing.assert_array_equal(light.labels_, fitted.labels_)
    np.testing.assert_allclose(light.probabilities_, fitted.probabilities_, atol=1e-5)


def test_taught_model_has_the_references_it_was_taught(fitted, particles):
    averages = particles.volumes[[1, 0]]  # in the other order
    taught = fitted.model_.taught(fitted.features_, fitted.probabilities_, averages)
    np.testing.assert_array_equal(taught.predict(particles), 1 - np.arange(NUM) % 2)


def test_too_few_particles_are_an_error(particles, weights):
    with pytest.raises(InputError, match="3 particles are too few for 2 classes"):
        JimNet(CONFIG, weights=weights).fit(particles.select(range(3)))


def test_identical_particles_give_numbers(particles, weights):
    same = dataclasses.replace(particles, volumes=np.tile(particles.volumes[:1], (NUM, 1, 1, 1)))
    found = JimNet(CONFIG, weights=weights).fit(same)
    assert np.isfinite(found.probabilities_).all()


def test_poses_within_classes_are_against_the_own_class(particles, weights):
    labels = np.arange(NUM) % 2
    labels[-1] = 2  # alone
    found = pretrained.pose_classes(weights, particles, labels)
    np.testing.assert_array_equal(found.labels, labels)
    R = found.rotations
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (NUM, 1, 1)), atol=1e-4)
    np.testing.assert_array_equal(R[-1], np.eye(3))
    assert found.correlations[:-1].min() > 0.9
