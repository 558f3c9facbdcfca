"""VoxResNet: sizes, the layers by another library's convolutions, what does not change answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jimjax.models import functional, voxresnet, weights
from jimjax.models.blocks import BATCH_NORM_EPSILON
from jimjax.models.voxresnet import VoxResNetConfig
from jimjax.models.weights import Description, Weights

BOX = 16
TINY = VoxResNetConfig(box=BOX, num_classes=3, first_width=2, width=3)


@pytest.fixture(scope="module")
def network():
    """With statistics and biases that are not those it begins with, so that each counts."""
    made = weights.build(TINY, jax.random.key(0))
    draw = np.random.default_rng(1)

    def change(name, leaf):
        if name.endswith("kernel"):
            return leaf
        return jnp.asarray(draw.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    def changed(state):
        named = functional.name_arrays(state)
        arrays = {name: change(name, leaf) for name, leaf in named.items()}
        return functional.replace_arrays(state, arrays)

    return made._replace(params=changed(made.params), stats=changed(made.stats))


@pytest.fixture
def volumes(smooth_volumes):
    return smooth_volumes(3, BOX)


def ask(network, volumes, *, train=False):
    return functional.apply(network, volumes, train=train)[0]


def outline_of(config):
    return functional.outline(lambda rngs: voxresnet.VoxResNet(config, rngs))


def test_published_sizes_have_the_published_number_of_parameters():
    def conv(size, before, after):
        return size**3 * before * after + after

    first = conv(3, 1, 32) + 2 * 32 + conv(3, 32, 32)
    halvings = (2 * 32 + conv(3, 32, 64)) + 2 * (2 * 64 + conv(3, 64, 64))
    residuals = 6 * 2 * (2 * 64 + conv(3, 64, 64))
    spreads = conv(3, 32, 32) + conv(4, 64, 64) + conv(6, 64, 64) + conv(10, 64, 64)
    closings = conv(3, 32, 2) + 3 * conv(3, 64, 2)
    wanted = first + halvings + residuals + spreads + closings
    assert functional.num_parameters(outline_of(voxresnet.paper(32))) == wanted


@pytest.mark.parametrize("preset", [voxresnet.paper, voxresnet.small])
def test_maps_are_of_the_published_sides(preset, outline):
    config = preset(32, 2)
    found = outline(lambda rngs: voxresnet.VoxResNet(config, rngs), (2, 32, 32, 32)).shapes
    assert found.logits == (2, 32, 32, 32, 2)
    sides = zip((32, 16, 8, 4), (config.first_width, *[config.width] * 3), strict=True)
    assert found.taps == tuple((2, side, side, side, width) for side, width in sides)


def test_box_has_no_influence_on_the_arrays():
    small, large = (outline_of(voxresnet.small(box)).params for box in (16, 40))
    shapes = [jax.tree.map(lambda leaf: leaf.shape, params) for params in (small, large)]
    assert shapes[0] == shapes[1]


class Published:
    """The published network, layer by layer, with padding 1 on every side as PyTorch pads.

    Where the stride is 2, that is the mirror image of padding at the end: it is given mirrored
    volumes and kernels.
    """

    dimensions = ("NDHWC", "DHWIO", "NDHWC")

    def __init__(self, network):
        named = functional.name_arrays(network.params) | functional.name_arrays(network.stats)
        self.arrays = {name: np.asarray(leaf) for name, leaf in named.items()}

    def __call__(self, volumes):
        maps = self.conv("first", volumes[:, ::-1, ::-1, ::-1, None])
        maps = self.conv("second", self.relu_norm("first_norm", maps))
        taps = [maps]
        for stage in range(3):
            maps = self.relu_norm(f"stages.{stage}.norm", maps)
            maps = self.conv(f"stages.{stage}.halve", maps, stride=2)
            for module in range(2):
                name, hidden = f"stages.{stage}.residuals.{module}", maps
                for layer in range(2):
                    hidden = self.relu_norm(f"{name}.norms.{layer}", hidden)
                    hidden = self.conv(f"{name}.convs.{layer}", hidden)
                maps = maps + hidden
            taps.append(maps)
        heads = [
            self.conv(f"heads.{place}.closing", jnp.maximum(self.spread(place, maps), 0))
            for place, maps in enumerate(taps)
        ]
        return jax.tree.map(lambda maps: maps[:, ::-1, ::-1, ::-1], (heads, taps))

    def conv(self, name, maps, stride=1):
        kernel = self.arrays[f"{name}.kernel"][::-1, ::-1, ::-1]
        out = lax.conv_general_dilated(
            maps, kernel, [stride] * 3, [(1, 1)] * 3, dimension_numbers=self.dimensions
        )
        return out + self.arrays[f"{name}.bias"]

    def spread(self, place, maps):
        kernel = self.arrays[f"heads.{place}.spread.kernel"]
        size, stride = kernel.shape[0], 2**place
        # A transposed convolution: voxels apart by the stride, and the kernel turned around;
        # mirrored, the kernel is as it is.
        out = lax.conv_general_dilated(
            maps,
            kernel,
            [1] * 3,
            [(size - 2, size - 2)] * 3,  # padding 1
            lhs_dilation=[stride] * 3,
            dimension_numbers=self.dimensions,
        )
        return out + self.arrays[f"heads.{place}.spread.bias"]

    def relu_norm(self, name, maps):
        scale = self.arrays[f"{name}.scale"] / np.sqrt(
            self.arrays[f"{name}.var"] + BATCH_NORM_EPSILON
        )
        centred = maps - self.arrays[f"{name}.mean"]
        return jnp.maximum(centred * scale + self.arrays[f"{name}.bias"], 0)


def test_layers_are_those_published(network, volumes):
    heads, taps = jax.jit(Published(network).__call__)(volumes)
    found = ask(network, volumes)
    for own, wanted in zip(found.taps, taps, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.logits, sum(heads), rtol=1e-4, atol=1e-4)
    for head in heads:  # none is lost in the sum
        assert np.std(head) > 1e-3


def test_answers_outside_training_are_each_particles_own(network, volumes):
    together, again, alone = (ask(network, v) for v in (volumes, volumes, volumes[:1]))
    jax.tree.map(np.testing.assert_array_equal, together, again)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:1], b, rtol=1e-4, atol=1e-5), together, alone
    )


def test_statistics_follow_the_batch_in_training_alone(network, volumes):
    for train in (True, False):
        _, stats = functional.apply(network, volumes, train=train)
        pairs = zip(jax.tree.leaves(stats), jax.tree.leaves(network.stats), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs) is not train


def test_untrained_network_is_undecided_and_its_maps_are_of_one_size(volumes):
    found = ask(weights.build(voxresnet.small(BOX), jax.random.key(0)), volumes, train=True)
    assert np.std(found.logits) < 0.1
    for tap in found.taps:  # the identity adds up: up to three times the variance of a convolution
        assert 0.5 < np.mean(tap**2) < 6


def test_gradients_of_constant_volumes_are_finite(has_finite_gradients):
    network = weights.build(TINY, jax.random.key(0))
    volumes = [[np.full((2, 8, 8, 8), value, np.float32)] for value in (0.0, 1.0)]
    assert has_finite_gradients(network, *volumes)


def test_every_kernel_is_taught(network, smooth_volumes):
    volumes = smooth_volumes(2, 8)

    def loss(params):
        found = functional.apply(network._replace(params=params), volumes, train=True)[0]
        return jnp.mean(jnp.sin(found.logits) ** 2)

    gradients = functional.name_arrays(jax.jit(jax.grad(loss))(network.params))
    taught = {name for name, leaf in gradients.items() if np.any(leaf != 0)}
    assert {name for name in gradients if name.endswith(("kernel", "scale"))} <= taught


def test_two_volumes_are_learned_by_heart(smooth_volumes):
    volumes = smooth_volumes(2, 8)
    masks = (volumes > 0.8).astype(int)
    config = VoxResNetConfig(box=8, first_width=4, width=4)
    network = weights.build(config, jax.random.key(0))
    optimizer = optax.adam(1e-2)

    def loss(params):
        found = functional.apply(network._replace(params=params), volumes, train=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(found.logits, masks).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, change), state, value

    params, state = network.params, optimizer.init(network.params)
    values = []
    for _ in range(30):
        params, state, value = step(params, state)
        values.append(value)
    np.testing.assert_allclose(values[0], np.log(2), atol=0.02)
    share = masks.mean()
    assert values[-1] < 0.1 * -(share * np.log(share) + (1 - share) * np.log(1 - share))


def test_weights_are_read_back_and_serve_another_box(network, tmp_path):
    path = tmp_path / "voxresnet.safetensors"
    weights.save_weights(path, Weights(Description(TINY, "light", 12.0), network))
    found = weights.load_weights(path)
    assert found.description == Description(TINY, "light", 12.0)
    assert found.description.kind == "voxresnet"
    jax.tree.map(np.testing.assert_array_equal, tuple(found.network)[1:], tuple(network)[1:])
    other = weights.load_weights(path, box=24).description.config
    assert other == dataclasses.replace(TINY, box=24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": 12}, "three halvings need a multiple of 8 voxels, got 12; crop or pad"),
        ({"box": 0}, "multiple of 8 voxels, got 0"),
        ({"num_classes": 1}, "num_classes needs background and one more, got 1"),
        ({"width": 0}, "first_width and width need at least 1"),
    ],
)
def test_impossible_sizes_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
