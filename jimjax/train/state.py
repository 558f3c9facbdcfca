"""What a training run is at one moment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jimjax.models.functional import Network

MAX_GRADIENT_NORM = 1.0  # a rare hard batch must not undo many steps


class TrainState(NamedTuple):
    """All that changes while training.

    Attributes:
        params: trainable arrays.
        stats: batch norm statistics.
        opt_state: the optimiser's.
        step: steps taken, int32.
    """

    params: Any
    stats: Any
    opt_state: optax.OptState
    step: jax.Array


class Optimizer(NamedTuple):
    """An optimiser and the learning rate it follows."""

    transformation: optax.GradientTransformation
    schedule: Callable[[jax.Array], jax.Array]


def adam(schedule: Callable[[jax.Array], jax.Array]) -> Optimizer:
    """Adam behind a bound on the gradient's norm."""
    clip = optax.clip_by_global_norm(MAX_GRADIENT_NORM)
    return Optimizer(optax.chain(clip, optax.adam(schedule)), schedule)


def initial_state(network: Network, optimizer: Optimizer) -> TrainState:
    """The state before the first step."""
    opt_state = optimizer.transformation.init(network.params)
    return TrainState(network.params, network.stats, opt_state, jnp.zeros((), jnp.int32))


def network_of(network: Network, state: TrainState) -> Network:
    """The network with the state's parameters and statistics."""
    return network._replace(params=state.params, stats=state.stats)
