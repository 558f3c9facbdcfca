"""A small family of linear maps does all that the same formula in plain JAX does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jimjax.ops import _linear
from jimjax.ops._linear import LinearMap


def plain(x, angle, gain):
    return gain * (jnp.sin(angle) * x[::-1][:3] + jnp.cos(angle) * x[:3])


def transpose(y, angle, gain):
    (x,) = jax.linear_transpose(lambda x: plain(x, angle, gain), jnp.zeros(5, y.dtype))(y)
    return x


def derivative(x, parameters, tangents):
    return jax.jvp(functools.partial(plain, x), parameters, tangents)[1]


def make(dtype=jnp.float32):
    return LinearMap(
        plain,
        transpose,
        derivative,
        given=jax.ShapeDtypeStruct((5,), dtype),
        out=jax.ShapeDtypeStruct((3,), dtype),
    )


MAP = make()
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
ANGLES, GAIN = jnp.linspace(0.3, 2, 4), jnp.float32(1.5)


@pytest.fixture(params=[1, 100], ids=["one at a time", "all at once"])
def _batches(request, monkeypatch):
    monkeypatch.setattr(_linear, "LOOPED", request.param)
    jax.clear_caches()
    _linear._compiled.cache_clear()
    yield
    _linear._compiled.cache_clear()
    jax.clear_caches()


def test_applies_eagerly_and_under_jit():
    for call in (MAP, jax.jit(MAP)):
        np.testing.assert_allclose(call(X[0], ANGLES[0], GAIN), plain(X[0], ANGLES[0], GAIN))


def test_called_eagerly_again_is_not_compiled_again():
    MAP(X[0], ANGLES[0], GAIN)
    before = _linear._compiled.cache_info().misses
    MAP(X[1], ANGLES[1], GAIN)
    assert _linear._compiled.cache_info().misses == before


@pytest.mark.usefixtures("_batches")
@pytest.mark.parametrize("axes", [(0, 0, None), (0, None, None), (None, 0, None)])
def test_batches_are_those_of_the_formula(axes):
    operands = [x if axis == 0 else first for x, first, axis in _operands(axes)]
    for wrap in (lambda f: f, jax.jit):
        found = wrap(jax.vmap(MAP, in_axes=axes))(*operands)
        np.testing.assert_allclose(found, jax.vmap(plain, in_axes=axes)(*operands), rtol=1e-6)


def _operands(axes):
    return zip((X, ANGLES, GAIN), (X[0], ANGLES[0], GAIN), axes, strict=True)


@pytest.mark.usefixtures("_batches")
def test_every_pair_of_two_batches():
    def pairs(function):
        each = jax.vmap(function, in_axes=(None, 0, None))
        return jax.vmap(each, in_axes=(0, None, None), out_axes=1)(X, ANGLES, GAIN)

    np.testing.assert_allclose(pairs(MAP), pairs(plain), rtol=1e-6)


@pytest.mark.usefixtures("_batches")
def test_gradients_of_shared_and_of_batched_operands():
    def loss(function, x, angles, gain):
        each = jax.vmap(function, in_axes=(None, 0, None))
        return jnp.sum(jnp.sin(jax.vmap(each, in_axes=(0, None, None))(x, angles, gain)))

    found, wanted = (
        jax.grad(functools.partial(loss, function), argnums=(0, 1, 2))(X, ANGLES, GAIN)
        for function in (MAP, plain)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_derivatives_up_to_the_third_in_both_modes():
    arguments = (X[0].astype(float), ANGLES[0].astype(float), GAIN.astype(float))
    check_grads(make(jnp.float64), arguments, order=3, modes=("fwd", "rev"))


def test_batch_of_gradients_is_the_gradient_of_the_batch():
    def loss(x, angle):
        return jnp.sum(MAP(x, angle, GAIN) ** 2)

    each = jax.vmap(jax.grad(loss))(X, ANGLES)
    together = jax.grad(lambda x: jnp.sum(jax.vmap(loss)(x, ANGLES)))(X)
    np.testing.assert_allclose(each, together, rtol=1e-6)


def test_twice_transposed_is_the_map_again():
    again = MAP.transposed.transposed(X[0], ANGLES[0], GAIN)
    np.testing.assert_allclose(again, plain(X[0], ANGLES[0], GAIN), rtol=1e-6)


def test_runs_and_has_gradients_inside_shard_map():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))

    def loss(x, angles, gain):
        return jnp.sum(jax.vmap(MAP, in_axes=(0, 0, None))(x, angles, gain) ** 2)

    def own(x, angles, gain):
        return jax.lax.psum(loss(x, angles, gain), "data")

    sharded = jax.shard_map(own, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P())
    for argument in range(3):
        found = jax.jit(jax.grad(sharded, argument))(X, ANGLES, GAIN)
        wanted = jax.grad(loss, argument)(X, ANGLES, GAIN)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
