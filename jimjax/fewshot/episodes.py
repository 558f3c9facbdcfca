"""Episodes: which particles show a few classes, which are asked about, and how it ends."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax import lax

from jimjax.fewshot import losses
from jimjax.fewshot.losses import Method
from jimjax.io.errors import InputError
from jimjax.models.functional import Network

CONFIDENCE = 1.96  # standard errors, of 95 % of a normal distribution
MIN_EPISODES = 2  # below it there is no deviation


class EpisodeAccuracy(NamedTuple):
    """How well classes are told apart.

    Attributes:
        mean: share of the queries in their class, over all episodes.
        half_width: of its 95 % confidence interval, 1.96 sd / sqrt(episodes).
    """

    mean: float
    half_width: float


def check_classes(labels: np.ndarray | None, ways: int, members: int, what: str) -> np.ndarray:
    """Returns labels that episodes can be made of.

    Args:
        labels: ``(n,)`` classes, or None.
        ways: classes in an episode.
        members: particles of each class in an episode.
        what: the particles, as messages call them.

    Raises:
        InputError: if there are no labels, too few classes, or too few particles in one.
    """
    if labels is None:
        raise InputError(f"{what} have no classes; give a STAR file with rlnClassNumber")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < ways:
        raise InputError(
            f"{what} are of {len(classes)} classes, episodes want {ways}; lower the number of ways"
        )
    if counts.min() < members:
        raise InputError(
            f"{what}: class {classes[counts.argmin()] + 1} has {counts.min()} particles, episodes "
            f"take {members}, shots and queries together; lower these, or leave the class out"
        )
    return labels


def draw_rows(
    labels: np.ndarray, *, ways: int, members: int, seed: int, epoch: int, index: int
) -> np.ndarray:
    """Draws an episode.

    Args:
        labels: ``(n,)`` classes, as ``check_classes`` wants them.
        ways: classes, all different.
        members: particles of each class, all different.
        seed: of the run.
        epoch: draws differently each time.
        index: of the episode in its epoch; likewise.

    Returns:
        ``(ways, members)`` indices.
    """
    generator = np.random.default_rng([seed, epoch, index, *b"episode"])
    chosen = generator.choice(np.unique(labels), ways, replace=False)
    own = (np.flatnonzero(labels == each) for each in chosen)
    return np.stack([generator.choice(rows, members, replace=False) for rows in own])


def score_episodes(
    network: Network,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    method: Method,
    ways: int,
    shots: int,
    queries: int,
    num_episodes: int,
    seed: int,
) -> EpisodeAccuracy:
    """Finds the accuracy over episodes that a seed draws.

    Args:
        network: a ProtoNet, of which ProtoNet-CE needs the attention.
        features: ``(n, d)``, what it says of particles.
        labels: ``(n,)`` their classes.
        method: how particles are classified.
        ways: classes in an episode.
        shots: particles of each that make its prototype.
        queries: others of each that are classified.
        num_episodes: two or more.
        seed: of the episodes.

    Raises:
        InputError: as of ``check_classes``, or if there are fewer than two episodes.
    """
    if num_episodes < MIN_EPISODES:
        raise InputError(f"a confidence interval needs 2 episodes or more, got {num_episodes}")
    members = shots + queries
    labels = check_classes(labels, ways, members, "the particles to be tested")
    rows = [
        draw_rows(labels, ways=ways, members=members, seed=seed, epoch=0, index=index)
        for index in range(num_episodes)
    ]
    found = _accuracies(network, features, np.stack(rows), shots=shots, method=method)
    found = np.asarray(found, np.float64)
    half_width = CONFIDENCE * found.std(ddof=1) / np.sqrt(num_episodes)
    return EpisodeAccuracy(float(found.mean()), float(half_width))


@functools.partial(jax.jit, static_argnames=("shots", "method"))
def _accuracies(
    network: Network, features: jax.Array, rows: jax.Array, *, shots: int, method: Method
) -> jax.Array:
    """Accuracies of episodes ``(episodes, ways, members)``."""

    def one(rows: jax.Array) -> jax.Array:
        task = losses.make_task(features[rows], shots)
        logits = losses.class_logits(network, task.prototypes, task.queries, method)
        return losses.accuracy(logits, task.labels)

    return lax.map(one, rows)
