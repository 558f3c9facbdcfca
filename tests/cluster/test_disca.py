"""DISCA, tiny: what an iteration does, what a fit finds, keeps and resumes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_blobs
from small_blobs import BOX, LABELS, NUM, YOPO, StopAfter

from jimjax.cluster import disca, disca_steps, self_labelling
from jimjax.cluster.disca import Disca
from jimjax.cluster.disca_config import DiscaConfig
from jimjax.cluster.model import load_model, save_model
from jimjax.evaluate.clustering import clustering_accuracy
from jimjax.io.errors import InputError
from jimjax.models import weights
from jimjax.models.weights import Description, Weights
from jimjax.progress import Interrupted

CONFIG = DiscaConfig(
    preset="small",
    candidates=(2,),
    iterations=3,
    batch_size=8,
    learning_rate=1e-3,
    num_axes=2,
    num_starts=3,
)


EITHER = dataclasses.replace(CONFIG, candidates=(2, 3))


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(disca.PRESETS, "small", small_blobs.yopo)
        yield


@pytest.fixture(scope="module")
def particles():
    return small_blobs.two_sizes()


@pytest.fixture(scope="module")
def fitted(particles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return Disca(CONFIG, command="typed").fit(particles, folder=folder), folder


def test_blobs_of_two_sizes_are_two_classes(fitted):
    found, _ = fitted
    assert found.model_.num_classes == 2
    assert clustering_accuracy(found.labels_, LABELS) == 1.0
    np.testing.assert_allclose(found.probabilities_.sum(axis=1), 1, rtol=1e-5)


def test_other_particles_are_told_apart_as_well(fitted, particles):
    found, _ = fitted
    moved = dataclasses.replace(particles, volumes=np.rot90(particles.volumes, axes=(1, 2)))
    np.testing.assert_array_equal(found.predict(moved), found.labels_)


def test_fit_is_a_function_of_the_seed(fitted, particles):
    found, _ = fitted
    again = Disca(CONFIG).fit(particles)
    np.testing.assert_array_equal(again.labels_, found.labels_)
    np.testing.assert_array_equal(again.probabilities_, found.probabilities_)
    other = Disca(dataclasses.replace(CONFIG, seed=1)).fit(particles)
    assert np.any(other.transform(particles) != found.transform(particles))


@pytest.mark.parametrize("step", [2, 3])  # within an iteration, at its end
def test_interrupted_and_resumed_fit_is_the_uninterrupted_one(step, fitted, particles, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 9"):
        Disca(CONFIG).fit(particles, folder=folder, progress=StopAfter(step))
    resumed = Disca(CONFIG).fit(particles, folder=folder, resume=True)
    np.testing.assert_array_equal(resumed.probabilities_, fitted[0].probabilities_)


def test_folder_of_another_fit_is_an_error(fitted, particles):
    _, folder = fitted
    with pytest.raises(InputError, match="already holds a run"):
        Disca(CONFIG).fit(particles, folder=folder)
    with pytest.raises(InputError, match="its configuration differs"):
        Disca(dataclasses.replace(CONFIG, seed=1)).fit(particles, folder=folder, resume=True)


def test_model_is_read_back(fitted, particles, tmp_path):
    save_model(tmp_path, fitted[0].model_)
    kept = load_model(tmp_path)
    np.testing.assert_array_equal(kept.predict_proba(particles), fitted[0].probabilities_)


def test_weights_are_begun_with_and_light_protein_is_negated(particles):
    sizes = YOPO(box=BOX, num_classes=5)  # the head is not taken over
    donor = Weights(Description(sizes, "dark"), weights.build(sizes, jax.random.key(9)))
    short = dataclasses.replace(CONFIG, iterations=1, learning_rate=0.0)
    found = Disca(short, weights=donor).fit(particles)
    negated = dataclasses.replace(particles, volumes=-particles.volumes)
    light = Disca(dataclasses.replace(short, contrast="light"), weights=donor).fit(negated)
    np.testing.assert_array_equal(light.transform(negated), found.transform(particles))
    np.testing.assert_array_equal(light.labels_, found.labels_)
    own = found.model_.weights.network.params["convs"][0]["kernel"][...]
    np.testing.assert_array_equal(own, donor.network.params["convs"][0]["kernel"][...])


def test_more_classes_than_particles_are_an_error(particles):
    with pytest.raises(InputError, match="2 particles cannot be in 3 classes"):
        Disca(EITHER).fit(particles.select(range(2)))


def test_box_too_small_for_the_network_is_an_error(particles):
    small = dataclasses.replace(particles, volumes=particles.volumes[:, 3:-3, 3:-3, 3:-3])
    with pytest.raises(InputError, match="particles of 6 voxels: size 8 must not exceed"):
        Disca(CONFIG).fit(small)


def test_identical_particles_are_one_class(particles):
    same = dataclasses.replace(particles, volumes=np.tile(particles.volumes[:1], (NUM, 1, 1, 1)))
    found = Disca(CONFIG).fit(same)
    assert len(set(found.labels_)) == 1
    assert np.isfinite(found.probabilities_).all()


def test_particles_of_another_box_or_voxel_size_are_errors(fitted, particles):
    found, _ = fitted
    with pytest.raises(InputError, match="for 10 A per voxel, these particles are at 12 A"):
        found.predict(dataclasses.replace(particles, voxel_size=12.0))
    small = dataclasses.replace(particles, volumes=particles.volumes[:, 1:-1, 1:-1, 1:-1])
    with pytest.raises(InputError, match="for boxes of 12 voxels, these have 10"):
        found.predict(small)


def test_hinge_agrees_with_its_formula_by_hand():
    """p = (1/2, 1/4, 1/4): sure of the first, 1 + 1/4 - 1/2; of the last, 1 + 1/2 - 1/4."""
    logits = jnp.log(jnp.array([[2.0, 1.0, 1.0]] * 2))
    targets = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    used = jnp.ones((2, 3))
    np.testing.assert_allclose(
        disca_steps.categorical_hinge(logits, targets, used), (0.75 + 1.25) / 2, rtol=1e-6
    )


def test_unused_class_is_never_believed():
    logits = jnp.array([[0.0, 0.0, 9.0]])
    found = disca_steps.categorical_hinge(
        logits, jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[1.0, 1.0, 0.0]])
    )
    np.testing.assert_allclose(found, 1 + 0.5 - 0.5, rtol=1e-6)


def test_smoothed_targets_sum_to_one_over_the_classes_in_use():
    targets, used = disca_steps.smoothed(np.array([0, 1]), 4, CONFIG, iteration=0)
    share = 0.2 * 0.9
    np.testing.assert_allclose(
        targets, [[1 - share / 2, share / 2, 0, 0], [share / 2, 1 - share / 2, 0, 0]], rtol=1e-6
    )
    np.testing.assert_array_equal(used, [[1, 1, 0, 0]] * 2)


def test_new_head_learns_what_features_show():
    generator = np.random.default_rng(0)
    labels = np.arange(64) % 2
    features = generator.normal(size=(64, 8)).astype(np.float32)
    features[:, 0] += 6 * labels - 3
    lessons = disca_steps.smoothed(labels, 3, CONFIG, iteration=0)
    head = self_labelling.fit_head(
        jax.random.key(0),
        features,
        lessons,
        disca_steps.categorical_hinge,
        epochs=40,
        batch_size=8,
        rate=1e-2,
    )
    logits = features @ head["head.kernel"] + head["head.bias"]
    assert np.mean(logits[:, :2].argmax(axis=1) == labels) > 0.95


def test_number_of_classes_may_be_chosen_and_change(particles):
    """The head has a class for the larger choice; what it is trained on is the one in use."""
    found = Disca(EITHER).fit(particles)
    assert found.model_.num_classes in EITHER.candidates
    assert found.model_.weights.description.config.num_classes == 3
    two = clustering_accuracy(found.labels_, LABELS)
    assert two >= 0.75  # the third, if any, is a part of one of them
