"""The seam to the network library: networks in, pure functions of pytrees out.

Nothing outside this package touches ``flax.nnx`` objects. A network is three things: a static
description (hashable, safe to close over in ``jax.jit``), its parameters, and its statistics
(running means and variances), both pytrees of arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from jimjax.models.compute import Compute


class Network(NamedTuple):
    """A network taken apart.

    Attributes:
        graphdef: static structure, compared and hashed by value.
        params: trainable arrays.
        stats: arrays that the forward pass itself updates, such as batch norm statistics.
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    stats: nnx.State


def create(build: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Network:
    """Builds a network and takes it apart.

    Args:
        build: makes the module from ``nnx.Rngs``, for instance
            ``functools.partial(JimNet, config)``.
        key: seeds the parameters.

    Returns:
        Its parts.
    """
    graphdef, params, stats = nnx.split(build(nnx.Rngs(key)), nnx.Param, ...)
    return Network(graphdef, params, stats)


def computing(network: Network, compute: Compute) -> Network:
    """The same network, whose layers compute as told; its arrays are as they were."""
    module = nnx.merge(*network)
    for _, part in nnx.iter_modules(module):
        if hasattr(part, "compute"):
            part.compute = compute
    return Network(nnx.split(module, nnx.Param, ...)[0], network.params, network.stats)


def outline(build: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The shapes and types of a network's arrays; none is made.

    Args:
        build: as of ``create``.

    Returns:
        A network with ``jax.ShapeDtypeStruct`` in place of arrays.
    """
    module = nnx.eval_shape(lambda: build(nnx.Rngs(jax.random.key(0))))
    graphdef, params, stats = nnx.split(module, nnx.Param, ...)
    return Network(graphdef, params, stats)


def apply(
    network: Network, *inputs: Any, train: bool, method: str = "__call__"
) -> tuple[Any, nnx.State]:
    """Runs a network without changing it.

    Args:
        network: from ``create``.
        *inputs: positional arguments of the method.
        train: whether normalisation uses this batch's statistics and updates the running ones.
        method: which method of the module to run.

    Returns:
        The method's result, and the statistics after the call.
    """
    return _call(network, lambda module: getattr(module, method)(*inputs, train=train))


def describe(network: Network, volumes: jax.Array, *, train: bool) -> tuple[Any, nnx.State]:
    """Asks a network about particles by themselves, each one alone.

    Args:
        network: whose module has a method ``describe`` if calling it is about pairs.
        volumes: ``(batch, z, y, x)``.
        train: as of ``apply``.

    Returns:
        A tuple with ``features (batch, d)`` and what else the network has to say, and the
        statistics after the call.
    """
    return _call(network, lambda module: getattr(module, "describe", module)(volumes, train=train))


def replace_arrays(state: nnx.State, arrays: Mapping[str, jax.Array]) -> nnx.State:
    """Puts arrays in the place of some of a state's, by names such as "head.kernel".

    Args:
        state: parameters or statistics of a network.
        arrays: of the shapes of those they replace.

    Raises:
        KeyError: if the state has none of a name.
    """
    named = name_arrays(state)
    if unknown := sorted(set(arrays) - set(named)):
        raise KeyError(f"no array '{unknown[0]}'; there are {', '.join(named)}")
    leaves = (arrays.get(name, leaf) for name, leaf in named.items())
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def name_arrays(state: nnx.State) -> dict[str, Any]:
    """The arrays of a state under their names, in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def num_parameters(network: Network) -> int:
    """Counts the trainable numbers of a network."""
    return sum(leaf.size for leaf in jax.tree.leaves(network.params))


def _call(network: Network, ask: Callable[[nnx.Module], Any]) -> tuple[Any, nnx.State]:
    # copy: the statistics are mutated inside the trace of jax.grad.
    module = nnx.merge(network.graphdef, network.params, network.stats, copy=True)
    result = ask(module)
    return result, nnx.split(module, nnx.Param, ...)[2]
