"""DeepFinder's encoder: sizes, the layers by hand, what does not change the answers."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.ndimage import correlate

from jimjax.models import deepfinder, functional, weights
from jimjax.models.deepfinder import DeepFinderConfig

BOX = 8
TINY = DeepFinderConfig(
    box=BOX,
    size=BOX,
    widths=((2,), (3, 3)),
    hidden_width=5,
    dense_width=4,
    num_classes=3,
)
POOLED = dataclasses.replace(TINY, kernel="isotropic", pools=("max", "mean", "std"), has_norm=True)


@pytest.fixture(scope="module")
def network():
    return weights.build(POOLED, jax.random.key(0))


@pytest.fixture
def volumes(smooth_volumes):
    return smooth_volumes(4, BOX)


def ask(network, volumes):
    return functional.apply(network, volumes, train=False)[0]


def test_published_sizes_have_the_published_number_of_parameters():
    """547 thousand in convolutions, and dense layers from 64 maps of 10^3 voxels."""
    outline = functional.outline(lambda rngs: deepfinder.DeepFinder(deepfinder.paper(40, 13), rngs))
    widths = np.array([32, 32, 48, 48, 64, 64, 64, 64])
    convolutions = 27 * np.dot([1, *widths[:-1]], widths) + widths.sum()
    dense = (64 * 10**3 + 1) * 128 + (128 + 1) * 32 + (32 + 1) * 13
    assert functional.num_parameters(outline) == convolutions + dense
    np.testing.assert_allclose(convolutions, 547e3, rtol=1e-3)


def test_layers_do_what_scipy_does(volumes):
    """Convolution, ReLU, maximum of 2^3 voxels, twice more convolution, dense layers."""
    network = weights.build(TINY, jax.random.key(1))
    arrays = {k: np.asarray(v) for k, v in functional.name_arrays(network.params).items()}
    maps = volumes[0][..., None]
    for place in range(3):
        if place == 1:
            maps = maps.reshape(4, 2, 4, 2, 4, 2, -1).max(axis=(1, 3, 5))
        kernel, bias = arrays[f"convs.{place}.kernel"], arrays[f"convs.{place}.bias"]
        maps = np.stack(
            [
                sum(
                    correlate(maps[..., i], kernel[..., i, o], mode="constant")
                    for i in range(kernel.shape[3])
                )
                for o in range(kernel.shape[4])
            ],
            axis=-1,
        )
        maps = np.maximum(maps + bias, 0)
    flat = maps.ravel()
    for name in ("hidden", "dense"):
        flat = np.maximum(flat @ arrays[f"{name}.kernel"] + arrays[f"{name}.bias"], 0)
    found = ask(network, volumes)
    np.testing.assert_allclose(found.features[0], flat, rtol=1e-4, atol=1e-5)
    logits = flat @ arrays["head.kernel"] + arrays["head.bias"]
    np.testing.assert_allclose(found.logits[0], logits, rtol=1e-4, atol=1e-5)


def test_quarter_turns_and_mirrors_change_nothing(network, volumes):
    """Radial kernels, pools that divide the box evenly, and statistics over it."""
    wanted = ask(network, volumes).features
    assert np.ptp(wanted) > 0.01
    for moved in (np.rot90(volumes, axes=(1, 3)), volumes[:, ::-1]):
        np.testing.assert_allclose(ask(network, moved.copy()).features, wanted, atol=1e-4)


def test_small_network_has_the_same_arrays_for_any_box():
    def shapes(box):
        config = deepfinder.small(box, 5)
        outline = functional.outline(lambda rngs: deepfinder.DeepFinder(config, rngs))
        return jax.tree.map(lambda leaf: leaf.shape, outline.params)

    assert shapes(16) == shapes(30)


def test_weights_that_come_along_are_of_the_small_preset():
    found = weights.load_shipped("deepfinder_small", box=40)
    config = found.description.config
    assert config == deepfinder.small(40, config.num_classes)
    assert functional.num_parameters(found.network) == 59848


def test_noise_of_a_batch_does_not_reach_answers_outside_training(network, volumes):
    np.testing.assert_allclose(
        ask(network, volumes).features[:2], ask(network, volumes[:2]).features, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("config", [TINY, POOLED])
def test_gradients_of_constant_volumes_are_finite(config):
    network = weights.build(config, jax.random.key(0))
    constant = np.ones((2, BOX, BOX, BOX), np.float32)

    def loss(params):
        found = functional.apply(network._replace(params=params), constant, train=True)[0]
        return (found.logits**2).sum()

    gradient = jax.jit(jax.grad(loss))(network.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 7}, "2 stages need a multiple of 2 voxels, got 7"),
        ({"size": 10}, "size 10 must not exceed the box of 8"),
        ({"widths": ((2,), ())}, "each stage needs a convolution"),
        ({"num_classes": 0}, "need at least 1"),
    ],
)
def test_impossible_sizes_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
