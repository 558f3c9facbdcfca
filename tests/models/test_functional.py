"""The seam to the network library: pure functions, also under transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jimjax.models import functional
from jimjax.models.blocks import Conv, batch_norm
from jimjax.models.yopo import Yopo, YopoConfig

NUM_CHANNELS = 3


class Layer(nnx.Module):
    """One convolution with batch norm, as every network here has many of."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = Conv(1, NUM_CHANNELS, rngs=rngs)
        self.norms = nnx.List([batch_norm(NUM_CHANNELS, 0.9, rngs)])

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norms[0](self.conv(x), use_running_average=not train)

    def plain(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return self.conv(x)


@pytest.fixture
def volumes(key):
    return jax.random.normal(key, (2, 4, 4, 4, 1)) + 1.0


def _gradients(network, volumes):
    def loss(params):
        out, stats = functional.apply(network._replace(params=params), volumes, train=True)
        return jnp.sum(out**3), stats

    return jax.grad(loss, has_aux=True)(network.params)


def test_parameters_and_statistics_are_told_apart(key):
    network = functional.create(Layer, key)
    assert functional.num_parameters(network) == 27 * NUM_CHANNELS + 3 * NUM_CHANNELS
    assert sum(leaf.size for leaf in jax.tree.leaves(network.stats)) == 2 * NUM_CHANNELS


def test_named_array_is_replaced_and_no_other(key):
    params = functional.create(Layer, key).params
    found = functional.replace_arrays(params, {"conv.bias": jnp.arange(3.0)})
    np.testing.assert_array_equal(found["conv"]["bias"][...], np.arange(3.0))
    np.testing.assert_array_equal(found["conv"]["kernel"][...], params["conv"]["kernel"][...])
    assert not params["conv"]["bias"][...].any()


def test_unknown_array_cannot_be_replaced(key):
    with pytest.raises(KeyError, match=r"no array 'conv.bais'; there are conv.bias, conv.kernel"):
        functional.replace_arrays(functional.create(Layer, key).params, {"conv.bais": jnp.zeros(3)})


def test_gradient_passes_a_batch_norm_that_updates_its_statistics(key, volumes):
    network = functional.create(Layer, key)
    gradients, stats = _gradients(network, volumes)
    kernel = gradients["conv"]["kernel"][...]
    assert np.all(np.isfinite(kernel))
    assert np.any(kernel != 0)
    assert np.any(stats["norms"][0]["mean"][...] != 0)


def test_gradient_agrees_with_finite_differences(key, volumes):
    network = functional.create(Layer, key)
    gradient = _gradients(network, volumes)[0]["norms"][0]["bias"][0]

    def loss(change):
        params = jax.tree.map(jnp.copy, network.params)
        params["norms"][0]["bias"][...] += change * jnp.eye(NUM_CHANNELS)[0]
        out, _ = functional.apply(network._replace(params=params), volumes, train=True)
        return np.sum(np.asarray(out, np.float64) ** 3)

    np.testing.assert_allclose(gradient, (loss(0.1) - loss(-0.1)) / 0.2, rtol=0.02)


def test_training_moves_the_running_mean_by_the_rest_of_the_momentum(key, volumes):
    network = functional.create(Layer, key)
    plain, _ = functional.apply(network, volumes, train=True, method="plain")
    _, stats = functional.apply(network, volumes, train=True)
    expected = 0.1 * plain.mean((0, 1, 2, 3))
    np.testing.assert_allclose(stats["norms"][0]["mean"][...], expected, rtol=1e-4, atol=1e-6)


def test_evaluation_leaves_the_statistics(key, volumes):
    network = functional.create(Layer, key)
    _, stats = functional.apply(network, volumes, train=False)
    for before, after in zip(jax.tree.leaves(network.stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_array_equal(before, after)


def test_apply_does_not_change_the_network_it_is_given(key, volumes):
    network = functional.create(Layer, key)
    before = [np.array(leaf) for leaf in jax.tree.leaves((network.params, network.stats))]
    functional.apply(network, volumes, train=True)
    after = jax.tree.leaves((network.params, network.stats))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_same_key_same_network(key, volumes):
    first, second = functional.create(Layer, key), functional.create(Layer, key)
    assert first.graphdef == second.graphdef
    assert hash(first.graphdef) == hash(second.graphdef)
    outs = [functional.apply(network, volumes, train=True)[0] for network in (first, second)]
    np.testing.assert_array_equal(*outs)


def test_other_key_other_parameters(key):
    kernels = [
        functional.create(Layer, seed).params["conv"]["kernel"][...]
        for seed in jax.random.split(key)
    ]
    assert not np.allclose(*kernels)


def test_networks_that_differ_in_numbers_alone_share_one_compilation(key, volumes):
    num_traces = 0

    def forward(graphdef, params, stats, x):
        nonlocal num_traces
        num_traces += 1
        return functional.apply(functional.Network(graphdef, params, stats), x, train=True)[0]

    compiled = jax.jit(forward, static_argnums=0)
    for seed in jax.random.split(key):
        compiled(*functional.create(Layer, seed), volumes)
    assert num_traces == 1


def test_tree_mode_of_the_library_gives_the_same(key, volumes):
    def run():
        network = functional.create(Layer, key)
        return functional.apply(network, volumes, train=True), _gradients(network, volumes)

    expected = jax.tree.leaves(run())
    with nnx.set_graph_mode(False):
        found = jax.tree.leaves(run())
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_networks_of_pairs_describe_single_particles_as_others_do(tiny_jimnet, smooth_volumes):
    volumes = smooth_volumes(2, 9)
    found, _ = functional.describe(tiny_jimnet, volumes, train=False)
    wanted, _ = functional.apply(tiny_jimnet, volumes, train=False, method="describe")
    np.testing.assert_array_equal(found.features, wanted.features)
    sizes = YopoConfig(box=9, size=7, widths=(2,), dense_width=3, num_classes=2)
    yopo = functional.create(functools.partial(Yopo, sizes), jax.random.key(0))
    found, _ = functional.describe(yopo, volumes, train=False)
    wanted, _ = functional.apply(yopo, volumes, train=False)
    np.testing.assert_array_equal(found.logits, wanted.logits)
