"""The principal frame: found alike in moved copies, never in a mirror image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.data.phantom import Phantom, demo_phantoms, render
from jimjax.ops.principal_axes import normalize_pose, principal_pose
from jimjax.ops.rotation import Pose, random_rotation

SHAPE = (24,) * 3
# Three blobs along x, the heaviest on the negative side, and a light one towards +y: mass is
# skewed to +x and +y.
ELONGATED = Phantom(
    np.float32([[-1, -0.2, 0], [5, -0.2, 0], [-2, -0.2, 0], [-1, 2.5, 0.0]]),
    np.float32([1.5, 1.5, 1.5, 1.5]),
    np.float32([3, 1, 2, 0.8]),
)


@pytest.fixture(scope="module")
def normalized():
    return jax.jit(jax.vmap(normalize_pose))


def poses(num):
    keys = jax.random.split(jax.random.key(1), num)
    shifts = jax.random.uniform(jax.random.key(2), (num, 3), minval=-2, maxval=2)
    return Pose(jax.vmap(random_rotation)(keys), shifts)


def correlations(first, second):
    size = len(first)
    rows = np.concatenate([np.reshape(first, (size, -1)), np.reshape(second, (len(second), -1))])
    return np.corrcoef(rows)[:size, size:]


@pytest.mark.parametrize("index", range(3))
def test_moved_copies_become_one_volume_and_mirror_images_another(index, normalized):
    molecule = demo_phantoms(3, shape=SHAPE)[index]
    moved = jax.vmap(lambda pose: render(molecule, SHAPE, pose))(poses(6))
    found, mirrored = normalized(moved), normalized(moved[:, :, ::-1])
    assert correlations(found, found).min() > 0.97
    assert correlations(mirrored, mirrored).min() > 0.97
    assert correlations(found, mirrored).max() < 0.8


def test_pose_of_an_elongated_density_is_the_one_it_was_given(compiled):
    turned = Pose(random_rotation(jax.random.key(3)), jnp.array([1.0, -2.0, 0.5]))
    at_rest = compiled(principal_pose)(render(ELONGATED, SHAPE))
    np.testing.assert_allclose(at_rest.rotation, np.eye(3), atol=0.05)
    found = compiled(principal_pose)(render(ELONGATED, SHAPE, turned))
    # The grid is seen under another angle: the level cuts other voxels.
    np.testing.assert_allclose(found.rotation, turned.rotation @ at_rest.rotation, atol=0.05)
    center = turned.rotation @ at_rest.shift + turned.shift
    np.testing.assert_allclose(found.shift, center, atol=0.1)


def test_long_axis_lies_along_x_and_mass_in_the_centre(compiled):
    moved = render(ELONGATED, SHAPE, Pose(poses(1).rotation[0], jnp.array([2.0, 1.0, -2.0])))
    again = compiled(lambda volume: principal_pose(normalize_pose(volume)))(moved)
    np.testing.assert_allclose(again.rotation, np.eye(3), atol=0.05)
    np.testing.assert_allclose(again.shift, 0, atol=0.1)


def test_noise_shifts_the_centre_little(compiled):
    shift = jnp.array([3.0, -2.0, 1.0])
    clean = render(demo_phantoms(1)[0], (32,) * 3, Pose(jnp.eye(3), shift))
    noise = jnp.std(clean) * jnp.sqrt(10.0) * jax.random.normal(jax.random.key(4), clean.shape)
    found = compiled(principal_pose)(clean + noise)
    np.testing.assert_allclose(found.shift, compiled(principal_pose)(clean).shift, atol=1.5)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_constant_volume_stays_where_it_is(value, compiled):
    volume = jnp.full(SHAPE, value)
    pose = compiled(principal_pose)(volume)
    np.testing.assert_array_equal(pose.rotation, np.eye(3))
    np.testing.assert_array_equal(pose.shift, 0)
    np.testing.assert_allclose(compiled(normalize_pose)(volume), volume, rtol=1e-6)


def test_gradient_takes_the_pose_as_given(compiled):
    volume = render(ELONGATED, SHAPE, Pose(poses(1).rotation[0], jnp.zeros(3)))
    gradient = compiled(jax.grad(lambda v: jnp.sum(normalize_pose(v) ** 2)))(volume)
    assert np.isfinite(gradient).all()
    assert np.any(gradient != 0)


def test_batch_is_an_error():
    with pytest.raises(ValueError, match=r"volume must be \(z, y, x\)"):
        principal_pose(jnp.ones((2, *SHAPE)))
