"""Every network in half precision, and with less kept for its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.models import (
    autoencoder,
    deepfinder,
    edss3d,
    functional,
    gumnet,
    jimnet,
    protonet,
    umtl,
    voxresnet,
    weights,
    yopo,
)
from jimjax.models.compute import Compute

BOX, BATCH = 16, 2
PAIRS = "gumnet", "jimnet", "umtl"
CONFIGS = {
    "gumnet": gumnet.small(BOX),
    "jimnet": jimnet.small(BOX, 3),
    "umtl": umtl.small(BOX, 3),
    "yopo": yopo.small(BOX, 3),
    "voxresnet": voxresnet.small(BOX),
    "deepfinder": deepfinder.small(BOX, 3),
    "protonet": protonet.small(BOX),
    "autoencoder": autoencoder.small(BOX),
    "edss3d": edss3d.small(BOX, (1, 2)),
}
METHODS = {"autoencoder": "reconstruct"}


SLOW = "gumnet", "jimnet", "umtl", "yopo", "voxresnet", "deepfinder"  # to compile
NAMES = pytest.mark.parametrize("name", list(CONFIGS))
TRAINED_NAMES = pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in CONFIGS]
)


@functools.cache
def _trained_step(name, compute):
    """Float answers, statistics and gradients of their squares, under the names of the arrays."""
    network = weights.build(CONFIGS[name], jax.random.key(0), compute)
    keys = jax.random.split(jax.random.key(1), 2 if name in PAIRS else 1)
    inputs = [jax.random.normal(key, (BATCH, *(BOX,) * 3)) for key in keys]
    method = METHODS.get(name, "__call__")

    @jax.jit
    def step(params):
        def loss(params):
            current = network._replace(params=params)
            found, stats = functional.apply(current, *inputs, train=True, method=method)
            found = [leaf for leaf in jax.tree.leaves(found) if leaf.dtype != jnp.int32]
            return sum(jnp.mean(leaf**2) for leaf in found), (found, stats)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (found, stats) = step(network.params)
    return found, functional.name_arrays(stats), functional.name_arrays(gradient)


def _program(name, compute):
    """The forward pass as JAX sees it."""
    network = weights.build(CONFIGS[name], jax.random.key(0), compute)
    inputs = [jnp.zeros((BATCH, *(BOX,) * 3))] * (2 if name in PAIRS else 1)
    method = METHODS.get(name, "__call__")

    def run(params):
        current = network._replace(params=params)
        return functional.apply(current, *inputs, train=True, method=method)[0]

    return str(jax.make_jaxpr(run)(network.params))


@TRAINED_NAMES
def test_half_precision_is_in_the_layers_alone(name):
    """Answers, statistics and gradients are float32, and near those of float32."""
    full, half = (_trained_step(name, Compute(precision)) for precision in ("float32", "bfloat16"))
    for one, other in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        assert one.dtype == other.dtype
    (answers, stats, _), (near_answers, near_stats, gradient) = full, half
    for one, other in zip(answers, near_answers, strict=True):
        scale = 1e-3 + jnp.std(one)
        assert 0 < jnp.sqrt(jnp.mean((one - other) ** 2)) <= 0.3 * scale or one.size < 32
    for place, one in stats.items():
        np.testing.assert_allclose(near_stats[place], one, rtol=0.1, atol=0.1, err_msg=place)
    assert all(jnp.isfinite(leaf).all() for leaf in gradient.values())


@TRAINED_NAMES
def test_nothing_changes_when_blocks_are_computed_anew(name):
    kept, anew = (_trained_step(name, Compute(rematerialise=each)) for each in (False, True))
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(anew), strict=True):
        # Gradients of biases before a batch norm are nothing but rounding.
        atol = 1e-3 * float(jnp.max(jnp.abs(one))) + 1e-6
        np.testing.assert_allclose(other, one, rtol=0, atol=atol)


@NAMES
def test_blocks_are_computed_anew_only_if_asked_for(name):
    assert "remat2[" not in _program(name, Compute())
    assert _program(name, Compute(rematerialise=True)).count("remat2[") >= 2


@NAMES
def test_weights_are_those_of_any_precision(name, tmp_path):
    network = weights.build(CONFIGS[name], jax.random.key(0), Compute("bfloat16"))
    plain = weights.build(CONFIGS[name], jax.random.key(0))
    for one, other in zip(
        jax.tree.leaves(network.params), jax.tree.leaves(plain.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    path = tmp_path / "weights.safetensors"
    weights.save_weights(path, weights.Weights(weights.Description(CONFIGS[name]), network))
    assert weights.load_weights(path).network.graphdef == plain.graphdef
