"""Conventions and grids beside those of other packages, where they are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax import ops

ANGLES = [(30.0, 50.0, 70.0), (-120.0, 10.0, 200.0), (0.0, 90.0, 0.0)]


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11)])
def test_frequencies_are_those_of_cryojax(shape):
    ndimage = pytest.importorskip("cryojax.ndimage")
    theirs = ndimage.make_frequency_grid(shape, outputs_rfftfreqs=True)
    # The sign of a Nyquist frequency is a matter of taste.
    np.testing.assert_allclose(_positive(ops.frequencies(shape)), _positive(theirs), atol=1e-7)


def _positive(frequencies):
    return np.where(np.isclose(np.abs(frequencies), 0.5), 0.5, frequencies)


@pytest.mark.parametrize("angles", ANGLES)
def test_pose_of_cryojax_with_negative_angles_holds_the_transpose(angles):
    simulator = pytest.importorskip("cryojax.simulator")
    phi, theta, psi = (-angle for angle in angles)
    pose = simulator.EulerAnglePose(phi_angle=phi, theta_angle=theta, psi_angle=psi)
    ours = ops.from_zyz(jnp.deg2rad(jnp.array(angles)))
    np.testing.assert_allclose(pose.rotation.as_matrix(), ours.T, atol=1e-5)


@pytest.mark.parametrize("angles", ANGLES)
def test_angles_are_those_of_scipy(angles):
    theirs = Rotation.from_euler("ZYZ", angles, degrees=True)
    ours = ops.from_zyz(jnp.deg2rad(jnp.array(angles)))
    np.testing.assert_allclose(ours, theirs.as_matrix(), atol=1e-6)
    scipy_last = np.roll(np.asarray(ops.to_quaternion(ours)), -1)  # (x, y, z, w)
    np.testing.assert_allclose(np.abs(scipy_last @ theirs.as_quat()), 1, atol=1e-6)
    np.testing.assert_allclose(
        Rotation.from_rotvec(ops.to_rotation_vector(ours)).as_matrix(), ours, atol=1e-6
    )


@pytest.mark.parametrize("group", ["C1", "C3"])
def test_directions_of_the_grid_fill_the_pixels_of_healpix_alike(group):
    healpy = pytest.importorskip("healpy")
    grid = np.asarray(ops.rotation_grid(0.15, group=group))
    # Where rotations carry z, and what they carry to z; only the first is free of the group.
    pixels = healpy.vec2pix(2, *grid[:, :, 2].T)
    counts = np.bincount(pixels, minlength=48)
    expected = len(grid) / 48
    assert np.all(np.abs(counts - expected) < 0.1 * expected)


def test_random_directions_fill_the_pixels_of_healpix_alike():
    healpy = pytest.importorskip("healpy")
    turns = jax.vmap(ops.random_rotation)(jax.random.split(jax.random.key(0), 4800))
    for vectors in (turns[:, :, 2], turns[:, 2], turns[:, :, 0]):
        counts = np.bincount(healpy.vec2pix(2, *np.asarray(vectors).T), minlength=48)
        # 100 expected in each; the chi-square of 47 degrees of freedom exceeds 83 once in 1000.
        assert np.sum((counts - 100) ** 2 / 100) < 83
