"""How near particles are to the prototypes of classes, and what training makes of that.

In an episode there are ``ways`` classes, each shown by ``shots`` particles whose mean is its
prototype, and asked about by ``queries`` others. Queries are class-major: all of the first class,
then all of the second.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jimjax.models import functional
from jimjax.models.functional import Network
from jimjax.train.losses import cross_entropy

Method = Literal["protonet", "protonet-ce"]
ATTENTION_WEIGHT = 2.0  # of the divergence; published


class Task(NamedTuple):
    """An episode, embedded.

    Attributes:
        prototypes: ``(ways, d)``.
        queries: ``(ways * queries, d)``, class-major.
        labels: ``(ways * queries,)``, the class of each query.
    """

    prototypes: jax.Array
    queries: jax.Array
    labels: jax.Array


class Combined(NamedTuple):
    """What ProtoNet-CE says of queries.

    Attributes:
        logits: ``(n, ways)``, minus both squared distances.
        log_attention: ``(n, ways + 1, ways + 1)``, of prototypes and then the query.
    """

    logits: jax.Array
    log_attention: jax.Array


def make_task(features: jax.Array, shots: int) -> Task:
    """Makes prototypes of the first ``shots`` of each class, and queries of the others.

    Args:
        features: ``(ways, shots + queries, d)``.
        shots: per class.
    """
    prototypes = jnp.mean(features[:, :shots], axis=1)
    ways, num_queries = len(features), features.shape[1] - shots
    queries = features[:, shots:].reshape(ways * num_queries, -1)
    return Task(prototypes, queries, jnp.repeat(jnp.arange(ways), num_queries))


def plain_logits(prototypes: jax.Array, queries: jax.Array) -> jax.Array:
    """Minus the squared Euclidean distance of queries ``(n, d)`` from prototypes ``(ways, d)``."""
    return -jnp.sum((queries[:, None] - prototypes) ** 2, axis=-1)


def combined_logits(network: Network, prototypes: jax.Array, queries: jax.Array) -> Combined:
    """Adds to the distances those after each query and the prototypes have seen each other.

    The adaptation passes no gradient on to prototypes and queries: the encoder learns only through
    the distances of its own embeddings.

    Args:
        network: a ProtoNet.
        prototypes: ``(ways, d)``.
        queries: ``(n, d)``.
    """
    shown = jnp.broadcast_to(prototypes, (len(queries), *prototypes.shape))
    sets = lax.stop_gradient(jnp.concatenate([shown, queries[:, None]], axis=1))
    adapted = functional.apply(network, sets, train=False, method="adapt")[0]
    refined = adapted.refined
    apart = jnp.sum((refined[:, -1:] - refined[:, :-1]) ** 2, axis=-1)
    return Combined(plain_logits(prototypes, queries) - apart, adapted.log_attention)


def class_logits(
    network: Network, prototypes: jax.Array, queries: jax.Array, method: Method
) -> jax.Array:
    """Logits ``(n, ways)`` of queries ``(n, d)`` by either method."""
    if method == "protonet":
        return plain_logits(prototypes, queries)
    return combined_logits(network, prototypes, queries).logits


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of queries of which the likeliest class is the right one."""
    return jnp.mean(jnp.argmax(logits, axis=1) == labels)


def attention_divergence(log_attention: jax.Array, labels: jax.Array) -> jax.Array:
    """How far attention is from where it should go: a query and its prototype share theirs.

        sum_ij T_ij (log T_ij - log A_ij),   per query, then the mean over queries

    T is the identity, but 1/2 for the four pairs made of the query and the prototype of its class.
    The published code compares with A in place of log A, and labels queries in another order than
    it has them.

    Args:
        log_attention: ``(n, ways + 1, ways + 1)``.
        labels: ``(n,)``.

    Returns:
        Scalar, the Kullback-Leibler divergence of the attention from the wanted one, >= 0.
    """
    wanted = attention_targets(labels, log_attention.shape[-1] - 1)
    log_wanted = jnp.log(jnp.where(wanted > 0, wanted, 1.0))
    return jnp.mean(jnp.sum(wanted * (log_wanted - log_attention), axis=(1, 2)))


def attention_targets(labels: jax.Array, ways: int) -> jax.Array:
    """Where attention should go, ``(n, ways + 1, ways + 1)``; see ``attention_divergence``."""
    own = jnp.concatenate([jax.nn.one_hot(labels, ways), jnp.ones((len(labels), 1))], axis=1)
    return own[:, :, None] * own[:, None] / 2 + (1 - own)[:, :, None] * jnp.eye(ways + 1)


def task_loss(
    network: Network, task: Task, method: Method
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What training minimises in an episode.

    Args:
        network: a ProtoNet.
        task: what it says of the episode.
        method: "protonet" for the cross entropy of its own distances; "protonet-ce" for that of
            the combined ones, and the divergence of the attention.

    Returns:
        Scalar and metrics.
    """
    if method == "protonet":
        logits = plain_logits(task.prototypes, task.queries)
        return cross_entropy(logits, task.labels), {"accuracy": accuracy(logits, task.labels)}
    logits, log_attention = combined_logits(network, task.prototypes, task.queries)
    divergence = attention_divergence(log_attention, task.labels)
    value = cross_entropy(logits, task.labels) + ATTENTION_WEIGHT * divergence
    return value, {"accuracy": accuracy(logits, task.labels), "divergence": divergence}
