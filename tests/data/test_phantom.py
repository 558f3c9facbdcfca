"""Phantoms: exact poses, equal mass and size, and shapes that no rotation makes alike."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from jimjax.data import phantom
from jimjax.ops.rotation import Pose

BOX = (32, 32, 32)
GRID = Rotation.random(2000, random_state=1).as_matrix()


def blob(center=(0.0, 0.0, 0.0), width=1.5, weight=10.0) -> phantom.Phantom:
    return phantom.Phantom(*(np.array([x], np.float32) for x in (center, width, weight)))


def best_correlation(first, second, rotations, tolerance=1e-4):
    """Largest correlation over rotations: a grid, then its five best points refined."""
    scores = phantom.overlap_correlation(first, second, rotations, 32**3)
    best = scores.max()
    for index in np.argsort(scores)[-5:]:
        start = rotations[index]

        def loss(vector, start=start):
            turned = Rotation.from_rotvec(vector).as_matrix() @ start
            return -phantom.overlap_correlation(first, second, turned[None], 32**3)[0]

        best = max(best, -minimize(loss, np.zeros(3), method="Nelder-Mead", tol=tolerance).fun)
    return best


def test_one_gaussian_peaks_at_the_box_centre_and_sums_to_its_weight():
    volume = phantom.render(blob(), (16, 17, 18))
    assert np.unravel_index(volume.argmax(), volume.shape) == (8, 8, 9)
    np.testing.assert_allclose(volume.max(), 10 / ((2 * np.pi) ** 1.5 * 1.5**3), rtol=1e-5)
    np.testing.assert_allclose(volume.sum(), 10, rtol=1e-4)  # tails at 5 widths are cut


def test_shift_along_x_moves_the_last_axis():
    pose = Pose(jnp.eye(3), jnp.array([3.0, 0.0, -2.0]))
    volume = phantom.render(blob(), (16, 16, 16), pose)
    assert np.unravel_index(volume.argmax(), volume.shape) == (6, 8, 11)


def test_quarter_turn_about_z_carries_x_to_y():
    about_z = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    volume = phantom.render(blob((4.0, 0.0, 0.0)), (16, 16, 16), Pose(about_z, jnp.zeros(3)))
    assert np.unravel_index(volume.argmax(), volume.shape) == (8, 12, 8)


def test_render_agrees_with_the_sum_written_as_a_loop(key):
    molecule = phantom.phantom(3, (14, 15, 16))
    rotation = Rotation.random(random_state=2).as_matrix()
    shift = np.array([0.3, -1.2, 0.7])
    z, y, x = np.indices((14, 15, 16)) - np.array([7, 7, 8])[:, None, None, None]
    expected = np.zeros((14, 15, 16))
    for center, width, weight in zip(*molecule, strict=True):
        cx, cy, cz = rotation @ center + shift
        squared = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2
        expected += weight / ((2 * np.pi) ** 1.5 * width**3) * np.exp(-squared / (2 * width**2))
    pose = Pose(jnp.asarray(rotation, jnp.float32), jnp.asarray(shift, jnp.float32))
    np.testing.assert_allclose(phantom.render(molecule, (14, 15, 16), pose), expected, atol=1e-5)


def test_render_is_the_same_compiled(compiled):
    molecule = phantom.phantom(0, (16, 16, 16))
    pose = Pose(jnp.asarray(GRID[0], jnp.float32), jnp.array([1.0, 0.5, -0.5]))
    turned = compiled(
        lambda rotation, shift: phantom.render(molecule, (16,) * 3, Pose(rotation, shift))
    )
    np.testing.assert_allclose(turned(*pose), phantom.render(molecule, (16,) * 3, pose), atol=1e-6)


def test_gradient_in_the_pose_is_right():
    molecule = phantom.phantom(0, (12, 12, 12))
    with jax.enable_x64(True):
        target = jnp.asarray(np.random.default_rng(0).normal(size=(12, 12, 12)))
        rotation = jnp.asarray(GRID[0])

        def score(rotation, shift):
            return jnp.sum(target * phantom.render(molecule, (12,) * 3, Pose(rotation, shift)))

        shift = jnp.array([0.2, -0.4, 0.1])
        check_grads(jax.jit(score), (rotation, shift), order=1, modes=("fwd", "rev"))


def test_overlap_correlation_is_that_of_rendered_volumes():
    first, second = phantom.demo_phantoms(2)
    volume = np.asarray(phantom.render(first, BOX))
    closed = phantom.overlap_correlation(first, second, GRID[:5], 32**3)
    for rotation, score in zip(GRID[:5], closed, strict=True):
        pose = Pose(jnp.asarray(rotation, jnp.float32), jnp.zeros(3))
        other = np.asarray(phantom.render(second, BOX, pose))
        np.testing.assert_allclose(
            np.corrcoef(volume.ravel(), other.ravel())[0, 1], score, atol=1e-4
        )


@pytest.mark.parametrize("index", range(4))
def test_no_rotation_maps_a_demo_phantom_onto_itself(index):
    molecule = phantom.demo_phantoms(4)[index]
    far = GRID[Rotation.from_matrix(GRID).magnitude() > np.deg2rad(60)]
    assert phantom.overlap_correlation(molecule, molecule, far, 32**3).max() < 0.85


@pytest.mark.parametrize("index", range(4))
def test_no_rotation_maps_a_demo_phantom_onto_its_mirror_image(index):
    molecule = phantom.demo_phantoms(4)[index]
    assert best_correlation(molecule, molecule, -GRID) < 0.88


@pytest.mark.parametrize("pair", list(itertools.combinations(range(4), 2)), ids=str)
def test_no_rotation_maps_a_demo_phantom_onto_another(pair):
    molecules = phantom.demo_phantoms(4)
    assert best_correlation(molecules[pair[0]], molecules[pair[1]], GRID) < 0.82


def test_the_symmetry_check_finds_a_mirror_image():
    molecule = phantom.demo_phantoms(1)[0]
    mirrored = molecule._replace(centers=molecule.centers * np.float32([1, 1, -1]))
    assert best_correlation(molecule, mirrored, -GRID) > 0.99


def test_demo_phantoms_share_weight_centre_and_radius_of_gyration():
    for centers, widths, weights in phantom.demo_phantoms(5, seed=7):
        share = weights / weights.sum()
        expected = phantom.MEAN_DENSITY * 4 / 3 * np.pi * phantom.RADIUS**3
        np.testing.assert_allclose(weights.sum(), expected, rtol=1e-5)
        np.testing.assert_allclose(share @ centers, np.zeros(3), atol=1e-5)
        squared = share @ ((centers**2).sum(1) + 3 * widths**2)
        np.testing.assert_allclose(np.sqrt(squared), phantom.RADIUS_OF_GYRATION, rtol=1e-5)
        assert (np.linalg.norm(centers, axis=1) + widths).max() < phantom.RADIUS + 1e-5


def test_phantom_scales_with_the_box():
    large, small = phantom.phantom(1, BOX), phantom.phantom(1, (16, 16, 16))
    np.testing.assert_allclose(small.centers * 2, large.centers, rtol=1e-6)
    np.testing.assert_allclose(small.widths * 2, large.widths, rtol=1e-6)


def test_same_seed_gives_the_same_molecules_and_more_classes_extend_fewer():
    fewer, more = phantom.demo_phantoms(2, seed=5), phantom.demo_phantoms(3, seed=5)
    for one, other in zip(fewer, more[:2], strict=True):
        np.testing.assert_array_equal(one.centers, other.centers)
    assert not np.array_equal(phantom.phantom(5).centers, phantom.phantom(6).centers)


def test_a_key_is_a_seed(key):
    np.testing.assert_array_equal(phantom.phantom(key).centers, phantom.phantom(key).centers)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: phantom.demo_phantoms(0), "num must be 1 or more, got 0"),
        (lambda: phantom.phantom(0, (4, 4, 4)), "at least 8 voxels"),
        (lambda: phantom.phantom(0, index=-1), "index must be 0 or more, got -1"),
    ],
)
def test_impossible_requests_say_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
