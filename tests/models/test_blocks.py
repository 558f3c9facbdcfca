"""Blocks and the extractor: shapes, the symmetry of radial kernels, and what they refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jimjax.models import functional
from jimjax.models.blocks import (
    BATCH_NORM_EPSILON,
    Conv,
    ConvTranspose,
    DilatedStack,
    Extractor,
    ExtractorConfig,
    max_pool,
    pool_to,
    spatial_max,
)
from jimjax.ops.fourier import spectral_pool
from jimjax.ops.isotropic import isotropic_conv3d

CONFIG = ExtractorConfig(
    widths=(3, 4),
    sizes=(9, 7, 5),
    keeps=(9, 5, 5),
    num_features=6,
    kernel="isotropic",
    pools=("max", "mean", "std"),
)
QUARTER_TURNS = [(1, 2), (2, 3), (3, 1)]
ATOL = 1e-4  # float32 through eight convolutions, values up to ten


@functools.cache
def _network(config):
    return functional.create(lambda rngs: Extractor(config, rngs=rngs), jax.random.key(0))


@functools.cache
def _compiled(config, train):
    network = _network(config)
    return jax.jit(lambda x: functional.apply(network, x, train=train)[0])


def _extract(volumes, config=CONFIG, *, train=True):
    """Feature maps and descriptions."""
    return _compiled(config, train)(volumes)


@pytest.fixture
def volumes(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (2, 9, 9, 9))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("axes", QUARTER_TURNS)
def test_radial_extractor_turns_its_features_with_the_volume(axes, train, volumes):
    maps, pooled = _extract(volumes, train=train)
    turned_maps, turned_pooled = _extract(jnp.rot90(volumes, axes=axes), train=train)
    np.testing.assert_allclose(turned_maps, jnp.rot90(maps, axes=axes), atol=ATOL)
    np.testing.assert_allclose(turned_pooled, pooled, atol=ATOL)


def test_full_extractor_does_not(volumes):
    config = dataclasses.replace(CONFIG, kernel="full")
    maps, _ = _extract(volumes, config)
    turned, _ = _extract(jnp.rot90(volumes, axes=(1, 2)), config)
    assert np.max(np.abs(turned - jnp.rot90(maps, axes=(1, 2)))) > 0.1


@pytest.mark.parametrize(("padding", "out_size"), [("same", 5), ("valid", 3)])
def test_sizes_are_as_configured(padding, out_size, outline):
    config = dataclasses.replace(CONFIG, closing_padding=padding)
    assert config.out_size == out_size
    found = outline(lambda rngs: Extractor(config, rngs=rngs), (2, 9, 9, 9))
    assert found.shapes == ((2, *[out_size] * 3, 6), (2, 3 * (3 + 4 + 6)))


def test_description_ends_with_the_statistics_of_the_features(volumes):
    maps, pooled = _extract(volumes)
    space = (1, 2, 3)
    deviation = np.sqrt(np.var(maps, axis=space) + BATCH_NORM_EPSILON)
    expected = np.concatenate([np.max(maps, space), np.mean(maps, space), deviation], axis=-1)
    np.testing.assert_allclose(pooled[:, -18:], expected, rtol=1e-4, atol=1e-5)


def test_description_has_every_stack(volumes):
    network = _network(CONFIG)
    _, pooled = _extract(volumes)
    module = nnx.merge(network.graphdef, network.params, network.stats)
    first = module.stacks[0](volumes[..., None], train=True)
    np.testing.assert_allclose(pooled[:, :3], jnp.max(first, axis=(1, 2, 3)), atol=1e-5)
    assert pooled.shape[1] == module.num_pooled


def test_gradients_of_constant_volumes_are_finite(has_finite_gradients):
    volumes = [[np.full((2, 9, 9, 9), value, np.float32)] for value in (0.0, 1.0)]
    assert has_finite_gradients(_network(CONFIG), *volumes)


def test_dilated_stack_sees_a_cube_of_13_voxels(key):
    stack = DilatedStack(1, 2, kernel="full", momentum=0.9, rngs=nnx.Rngs(key))
    volume = jax.random.normal(key, (1, 15, 15, 15, 1))

    def centre(volume):
        return jnp.sum(stack(volume, train=False)[0, 7, 7, 7])

    reach = jnp.argwhere(jax.jit(jax.grad(centre))(volume)[0, ..., 0] != 0)
    np.testing.assert_array_equal(reach.min(0), [1, 1, 1])
    np.testing.assert_array_equal(reach.max(0), [13, 13, 13])


def test_pooling_to_the_size_it_has_changes_nothing(key):
    maps = jax.random.normal(key, (2, 5, 5, 5, 2))
    assert pool_to(maps, 5, 5) is maps


def test_pooling_is_spectral(key):
    maps = jax.random.normal(key, (2, 5, 5, 5, 2))
    expected = spectral_pool(maps[1], keep=3, out=4)
    np.testing.assert_allclose(pool_to(maps, 3, 4)[1], expected, atol=1e-5)


@pytest.mark.parametrize("kernel", ["full", "isotropic"])
def test_initial_kernel_keeps_the_variance(kernel, key):
    # Glorot uniform with equal fans: variance 1 / fan_in of every tap, and 27 of them.
    conv = Conv(16, 16, kernel=kernel, rngs=nnx.Rngs(key))
    out = conv(jax.random.normal(key, (1, 9, 9, 9, 16)))[:, 1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(np.var(out), 1.0, rtol=0.15)


def test_radial_convolution_has_four_numbers_a_channel_pair(key):
    assert Conv(2, 5, kernel="isotropic", rngs=nnx.Rngs(key)).kernel[...].shape == (4, 2, 5)


@pytest.mark.parametrize("dilation", [1, 2])
def test_valid_radial_convolution_leaves_the_rim_out(dilation, key):
    maps = jax.random.normal(key, (2, 7, 7, 7, 2))
    kinds = {"kernel": "isotropic", "dilation": dilation}
    same, valid = (
        Conv(2, 3, padding=padding, rngs=nnx.Rngs(key), **kinds)(maps)
        for padding in ("same", "valid")
    )
    inside = slice(dilation, -dilation)
    np.testing.assert_array_equal(valid, same[:, inside, inside, inside])


def test_radial_convolution_refuses_what_it_cannot_do(key):
    with pytest.raises(ValueError, match="isotropic kernels need stride 1, got 2"):
        Conv(1, 1, kernel="isotropic", stride=2, rngs=nnx.Rngs(key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (9, 7)}, "one entry per dilated stack and one for the closing convolution"),
        ({"keeps": (9, 8, 5)}, r"keeps \(9, 8, 5\) must not exceed sizes \(9, 7, 5\)"),
        ({"closing_padding": "full"}, "closing_padding must be among .* got 'full'"),
        ({"kernel": "radial"}, "kernel must be among .* got 'radial'"),
        ({"pools": ("max", "min")}, "pools must be among .* got 'min'"),
    ],
)
def test_impossible_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_maximum_has_the_gradient_of_autodiff(volumes):
    maps = volumes[..., None] * jnp.array([1.0, -2.0])
    found = jax.grad(lambda maps: jnp.sum(spatial_max(maps) ** 2))(maps)
    wanted = jax.grad(lambda maps: jnp.sum(jnp.max(maps, axis=(1, 2, 3)) ** 2))(maps)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_equal_maxima_share_the_gradient():
    maps = jnp.zeros((1, 2, 1, 1, 1)).at[0, :, 0, 0, 0].set(3.0)
    np.testing.assert_array_equal(jax.grad(lambda m: spatial_max(m).sum())(maps).ravel(), [0.5] * 2)


def test_gradient_through_a_compiled_maximum_is_finite():
    """A program in which XLA computes ELU anew for the gradient, and rounds it otherwise."""
    volumes, kernel, weights = (
        jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
        for seed, shape in enumerate([(24, 8, 8, 8, 1), (4, 1, 4), (4, 5)])
    )

    def normalised(x, axes):
        return (x - x.mean(axes)) * jax.lax.rsqrt(x.var(axes) + BATCH_NORM_EPSILON)

    def loss(kernel):
        maps = nnx.elu(isotropic_conv3d(volumes, kernel)[:, 1:-1, 1:-1, 1:-1])
        pooled = spatial_max(normalised(maps, (0, 1, 2, 3)))
        return jnp.sum(normalised(pooled, (0,)) @ weights)  # 0, whatever the kernel

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(kernel), np.zeros((4, 1, 4)), atol=1e-2)


def test_maximum_of_eight_voxels_and_its_gradient():
    maps = jnp.arange(64.0).reshape(1, 4, 4, 4, 1)
    np.testing.assert_array_equal(
        max_pool(maps)[0, ..., 0], [[[21, 23], [29, 31]], [[53, 55], [61, 63]]]
    )
    gradient = jax.grad(lambda maps: max_pool(maps).sum())(maps)
    np.testing.assert_array_equal(np.flatnonzero(gradient), [21, 23, 29, 31, 53, 55, 61, 63])
    assert gradient.sum() == 8


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (4, 2), (6, 4)])
def test_transposed_convolution_begins_with_twice_the_variance(size, stride, key):
    # He: after a ReLU, half the mean square is left.
    layer = ConvTranspose(16, 16, size=size, stride=stride, rngs=nnx.Rngs(key))
    out = layer(jax.random.normal(key, (1, 8, 8, 8, 16)))
    assert out.shape == (1, *[8 * stride] * 3, 16)
    inside = slice(stride, -stride)
    np.testing.assert_allclose(np.var(out[:, inside, inside, inside]), 2.0, rtol=0.15)


def test_transposed_convolution_draws_its_kernel_and_bias(key):
    layer = ConvTranspose(1, 2, size=4, stride=2, rngs=nnx.Rngs(key))
    layer.bias[...] = jnp.array([3.0, -1.0])
    out = layer(jnp.zeros((1, 3, 3, 3, 1)).at[0, 1, 1, 1, 0].set(2.0))
    wanted = np.tile([3.0, -1.0], (6, 6, 6, 1))
    wanted[1:5, 1:5, 1:5] += 2 * np.asarray(layer.kernel[...])[..., 0, :]
    np.testing.assert_allclose(out[0], wanted, atol=1e-5)
