"""Autoencoder3D: sizes, what it prepares, and that it can learn to draw."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jimjax.data.phantom import demo_phantoms, render
from jimjax.models import autoencoder, edss3d, functional, weights
from jimjax.models.autoencoder import Autoencoder3D, Autoencoder3DConfig
from jimjax.ops.rotation import Pose, random_rotation

BOX = 12
TINY = Autoencoder3DConfig(box=BOX, size=8, width=4, code_length=6)


@pytest.fixture(scope="module")
def network():
    return weights.build(TINY, jax.random.key(0))


@pytest.fixture
def volumes(smooth_volumes):
    return smooth_volumes(4, BOX)


def ask(network, volumes, method="__call__"):
    return functional.apply(network, volumes, train=False, method=method)[0]


def test_published_sizes_have_the_published_number_of_parameters():
    outline = functional.outline(lambda rngs: Autoencoder3D(autoencoder.paper(32), rngs))
    convolution, flat = 27 * 32 * 32 + 32, 8**3 * 32
    dense = (flat + 1) * 32 + (32 + 1) * flat
    wanted = (27 * 32 + 32) + 3 * convolution + (27 * 32 + 1) + dense
    assert functional.num_parameters(outline) == wanted
    np.testing.assert_allclose(wanted, 1.15e6, rtol=0.001)


def test_answers_have_one_row_per_volume(network, volumes):
    prepared = ask(network, volumes, "prepare")
    found = ask(network, prepared, "reconstruct")
    assert found.decoded.shape == prepared.shape == (4, 8, 8, 8)
    assert found.features.shape == (4, 6)
    assert np.all(found.features >= 0)
    np.testing.assert_allclose(ask(network, volumes).features, found.features, rtol=1e-6)


def test_prepared_volumes_have_no_mean_and_unit_deviation(network, volumes):
    prepared = ask(network, 5 * volumes + 3, "prepare")
    np.testing.assert_allclose(np.mean(prepared, axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(prepared, axis=(1, 2, 3)), 1, rtol=1e-5)


def test_moved_particles_are_prepared_alike_in_their_own_frame():
    molecule = demo_phantoms(1, shape=(24,) * 3)[0]
    keys = jax.random.split(jax.random.key(1), 3)
    poses = [Pose(random_rotation(key), jax.random.normal(key, (3,))) for key in keys]
    volumes = np.stack([render(molecule, (24,) * 3, pose) for pose in poses])
    config = dataclasses.replace(TINY, box=24, size=12, is_pose_normalized=True)
    alike, other = (
        np.corrcoef(ask(weights.build(each, keys[0]), volumes, "prepare").reshape(3, -1))
        for each in (config, dataclasses.replace(config, is_pose_normalized=False))
    )
    assert alike.min() > 0.95
    assert other.min() < 0.8


def test_four_volumes_can_be_drawn_again(volumes):
    wide = dataclasses.replace(TINY, width=8, code_length=24)
    network = weights.build(wide, jax.random.key(0))
    prepared = ask(network, volumes, "prepare")
    optimizer = optax.adam(3e-3)

    def error(params):
        found, _ = functional.apply(
            network._replace(params=params), prepared, train=True, method="reconstruct"
        )
        return ((found.decoded - prepared) ** 2).mean()

    @jax.jit
    def learn(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(error)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[0][0]

    assert error(learn(network.params)) < 0.2 < error(network.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 10}, "multiple of 4 voxels, got 10"),
        ({"size": 16}, "size 16 must not exceed the box of 12"),
        ({"code_length": 0}, "need at least 1"),
    ],
)
def test_impossible_sizes_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_each_voxel_becomes_eight():
    maps = np.arange(8.0).reshape(1, 2, 2, 2, 1)
    found = np.asarray(autoencoder.upsample(maps))[0, ..., 0]
    np.testing.assert_array_equal(found, np.kron(maps[0, ..., 0], np.ones((2, 2, 2))))


@pytest.mark.parametrize(("box", "size"), [(32, 16), (15, 12), (12, 12)])
def test_small_sizes_suit_any_box(box, size):
    assert autoencoder.small(box).size == size
    assert edss3d.small(box, (1,)).size == size
