"""What the tests of every network ask: shapes without computing, and finite gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jimjax.models import functional
from jimjax.models.functional import Network


class Outline(NamedTuple):
    """A network's number of parameters and the shapes of its result."""

    num_parameters: int
    shapes: Any


@pytest.fixture
def outline() -> Callable[..., Outline]:
    """Finds the outline of a network for inputs of given shapes; nothing is computed."""

    def trace(build: Callable[[nnx.Rngs], nnx.Module], *shapes: tuple[int, ...]) -> Outline:
        found = {}

        def run(key: jax.Array, *inputs: jax.Array) -> Any:
            network = functional.create(build, key)
            found["size"] = functional.num_parameters(network)
            return functional.apply(network, *inputs, train=True)[0]

        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        result = jax.eval_shape(run, jax.random.key(0), *inputs)
        return Outline(found["size"], jax.tree.map(lambda leaf: leaf.shape, result))

    return trace


@pytest.fixture
def has_finite_gradients() -> Callable[..., bool]:
    """Says whether every gradient of a sum over a network's outputs is finite.

    Takes the network and any number of lists of its inputs, all of one shape.
    """

    def check(network: Network, *examples: list[jax.Array]) -> bool:
        def total(params: nnx.State, *inputs: jax.Array) -> jax.Array:
            out, _ = functional.apply(network._replace(params=params), *inputs, train=True)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out))

        gradients = jax.jit(jax.grad(total, argnums=range(1 + len(examples[0]))))
        leaves = jax.tree.leaves([gradients(network.params, *inputs) for inputs in examples])
        return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)

    return check
