"""Discriminators: sizes, what they see, and gradients that teach the opposite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jimjax.models import discriminator, functional
from jimjax.models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    SemanticDiscriminator,
    SemanticDiscriminatorConfig,
    reversal_ramp,
    reverse_gradient,
)

TINY = SemanticDiscriminatorConfig(num_classes=3, widths=(2, 4), sizes=(5, 3))


def made(module, config):
    return functional.create(functools.partial(module, config), jax.random.key(0))


def biased(network):
    """With biases that are not 0, so that each counts."""
    named = functional.name_arrays(network.params)
    draw = np.random.default_rng(1)
    arrays = {
        name: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32)
        for name, leaf in named.items()
        if name.endswith("bias")
    }
    return network._replace(params=functional.replace_arrays(network.params, arrays))


def ask(network, maps):
    return functional.apply(network, maps, train=True)[0]


def conv(network, name, maps, stride=1):
    arrays = functional.name_arrays(network.params)
    out = lax.conv_general_dilated(
        maps,
        arrays[f"{name}.kernel"],
        [stride] * 3,
        "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return out + arrays[f"{name}.bias"]


def num_parameters(module, config):
    return functional.num_parameters(functional.outline(functools.partial(module, config)))


def test_default_widths_are_64_then_32_then_a_logit():
    wanted = (27 * 64 * 64 + 64) + (27 * 64 * 32 + 32) + (32 + 1)
    assert num_parameters(Discriminator, DiscriminatorConfig()) == wanted


def test_published_semantic_discriminator_has_a_kernel_of_7_and_three_of_5():
    def count(size, before, after):
        return size**3 * before * after + after

    widths = np.array([64, 128, 256, 512])
    halvings = count(7, 2, 64) + count(5, 64, 128) + count(5, 128, 256) + count(5, 256, 512)
    wanted = halvings + 2 * sum(count(3, int(width), int(width)) for width in widths) + 512 + 1
    assert num_parameters(SemanticDiscriminator, SemanticDiscriminatorConfig()) == wanted


def test_voxels_are_judged_by_three_convolutions(key):
    network = biased(made(Discriminator, DiscriminatorConfig(4)))
    maps = jax.random.normal(key, (2, 4, 5, 6, 4))
    hidden = maps
    for place in range(2):
        hidden = conv(network, f"convs.{place}", hidden)
        hidden = jnp.where(hidden > 0, hidden, 0.2 * hidden)
    wanted = conv(network, "closing", hidden)[..., 0]
    np.testing.assert_allclose(ask(network, maps), wanted, rtol=1e-4, atol=1e-5)


def test_segmentations_are_judged_by_halvings_and_residual_blocks(key):
    network = biased(made(SemanticDiscriminator, TINY))
    maps = jax.nn.softmax(jax.random.normal(key, (2, 8, 8, 8, 3)))
    hidden = maps
    for place in range(2):
        hidden = jnp.maximum(conv(network, f"halvings.{place}", hidden, stride=2), 0)
        inner = jnp.maximum(conv(network, f"firsts.{place}", hidden), 0)
        hidden = jnp.maximum(hidden + conv(network, f"seconds.{place}", inner), 0)
    wanted = conv(network, "closing", hidden)[..., 0]
    assert wanted.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(ask(network, maps), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [SemanticDiscriminatorConfig(), discriminator.small_semantic()])
@pytest.mark.parametrize(("box", "side"), [(32, 2), (40, 3)])
def test_each_of_four_halvings_rounds_up(config, box, side, outline):
    build = functools.partial(SemanticDiscriminator, config)
    assert outline(build, (2, box, box, box, 2)).shapes == (2, side, side, side)


@pytest.mark.parametrize(
    ("module", "config", "channels"),
    [(Discriminator, DiscriminatorConfig(4), 4), (SemanticDiscriminator, TINY, 3)],
)
def test_gradients_of_constant_maps_are_finite(module, config, channels, has_finite_gradients):
    maps = [[np.full((1, 4, 4, 4, channels), value, np.float32)] for value in (0.0, 1.0)]
    assert has_finite_gradients(made(module, config), *maps)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1])
def test_gradient_is_reversed_and_the_value_is_not(strength, key):
    x = jax.random.normal(key, (3, 4))

    def score(x, strength):
        return jnp.sum(jnp.sin(reverse_gradient(x, strength)))

    np.testing.assert_array_equal(reverse_gradient(x, strength), x)
    for gradient in (jax.grad(score), jax.jit(jax.grad(score))):  # traced in the second
        np.testing.assert_allclose(gradient(x, strength), -strength * jnp.cos(x), atol=1e-6)


def test_strength_has_no_gradient():
    def score(strength):
        return jnp.sum(reverse_gradient(jnp.ones(3), strength) ** 2)

    assert jax.grad(score)(0.5) == 0


def test_maps_learn_what_the_discriminator_does_not(key):
    """One loss: its gradient is downhill for the discriminator and uphill for the maps."""
    network = made(Discriminator, DiscriminatorConfig(4))
    maps = jax.random.normal(key, (2, 4, 4, 4, 4))

    def loss(params, maps, strength):
        seen = maps if strength is None else reverse_gradient(maps, strength)
        return jnp.mean(jax.nn.softplus(ask(network._replace(params=params), seen)))

    plain = jax.grad(loss, argnums=(0, 1))(network.params, maps, None)
    reversed_ = jax.grad(loss, argnums=(0, 1))(network.params, maps, 0.5)
    jax.tree.map(np.testing.assert_array_equal, plain[0], reversed_[0])
    np.testing.assert_allclose(reversed_[1], -0.5 * plain[1], rtol=1e-6)


def test_ramp_is_that_of_the_paper():
    progress = np.linspace(0, 1, 11)
    wanted = 2 / (1 + np.exp(-10 * progress)) - 1
    np.testing.assert_allclose(jax.jit(reversal_ramp)(progress), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (DiscriminatorConfig, {"width": 1}, "width needs at least 2, got 1"),
        (SemanticDiscriminatorConfig, {"widths": (8,)}, "one entry per halving, .* got 1 and 4"),
        (SemanticDiscriminatorConfig, {"widths": (), "sizes": ()}, "one or more, got 0 and 0"),
        (SemanticDiscriminatorConfig, {"num_classes": 0}, "need at least 1"),
    ],
)
def test_impossible_sizes_are_errors(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)
