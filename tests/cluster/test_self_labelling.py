"""What methods share that teach a network the classes of its own features."""

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.cluster import self_labelling
from jimjax.cluster.self_labelling import Lessons, Memory


def test_cross_entropy_agrees_with_its_formula_by_hand():
    """p = (1/2, 1/4, 1/4)."""
    logits = jnp.log(jnp.array([[2.0, 1.0, 1.0]] * 2))
    targets = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    found = self_labelling.cross_entropy(logits, targets, jnp.ones((2, 3)))
    np.testing.assert_allclose(found, (np.log(2) + np.log(4)) / 2, rtol=1e-6)


def test_unused_class_is_neither_believed_nor_learned():
    targets, is_used = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[1.0, 1.0, 0.0]])

    def loss(logits):
        return self_labelling.cross_entropy(logits, targets, is_used)

    value, slope = jax.value_and_grad(loss)(jnp.array([[0.0, 0.0, 9.0]]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(slope, [[-0.5, 0.5, 0.0]], atol=1e-6)


def test_lessons_of_labels_are_one_of_the_classes_in_use():
    targets, is_used = self_labelling.certain(np.array([1, 0]), 3)
    np.testing.assert_array_equal(targets, [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(is_used, [[1, 1, 0], [1, 1, 0]])


def test_new_head_learns_what_features_show():
    generator = np.random.default_rng(0)
    labels = np.arange(64) % 2
    features = generator.normal(size=(64, 8)).astype(np.float32)
    features[:, 0] += 6 * labels - 3
    lessons = self_labelling.certain(labels, 3)
    score = self_labelling.cross_entropy
    head = self_labelling.fit_head(
        jax.random.key(0), features, lessons, score, epochs=40, batch_size=8, rate=1e-2
    )
    logits = features @ head["head.kernel"] + head["head.bias"]
    assert np.mean(logits[:, :2].argmax(axis=1) == labels) > 0.95


def _method(group, judge=None):
    nothing = Lessons(np.zeros((4, 2)), np.zeros((4, 2)))
    return self_labelling.Method(
        name="test",
        iterations=1,
        steps=1,
        group=group,
        judge=judge,
        teach=lambda labels, iteration: nothing,
        new_head=lambda key, features, lessons, is_other: {},
        order=lambda labels, iteration: iter([np.arange(4)]),
        loss=lambda network, batch, key: None,
    )


def test_classes_keep_their_numbers_and_changes_are_counted():
    before = np.array([0, 0, 1, 1], np.int32)
    memory = Memory(before, np.float32(1), None)
    method = _method(lambda key, features, labels: np.array([1, 1, 0, 1], np.int32))
    found, noted = self_labelling.find_classes(jax.random.key(0), None, None, memory, method)
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 0])
    assert noted == {"num_classes": 2, "changed": 0.25}


def test_other_number_of_classes_counts_as_all_changed():
    memory = Memory(np.array([0, 0, 1, 1], np.int32), np.float32(0), None)
    method = _method(lambda key, features, labels: np.array([0, 1, 2, 2], np.int32))
    found, _ = self_labelling.find_classes(jax.random.key(0), None, None, memory, method)
    assert (found.num_classes, float(found.changed)) == (3, 1.0)


def test_iteration_of_the_lowest_index_is_kept():
    class _Network:
        def __init__(self, number):
            self.params, self.stats = np.array(number), np.array(0)

    indices = iter([2.0, 1.0, 3.0])
    labels = np.array([0, 1, 0, 1], np.int32)
    method = _method(lambda *_: labels, judge=lambda features, labels: next(indices))
    memory = self_labelling.initial_memory(4, _Network(-1), keeps_best=True)
    for number in range(3):
        memory, _ = self_labelling.find_classes(
            jax.random.key(0), None, _Network(number), memory, method
        )
    assert (int(memory.best.params), float(memory.best.index)) == (1, 1.0)
