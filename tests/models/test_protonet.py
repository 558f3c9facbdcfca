"""ProtoNet: sizes, invariance, and attention that knows no order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.models import functional, protonet, weights
from jimjax.models.protonet import ProtoNetConfig
from jimjax.models.weights import Description, Weights

BOX = 12
TINY = ProtoNetConfig(
    box=BOX,
    size=8,
    widths=(3, 4),
    num_halvings=1,
    kernel="isotropic",
    pools=("max", "mean", "std"),
    dense_width=5,
)
FLAT = ProtoNetConfig(box=BOX, size=BOX, widths=(2, 3), num_halvings=2)


@pytest.fixture(scope="module")
def network():
    return weights.build(TINY, jax.random.key(0))


@pytest.fixture
def volumes(smooth_volumes):
    return smooth_volumes(4, BOX)


def embed(network, volumes):
    return functional.apply(network, volumes, train=False)[0].features


def adapt(network, points):
    return functional.apply(network, jnp.asarray(points), train=False, method="adapt")[0]


def points_of(num, members, seed=0):
    return np.random.default_rng(seed).normal(size=(num, members, 5)).astype(np.float32)


def test_published_encoder_has_the_published_number_of_parameters():
    """334 thousand: four convolutions of 64 channels and their batch norms."""
    outline = functional.outline(lambda rngs: protonet.ProtoNet(protonet.paper(32), rngs))
    attention = 4 * (512 * 512 + 512) + 2 * 512
    convolutions = 27 * 64 * (1 + 3 * 64) + 4 * 64
    assert functional.num_parameters(outline) - attention == convolutions + 4 * 2 * 64 == 334272


@pytest.mark.parametrize(("box", "length"), [(28, 64), (32, 512), (40, 512)])
def test_length_of_a_flat_embedding_is_that_of_the_box(box, length, outline):
    config = protonet.paper(box)
    found = outline(lambda rngs: protonet.ProtoNet(config, rngs), (2, box, box, box))
    assert config.num_features == length
    assert found.shapes.features == (2, length)


def test_attention_begins_with_the_published_spread():
    built = weights.build(dataclasses.replace(TINY, dense_width=64), jax.random.key(0))
    for name in ("query", "key", "value", "out"):
        kernel = np.asarray(built.params["attention"][name]["kernel"][...])
        np.testing.assert_allclose(kernel.std(), 64**-0.5, rtol=0.05)  # of 4096 numbers


def test_quarter_turns_and_mirrors_change_nothing(smooth_volumes):
    """Radial kernels and statistics over the box; nothing is pooled, whose grid has no centre."""
    whole = weights.build(dataclasses.replace(TINY, size=BOX), jax.random.key(1))
    volumes = smooth_volumes(2, BOX)
    wanted = embed(whole, volumes)
    for moved in (np.rot90(volumes, axes=(1, 3)), volumes[:, ::-1]):
        np.testing.assert_allclose(embed(whole, moved.copy()), wanted, rtol=1e-4, atol=1e-4)


def test_other_particles_of_a_batch_do_not_matter_outside_training(network, volumes):
    np.testing.assert_allclose(
        embed(network, volumes)[:2], embed(network, volumes[:2]), rtol=1e-5, atol=1e-6
    )


def test_halving_takes_the_maximum_of_eight_and_leaves_an_odd_last_voxel_out():
    maps = np.random.default_rng(0).normal(size=(2, 5, 4, 4, 3)).astype(np.float32)
    wanted = maps[:, :4].reshape(2, 2, 2, 2, 2, 2, 2, 3).max(axis=(2, 4, 6))
    np.testing.assert_array_equal(protonet.halve(jnp.asarray(maps)), wanted)


def test_attention_agrees_with_its_formula(network):
    points = points_of(3, 4)
    found = adapt(network, points)
    named = {
        name: np.asarray(each) for name, each in functional.name_arrays(network.params).items()
    }

    def linear(name, x):
        return x @ named[f"attention.{name}.kernel"] + named[f"attention.{name}.bias"]

    scores = linear("query", points) @ linear("key", points).swapaxes(1, 2) / np.sqrt(5)
    attention = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    moved = points + linear("out", attention @ linear("value", points))
    centred = moved - moved.mean(axis=2, keepdims=True)
    wanted = centred / np.sqrt(moved.var(axis=2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.exp(found.log_attention), attention, rtol=1e-4)
    np.testing.assert_allclose(found.refined, wanted, rtol=1e-3, atol=1e-5)


def test_order_of_a_set_is_the_order_of_its_result(network):
    points, order = points_of(2, 4), [2, 0, 3, 1]
    found, turned = adapt(network, points), adapt(network, points[:, order])
    np.testing.assert_allclose(turned.refined, found.refined[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, FLAT])
def test_gradients_of_equal_voxels_are_finite(config):
    built = weights.build(config, jax.random.key(0))
    constant = np.ones((2, BOX, BOX, BOX), np.float32)

    def loss(params):
        found = functional.apply(built._replace(params=params), constant, train=True)[0]
        return (found.features**2).sum()

    gradient = jax.jit(jax.grad(loss))(built.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("config", [TINY, FLAT])
def test_weights_are_read_back(config, tmp_path, volumes):
    built = weights.build(config, jax.random.key(0))
    weights.save_weights(tmp_path / "w.safetensors", Weights(Description(config), built))
    kept = weights.load_weights(tmp_path / "w.safetensors")
    assert kept.description.config == config
    np.testing.assert_array_equal(embed(kept.network, volumes), embed(built, volumes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ()}, "num_halvings must be from 1 to the number of widths, got 1 and 0"),
        ({"num_halvings": 3}, "num_halvings must be from 1 to the number of widths, got 3 and 2"),
        ({"size": 13}, "size 13 must not exceed the box of 12"),
        ({"size": 1}, "1 halvings need 2 voxels, got 1"),
        ({"pools": ("median",)}, "pools must be among .* got 'median'"),
    ],
)
def test_impossible_sizes_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
