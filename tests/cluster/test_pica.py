"""PICA, tiny: what its loss prefers, what a fit finds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_blobs
from small_blobs import LABELS, NUM, StopAfter

from jimjax.cluster import pica
from jimjax.cluster.model import load_model, save_model
from jimjax.cluster.pica import Pica
from jimjax.cluster.pica_config import PicaConfig
from jimjax.evaluate.clustering import clustering_accuracy
from jimjax.io.errors import InputError
from jimjax.progress import Interrupted

CONFIG = PicaConfig(
    preset="small",
    candidates=(2,),
    epochs=12,
    batch_size=12,
    learning_rate=1e-2,
    num_parts=3,
    num_copies=2,
    noise=0.1,
)
SHORT = dataclasses.replace(CONFIG, epochs=2)


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pica.PRESETS, "small", small_blobs.yopo)
        yield


@pytest.fixture(scope="module")
def particles():
    return small_blobs.two_sizes()


@pytest.fixture(scope="module")
def fitted(particles):
    return Pica(CONFIG).fit(particles)


def test_blobs_of_two_sizes_are_two_classes(fitted):
    assert fitted.model_.num_classes == 2
    assert clustering_accuracy(fitted.labels_, LABELS) == 1.0
    np.testing.assert_allclose(fitted.probabilities_.sum(axis=1), 1, rtol=1e-5)


def test_interrupted_and_resumed_fit_is_the_uninterrupted_one(particles, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped at step 3 of 8"):
        Pica(SHORT).fit(particles, folder=folder, progress=StopAfter(3))
    resumed = Pica(SHORT).fit(particles, folder=folder, resume=True)
    np.testing.assert_array_equal(resumed.probabilities_, Pica(SHORT).fit(particles).probabilities_)


def test_model_is_read_back_without_the_parts(fitted, particles, tmp_path):
    save_model(tmp_path, fitted.model_)
    kept = load_model(tmp_path)
    assert kept.num_classes == 2
    np.testing.assert_array_equal(kept.predict_proba(particles), fitted.probabilities_)


def test_identical_particles_give_numbers(particles):
    same = dataclasses.replace(particles, volumes=np.tile(particles.volumes[:1], (NUM, 1, 1, 1)))
    found = Pica(SHORT).fit(same)
    assert np.isfinite(found.probabilities_).all()
    assert len(set(found.labels_)) == 1


def test_one_class_is_all_of_them(particles):
    found = Pica(dataclasses.replace(SHORT, candidates=(1,))).fit(particles)
    np.testing.assert_array_equal(found.probabilities_, np.ones((NUM, 1)))


def test_several_numbers_of_classes_are_an_error(particles):
    with pytest.raises(InputError, match="cannot choose among 2 numbers of classes"):
        Pica(dataclasses.replace(CONFIG, candidates=(2, 3))).fit(particles)


def test_more_classes_than_particles_are_an_error(particles):
    with pytest.raises(InputError, match="1 particles cannot be in 2 classes"):
        Pica(CONFIG).fit(particles.select([0]))


def _loss(probabilities, copies, balance=2.0):
    return float(pica.partition_loss(jnp.log(probabilities), jnp.log(copies), balance=balance))


def test_loss_agrees_with_its_formula_by_hand():
    """Columns of length 1: (2, 1) / sqrt 5 and (1, 2) / sqrt 5, so M = ((1, .8), (.8, 1))."""
    probabilities = jnp.array([[2.0, 1.0], [1.0, 2.0]]) / 3
    certainty = np.log(np.exp(1) + np.exp(0.8)) - 1
    np.testing.assert_allclose(_loss(probabilities, probabilities[None]), certainty, rtol=1e-5)


def test_uneven_classes_cost_what_their_entropy_lacks():
    sure = jnp.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]]) * (1 - 2e-6) + 1e-6
    lacks = np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    gained = _loss(sure, sure[None], balance=2.0) - _loss(sure, sure[None], balance=1.0)
    np.testing.assert_allclose(gained, lacks, rtol=1e-3)


def test_sure_and_equal_classes_cost_least():
    sure = jnp.array([[1.0, 0.0], [0.0, 1.0]] * 2) * (1 - 2e-6) + 1e-6
    unsure = jnp.full((4, 2), 0.5)
    assert _loss(sure, sure[None]) < _loss(sure, sure[None, ::-1])  # the copies disagree
    assert _loss(sure, sure[None]) < _loss(unsure, unsure[None])


def test_gradient_of_the_loss_is_finite_where_a_class_is_never_chosen():
    logits = jnp.array([[200.0, 0.0]] * 3)
    slope = jax.grad(lambda x: pica.partition_loss(x, x[None], balance=2.0))(logits)
    assert np.isfinite(slope).all()
