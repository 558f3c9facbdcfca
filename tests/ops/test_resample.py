"""Resampling against scipy, exact cases, laws and gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from jimjax.ops import _interpolation, resample, rotation, spline
from jimjax.ops.rotation import Pose

SHAPES = [(16, 16, 16), (15, 15, 15), (9, 12, 15)]
ALL_SIZES = [pytest.param(size, marks=pytest.mark.slow) for size in range(8, 34)]
ORDERS = [0, 1, 3]
SCIPY_MODES = {"nearest": "nearest", "wrap": "grid-wrap"}  # boundary -> mode of the twin
# Positions are good to 2e-6 voxels in float32; neighbours differ by up to 8 standard deviations.
ATOL = 3e-5


def noise(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def some_pose(seed: int = 0) -> Pose:
    matrix = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    return Pose(jnp.asarray(matrix, jnp.float32), jnp.array([0.3, -2.2, 1.6]))


def quarter_turn(axis: int) -> jax.Array:
    return jnp.round(rotation.about_axis(axis, np.pi / 2))


def test_rotation_about_z_carries_the_voxel_at_plus_x_to_plus_y(compiled):
    volume = jnp.zeros((7, 7, 7)).at[3, 3, 5].set(1.0)
    out = compiled(resample.rotate)(volume, quarter_turn(2))
    np.testing.assert_array_equal(out, np.zeros((7, 7, 7)) + (out == 1))
    assert out[3, 5, 3] == 1


def test_shift_moves_along_x_y_z(compiled):
    volume = jnp.zeros((7, 7, 7)).at[3, 3, 3].set(1.0)
    out = compiled(resample.shift)(volume, jnp.array([1.0, 2.0, -3.0]))
    assert out[0, 5, 4] == 1
    assert out.sum() == 1


def test_half_a_voxel_is_the_mean_of_two(compiled):
    volume = jnp.zeros((5, 5, 5)).at[2, 2, 2].set(1.0)
    out = compiled(resample.shift)(volume, jnp.array([0.5, 0.0, 0.0]))
    np.testing.assert_array_equal(out[2, 2], [0, 0, 0.5, 0.5, 0])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_identity_changes_nothing(shape, order, compiled):
    volume = noise(shape)
    moved = compiled(functools.partial(resample.transform, order=order))(
        volume, rotation.identity()
    )
    np.testing.assert_allclose(moved, volume, atol=0 if order < 3 else 1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", [15, 16, *ALL_SIZES])
def test_quarter_turns_are_exact_and_the_fourth_returns(size, axis, order):
    volume = noise((size,) * 3)
    rotate = jax.jit(functools.partial(resample.rotate, order=order))
    turned = volume
    for _ in range(4):
        turned = rotate(turned, quarter_turn(axis))
    # An even box has no voxel opposite to its first one: that face leaves the box.
    inside = slice(size % 2 == 0, None)
    kept = [slice(None) if a == 2 - axis else inside for a in range(3)]
    atol = 0 if order < 3 else 3e-5
    np.testing.assert_allclose(turned[tuple(kept)], volume[tuple(kept)], atol=atol)
    planes = [(1, 0), (0, 2), (2, 1)][axis]  # array axes, from the first towards the second
    once = np.rot90(np.asarray(volume)[(inside,) * 3], axes=planes)
    turned = rotate(volume, quarter_turn(axis))
    np.testing.assert_allclose(turned[(inside,) * 3], once, atol=atol)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("shape", "fill"), list(zip(SHAPES, [0.0, 0.7, -1.0], strict=True)))
def test_transform_agrees_with_scipy(shape, order, fill, compiled):
    volume, pose = noise(shape), some_pose()
    moved = compiled(functools.partial(resample.transform, order=order, fill=fill))(volume, pose)
    expected = reference.transform(volume, *pose, order=order, fill=fill)
    np.testing.assert_allclose(moved, expected, atol=ATOL)


def test_border_voxels_go_on_or_come_round():
    volume = jnp.arange(5.0).reshape(1, 1, 5)
    distance = jnp.array([1.5, 0.0, 0.0])
    nearest = resample.shift(volume, distance, boundary="nearest")[0, 0]
    np.testing.assert_array_equal(nearest, [0, 0, 0.5, 1.5, 2.5])
    wrapped = resample.shift(volume, distance, boundary="wrap")[0, 0]
    np.testing.assert_array_equal(wrapped, [3.5, 2, 0.5, 1.5, 2.5])


@pytest.mark.parametrize("boundary", SCIPY_MODES)
@pytest.mark.parametrize(("shape", "order"), [((9, 12, 15), o) for o in ORDERS] + [((4, 1, 2), 1)])
def test_boundaries_agree_with_scipy(shape, order, boundary):
    volume, pose = noise(shape), some_pose()
    move = jax.jit(functools.partial(resample.transform, order=order, boundary=boundary))
    # Positions 40 voxels away, several boxes, have 20 times the rounding.
    for far, atol in (([0.0, 0.0, 0.0], ATOL), ([3.0, 20.0, -40.0], 20 * ATOL)):
        moved_pose = Pose(pose.rotation, pose.shift + jnp.array(far))
        expected = reference.transform(volume, *moved_pose, order=order, mode=SCIPY_MODES[boundary])
        np.testing.assert_allclose(move(volume, moved_pose), expected, atol=atol)


def test_boundaries_jit_and_vmap_agree(compiled):
    volume, pose = noise((5, 6, 7)), some_pose()
    for boundary, mode in SCIPY_MODES.items():
        move = functools.partial(resample.transform, boundary=boundary)
        expected = reference.transform(volume, *pose, mode=mode)
        np.testing.assert_allclose(compiled(move)(volume, pose), expected, atol=ATOL)


@pytest.mark.parametrize("order", ORDERS)
def test_wrapped_shift_by_whole_voxels_is_a_roll(order):
    volume = noise((5, 6, 7))
    moved = resample.shift(volume, jnp.array([9.0, -2.0, 4.0]), order=order, boundary="wrap")
    expected = np.roll(volume, (4, -2, 9), (0, 1, 2))
    np.testing.assert_allclose(moved, expected, atol=0 if order < 3 else 1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_wrapped_position_may_round_up_to_the_size(order):
    volume = noise((4, 4, 4))
    # -1e-9 modulo 4 is 4 in float32: voxel 0 again, not one beyond the last.
    moved = resample.shift(volume, jnp.array([1e-9, 1e-9, 1e-9]), order=order, boundary="wrap")
    np.testing.assert_allclose(moved, volume, atol=1e-5)


@pytest.mark.parametrize("boundary", SCIPY_MODES)
@pytest.mark.parametrize("order", ORDERS)
def test_constant_volume_stays_constant_without_a_fill(order, boundary):
    volume = jnp.full((5, 6, 7), 3.0)
    moved = resample.transform(volume, some_pose(), order=order, boundary=boundary)
    np.testing.assert_allclose(moved, 3.0, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
def test_interior_agrees_with_scipy_constant_mode(order):
    volume, pose = noise((16, 16, 16)), some_pose(1)
    moved = resample.transform(volume, pose, order=order)
    inside = reference.transform(np.ones((16,) * 3), *pose, order=1, mode="constant") > 0.999
    expected = reference.transform(volume, *pose, order=order, mode="constant")
    assert inside.sum() > 1000
    np.testing.assert_allclose(moved[inside], expected[inside], atol=ATOL)


@pytest.mark.parametrize("order", ORDERS)
def test_far_outside_everything_is_the_fill(order, compiled):
    shift = compiled(functools.partial(resample.shift, order=order, fill=0.25))
    moved = shift(noise((9, 9, 9)), jnp.array([1e6, 0.0, 0.0]))
    np.testing.assert_allclose(moved, 0.25, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_constant_volume_with_its_own_fill_stays_constant(order):
    moved = resample.transform(jnp.full((9, 9, 9), 3.0), some_pose(), order=order, fill=3.0)
    np.testing.assert_allclose(moved, 3.0, atol=1e-5)


def test_inverse_pose_returns_a_smooth_particle():
    grid = np.indices((16, 16, 16)) - 8.0
    volume = jnp.asarray(np.exp(-(grid**2).sum(0) / 8) * (1 + 0.3 * grid[2]), jnp.float32)
    pose = Pose(some_pose().rotation, jnp.array([0.4, -0.7, 0.2]))
    there = resample.transform(volume, pose, order=3)
    back = resample.transform(there, rotation.invert(pose), order=3)
    # Measured: 4.6e-3 with cubic splines, 0.18 trilinear.
    np.testing.assert_allclose(back, volume, atol=1e-2)


def test_composed_pose_agrees_with_two_exact_steps():
    volume = jnp.pad(noise((7, 7, 7)), 4)
    inner = Pose(quarter_turn(0), jnp.array([1.0, -1.0, 0.0]))
    outer = Pose(quarter_turn(1), jnp.array([0.0, 2.0, 1.0]))
    twice = resample.transform(resample.transform(volume, inner), outer)
    once = resample.transform(volume, rotation.compose(outer, inner))
    np.testing.assert_array_equal(once, twice)


def test_affine_with_a_rotation_is_the_transform():
    volume, pose = noise((9, 12, 15)), some_pose()
    np.testing.assert_allclose(
        resample.affine(volume, *pose), resample.transform(volume, pose), atol=ATOL
    )


def test_affine_magnifies_about_the_centre(compiled):
    volume = noise((9, 9, 9))
    out = compiled(resample.affine)(volume, 2 * jnp.eye(3), jnp.zeros(3))
    np.testing.assert_allclose(out[4, 4, ::2], volume[4, 4, 2:7], atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_gradient_in_the_volume_is_the_adjoint(order, key):
    volume, cotangent, pose = noise((8, 9, 10)), noise((8, 9, 10), 1), some_pose()
    fn = functools.partial(resample.transform, pose=pose, order=order)
    moved, pull = jax.vjp(fn, volume)
    _, pushed = jax.jvp(fn, (volume,), (volume,))
    np.testing.assert_allclose(pushed, moved, atol=1e-5)  # linear
    np.testing.assert_allclose(
        jnp.vdot(moved, cotangent), jnp.vdot(volume, pull(cotangent)[0]), rtol=1e-4
    )


@pytest.mark.parametrize("num_planes", [39, 41])  # three slabs of 13 planes, 41 of one
@pytest.mark.parametrize("order", ORDERS)
def test_slabs_agree_with_scipy_and_are_the_adjoint(order, num_planes):
    shape = (num_planes, 40, 60)
    volumes, cotangents, pose = noise((2, *shape)), noise((2, *shape), 1), some_pose()
    assert volumes[0].size > _interpolation.SLAB
    move = jax.jit(jax.vmap(lambda volume: resample.transform(volume, pose, order=order)))
    moved, pull = jax.vjp(move, volumes)
    expected = [reference.transform(volume, *pose, order=order, fill=0.0) for volume in volumes]
    np.testing.assert_allclose(moved, expected, atol=5e-5)
    np.testing.assert_allclose(
        jnp.vdot(moved, cotangents), jnp.vdot(volumes, pull(cotangents)[0]), rtol=1e-3
    )


def test_adjoint_under_jit_is_exact_at_integer_positions():
    volume = noise((16, 16, 16))
    pull = jax.jit(lambda v, pose: jax.vjp(lambda v: resample.transform(v, pose), v)[1](v)[0])
    grid = np.moveaxis(np.indices((16, 16, 16)), 0, -1)[..., ::-1] - 8
    for axis, step in itertools.product(range(3), [-1e-6, 0.0, 1e-6]):
        pose = Pose(rotation.about_axis(axis, np.pi / 2), jnp.full(3, 2.0 + step))
        target = np.rint(grid @ np.asarray(quarter_turn(axis)).T).astype(int) + 2
        z, y, x = np.moveaxis(target[..., ::-1], -1, 0) + 8
        is_inside = np.all((target >= -8) & (target < 8), axis=-1)
        expected = np.where(is_inside, np.asarray(volume)[z % 16, y % 16, x % 16], 0.0)
        np.testing.assert_allclose(pull(volume, pose), expected, atol=ATOL)


@pytest.mark.parametrize("order", [1, 3])
def test_gradients_agree_with_finite_differences(order, x64):
    volume = jnp.asarray(noise((5, 6, 7)), jnp.float64)
    matrix = jnp.asarray(Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix())

    def moved(volume, matrix, shift, fill):
        return resample.affine(volume, matrix, shift, order=order, fill=fill)

    # No sample lies within 1e-5 of a grid plane, where trilinear interpolation has kinks.
    arguments = (volume, matrix, jnp.array([0.31, -0.17, 0.23]), jnp.array(0.4))
    check_grads(jax.jit(moved), arguments, order=1, modes=("fwd", "rev"), eps=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_boundary_gradients_agree_with_finite_differences(order, x64):
    volume = jnp.asarray(noise((4, 3, 5)), jnp.float64)
    matrix = jnp.asarray(Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix())

    def moved(volume, matrix, shift):
        move = functools.partial(resample.affine, volume, matrix, shift, order=order)
        return [move(boundary=boundary) for boundary in SCIPY_MODES]

    # The shift carries part of the volume across the border; no sample lies near a kink.
    arguments = (volume, matrix, jnp.array([1.31, -0.17, 2.23]))
    check_grads(jax.jit(moved), arguments, order=1, modes=("fwd", "rev"), eps=1e-6, rtol=1e-5)


def test_nearest_at_the_identity_has_one_sided_slopes_at_the_border():
    # x is linear: slope 1 inside; half of it at both borders, where the volume becomes constant.
    volume = jnp.broadcast_to(jnp.arange(5.0), (3, 3, 5))
    shift = functools.partial(resample.shift, volume, boundary="nearest")
    slopes = jax.jacfwd(shift)(jnp.zeros(3))[1, 1, :, 0]
    np.testing.assert_array_equal(slopes, [-0.5, -1, -1, -1, -0.5])


def test_second_derivatives_agree_with_finite_differences(x64):
    volume = jnp.asarray(noise((4, 4, 4)), jnp.float64)

    def energy(volume, shift):
        return jnp.sum(resample.shift(volume, shift) ** 2)

    arguments = (volume, jnp.array([0.3, -0.2, 0.4]))
    check_grads(jax.jit(energy), arguments, order=2, modes=("rev",), rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", ["constant", "noise"])
def test_gradients_are_finite_at_the_identity(order, value):
    volume = jnp.ones((6, 6, 6)) if value == "constant" else noise((6, 6, 6))
    gradient = jax.grad(lambda v, pose: jnp.sum(resample.transform(v, pose, order=order) ** 2))
    assert np.all(np.isfinite(gradient(volume, rotation.identity())))
    by_pose = jax.grad(lambda pose: jnp.sum(resample.transform(volume, pose, order=order) ** 2))(
        rotation.identity()
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in by_pose)


def test_order_0_has_no_gradient_in_the_pose():
    gradient = jax.grad(lambda t: jnp.sum(resample.shift(noise((5, 5, 5)), t, order=0)))
    np.testing.assert_array_equal(gradient(jnp.array([0.2, 0.1, 0.0])), 0.0)


def test_batches_agree_with_single_volumes():
    volumes = noise((3, 8, 8, 8))
    poses = [some_pose(seed) for seed in range(3)]
    batch = Pose(*(jnp.stack(leaves) for leaves in zip(*poses, strict=True)))

    def loss(volume, pose):
        return jnp.sum(jnp.sin(resample.transform(volume, pose)))

    together = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))(volumes, batch)
    for index, pose in enumerate(poses):
        alone = jax.value_and_grad(loss, (0, 1))(volumes[index], pose)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[index], b, rtol=1e-4, atol=1e-3)


def test_nan_pose_gives_nan_and_reads_no_foreign_memory():
    moved, pull = jax.vjp(lambda t: resample.shift(jnp.ones((4, 4, 4)), t), jnp.full(3, jnp.nan))
    assert np.all(np.isnan(moved))
    assert np.all(np.isnan(pull(moved)[0]))


def test_integer_volume_is_converted():
    volume = jnp.arange(27).reshape(3, 3, 3)
    np.testing.assert_array_equal(resample.transform(volume, rotation.identity()), volume)


@pytest.mark.parametrize("shape", SHAPES)
def test_fourier_shift_by_whole_voxels_is_a_roll(shape, compiled):
    volume = noise(shape)
    moved = compiled(resample.fourier_shift)(volume, jnp.array([1.0, -2.0, 3.0]))
    np.testing.assert_allclose(moved, np.roll(volume, (3, -2, 1), (0, 1, 2)), atol=1e-5)


def test_fourier_shift_of_a_wave_is_exact():
    x = np.arange(16)
    volume = jnp.asarray(np.broadcast_to(np.cos(2 * np.pi * 3 * x / 16), (4, 5, 16)), jnp.float32)
    moved = resample.fourier_shift(volume, jnp.array([0.37, 0.0, 0.0]))
    expected = np.broadcast_to(np.cos(2 * np.pi * 3 * (x - 0.37) / 16), (4, 5, 16))
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_fourier_shift_and_back_is_the_identity_for_an_odd_box():
    volume, distance = noise((9, 11, 13)), jnp.array([0.3, -1.7, 2.2])
    back = resample.fourier_shift(resample.fourier_shift(volume, distance), -distance)
    np.testing.assert_allclose(back, volume, atol=1e-5)


def test_fourier_shift_gradients_agree_with_finite_differences(x64):
    volume = jnp.asarray(noise((4, 5, 6)), jnp.float64)
    arguments = (volume, jnp.array([0.3, 0.2, -0.6]))
    check_grads(jax.jit(resample.fourier_shift), arguments, order=1, modes=("fwd", "rev"))


def test_spline_coefficients_interpolate_the_volume():
    volume = noise((6, 7, 8))
    coefficients = np.asarray(spline.spline_prefilter(volume))
    for axis in range(3):
        before, after = (np.roll(coefficients, step, axis) for step in (1, -1))
        coefficients = (before + 4 * coefficients + after) / 6
    margin = spline.SPLINE_MARGIN
    inside = tuple(slice(margin, margin + size) for size in volume.shape)
    np.testing.assert_allclose(coefficients[inside], volume, atol=1e-5)


@pytest.mark.parametrize("boundary", SCIPY_MODES)
def test_spline_coefficients_agree_with_a_wide_border(boundary, x64):
    volume = jnp.asarray(noise((6, 1, 8)), jnp.float64)
    mode = {"nearest": "edge", "wrap": "wrap"}[boundary]
    wide = spline.spline_prefilter(jnp.pad(volume, 30, mode=mode))
    inside = tuple(slice(30, size - 30) for size in wide.shape)
    coefficients = spline.spline_prefilter(volume, boundary=boundary)
    np.testing.assert_allclose(coefficients, wide[inside], atol=1e-9)  # pole^19 at the cut


def test_unknown_boundary_is_named_and_an_idle_fill_refused():
    volume, pose = jnp.zeros((3, 3, 3)), rotation.identity()
    with pytest.raises(ValueError, match=r"boundary must be one of .*'wrap'.*, got 'reflect'"):
        resample.transform(volume, pose, boundary="reflect")
    with pytest.raises(ValueError, match=r"boundary 'wrap' never shows it; got 0\.5"):
        resample.transform(volume, pose, boundary="wrap", fill=0.5)
    with pytest.raises(ValueError, match='"constant", "nearest" or "wrap", got \'mirror\''):
        spline.spline_prefilter(volume, boundary="mirror")


def test_unknown_order_is_named():
    with pytest.raises(ValueError, match="order must be 0, 1 or 3, got 2"):
        resample.transform(jnp.zeros((3, 3, 3)), rotation.identity(), order=2)


def test_batch_without_vmap_is_refused():
    with pytest.raises(ValueError, match=r"volume must be \(z, y, x\), got shape \(2, 3, 3, 3\)"):
        resample.transform(jnp.zeros((2, 3, 3, 3)), rotation.identity())
    with pytest.raises(ValueError, match=r"got \(2, 3, 3\) and \(3,\); vmap a batch"):
        resample.affine(jnp.zeros((3, 3, 3)), jnp.zeros((2, 3, 3)), jnp.zeros(3))
