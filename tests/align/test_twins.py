"""Near symmetry of a density is found, and named in the right direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align import bands, slices, twins
from jimjax.ops import resample, rotation
from jimjax.ops.rotation import Pose, compose

BOX = 20
BAND = bands.Band(BOX, 5.0)


def blobs(places, weights):
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    grid = np.stack([x, y, z], axis=-1)
    distance = np.linalg.norm(grid[None] - np.asarray(places)[:, None, None, None], axis=-1)
    parts = np.exp(-0.5 * (distance / 1.3) ** 2)
    return jnp.asarray(np.tensordot(weights, parts, 1), jnp.float32)


@pytest.fixture(scope="module")
def nearly_symmetric():
    """Three copies of two blobs, each a third of a turn about z further; one a little stronger."""
    third = np.asarray(rotation.about_axis(2, 2 * np.pi / 3))
    pair = np.array([[5.0, 0.0, 1.0], [3.0, 2.5, -2.0]])
    places = [*pair, *pair @ third.T, *pair @ third.T @ third.T]
    offset = np.array([1.0, 0.0, 0.5])  # the axis does not pass through the box centre
    return blobs(np.array(places) + offset, [1.1, 1.0, 1.0, 1.0, 1.0, 1.0]), third


def test_third_of_a_turn_is_found_both_ways(nearly_symmetric):
    volume, third = nearly_symmetric
    grids = slices.make_grids(volume[None], BAND)
    found = twins.find_twins(grids, BAND, num_twins=2, max_shift=3.0)
    assert found.similarity.shape == (1, 2)
    assert np.all(found.similarity > 0.93)
    wanted = {"forward": third, "backward": third.T}
    angles = [
        [float(rotation.geodesic_angle(own, each)) for each in wanted.values()]
        for own in found.poses.rotation[0]
    ]
    assert np.all(np.min(angles, axis=0) < np.deg2rad(2))  # the grid is 15 degrees apart


def test_twin_of_a_pose_gives_the_same_particle(nearly_symmetric):
    volume, _ = nearly_symmetric
    grids = slices.make_grids(volume[None], BAND)
    found = twins.find_twins(grids, BAND, num_twins=1, max_shift=3.0)
    twin = jax.tree.map(lambda field: field[0, 0], found.poses)
    own = Pose(rotation.random_rotation(jax.random.key(0)), jnp.array([1.0, -0.5, 0.3]))
    seen, other, turned = (
        resample.transform(volume, pose) for pose in (own, compose(own, twin), compose(twin, own))
    )
    correlation = [np.corrcoef(np.ravel(seen), np.ravel(each))[0, 1] for each in (other, turned)]
    assert correlation[0] > 0.7 > correlation[1] + 0.2


def test_density_without_twins_has_less_similar_ones():
    volume = blobs([[4, 0, 0], [0, 3, 0], [-2, -2, 4], [0, 0, -5]], [1.0, 2.0, 1.5, 0.7])
    grids = slices.make_grids(volume[None], BAND)
    found = twins.find_twins(grids, BAND, num_twins=2, max_shift=2.0)
    assert np.all(found.similarity < 0.9)
    for own in found.poses.rotation[0]:
        angle = float(rotation.geodesic_angle(own, jnp.eye(3)))
        assert angle > np.deg2rad(twins.SELF) - 1e-3
