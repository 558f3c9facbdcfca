"""Image warps against scipy, their laws, and finite gradients on the control points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from jimjax.ops import warp2d

IDENTITY = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
MATRIX = jnp.array([[0.9, -0.3, 0.13], [0.4, 1.2, -0.21]])  # takes no pixel to a pixel centre
SHAPE = (6, 9)


def _targets(key, num_controls=9):
    controls = warp2d.control_points(num_controls)
    return controls + 0.4 * jax.random.uniform(key, controls.shape, minval=-1)


def _points(key, num=40):
    return jax.random.uniform(key, (num, 2), minval=-1.5, maxval=1.5)


def _slow_sample(image, grid):
    image, grid = np.asarray(image, np.float64), np.asarray(grid, np.float64)
    height, width = image.shape
    rows, columns = (grid[..., 1] + 1) * (height - 1) / 2, (grid[..., 0] + 1) * (width - 1) / 2
    return map_coordinates(image, [rows, columns], order=1, mode="grid-constant")


def _slow_spline(targets, points, regularization):
    targets, points = np.asarray(targets, np.float64), np.asarray(points, np.float64)
    controls = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)], np.float64)
    # scipy's kernel is r^2 log r, half of r^2 log r^2.
    spline = RBFInterpolator(
        controls, targets, kernel="thin_plate_spline", smoothing=regularization / 2, degree=1
    )
    return spline(points.reshape(-1, 2)).reshape(points.shape)


def test_corner_pixels_are_at_plus_and_minus_one(compiled):
    pixels = jnp.array([[0.0, 0.0], [8.0, 5.0], [4.0, 2.5]])
    points = compiled(lambda p: warp2d.points_from_pixels(p, SHAPE))(pixels)
    np.testing.assert_allclose(points, [[-1, -1], [1, 1], [0, 0]], atol=1e-6)
    grid = warp2d.pixel_grid(SHAPE)
    assert grid.shape == (6, 9, 2)
    np.testing.assert_array_equal(grid[0, 8], [1, -1])  # row 0, last column: x = 1, y = -1


def test_pixels_and_points_are_inverse(compiled, key):
    points = _points(key)
    there = compiled(lambda p: warp2d.pixels_from_points(p, SHAPE))(points)
    np.testing.assert_allclose(warp2d.points_from_pixels(there, SHAPE), points, atol=1e-6)


def test_pixel_grid_lists_the_pixels():
    pixels = warp2d.pixels_from_points(warp2d.pixel_grid(SHAPE), SHAPE)
    y, x = np.indices(SHAPE)
    np.testing.assert_allclose(pixels, np.stack([x, y], axis=-1), atol=1e-6)


def test_affine_map_by_hand(compiled):
    matrix = jnp.array([[0.0, -1.0, 0.5], [2.0, 0.0, 0.0]])
    mapped = compiled(warp2d.apply_affine)(matrix, jnp.array([[1.0, 0.25], [0.0, 0.0]]))
    np.testing.assert_array_equal(mapped, [[0.25, 2.0], [0.5, 0.0]])


def test_affine_grid_maps_every_pixel(compiled):
    grid = compiled(lambda m: warp2d.affine_grid(m, SHAPE))(MATRIX)
    y, x = np.meshgrid(np.linspace(-1, 1, 6), np.linspace(-1, 1, 9), indexing="ij")
    matrix = np.asarray(MATRIX, np.float64)
    expected = np.stack([x, y, np.ones_like(x)], axis=-1) @ matrix.T
    np.testing.assert_allclose(grid, expected, atol=1e-6)


def test_control_points_run_down_the_columns():
    controls = warp2d.control_points(9)
    expected = [[x, y] for x in (-1, 0, 1) for y in (-1, 0, 1)]
    np.testing.assert_array_equal(controls, expected)


@pytest.mark.parametrize("regularization", [0.0, 0.2])
def test_spline_is_the_identity_when_targets_are_controls(regularization, compiled, key):
    points = _points(key)
    fn = functools.partial(warp2d.apply_thin_plate_spline, regularization=regularization)
    np.testing.assert_array_equal(compiled(fn)(warp2d.control_points(9), points), points)


@pytest.mark.parametrize("num_controls", [4, 9, 16])
def test_spline_takes_controls_to_targets(num_controls, key):
    targets = _targets(key, num_controls)
    spline = jax.jit(warp2d.apply_thin_plate_spline)
    mapped = spline(targets, warp2d.control_points(num_controls))
    np.testing.assert_allclose(mapped, targets, atol=3e-6)  # kernel sums of up to 17


@pytest.mark.parametrize("regularization", [0.0, 0.2])
def test_spline_agrees_with_scipy(regularization, compiled, key):
    targets, points = _targets(key), _points(key)
    fn = functools.partial(warp2d.apply_thin_plate_spline, regularization=regularization)
    expected = _slow_spline(targets, points, regularization)
    # Outside the image the kernel reaches 40 and cancels.
    np.testing.assert_allclose(compiled(fn)(targets, points), expected, atol=2e-5)


@pytest.mark.parametrize("regularization", [0.0, 0.2])
def test_spline_through_an_affine_image_of_the_controls_is_that_map(regularization, key):
    points = _points(key)
    targets = warp2d.apply_affine(MATRIX, warp2d.control_points(9))
    mapped = warp2d.apply_thin_plate_spline(targets, points, regularization=regularization)
    np.testing.assert_allclose(mapped, warp2d.apply_affine(MATRIX, points), atol=2e-5)


def test_regularization_leaves_the_targets_unmet(key):
    targets, controls = _targets(key), warp2d.control_points(9)
    mapped = warp2d.apply_thin_plate_spline(targets, controls, regularization=0.2)
    assert jnp.abs(mapped - targets).max() > 0.01
    stiff = warp2d.apply_thin_plate_spline(targets, controls, regularization=1e6)
    plane = np.c_[np.ones(9), controls]
    fitted = plane @ np.linalg.lstsq(plane, targets, rcond=None)[0]
    np.testing.assert_allclose(stiff, fitted, atol=1e-4)  # the limit is least squares, in 1 / 1e6


def test_spline_grid_holds_the_spline_at_the_pixels(compiled, key):
    targets = _targets(key)
    grid = compiled(lambda t: warp2d.thin_plate_spline_grid(t, SHAPE, regularization=0.2))(targets)
    expected = _slow_spline(targets, warp2d.pixel_grid(SHAPE), 0.2)
    np.testing.assert_allclose(grid, expected, atol=1e-5)


def test_eighteen_parameters_are_all_x_then_all_y():
    columns, rows = np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij")
    parameters = jnp.asarray(np.r_[columns.ravel() + 0.25, rows.ravel() - 0.5], jnp.float32)
    moved = warp2d.apply_thin_plate_spline(parameters.reshape(2, 9).T, jnp.array([0.3, 0.1]))
    np.testing.assert_allclose(moved, [0.55, -0.4], atol=1e-6)


def test_composed_grid_is_the_affine_map_of_the_spline(compiled, key):
    targets = _targets(key)
    grid = compiled(lambda m, t: warp2d.composed_grid(m, t, SHAPE))(MATRIX, targets)
    spline = _slow_spline(targets, warp2d.pixel_grid(SHAPE), 0.0)
    matrix = np.asarray(MATRIX, np.float64)
    np.testing.assert_allclose(grid, spline @ matrix[:, :2].T + matrix[:, 2], atol=1e-5)


def test_composed_grid_is_the_affine_grid_resampled_by_the_spline(key):
    inner = 0.5 * _targets(key)  # stays inside, where interpolating an affine grid is exact
    spline = warp2d.thin_plate_spline_grid(inner, SHAPE)
    resampled = jax.jit(warp2d.sample)(warp2d.affine_grid(MATRIX, SHAPE), spline)
    composed = warp2d.composed_grid(MATRIX, inner, SHAPE, is_cropped=True)
    np.testing.assert_allclose(composed, resampled, atol=1e-5)


def test_cropping_hides_what_the_first_stage_has_cut_off(key):
    image = 1 + jax.random.uniform(key, SHAPE)
    half = jnp.array([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
    away = warp2d.control_points(9) + jnp.array([0.5, 0.0])  # two columns of nine leave
    cropped = warp2d.composed_grid(half, away, SHAPE, is_cropped=True)
    assert jnp.all(cropped[:, -2:] == warp2d.OUTSIDE)
    seen = warp2d.sample(image, cropped)
    assert jnp.all(seen[:, -2:] == 0)
    whole = warp2d.sample(image, warp2d.composed_grid(half, away, SHAPE))
    np.testing.assert_array_equal(seen[:, :-2], whole[:, :-2])
    assert jnp.all(whole[:, -2:] >= 1)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_cropping_keeps_the_border(shift):
    targets = warp2d.control_points(9) + jnp.array([shift, 0.0])  # 0.5 is two of nine columns
    grid = warp2d.composed_grid(IDENTITY, targets, SHAPE, is_cropped=True)
    kept = SHAPE[1] - int(4 * shift)
    whole = warp2d.pixel_grid(SHAPE)[:, SHAPE[1] - kept :]
    np.testing.assert_allclose(grid[:, :kept], whole, atol=1e-6)


def test_half_a_pixel_outside_is_half_the_border(compiled):
    image = jnp.array([[4, 8], [2, 6]])  # one pixel is 2 in normalised coordinates
    grid = jnp.array([[0.0, -1.0], [0.0, 0.0], [2.0, -1.0], [3.0, -1.0], [-1.0, 2.0]])
    np.testing.assert_array_equal(compiled(warp2d.sample)(image, grid), [6, 5, 4, 0, 1])


def test_sampling_agrees_with_scipy(compiled, key):
    image = jax.random.normal(key, SHAPE)
    grid = jax.random.uniform(key, (7, 5, 2), minval=-1.6, maxval=1.6)
    expected = _slow_sample(image, grid)
    np.testing.assert_allclose(compiled(warp2d.sample)(image, grid), expected, atol=5e-6)


def test_channels_are_sampled_alike(key):
    image = jax.random.normal(key, (*SHAPE, 3))
    grid = warp2d.affine_grid(MATRIX, (5, 4))
    out = jax.jit(warp2d.sample)(image, grid)
    assert out.shape == (5, 4, 3)
    expected = np.stack([_slow_sample(image[..., c], grid) for c in range(3)], axis=-1)
    np.testing.assert_allclose(out, expected, atol=5e-6)


def test_identity_grid_returns_the_image(key):
    image = jax.random.normal(key, (15, 16))
    out = jax.jit(warp2d.sample)(image, warp2d.affine_grid(IDENTITY, (15, 16)))
    np.testing.assert_allclose(out, image, atol=5e-6)  # positions to 1e-6 pixels, steps of 5


def test_a_linear_image_returns_its_coordinates(key):
    points = jax.random.uniform(key, (40, 2), minval=-1, maxval=1)
    out = jax.jit(warp2d.sample)(warp2d.pixel_grid(SHAPE), points)
    np.testing.assert_allclose(out, points, atol=1e-6)


def test_a_warp_and_its_inverse_return_a_linear_image():
    inverse = np.linalg.inv(np.r_[np.asarray(MATRIX), [[0, 0, 1]]])[:2]
    back = warp2d.apply_affine(jnp.asarray(inverse), warp2d.affine_grid(MATRIX, SHAPE))
    np.testing.assert_allclose(back, warp2d.pixel_grid(SHAPE), atol=1e-6)


def test_points_that_are_far_away_or_not_numbers_address_nothing(key):
    image = jax.random.normal(key, SHAPE)
    far = jnp.array([[1e30, 0.0], [0.0, -jnp.inf], [warp2d.OUTSIDE, warp2d.OUTSIDE]])
    sample = jax.jit(warp2d.sample)
    assert jnp.all(sample(image, far) == 0)
    slope = jax.jit(jax.grad(lambda g: sample(image, g).sum()))(far)
    assert jnp.all(slope == 0)
    assert jnp.isnan(sample(image, jnp.full((3, 2), jnp.nan))).all()


def test_half_precision_images_are_summed_in_float32(key):
    image = jax.random.normal(key, SHAPE).astype(jnp.bfloat16)
    grid = warp2d.affine_grid(MATRIX, SHAPE)
    sample = jax.jit(warp2d.sample)
    out = sample(image, grid)
    assert out.dtype == jnp.bfloat16
    expected = sample(image.astype(jnp.float32), grid)
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))
    assert warp2d.affine_grid(MATRIX.astype(jnp.bfloat16), SHAPE).dtype == jnp.float32


def test_gradients_are_right(x64, key):
    image, matrix = jax.random.normal(key, (4, 5, 2)), jnp.asarray(MATRIX, jnp.float64)

    @jax.jit
    def warp(image, matrix, targets, points):
        grid = warp2d.composed_grid(matrix, targets, (3, 4), regularization=0.2)
        return warp2d.sample(image, grid), warp2d.apply_thin_plate_spline(targets, points)

    operands = (image, matrix, _targets(key), _points(key))
    assert warp(*operands)[0].dtype == jnp.float64
    check_grads(warp, operands, order=1, modes=("fwd", "rev"))


def test_spline_has_a_finite_right_slope_on_its_control_points(x64, key):
    targets, controls = _targets(key), warp2d.control_points(9)
    spline = jax.jit(functools.partial(warp2d.apply_thin_plate_spline, targets))
    slope = jax.jit(jax.vmap(jax.jacfwd(spline)))(controls)
    step = 1e-6  # the kernel is even about its control point and cancels
    for axis in range(2):
        offset = step * np.eye(2)[axis]
        numeric = (spline(controls + offset) - spline(controls - offset)) / (2 * step)
        np.testing.assert_allclose(slope[..., axis], numeric, atol=1e-7)


def test_gradient_at_the_identity_is_finite_and_points_the_right_way():
    image = jnp.broadcast_to(jnp.arange(9.0), SHAPE)

    @jax.jit
    @jax.grad
    def slope(targets):
        return jnp.mean(warp2d.sample(image, warp2d.thin_plate_spline_grid(targets, SHAPE)))

    inside = np.asarray(slope(0.9 * warp2d.control_points(9)))
    # Moving every target right by 1 moves the view by 4 pixels, each one grey level brighter.
    np.testing.assert_allclose(inside.sum(axis=0), [4, 0], atol=1e-5)
    assert np.all(np.isfinite(slope(warp2d.control_points(9))))


def test_the_warp_lowers_for_every_platform(key):
    def warp(image, matrix, targets):
        return warp2d.sample(image, warp2d.composed_grid(matrix, targets, SHAPE, is_cropped=True))

    operands = (jnp.ones(SHAPE), MATRIX, _targets(key))
    exported = jax.export.export(jax.jit(warp), platforms=["cpu", "cuda", "tpu"])(*operands)
    np.testing.assert_allclose(exported.call(*operands), warp(*operands), atol=1e-5)


def test_wrong_shapes_are_named(key):
    image, points = jnp.ones(SHAPE), _points(key)
    with pytest.raises(ValueError, match=r"matrix must have shape \(2, 3\), got \(3, 3\)"):
        warp2d.affine_grid(jnp.eye(3), SHAPE)
    with pytest.raises(ValueError, match="square of at least 4, got 8"):
        warp2d.apply_thin_plate_spline(jnp.ones((8, 2)), points)
    with pytest.raises(ValueError, match="square of at least 4, got 1"):
        warp2d.control_points(1)
    with pytest.raises(ValueError, match=r"targets must be \(controls, 2\)"):
        warp2d.apply_thin_plate_spline(jnp.ones((5, 9, 2)), points)
    with pytest.raises(ValueError, match="regularization must be 0 or more, got -1"):
        warp2d.apply_thin_plate_spline(jnp.ones((9, 2)), points, regularization=-1)
    with pytest.raises(ValueError, match=r"with \(x, y\) last, got shape \(4, 3\)"):
        warp2d.sample(image, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="image must be"):
        warp2d.sample(jnp.ones(4), points)
    with pytest.raises(ValueError, match="at least 2 pixels each"):
        warp2d.pixel_grid((1, 5))
