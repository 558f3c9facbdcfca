import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from jimjax.io import InputError, convert

ANGLES = st.floats(-360, 360, allow_nan=False)


def turn(axis, degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return about_z if axis == "z" else about_y


def test_rot_of_90_degrees_carries_x_to_y():
    R = convert.rotation_from_relion([[90.0, 0.0, 0.0]])[0]
    np.testing.assert_allclose(R @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_tilt_of_90_degrees_carries_z_to_x():
    R = convert.rotation_from_relion([[0.0, 90.0, 0.0]])[0]
    np.testing.assert_allclose(R @ [0, 0, 1], [1, 0, 0], atol=1e-12)


def test_psi_turns_the_reference_first_and_rot_last():
    R = convert.rotation_from_relion([[30.0, 50.0, 70.0]])[0]
    np.testing.assert_allclose(R, turn("z", 30) @ turn("y", 50) @ turn("z", 70), atol=1e-12)


def test_angles_agree_with_scipys_extrinsic_dynamo_angles():
    R = convert.rotation_from_relion([[30.0, 50.0, 70.0]])[0]
    np.testing.assert_allclose(
        Rotation.from_matrix(R).as_euler("zxz", degrees=True), [-20, 50, 120], atol=1e-10
    )


@given(st.lists(st.tuples(ANGLES, ANGLES, ANGLES), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None, database=None)
def test_angles_of_a_rotation_give_the_rotation_back(angles):
    R = convert.rotation_from_relion(angles)
    again = convert.rotation_from_relion(convert.relion_from_rotation(R))
    np.testing.assert_allclose(again, R, atol=3e-6)  # 1e-6 is the pole's radius


@pytest.mark.parametrize("tilt", [0.0, 1e-7, 1e-5, 1e-3, 180.0 - 1e-5, 180.0])
def test_angles_near_the_poles_give_a_float32_rotation_back(tilt):
    R = convert.rotation_from_relion([[37.0, tilt, -110.0]]).astype(np.float32)
    again = convert.rotation_from_relion(convert.relion_from_rotation(R))
    np.testing.assert_allclose(again, R, atol=2e-6)  # float32 and the pole's radius


def test_angles_within_their_range_come_back_themselves():
    angles = np.array([[30.0, 50.0, 70.0], [-170.0, 100.0, 179.0]])
    again = convert.relion_from_rotation(convert.rotation_from_relion(angles))
    np.testing.assert_allclose(again, angles, atol=1e-10)


def test_at_tilt_zero_the_whole_turn_is_psi():
    R = convert.rotation_from_relion([[20.0, 0.0, 30.0]])
    np.testing.assert_allclose(convert.relion_from_rotation(R), [[0, 0, 50]], atol=1e-10)


def test_origin_is_minus_the_displacement_in_angstrom():
    np.testing.assert_array_equal(
        convert.shift_from_relion([[12.0, -6.0, 0.0]], 4.0), [[-3.0, 1.5, 0.0]]
    )


def test_shift_to_origin_and_back_is_identity():
    shifts = np.array([[1.25, -3.5, 0.125]])
    origins = convert.relion_from_shift(shifts, 7.5)
    np.testing.assert_allclose(convert.shift_from_relion(origins, 7.5), shifts, atol=1e-12)


def test_no_particles_give_no_rotations():
    assert convert.rotation_from_relion(np.zeros((0, 3))).shape == (0, 3, 3)
    assert convert.relion_from_rotation(np.zeros((0, 3, 3))).shape == (0, 3)


def test_angles_of_wrong_shape_are_refused():
    with pytest.raises(InputError, match=r"angles must have shape \(n, 3\), got \(3,\)"):
        convert.rotation_from_relion([1.0, 2.0, 3.0])


def test_angle_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match=r"angles\[1\] is not finite"):
        convert.rotation_from_relion([[0, 0, 0], [0, np.nan, 0]])


@pytest.mark.parametrize("matrix", [np.diag([1, 1, -1]), 2 * np.eye(3), np.zeros((3, 3))])
def test_matrix_that_is_no_rotation_is_refused(matrix):
    with pytest.raises(InputError, match=r"rotations\[0\] is no rotation matrix"):
        convert.relion_from_rotation(matrix[None])


@pytest.mark.parametrize("voxel_size", [0.0, -1.0, np.nan, np.inf])
def test_voxel_size_that_is_not_positive_is_refused(voxel_size):
    with pytest.raises(InputError, match="voxel_size must be positive"):
        convert.shift_from_relion([[0, 0, 0]], voxel_size)
