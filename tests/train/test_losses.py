"""Losses against cases solved by hand, and where their minimum is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.models.jimnet import Alignment
from jimjax.ops import rotation
from jimjax.ops.rotation import Pose, compose, super_fibonacci
from jimjax.train import losses

BOX = 16
NUM = 4
NUM_ROTATIONS = 64


@pytest.fixture
def true(key):
    rotations = jax.vmap(rotation.random_rotation)(jax.random.split(key, NUM))
    return Pose(rotations, jnp.arange(3.0 * NUM).reshape(NUM, 3) / 4)


def _turned(pose, degrees):
    turn = rotation.about_axis(0, jnp.deg2rad(degrees))
    return Pose(turn @ pose.rotation, pose.shift)


def _identity():
    return Pose(jnp.tile(jnp.eye(3), (NUM, 1, 1)), jnp.zeros((NUM, 3)))


def _answer(coarse, residual=None, logits=None):
    residual = residual or _identity()
    fine = jax.vmap(compose)(residual, coarse)
    features = jnp.zeros((NUM, 2))
    return Alignment(coarse, fine, residual, features, features, features, logits)


def _loss(answer, true):
    return losses.supervised_alignment_loss(answer, true, box=BOX)


def _soft_label(true):
    grid = super_fibonacci(NUM_ROTATIONS)
    nearness = jnp.einsum("bij,gij->bg", true.rotation, grid)
    return jax.nn.softmax(losses.GRID_CONCENTRATION * nearness)


def test_pose_loss_adds_squared_errors_in_their_units():
    true = Pose(jnp.eye(3), jnp.zeros(3))
    found = Pose(rotation.about_axis(2, jnp.pi / 2), jnp.array([2.0, 0.0, 4.0]))
    # A quarter turn changes four entries by 1; box / 8 = 2 voxels are one unit of shift.
    np.testing.assert_allclose(losses.pose_loss(found, true, box=BOX), 4 + 1 + 4, rtol=1e-5)


def test_supervised_loss_of_a_dense_stage_is_zero_at_the_truth(true):
    np.testing.assert_allclose(_loss(_answer(true), true), 0.0, atol=1e-10)


def test_supervised_loss_at_the_truth_is_the_entropy_of_the_soft_label(true):
    wanted = _soft_label(true)
    found = _loss(_answer(true, logits=jnp.log(wanted)), true)
    entropy = -np.mean(np.sum(np.where(wanted > 0, wanted * np.log(wanted), 0), axis=1))
    np.testing.assert_allclose(found, entropy, rtol=1e-4)


@pytest.mark.parametrize("wrong", ["logits", "coarse shift", "residual"])
def test_supervised_loss_is_smallest_at_the_truth(wrong, true):
    logits = jnp.log(_soft_label(true))
    moved = Pose(true.rotation, true.shift + 1)
    answers = {
        "logits": _answer(true, logits=logits[::-1]),
        "coarse shift": _answer(moved, logits=logits),
        "residual": _answer(true, _turned(_identity(), 10.0), logits),
    }
    assert _loss(answers[wrong], true) > _loss(_answer(true, logits=logits), true) + 1e-3


def test_fine_stage_is_judged_by_the_composed_pose(true):
    true = Pose(true.rotation, jnp.zeros((NUM, 3)))  # the residual would turn a shift as well
    coarse, residual = _turned(true, -20.0), _turned(_identity(), 20.0)
    only_coarse = np.mean(np.sum((coarse.rotation - true.rotation) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(_loss(_answer(coarse, residual), true), only_coarse, rtol=1e-4)


@pytest.mark.parametrize(("degrees", "is_taught"), [(20.0, True), (60.0, False)])
def test_fine_stage_is_taught_only_within_the_basin(degrees, is_taught, true):
    coarse = _turned(true, degrees)

    def loss(shift):
        return _loss(_answer(coarse, Pose(_identity().rotation, shift)), true)

    gradient = jax.grad(loss)(jnp.ones((NUM, 3)))
    assert bool(jnp.any(gradient != 0)) == is_taught


def test_fine_stage_teaches_the_coarse_one_nothing(true):
    # Logits take the place of the coarse rotation in its own loss: what is left is the fine's.
    logits = jnp.zeros((NUM, NUM_ROTATIONS))

    def loss(rotations):
        return _loss(_answer(Pose(rotations, true.shift), logits=logits), true)

    gradient = jax.grad(loss)(_turned(true, 20.0).rotation)
    np.testing.assert_array_equal(gradient, 0.0)


def test_contrastive_loss_of_two_orthogonal_molecules_by_hand():
    features = jnp.array([[3.0, 0.0], [0.0, 0.5]])
    # Cosines 1 and 0: -log(e^5 / (e^5 + 1)).
    wanted = np.log1p(np.exp(-1 / losses.TEMPERATURE))
    np.testing.assert_allclose(losses.contrastive_loss(features, features), wanted, rtol=1e-4)


def test_contrastive_loss_of_useless_features_is_log_batch():
    features = jnp.ones((8, 3))
    np.testing.assert_allclose(losses.contrastive_loss(features, features), np.log(8), rtol=1e-5)


def test_contrastive_loss_does_not_care_which_set_is_first(key):
    first, second = jax.random.normal(key, (2, 8, 3))
    forward = losses.contrastive_loss(first, second)
    np.testing.assert_allclose(forward, losses.contrastive_loss(second, first), rtol=1e-5)


def test_cross_entropy_agrees_with_numpy(key):
    logits = np.asarray(jax.random.normal(key, (6, 3)))
    labels = np.array([0, 2, 1, 1, 0, 2])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -np.mean(np.log(probabilities[np.arange(6), labels]))
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), wanted, rtol=1e-5)
