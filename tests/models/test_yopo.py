"""YOPO: sizes, invariance, and what rematerialisation saves."""

import dataclasses

import jax
import numpy as np
import pytest

from jimjax.models import functional, weights, yopo
from jimjax.models.yopo import YopoConfig

BOX = 12
TINY = YopoConfig(
    box=BOX,
    size=8,
    widths=(3, 4),
    dense_width=5,
    num_classes=2,
    kernel="isotropic",
    pools=("max", "mean", "std"),
)


@pytest.fixture(scope="module")
def network():
    return weights.build(TINY, jax.random.key(0))


@pytest.fixture
def volumes(smooth_volumes):
    return smooth_volumes(4, BOX)


def ask(network, volumes):
    return functional.apply(network, volumes, train=False)[0]


def test_published_sizes_have_the_published_number_of_parameters():
    """4.90 million in convolutions, 1.39 in dense layers, and two for each normalised channel."""
    outline = functional.outline(lambda rngs: yopo.Yopo(yopo.paper(24, 10), rngs))
    widths = np.arange(64, 209, 16)
    convolutions = 27 * np.dot([1, *widths[:-1]], widths) + widths.sum()
    dense = (widths.sum() + 1) * 1024 + (1024 + 1) * 10
    norms = 2 * 2 * widths.sum()
    assert functional.num_parameters(outline) == convolutions + dense + norms
    np.testing.assert_allclose(convolutions, 4.90e6, rtol=0.01)


def test_answers_have_one_row_per_volume(network, volumes):
    found = ask(network, volumes)
    assert found.features.shape == (4, 5)
    assert found.logits.shape == (4, 2)


def test_quarter_turns_and_mirrors_change_nothing(network, smooth_volumes):
    """Radial kernels and statistics over the box; nothing is pooled, whose grid has no centre."""
    whole = weights.build(dataclasses.replace(TINY, size=BOX), jax.random.key(1))
    volumes = smooth_volumes(2, BOX)
    wanted = ask(whole, volumes).features
    for moved in (np.rot90(volumes, axes=(1, 3)), volumes[:, ::-1]):
        np.testing.assert_allclose(ask(whole, moved.copy()).features, wanted, rtol=1e-4, atol=1e-4)


def test_full_kernels_begin_orthogonal():
    full = weights.build(dataclasses.replace(TINY, kernel="full"), jax.random.key(0))
    kernel = np.asarray(full.params["convs"][1]["kernel"][...]).reshape(-1, 4)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(4), atol=1e-5)


def test_noise_of_a_batch_does_not_reach_answers_outside_training(network, volumes):
    np.testing.assert_allclose(
        ask(network, volumes).features[:2], ask(network, volumes[:2]).features, rtol=1e-5, atol=1e-6
    )


def test_gradients_of_constant_volumes_are_finite(network):
    constant = np.ones((2, BOX, BOX, BOX), np.float32)

    def loss(params):
        found = functional.apply(network._replace(params=params), constant, train=True)[0]
        return (found.logits**2).sum()

    gradient = jax.jit(jax.grad(loss))(network.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 4}, "2 valid convolutions need more than 4 voxels, got 4"),
        ({"size": 13}, "size 13 must not exceed the box of 12"),
        ({"widths": ()}, "need at least 1"),
    ],
)
def test_impossible_sizes_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
