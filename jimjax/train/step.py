"""One optimiser step, compiled once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jimjax.data import batches
from jimjax.models.functional import Network
from jimjax.train.state import Optimizer, TrainState


class LossResult(NamedTuple):
    """What a loss function says besides the number to minimise.

    Attributes:
        stats: network statistics after the forward pass.
        metrics: scalars to log.
    """

    stats: Any
    metrics: Mapping[str, jax.Array]


# (network, batch, key) -> (loss, LossResult); the loss sees the whole batch.
LossFunction = Callable[[Network, Any, jax.Array], tuple[jax.Array, LossResult]]
StepFunction = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    network: Network, loss: LossFunction, optimizer: Optimizer, *, state_sharding: Any = None
) -> StepFunction:
    """Compiles a step.

    Args:
        network: gives the static structure; its arrays are not used.
        loss: what to minimise.
        optimizer: how.
        state_sharding: how each array of the state lies, and is to lie afterwards; left to the
            compiler if None.

    Returns:
        ``step(state, batch, key) -> (state, metrics)``. The state is donated. Rows of a batch that
        are ``batches.Taken`` are taken first. Randomness is
        ``fold_in(key, state.step)``, so that a resumed run repeats what an uninterrupted one
        does. A step whose loss or gradient is not finite changes nothing but ``state.step``,
        and says so in the metric ``is_finite``.
    """

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(state_sharding, None))
    def step(
        state: TrainState, batch: Any, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if any(map(batches.is_taken, jax.tree.leaves(batch, is_leaf=batches.is_taken))):
            # As if they had come from the host: nothing is fused into taking them.
            batch = jax.lax.optimization_barrier(batches.fetch(batch))

        def objective(params: Any) -> tuple[jax.Array, LossResult]:
            current = network._replace(params=params, stats=state.stats)
            return loss(current, batch, jax.random.fold_in(key, state.step))

        (value, result), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.transformation.update(
            gradient, state.opt_state, state.params
        )
        is_finite = jnp.isfinite(value) & jnp.isfinite(norm)
        proposed = (optax.apply_updates(state.params, updates), result.stats, opt_state)
        current = (state.params, state.stats, state.opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), proposed, current)
        metrics = {
            "loss": value,
            **result.metrics,
            "gradient_norm": norm,
            "learning_rate": optimizer.schedule(state.step),
            "is_finite": is_finite,
        }
        return TrainState(*kept, state.step + 1), metrics

    return step
