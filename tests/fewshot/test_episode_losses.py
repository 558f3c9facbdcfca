"""Distances, attention and what training makes of them, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.fewshot import losses
from jimjax.models import weights
from jimjax.models.protonet import ProtoNetConfig

WIDTH = 4
SIZES = ProtoNetConfig(
    box=8, size=8, widths=(2,), num_halvings=1, pools=("mean",), dense_width=WIDTH
)


@pytest.fixture(scope="module")
def network():
    return weights.build(SIZES, jax.random.key(0))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_task_has_means_as_prototypes_and_queries_class_by_class():
    features = np.arange(2 * 3 * 1.0).reshape(2, 3, 1)
    task = losses.make_task(jnp.asarray(features), shots=2)
    np.testing.assert_array_equal(task.prototypes, [[0.5], [3.5]])
    np.testing.assert_array_equal(task.queries, [[2], [5]])
    three = losses.make_task(jnp.asarray(draw(2, 4, 1)), shots=1)
    np.testing.assert_array_equal(three.labels, [0, 0, 0, 1, 1, 1])


def test_plain_logits_are_minus_squared_distances():
    prototypes, queries = jnp.array([[0.0, 0.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(losses.plain_logits(prototypes, queries), [[-1.0, -18.0]])


def test_cross_entropy_of_even_odds_is_the_log_of_the_ways():
    found = losses.cross_entropy(jnp.zeros((3, 4)), jnp.array([0, 3, 1]))
    np.testing.assert_allclose(found, np.log(4), rtol=1e-6)


def test_wanted_attention_of_two_classes():
    """The query is of the second class: they share, and the first keeps to itself."""
    wanted = losses.attention_targets(jnp.array([1]), 2)
    np.testing.assert_array_equal(wanted[0], [[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])


def test_divergence_is_nothing_where_attention_is_as_wanted():
    labels = jnp.array([0, 2, 1])
    wanted = losses.attention_targets(labels, 3)
    log_attention = jnp.log(jnp.maximum(wanted, 1e-30))
    np.testing.assert_allclose(losses.attention_divergence(log_attention, labels), 0, atol=1e-6)


def test_divergence_of_even_attention_by_hand():
    """Of 2 classes: the lone row pays log 3, the two that share log 3 - log 2 each."""
    even = jnp.full((5, 3, 3), -np.log(3.0))
    found = losses.attention_divergence(even, jnp.array([0, 0, 1, 1, 0]))
    np.testing.assert_allclose(found, 3 * np.log(3) - 2 * np.log(2), rtol=1e-6)


def test_divergence_is_that_of_the_query_of_each_label():
    """Attention that is right for class-major labels is wrong for class-fastest ones."""
    labels, fastest = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
    log_attention = jnp.log(jnp.maximum(losses.attention_targets(labels, 2), 1e-6))
    assert losses.attention_divergence(log_attention, labels) < 1e-3
    assert losses.attention_divergence(log_attention, fastest) > 1


def test_combined_logits_add_the_distance_after_adaptation(network):
    prototypes, queries = draw(3, WIDTH), draw(2, WIDTH, seed=1)
    found = losses.combined_logits(network, prototypes, queries)
    module_says = []
    for query in queries:
        refined = losses.functional.apply(
            network, np.concatenate([prototypes, query[None]])[None], train=False, method="adapt"
        )[0].refined[0]
        module_says.append(-((refined[:3] - refined[3]) ** 2).sum(axis=1))
    wanted = losses.plain_logits(prototypes, queries) + np.stack(module_says)
    np.testing.assert_allclose(found.logits, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(found.log_attention).sum(axis=2), 1, rtol=1e-5)


def test_adaptation_teaches_the_embedding_nothing(network):
    """What is pulled back to the points is what the plain distances pull back."""
    points = draw(3, WIDTH), draw(2, WIDTH, seed=1)
    weight = draw(2, 3, seed=2)

    def pulled(logits):
        return jax.grad(lambda pair: jnp.sum(weight * logits(*pair)))(points)

    combined = pulled(lambda *pair: losses.combined_logits(network, *pair).logits)
    plain = pulled(losses.plain_logits)
    for one, other in zip(combined, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_loss_of_protonet_ce_is_entropy_and_twice_the_divergence(network):
    task = losses.make_task(jnp.asarray(draw(2, 4, WIDTH)), shots=2)
    value, metrics = losses.task_loss(network, task, "protonet-ce")
    found = losses.combined_logits(network, task.prototypes, task.queries)
    entropy = losses.cross_entropy(found.logits, task.labels)
    divergence = losses.attention_divergence(found.log_attention, task.labels)
    np.testing.assert_allclose(value, entropy + 2 * divergence, rtol=1e-6)
    np.testing.assert_allclose(metrics["divergence"], divergence, rtol=1e-6)


def test_protonet_does_not_use_the_attention(network):
    task = losses.make_task(jnp.asarray(draw(2, 4, WIDTH)), shots=2)

    def loss(params):
        return losses.task_loss(network._replace(params=params), task, "protonet")[0]

    assert all(not np.any(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(network.params)))
