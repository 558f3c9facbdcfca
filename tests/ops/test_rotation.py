"""Rotations against scipy and their laws; gradients where the formulas are singular."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from jimjax.ops import rotation
from jimjax.ops.rotation import Pose

ATOL = 2e-6  # a few float32 roundings of numbers up to 1
HALF_TURNS = [jnp.diag(2.0 * jnp.eye(3)[axis] - 1) for axis in range(3)]  # exact, also tilt = pi
ROUNDED_HALF_TURN = rotation.about_axis(0, np.pi)
DIAGONAL_HALF_TURN = jnp.asarray(Rotation.from_rotvec(np.pi * np.ones(3) / 3**0.5).as_matrix())


def random_rotations(num: int) -> np.ndarray:
    return Rotation.random(num, rng=np.random.default_rng(0)).as_matrix().astype(np.float32)


def test_quarter_turn_about_z_carries_x_to_y(compiled):
    turned = compiled(functools.partial(rotation.about_axis, 2))(np.float32(np.pi / 2))
    np.testing.assert_allclose(turned @ np.eye(3)[0], np.eye(3)[1], atol=ATOL)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_about_axis_agrees_with_scipy(axis):
    expected = Rotation.from_rotvec(0.7 * np.eye(3)[axis]).as_matrix()
    np.testing.assert_allclose(rotation.about_axis(axis, 0.7), expected, atol=ATOL)


@pytest.mark.parametrize("matrix", random_rotations(3))
def test_quaternion_agrees_with_scipy(matrix, compiled):
    expected = Rotation.from_matrix(matrix).as_quat(canonical=True, scalar_first=True)
    np.testing.assert_allclose(compiled(rotation.to_quaternion)(matrix), expected, atol=ATOL)


def test_quaternion_agrees_with_scipy_for_every_largest_component():
    for pivot in range(4):
        quaternion = np.full(4, 0.1)
        quaternion[pivot] = 2.0
        expected = Rotation.from_quat(quaternion, scalar_first=True)
        matrix = rotation.from_quaternion(jnp.asarray(quaternion, jnp.float32))
        np.testing.assert_allclose(matrix, expected.as_matrix(), atol=ATOL)
        np.testing.assert_allclose(
            rotation.to_quaternion(matrix), quaternion / np.linalg.norm(quaternion), atol=ATOL
        )


def test_negated_quaternion_is_the_same_rotation():
    quaternion = jnp.array([0.3, -0.2, 0.9, 0.1])
    np.testing.assert_array_equal(
        rotation.from_quaternion(quaternion), rotation.from_quaternion(-quaternion)
    )


def test_zero_quaternion_is_the_identity():
    np.testing.assert_array_equal(rotation.from_quaternion(jnp.zeros(4)), np.eye(3))


@pytest.mark.parametrize("matrix", random_rotations(3))
def test_rotation_vector_agrees_with_scipy(matrix, compiled):
    expected = Rotation.from_matrix(matrix).as_rotvec()
    # Near pi the vector magnifies the rounding of the matrix.
    np.testing.assert_allclose(compiled(rotation.to_rotation_vector)(matrix), expected, atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 9e-4, 1.1e-3, 0.3, 3.0, np.pi])
def test_rotation_vector_survives_the_round_trip(angle, compiled):
    vector = jnp.asarray(angle * np.array([1.0, 2.0, -2.0]) / 3, jnp.float32)
    matrix = compiled(rotation.from_rotation_vector)(vector)
    np.testing.assert_allclose(
        matrix, Rotation.from_rotvec(np.asarray(vector)).as_matrix(), atol=ATOL
    )
    again = rotation.from_rotation_vector(rotation.to_rotation_vector(matrix))
    np.testing.assert_allclose(again, matrix, atol=ATOL)


@pytest.mark.parametrize("matrix", random_rotations(3))
def test_zyz_angles_agree_with_scipy(matrix, compiled):
    expected = Rotation.from_matrix(matrix).as_euler("ZYZ")
    np.testing.assert_allclose(compiled(rotation.to_zyz)(matrix), expected, atol=1e-5)
    np.testing.assert_allclose(compiled(rotation.from_zyz)(expected), matrix, atol=ATOL)


@pytest.mark.parametrize("tilt", [0.0, np.pi])
def test_zyz_angles_at_gimbal_lock_give_the_same_rotation(tilt):
    matrix = rotation.from_zyz(jnp.array([0.4, tilt, 0.9]))
    angles = rotation.to_zyz(matrix)
    assert angles[2] == 0
    np.testing.assert_allclose(rotation.from_zyz(angles), matrix, atol=ATOL)


@pytest.mark.parametrize("matrix", random_rotations(3))
def test_six_d_survives_the_round_trip(matrix, compiled):
    columns = compiled(rotation.to_six_d)(matrix)
    np.testing.assert_array_equal(columns, np.concatenate([matrix[:, 0], matrix[:, 1]]))
    np.testing.assert_allclose(compiled(rotation.from_six_d)(columns), matrix, atol=ATOL)


def test_six_d_ignores_length_and_skew():
    columns = jnp.array([0.0, 0.0, 5.0, 2.0, 0.0, 7.0])
    expected = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(rotation.from_six_d(columns), expected, atol=ATOL)


DEGENERATE_COLUMNS = {
    "zero": np.zeros(6),
    "first zero": np.array([0.0, 0, 0, 0, 1, 0]),
    "second zero": np.array([0.0, 1, 0, 0, 0, 0]),
    "parallel": np.array([1.0, 2, 3, 2, 4, 6]),
    "nearly parallel": np.array([1.0, 2, 3, 2, 4, 6.00001]),
    "second along the fallback": np.array([0.0, 0, 0, 3, 0, 0]),
}


@pytest.mark.parametrize("columns", DEGENERATE_COLUMNS.values(), ids=DEGENERATE_COLUMNS)
def test_degenerate_six_d_gives_a_rotation_and_a_finite_gradient(columns):
    columns = jnp.asarray(columns, jnp.float32)
    matrix = rotation.from_six_d(columns)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=ATOL)
    np.testing.assert_allclose(jnp.linalg.det(matrix), 1.0, atol=ATOL)
    assert np.all(np.isfinite(jax.jacrev(rotation.from_six_d)(columns)))


@pytest.mark.parametrize("angle", [0.0, 1e-3, 1.0, 3.1, np.pi])
def test_geodesic_angle_of_a_known_turn(angle, compiled):
    start = jnp.asarray(random_rotations(1)[0])
    end = rotation.compose(
        Pose(start, jnp.zeros(3)), Pose(rotation.about_axis(1, angle), jnp.zeros(3))
    ).rotation
    np.testing.assert_allclose(compiled(rotation.geodesic_angle)(start, end), angle, atol=1e-6)


def test_frobenius_distance_follows_from_the_angle(compiled):
    a, b = random_rotations(2)
    angle = (Rotation.from_matrix(a).inv() * Rotation.from_matrix(b)).magnitude()
    expected = 2 * np.sqrt(2) * np.sin(angle / 2)
    np.testing.assert_allclose(compiled(rotation.frobenius_distance)(a, b), expected, rtol=1e-5)


def test_compose_moves_a_point_by_inner_then_outer(compiled):
    outer, inner = (
        Pose(jnp.asarray(matrix), jnp.asarray(shift))
        for matrix, shift in zip(random_rotations(2), [[1.0, 2, 3], [-1.0, 0, 4]], strict=True)
    )
    point = np.array([0.5, -2.0, 1.0])
    moved = outer.rotation @ (inner.rotation @ point + inner.shift) + outer.shift
    both = compiled(rotation.compose)(outer, inner)
    np.testing.assert_allclose(both.rotation @ point + both.shift, moved, atol=1e-5)


def test_pose_and_its_inverse_compose_to_the_identity(compiled):
    pose = Pose(jnp.asarray(random_rotations(1)[0]), jnp.array([3.0, -2.0, 1.0]))
    nothing = rotation.compose(pose, compiled(rotation.invert)(pose))
    np.testing.assert_allclose(nothing.rotation, rotation.identity().rotation, atol=ATOL)
    np.testing.assert_allclose(nothing.shift, rotation.identity().shift, atol=ATOL)


def test_random_rotations_are_haar(key):
    matrices = jax.vmap(rotation.random_rotation)(jax.random.split(key, 20000))
    np.testing.assert_allclose(
        jnp.einsum("nij,nkj->nik", matrices, matrices), np.tile(np.eye(3), (20000, 1, 1)), atol=5e-6
    )
    # Haar: every entry has mean 0 and variance 1/3; 20 000 draws, five standard errors.
    np.testing.assert_allclose(matrices.mean(0), 0.0, atol=5 * np.sqrt(1 / 3 / 20000))
    np.testing.assert_allclose((matrices**2).mean(0), 1 / 3, atol=5 * np.sqrt(4 / 45 / 20000))
    angle = jax.vmap(rotation.geodesic_angle, (0, None))(matrices, jnp.eye(3))
    # P(angle < pi / 2) = (angle - sin angle) / pi
    assert abs(np.mean(angle < np.pi / 2) - (np.pi / 2 - 1) / np.pi) < 5 * 0.5 / np.sqrt(20000)


@pytest.mark.parametrize("max_angle", [0.1, 1.0, 3.0])
def test_random_rotation_near_has_the_haar_distribution_in_the_ball(max_angle, key):
    keys = jax.random.split(key, 10000)
    matrices = jax.vmap(rotation.random_rotation_near, (0, None))(keys, max_angle)
    angle = np.sort(jax.vmap(rotation.geodesic_angle, (None, 0))(jnp.eye(3), matrices))
    assert angle[-1] <= max_angle + 1e-5
    distribution = (angle - np.sin(angle)) / (max_angle - np.sin(max_angle))
    # Kolmogorov-Smirnov; 1.95 / sqrt(n) is the 0.1 % point.
    assert np.max(np.abs(distribution - np.arange(1, 10001) / 10000)) < 1.95 / np.sqrt(10000)


def test_super_fibonacci_covers_every_rotation():
    grid = np.asarray(rotation.super_fibonacci(1000))
    np.testing.assert_allclose(np.linalg.det(grid), 1.0, atol=1e-5)
    trace = np.einsum("nij,mij->nm", random_rotations(200), grid)
    nearest = np.rad2deg(np.arccos(np.clip((trace.max(axis=1) - 1) / 2, -1, 1)))
    assert nearest.max() < 25.0  # a ball of a 1000th of the volume has a radius of 15.2 degrees


@pytest.mark.parametrize(
    "fn",
    [
        rotation.to_quaternion,
        rotation.to_rotation_vector,
        rotation.to_zyz,
        functools.partial(rotation.geodesic_angle, jnp.eye(3)),
        functools.partial(rotation.frobenius_distance, jnp.eye(3)),
    ],
    ids=["quaternion", "rotation_vector", "zyz", "geodesic", "frobenius"],
)
@pytest.mark.parametrize(
    "matrix",
    [jnp.eye(3), *HALF_TURNS, ROUNDED_HALF_TURN, DIAGONAL_HALF_TURN],
    ids=["identity", "about x", "about y", "about z", "rounded", "diagonal"],
)
def test_gradients_are_finite_where_the_formula_is_singular(fn, matrix):
    assert np.all(np.isfinite(jax.jacrev(fn)(matrix)))


@pytest.mark.parametrize("vector", [[0.0, 0, 0], [1e-20, 0, 0], [np.pi, 0, 0], [0, 2 * np.pi, 0]])
def test_gradient_of_the_rotation_vector_map_is_finite(vector):
    vector = jnp.asarray(vector, jnp.float32)
    assert np.all(np.isfinite(jax.jacrev(rotation.from_rotation_vector)(vector)))
    assert np.all(np.isfinite(jax.jacfwd(rotation.from_rotation_vector)(vector)))


def test_rotation_vector_map_at_zero_has_the_generators_as_gradient():
    jacobian = jax.jacrev(rotation.from_rotation_vector)(jnp.zeros(3))
    about_x = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]])
    np.testing.assert_array_equal(jacobian[..., 0], about_x)


def test_gradients_agree_with_finite_differences(x64):
    matrix = jnp.asarray(Rotation.from_rotvec([0.5, -0.9, 0.3]).as_matrix())
    other = jnp.asarray(Rotation.from_rotvec([1.0, 0.2, 0.7]).as_matrix())

    def check(fn, *args, order=1):
        check_grads(jax.jit(fn), args, order=order, modes=("fwd", "rev"))

    # Off SO(3) the inverse maps extend smoothly, so that differences may leave it.
    for fn in (rotation.to_quaternion, rotation.to_rotation_vector, rotation.to_zyz):
        check(fn, matrix)
    check(rotation.geodesic_angle, matrix, other)
    check(rotation.frobenius_distance, matrix, other)
    check(rotation.from_six_d, jnp.arange(6.0) ** 2, order=2)
    check(rotation.from_zyz, jnp.array([0.1, 2.0, 3.0]))
    for vector in (jnp.array([0.3, -0.2, 1.0]), jnp.array([1e-4, 2e-4, 0.0])):
        check(rotation.from_rotation_vector, vector)
    check(rotation.from_quaternion, jnp.arange(4.0))


def test_wrong_axis_is_named():
    with pytest.raises(ValueError, match=r"axis must be 0 \(x\), 1 \(y\) or 2 \(z\), got 3"):
        rotation.about_axis(3, 0.1)


def test_batch_without_vmap_is_refused():
    with pytest.raises(ValueError, match=r"rotation must have shape \(3, 3\), got \(2, 3, 3\)"):
        rotation.to_quaternion(jnp.zeros((2, 3, 3)))


def test_empty_grid_is_refused():
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        rotation.super_fibonacci(0)
