"""Rotations from matched points against scipy's SVD, and gradients where an SVD has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from jimjax.ops import rotation
from jimjax.ops.procrustes import nearest_rotation, paired_procrustes

ATOL = 1e-5  # twelve float32 squarings of a 4 x 4 matrix


def _matrix(seed: int) -> np.ndarray:
    """A matrix whose nearest rotation is well defined: one that is stretched a little."""
    generator = np.random.default_rng(seed)
    turn = Rotation.random(rng=generator).as_matrix()
    return (turn + 0.3 * generator.normal(size=(3, 3))).astype(np.float32)


def _nearest_by_svd(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(np.asarray(matrix, np.float64))
    sign = np.sign(np.linalg.det(left @ right))
    return left @ np.diag([1.0, 1.0, sign]) @ right


def _points(seed: int = 0, num: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    weights = generator.uniform(size=num)
    return weights / weights.sum(), generator.normal(scale=5.0, size=(num, 3))


JACOBIAN = jax.jit(jax.jacrev(nearest_rotation))
HALF_TURNS = [np.diag(2 * np.eye(3)[axis] - 1) for axis in range(3)]


@pytest.mark.parametrize("turn", [np.eye(3), *HALF_TURNS], ids=["identity", "x", "y", "z"])
def test_a_scaled_rotation_gives_the_rotation(turn, compiled):
    out = compiled(nearest_rotation)(jnp.asarray(7 * turn, jnp.float32))
    np.testing.assert_allclose(out, turn, atol=ATOL)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_svd(seed, compiled):
    matrix = _matrix(seed)
    out = compiled(nearest_rotation)(matrix)
    np.testing.assert_allclose(out, _nearest_by_svd(matrix), atol=ATOL)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6, 1e15])
def test_scale_does_not_matter(scale):
    matrix = _matrix(0)
    out = nearest_rotation(jnp.asarray(scale * matrix))
    np.testing.assert_allclose(out, _nearest_by_svd(matrix), atol=ATOL)


def test_a_mirror_image_gives_a_rotation_all_the_same():
    matrix = np.diag([3.0, 2.0, -1.0])  # the nearest orthogonal matrix is a reflection
    np.testing.assert_allclose(nearest_rotation(jnp.asarray(matrix)), np.eye(3), atol=ATOL)


def test_turning_the_matrix_turns_the_result():
    matrix, turn = _matrix(1), Rotation.random(rng=np.random.default_rng(2)).as_matrix()
    turned = nearest_rotation(jnp.asarray(turn @ matrix, jnp.float32))
    np.testing.assert_allclose(turned, turn @ nearest_rotation(matrix), atol=ATOL)


def test_gradient_of_the_nearest_rotation_is_right(x64):
    matrix = jnp.asarray(_matrix(0), jnp.float64)
    check_grads(jax.jit(nearest_rotation), (matrix,), order=1, modes=("fwd", "rev"))


DEGENERATE = {
    "zero": np.zeros((3, 3)),
    "tiny": np.full((3, 3), 1e-20),
    "identity": np.eye(3),
    "half turn": HALF_TURNS[0],
    "mirror": -np.eye(3),
    "rank one": np.diag([1.0, 0, 0]),
    "rank two": np.diag([1.0, 1, 0]),
    "two equal, mirrored": np.diag([2.0, 1, -1]),
}


@pytest.mark.parametrize("matrix", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_matrix_gives_a_best_rotation_and_a_finite_gradient(matrix):
    out = nearest_rotation(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(out.T @ out, np.eye(3), atol=ATOL)
    np.testing.assert_allclose(jnp.linalg.det(out), 1.0, atol=ATOL)
    best = np.trace(_nearest_by_svd(matrix).T @ matrix)
    np.testing.assert_allclose(jnp.sum(out * matrix), best, atol=ATOL)
    assert np.all(np.isfinite(JACOBIAN(jnp.asarray(matrix, jnp.float32))))


def test_zero_matrix_gives_the_identity():
    np.testing.assert_array_equal(nearest_rotation(jnp.zeros((3, 3))), np.eye(3))


def test_a_known_motion_is_recovered(compiled):
    weights, source = _points()
    turn, shift = rotation.about_axis(2, np.pi / 2), np.array([1.0, -2.0, 3.0])
    target = source @ np.asarray(turn).T + shift
    pose = compiled(paired_procrustes)(*(jnp.asarray(a) for a in (weights, source, target)))
    np.testing.assert_allclose(pose.rotation, turn, atol=ATOL)
    np.testing.assert_allclose(pose.shift, shift, atol=10 * ATOL)  # points are 5 voxels out


def test_noisy_points_agree_with_scipy():
    weights, source = _points()
    target = source @ _matrix(3).T + np.random.default_rng(1).normal(size=source.shape)
    means = weights @ source, weights @ target
    expected, _ = Rotation.align_vectors(target - means[1], source - means[0], weights=weights)
    pose = paired_procrustes(*(jnp.asarray(a) for a in (weights, source, target)))
    np.testing.assert_allclose(pose.rotation, expected.as_matrix(), atol=ATOL)
    np.testing.assert_allclose(pose.shift, means[1] - expected.apply(means[0]), atol=10 * ATOL)


def test_a_point_without_weight_does_not_count():
    weights, source = _points()
    target = source + 1.0
    weights[0], target[0] = 0.0, 100.0
    weights /= weights.sum()
    pose = paired_procrustes(*(jnp.asarray(a) for a in (weights, source, target)))
    np.testing.assert_allclose(pose.rotation, np.eye(3), atol=ATOL)
    np.testing.assert_allclose(pose.shift, np.ones(3), atol=10 * ATOL)


def test_gradients_of_the_motion_are_right(x64):
    weights, source = _points(num=5)
    target = source @ _matrix(3).T
    operands = tuple(jnp.asarray(a, jnp.float64) for a in (weights, source, target))
    check_grads(jax.jit(paired_procrustes), operands, order=1, modes=("fwd", "rev"))


def test_points_that_coincide_give_a_pure_shift_and_finite_gradients():
    weights, source, target = jnp.full(4, 0.25), jnp.zeros((4, 3)), jnp.ones((4, 3))
    pose = paired_procrustes(weights, source, target)
    np.testing.assert_array_equal(pose.rotation, np.eye(3))
    np.testing.assert_allclose(pose.shift, np.ones(3), atol=ATOL)
    jacobian = jax.jit(jax.jacrev(paired_procrustes, argnums=(0, 1, 2)))
    jacobians = jacobian(weights, source, target)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jacobians))


def test_wrong_matrix_shape_is_named():
    with pytest.raises(ValueError, match=r"matrix must have shape \(3, 3\), got \(2, 3, 3\)"):
        nearest_rotation(jnp.zeros((2, 3, 3)))


def test_points_that_do_not_pair_up_are_named():
    with pytest.raises(ValueError, match=r"weights \(4,\), source points \(4, 3\) and target"):
        paired_procrustes(jnp.ones(4), jnp.zeros((4, 3)), jnp.zeros((5, 3)))
