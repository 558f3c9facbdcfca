"""Wedge masks against angles on the full spectrum, their symmetry, and imputation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from jimjax.ops import fourier, resample, rotation, wedge

SHAPES = [(16, 16, 16), (15, 15, 15), (8, 9, 12)]
RANGES = [(-60.0, 60.0), (-50.0, 70.0), (-45.0, 45.0), (0.0, 90.0), (10.0, 30.0)]
ROTATIONS = {
    "identity": np.eye(3),
    "quarter turn": Rotation.from_euler("y", 90, degrees=True).as_matrix(),
    "random": Rotation.random(rng=np.random.default_rng(3)).as_matrix(),
}


def noise(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def some_rotation() -> jax.Array:
    return jnp.asarray(ROTATIONS["random"], jnp.float32)


def test_beam_direction_is_missing_and_the_tilt_axis_measured(compiled):
    mask = compiled(functools.partial(wedge.wedge_mask, (9, 9, 9)))(jnp.array([-60.0, 60.0]))
    np.testing.assert_array_equal(mask[:, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(mask[0], 1)  # kz = 0: the untilted projection


def test_tilt_sign_follows_atan2_of_kz_over_kx():
    mask = wedge.wedge_mask((9, 9, 9), (20.0, 70.0))
    assert mask[1, 0, 1] == 1  # 45 degrees
    assert mask[-1, 0, 1] == 0  # -45 degrees


@pytest.mark.parametrize("matrix", ROTATIONS.values(), ids=ROTATIONS)
@pytest.mark.parametrize("tilt_range", RANGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_agrees_with_angles_on_the_full_spectrum(shape, tilt_range, matrix):
    mask = wedge.wedge_mask(shape, tilt_range, rotation=jnp.asarray(matrix, jnp.float32))
    expected = reference.wedge_mask(shape, tilt_range, rotation=matrix)
    np.testing.assert_array_equal(reference.full(np.asarray(mask), shape), expected)


def test_mask_under_jit_and_vmap_is_the_same(compiled):
    build = compiled(lambda tilts, matrix: wedge.wedge_mask((8, 9, 12), tilts, rotation=matrix))
    expected = reference.wedge_mask((8, 9, 12), (-50, 70), rotation=some_rotation())
    np.testing.assert_array_equal(
        build(jnp.array([-50.0, 70.0]), some_rotation()), reference.half(expected)
    )


def test_wedge_of_60_degrees_keeps_the_known_share_of_a_32_box():
    share = fourier.hermitian_weights((32, 32, 32)) * wedge.wedge_mask((32, 32, 32), (-60, 60))
    assert share.sum() / 32**3 == pytest.approx(0.710, abs=5e-4)


@pytest.mark.parametrize("soft", [0.0, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_full_tilt_range_is_all_ones(shape, soft):
    for seed in range(5):
        matrix = rotation.random_rotation(jax.random.key(seed))
        mask = wedge.wedge_mask(shape, (-90.0, 90.0), rotation=matrix, soft=soft)
        np.testing.assert_array_equal(mask, 1)


@pytest.mark.parametrize("soft", [0.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_self_conjugate_planes_are_bitwise_symmetric(shape, soft):
    planes = [0, shape[2] // 2] if shape[2] % 2 == 0 else [0]
    for seed in range(5):
        matrix = rotation.random_rotation(jax.random.key(seed))
        mask = np.asarray(wedge.wedge_mask(shape, (-50, 70), rotation=matrix, soft=soft))
        for x in planes:
            mirrored = np.roll(mask[::-1, ::-1, x], 1, axis=(0, 1))
            np.testing.assert_array_equal(mask[:, :, x], mirrored)


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_volume_agrees_with_the_full_spectrum_and_is_real(shape, compiled):
    volume, mask = noise(shape), wedge.wedge_mask(shape, (-50, 70), rotation=some_rotation())
    expected = reference.apply_full_mask(
        np.asarray(volume, float), reference.full(np.asarray(mask), shape)
    )
    np.testing.assert_allclose(expected.imag, 0, atol=1e-12)
    np.testing.assert_allclose(compiled(wedge.apply_mask)(volume, mask), expected.real, atol=1e-5)


def test_masking_twice_is_masking_once():
    mask = wedge.wedge_mask((8, 9, 12), (-50, 70), rotation=some_rotation())
    once = wedge.apply_mask(noise((8, 9, 12)), mask)
    np.testing.assert_allclose(wedge.apply_mask(once, mask), once, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mask_turns_with_the_volume(axis):
    """Rotating a masked volume is masking the rotated one with the rotated mask."""
    turn = jnp.round(rotation.about_axis(axis, np.pi / 2))
    volume, shape = noise((15, 15, 15)), (15, 15, 15)
    masked = wedge.apply_mask(volume, wedge.wedge_mask(shape, (-40, 60)))
    turned_mask = wedge.wedge_mask(shape, (-40, 60), rotation=turn)
    expected = wedge.apply_mask(resample.rotate(volume, turn), turned_mask)
    np.testing.assert_allclose(resample.rotate(masked, turn), expected, atol=1e-5)


def test_soft_edge_is_half_at_half_its_width():
    # Frequency (1, 1) is at 45 degrees; the edge runs from 40 to 50.
    mask = wedge.wedge_mask((9, 9, 9), (-40.0, 40.0), soft=10.0)
    assert mask[1, 0, 1] == pytest.approx(0.5, abs=1e-5)
    assert mask[0, 0, 1] == 1
    assert mask[1, 0, 0] == 0


def test_soft_mask_is_never_below_the_hard_one():
    hard = wedge.wedge_mask((8, 9, 12), (-50, 70), rotation=some_rotation())
    soft = wedge.wedge_mask((8, 9, 12), (-50, 70), rotation=some_rotation(), soft=8.0)
    assert np.all(soft >= hard)
    assert np.any((soft > 0.01) & (soft < 0.99))


@pytest.mark.parametrize("soft", [0.0, 5.0])
def test_gradients_are_finite_on_the_tilt_axis_and_at_the_origin(soft):
    def total(tilts, matrix):
        return jnp.sum(wedge.wedge_mask((8, 8, 8), tilts, rotation=matrix, soft=soft))

    for tilts in ([-60.0, 60.0], [-90.0, 90.0]):
        for gradient in jax.grad(total, (0, 1))(jnp.array(tilts), jnp.eye(3)):
            assert np.all(np.isfinite(gradient))


def test_soft_mask_gradients_agree_with_finite_differences(x64):
    def build(tilts, matrix):
        return wedge.wedge_mask((4, 5, 5), tilts, rotation=matrix, soft=30.0)

    matrix = jnp.asarray(ROTATIONS["random"])
    arguments = (jnp.array([-31.0, 42.0]), matrix)
    check_grads(jax.jit(build), arguments, order=1, modes=("fwd", "rev"), eps=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_dual_axis_mask_is_the_union(shape):
    mask = wedge.dual_axis_mask(shape, (-60, 50), (-40, 60), rotation=some_rotation())
    about_y = reference.wedge_mask(shape, (-60, 50), rotation=some_rotation())
    about_x = reference.wedge_mask(shape, (-40, 60), rotation=some_rotation(), tilt_axis="x")
    np.testing.assert_array_equal(mask, reference.half(np.maximum(about_y, about_x)))


def test_impute_fills_only_what_is_missing(compiled):
    shape = (8, 9, 12)
    volume, other = noise(shape), noise(shape, 1)
    own = wedge.wedge_mask(shape, (-60, 60))
    theirs = wedge.wedge_mask(shape, (-60, 60), rotation=some_rotation())
    filled = np.fft.rfftn(compiled(wedge.impute)(volume, own, other, theirs))
    has_own, has_theirs = np.asarray(own) == 1, np.asarray(theirs) == 1
    assert (~has_own & has_theirs).sum() > 10
    for region, source in [
        (has_own, np.fft.rfftn(volume)),
        (~has_own & has_theirs, np.fft.rfftn(other)),
        (~has_own & ~has_theirs, np.zeros(own.shape)),
    ]:
        np.testing.assert_allclose(filled[region], source[region], atol=1e-3)


def test_imputing_a_volume_with_itself_changes_nothing_when_all_is_measured():
    volume, mask = noise((9, 9, 9)), wedge.wedge_mask((9, 9, 9), (-60, 60))
    filled = wedge.impute(volume, mask, volume, jnp.ones_like(mask))
    np.testing.assert_allclose(filled, volume, atol=1e-5)


def test_errors_say_what_was_wanted():
    with pytest.raises(
        ValueError, match=r"tilt_range must be \(lowest, highest\), got shape \(3,\)"
    ):
        wedge.wedge_mask((8, 8, 8), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"rotation must be \(3, 3\), got \(2, 3, 3\)"):
        wedge.wedge_mask((8, 8, 8), (-60, 60), rotation=jnp.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"half spectrum \(8, 8, 5\), got \(8, 8, 8\)"):
        wedge.apply_mask(jnp.zeros((8, 8, 8)), jnp.zeros((8, 8, 8)))
    mask = jnp.ones((8, 8, 5))
    with pytest.raises(ValueError, match=r"other must have volume's shape .* got \(8, 8, 9\)"):
        wedge.impute(jnp.zeros((8, 8, 8)), mask, jnp.zeros((8, 8, 9)), mask)
