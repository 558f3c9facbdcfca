"""Solid harmonics against scipy's spherical ones, and how rotations mix them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from jimjax.ops import rotation
from jimjax.ops.harmonics import rotation_matrices, solid_harmonics

MAX_DEGREE = 5
ATOL = 1e-5  # polynomials of degree 5 in float32 coordinates up to 1


def _points(num: int = 20) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (num, 3)).astype(np.float32)


def _rotations(num: int) -> np.ndarray:
    return Rotation.random(num, rng=np.random.default_rng(1)).as_matrix().astype(np.float32)


def _slow_solid_harmonics(points: np.ndarray, degree: int) -> np.ndarray:
    """Real parts and imaginary parts of scipy's complex harmonics, Racah-normalised."""
    x, y, z = np.asarray(points, np.float64).T
    radius = np.sqrt(x**2 + y**2 + z**2)
    columns = []
    for order in range(-degree, degree + 1):
        size = abs(order)
        values = sph_harm_y(degree, size, np.arccos(z / radius), np.arctan2(y, x))
        # scipy has the Condon-Shortley phase, real harmonics don't.
        values = (-1) ** size * np.sqrt(4 * np.pi / (2 * degree + 1)) * values
        part = values.real if order >= 0 else values.imag
        columns.append(part * (1 if order == 0 else np.sqrt(2)))
    return radius[:, None] ** degree * np.stack(columns, axis=-1)


def test_first_two_degrees_are_one_and_the_coordinates(compiled):
    point = np.array([0.2, -0.5, 0.7], np.float32)
    zeroth, first = compiled(functools.partial(solid_harmonics, max_degree=1))(point)
    np.testing.assert_array_equal(zeroth, [1.0])
    np.testing.assert_allclose(first, point[[1, 2, 0]], rtol=1e-6)  # orders -1, 0, 1: y, z, x


def test_second_degree_is_known_by_heart():
    x, y, z = point = np.array([0.2, -0.5, 0.7], np.float32)
    root = np.sqrt(3)
    polar = z * z - (x * x + y * y) / 2
    expected = [root * x * y, root * y * z, polar, root * x * z, root * (x * x - y * y) / 2]
    np.testing.assert_allclose(solid_harmonics(point, 2)[2], expected, atol=ATOL)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_agrees_with_scipy(degree):
    harmonics = solid_harmonics(_points(), MAX_DEGREE)[degree]
    np.testing.assert_allclose(harmonics, _slow_solid_harmonics(_points(), degree), atol=ATOL)


def test_squares_of_a_degree_sum_to_a_power_of_the_radius():
    squared = np.sum(_points() ** 2, axis=-1)
    for degree, harmonics in enumerate(solid_harmonics(_points(), MAX_DEGREE)):
        np.testing.assert_allclose(jnp.sum(harmonics**2, -1), squared**degree, rtol=1e-4)


def test_leading_axes_are_kept():
    shapes = [h.shape for h in solid_harmonics(jnp.zeros((2, 4, 3)), 2)]
    assert shapes == [(2, 4, 1), (2, 4, 3), (2, 4, 5)]


def test_gradients_are_right_and_finite_at_the_origin(x64):
    points = jnp.asarray(np.vstack([_points(3), np.zeros(3)]), jnp.float64)
    harmonics = jax.jit(functools.partial(solid_harmonics, max_degree=4))
    check_grads(harmonics, (points,), order=2, modes=("fwd", "rev"))  # NaN would not pass


def test_first_degree_matrix_is_the_rotation_itself(compiled):
    turn = _rotations(1)[0]
    first = compiled(functools.partial(rotation_matrices, max_degree=1))(turn)[1]
    order = [1, 2, 0]  # y, z, x
    np.testing.assert_allclose(first, turn[np.ix_(order, order)], atol=ATOL)


TURNS = {
    "identity": np.eye(3, dtype=np.float32),
    "half turn": np.diag([-1.0, -1.0, 1.0]).astype(np.float32),
    "quarter turn": np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32),
    "any": _rotations(1)[0],
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_matrices_turn_the_harmonics(turn, compiled):
    matrices = compiled(functools.partial(rotation_matrices, max_degree=MAX_DEGREE))(turn)
    before = solid_harmonics(_points(), MAX_DEGREE)
    after = solid_harmonics(_points() @ turn.T, MAX_DEGREE)
    for matrix, old, new in zip(matrices, before, after, strict=True):
        np.testing.assert_allclose(old @ matrix.T, new, atol=2 * ATOL)


def test_matrices_are_orthogonal_and_compose_as_the_rotations():
    outer, inner = _rotations(2)
    chained = rotation_matrices(outer @ inner, MAX_DEGREE)
    parts = zip(*(rotation_matrices(r, MAX_DEGREE) for r in (outer, inner)), strict=True)
    for matrix, (left, right) in zip(chained, parts, strict=True):
        np.testing.assert_allclose(matrix, left @ right, atol=2 * ATOL)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=2 * ATOL)


def test_a_grid_of_rotations_is_one_rotation_at_a_time():
    grid = _rotations(4).reshape(2, 2, 3, 3)
    together = rotation_matrices(grid, 3)
    alone = rotation_matrices(grid[1, 0], 3)
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many[1, 0], one, atol=1e-6)


def test_correlation_over_rotations_peaks_at_the_one_between_two_point_sets():
    grid = np.asarray(rotation.super_fibonacci(500))
    turn = grid[123]
    source = [h.sum(0) for h in solid_harmonics(_points(), 4)]
    target = [h.sum(0) for h in solid_harmonics(_points() @ turn.T, 4)]
    scores = sum(
        jnp.einsum("m,gmn,n->g", t, d, s)
        for t, d, s in zip(target, rotation_matrices(grid, 4), source, strict=True)
    )
    assert jnp.argmax(scores) == 123


def test_gradient_of_the_matrices_is_right(x64):
    turn = jnp.asarray(_rotations(1)[0], jnp.float64)
    matrices = jax.jit(functools.partial(rotation_matrices, max_degree=3))
    check_grads(matrices, (turn,), order=1, modes=("fwd", "rev"))


def test_double_precision_gives_double_precision(x64):
    turn = jnp.asarray(Rotation.random(rng=np.random.default_rng(0)).as_matrix())
    for matrix in rotation_matrices(turn, 3):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("points", "max_degree", "message"),
    [
        (jnp.zeros((4, 2)), 1, r"points must be \(..., 3\), got shape \(4, 2\)"),
        (jnp.zeros(3), -1, "max_degree must be 0 or more, got -1"),
    ],
)
def test_bad_points_and_degrees_are_named(points, max_degree, message):
    with pytest.raises(ValueError, match=message):
        solid_harmonics(points, max_degree)


@pytest.mark.parametrize(
    ("turn", "max_degree", "message"),
    [
        (jnp.zeros((3, 2)), 1, r"rotation must be \(..., 3, 3\), got shape \(3, 2\)"),
        (jnp.eye(3), -1, "max_degree must be 0 or more, got -1"),
    ],
)
def test_bad_rotations_and_degrees_are_named(turn, max_degree, message):
    with pytest.raises(ValueError, match=message):
        rotation_matrices(turn, max_degree)
