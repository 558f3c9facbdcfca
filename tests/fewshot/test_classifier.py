"""A few-shot classifier, tiny: what it learns, keeps, resumes and refuses."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from small_protonet import BOX, SIZES

from jimjax.fewshot import training
from jimjax.fewshot.classifier import FewShotClassifier
from jimjax.fewshot.config import FewShotConfig
from jimjax.fewshot.model import load_model, save_model
from jimjax.io.errors import InputError
from jimjax.models import functional, weights
from jimjax.models.weights import Description, Weights
from jimjax.progress import Interrupted

CONFIG = FewShotConfig(
    preset="small", ways=2, shots=2, queries=2, episodes=2, epochs=2, learning_rate=1e-2
)
CE = dataclasses.replace(CONFIG, method="protonet-ce")


@pytest.fixture(scope="module")
def base(make_particles):
    return make_particles((0.8, 1.6), 6)


@pytest.fixture(scope="module")
def support(make_particles):
    """Two other classes, numbered 3 and 7, of one and of four particles."""
    two = make_particles((1.1, 2.2), 4, seed=1)
    two = dataclasses.replace(two, labels=np.where(two.labels == 0, 2, 6).astype(np.int32))
    return two.select([0, 1, 3, 5, 7])


@pytest.fixture(scope="module")
def query(make_particles):
    """The classes of the support in turn, without labels."""
    return dataclasses.replace(make_particles((1.1, 2.2), 5, seed=2), labels=None)


def leaves(classifier):
    network = classifier.weights_.network
    return jax.tree.leaves((network.params, network.stats))


@pytest.mark.parametrize("config", [CONFIG, CE])
def test_particles_get_the_numbers_of_the_support(config, support, query):
    found = FewShotClassifier(config).fit(support)
    np.testing.assert_array_equal(found.classes_, [2, 6])
    np.testing.assert_array_equal(found.predict(query), [2, 6] * 5)
    np.testing.assert_allclose(found.predict_proba(query).sum(axis=1), 1, rtol=1e-5)


def test_prototypes_are_means_of_unequal_classes(support):
    found = FewShotClassifier(CONFIG).fit(support)
    points = found.transform(support)
    np.testing.assert_allclose(found.prototypes_[0], points[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.prototypes_[1], points[1:].mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, CE])
def test_one_class_is_certain(config, support, query):
    found = FewShotClassifier(config).fit(support.select([1, 2]))
    np.testing.assert_array_equal(found.predict_proba(query), np.ones((10, 1)))
    np.testing.assert_array_equal(found.predict(query), [6] * 10)


@pytest.mark.parametrize("config", [CONFIG, CE])
def test_classes_that_look_the_same_are_as_likely(config, support, query):
    same = dataclasses.replace(support, volumes=np.repeat(support.volumes[:1], 5, axis=0))
    found = FewShotClassifier(config).fit(same)
    np.testing.assert_allclose(found.predict_proba(query), 0.5, atol=1e-3)


def test_training_brings_the_loss_down(base):
    """Blobs of two sizes are an easy task, but not for random numbers."""
    losses = []

    class Listen:
        def update(self, stage, step, num_steps, metrics):
            losses.append(metrics["loss"])

    longer = dataclasses.replace(CONFIG, epochs=10)
    FewShotClassifier(longer).train(base, progress=Listen())
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def test_attention_is_trained_by_protonet_ce_alone(base):
    start = FewShotClassifier(CONFIG)
    start = start._weights_for(base, None)
    before = functional.name_arrays(start.network.params)
    for config, is_changed in ((CONFIG, False), (CE, True)):
        trained = FewShotClassifier(config).train(base).weights_
        after = functional.name_arrays(trained.network.params)
        name = "attention.query.kernel"  # the divergence moves it also where classes are far apart
        assert np.any(before[name] != after[name]) == is_changed
        assert np.any(before["convs.0.kernel"] != after["convs.0.kernel"])


def test_training_is_a_function_of_the_seed(base):
    one, again = (FewShotClassifier(CONFIG).train(base) for _ in range(2))
    for first, second in zip(leaves(one), leaves(again), strict=True):
        np.testing.assert_array_equal(first, second)
    start = Weights(Description(SIZES(box=BOX)), weights.build(SIZES(box=BOX), jax.random.key(0)))
    other = FewShotClassifier(dataclasses.replace(CONFIG, seed=1), weights=start).train(base)
    assert any(np.any(a != b) for a, b in zip(leaves(one), leaves(other), strict=True))


def test_episodes_are_compiled_once(base, monkeypatch):
    traced = []
    plain = training.losses.task_loss
    monkeypatch.setattr(
        training.losses, "task_loss", lambda *given: traced.append(given) or plain(*given)
    )
    FewShotClassifier(CONFIG).train(base)
    assert len(traced) == 1


def test_molecules_beside_are_learned_as_well(base, tmp_path):
    some = dataclasses.replace(CONFIG, molecules=2, epochs=1)
    none = dataclasses.replace(some, molecules=0)
    one, other, again = (
        FewShotClassifier(config).train(base, folder=tmp_path / name)
        for name, config in {"one": some, "other": none, "again": some}.items()
    )
    assert any(np.any(a != b) for a, b in zip(leaves(one), leaves(other), strict=True))
    for first, second in zip(leaves(one), leaves(again), strict=True):
        np.testing.assert_array_equal(first, second)
    logged = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "other")
    )
    assert ["molecule_accuracy" in line for line in logged] == [True, False]


class _StopAfter:
    def __init__(self, step):
        self.step = step

    def update(self, stage, step, num_steps, metrics):
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("step", [3, 5])  # of 4 of each method
def test_interrupted_and_resumed_training_is_the_uninterrupted_one(step, base, tmp_path):
    whole = FewShotClassifier(CE).train(base, validation=base)
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 8"):
        FewShotClassifier(CE).train(base, validation=base, folder=folder, progress=_StopAfter(step))
    resumed = FewShotClassifier(CE).train(base, validation=base, folder=folder, resume=True)
    for first, second in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_array_equal(first, second)


def test_other_labels_are_not_resumed(base, tmp_path):
    folder = tmp_path / "run"
    FewShotClassifier(CONFIG).train(base, folder=folder)
    with pytest.raises(InputError, match="already holds a run"):
        FewShotClassifier(CONFIG).train(base, folder=folder)
    swapped = dataclasses.replace(base, labels=1 - base.labels)
    with pytest.raises(InputError, match="trained with another teacher"):
        FewShotClassifier(CONFIG).train(swapped, folder=folder, resume=True)


def test_best_network_of_validation_is_kept_and_waiting_ends(base, monkeypatch):
    """Told that the first network is the best, training stops after two epochs and returns it."""
    accuracies = iter([0.9, 0.8, 0.7, 0.1])
    monkeypatch.setattr(training, "validate", lambda *_: next(accuracies))
    config = dataclasses.replace(CONFIG, epochs=20, patience=2)
    start = FewShotClassifier(config)._weights_for(base, None)
    steps = []

    class Listen:
        def update(self, stage, step, num_steps, metrics):
            steps.append(step)

    kept = FewShotClassifier(config).train(base, validation=base, progress=Listen())
    assert steps == [1, 2, 3, 4]
    before = jax.tree.leaves((start.network.params, start.network.stats))
    for first, second in zip(leaves(kept), before, strict=True):
        np.testing.assert_array_equal(first, second)


def test_evaluation_measures_the_network_that_was_trained(base):
    found = FewShotClassifier(CONFIG).train(base)
    task = {"ways": 2, "shots": 2, "queries": 3, "num_episodes": 5}
    mean, half_width = found.evaluate(base, **task)
    assert mean == 1.0
    assert half_width == 0.0
    shuffled = dataclasses.replace(base, labels=np.roll(np.repeat([0, 1], 6), 3))
    assert found.evaluate(shuffled, **task).mean < 0.9


def test_light_protein_is_negated_for_dark_weights(base, support, query, negate):
    start = FewShotClassifier(CONFIG).train(base).weights_
    dark = FewShotClassifier(CONFIG, weights=start).fit(support)
    config = dataclasses.replace(CONFIG, contrast="light")
    light = FewShotClassifier(config, weights=start).fit(negate(support))
    np.testing.assert_array_equal(light.transform(negate(query)), dark.transform(query))


@pytest.mark.parametrize("config", [CONFIG, CE])
def test_model_is_read_back(config, support, query, tmp_path):
    found = FewShotClassifier(config).fit(support)
    save_model(tmp_path, found.model_)
    kept = load_model(tmp_path)
    assert kept.method == config.method
    np.testing.assert_array_equal(kept.predict_proba(query), found.predict_proba(query))
    np.testing.assert_array_equal(kept.predict(query), found.predict(query))


def test_damaged_or_missing_model_is_an_error(support, tmp_path):
    with pytest.raises(InputError, match="holds no few-shot model"):
        load_model(tmp_path)
    save_model(tmp_path, FewShotClassifier(CONFIG).fit(support).model_)
    path = tmp_path / "prototypes.safetensors"
    whole = path.read_bytes()
    changed = bytes([whole[-1] ^ 1])  # of the last prototype
    path.write_bytes(whole[:-1] + changed)
    with pytest.raises(InputError, match="damaged, its digest is another"):
        load_model(tmp_path)
    path.write_bytes(whole[:40])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_model(tmp_path)


def test_particles_of_another_box_or_voxel_size_are_errors(support, query):
    found = FewShotClassifier(CONFIG).fit(support)
    with pytest.raises(InputError, match="for 10 A per voxel, these particles are at 12 A"):
        found.predict(dataclasses.replace(query, voxel_size=12.0))
    small = dataclasses.replace(query, volumes=query.volumes[:, 1:-1, 1:-1, 1:-1])
    with pytest.raises(InputError, match="for boxes of 12 voxels, these have 10"):
        found.predict(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "the particles to learn from have no classes"),
        ({"labels": np.zeros(12, np.int32)}, "are of 1 classes, episodes want 2"),
    ],
)
def test_classes_that_make_no_episode_are_errors(base, change, message):
    with pytest.raises(InputError, match=message):
        FewShotClassifier(CONFIG).train(dataclasses.replace(base, **change))


def test_class_too_small_for_an_episode_is_an_error(base):
    config = dataclasses.replace(CONFIG, shots=5)
    with pytest.raises(InputError, match="class 1 has 6 particles, episodes take 7"):
        FewShotClassifier(config).train(base)


@pytest.mark.parametrize("name", ["ways", "queries", "epochs", "patience"])
def test_configuration_that_makes_no_episode_is_an_error(name, base):
    with pytest.raises(InputError, match=f"{name} must be . or more, got 0"):
        FewShotClassifier(dataclasses.replace(CONFIG, **{name: 0})).train(base)


def test_support_without_classes_is_an_error(query):
    with pytest.raises(InputError, match="the labelled particles have no classes"):
        FewShotClassifier(CONFIG).fit(query)


def test_box_too_small_for_the_network_is_an_error(support):
    small = dataclasses.replace(support, volumes=support.volumes[:, 3:-3, 3:-3, 3:-3])
    with pytest.raises(InputError, match="particles of 6 voxels: size 8 must not exceed"):
        FewShotClassifier(CONFIG).fit(small)
