"""One pose climbs: what it reaches, what it never does, and what says no."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jimjax.data.phantom import phantom, render
from jimjax.ops import resample, rotation, wedge
from jimjax.ops.correlation import constrained_correlation
from jimjax.ops.fast_accurate import fast_accurate_matching
from jimjax.ops.fourier import bandpass_mask
from jimjax.ops.refinement import refine_pose
from jimjax.ops.rotation import Pose

BOX = (16, 16, 16)
TILTS = jnp.array([-60.0, 60.0])
MAX_DEGREE = 10
_refine = functools.partial(refine_pose, volume_wedge=TILTS, cutoff=0.35, num_steps=10)
_match = functools.partial(
    fast_accurate_matching,
    volume_wedge=TILTS,
    max_shift=3,
    cutoff=0.35,
    max_degree=MAX_DEGREE,
    num_bands=2,
    num_kept=2,
)


@pytest.fixture(scope="module")
def pair():
    """A template, a volume with a wedge that shows it in a pose, and the pose."""
    pose = Pose(rotation.random_rotation(jax.random.key(3)), jnp.array([1.3, -0.6, 0.8]))
    molecule = phantom(5, BOX)
    volume = wedge.apply_mask(render(molecule, BOX, pose), wedge.wedge_mask(BOX, TILTS))
    return render(molecule, BOX), volume, pose


def off(pose, *, degrees, voxels):
    turn = rotation.from_rotation_vector(jnp.deg2rad(degrees) * jnp.array([0.6, -0.48, 0.64]))
    return Pose(turn @ pose.rotation, pose.shift + voxels * jnp.array([0.6, 0.64, -0.48]))


def errors(found, pose):
    angle = rotation.geodesic_angle(found.rotation, pose.rotation)
    return float(jnp.rad2deg(angle)), float(jnp.linalg.norm(found.shift - pose.shift))


def test_true_pose_is_reached(pair, compiled):
    template, volume, pose = pair
    found = compiled(_refine)(template, volume, off(pose, degrees=8, voxels=1))
    angle, moved = errors(found.pose, pose)
    assert angle < 1
    assert moved < 0.1
    assert found.score > 0.98


def test_wedge_of_the_template_turns_with_it(pair):
    template, volume, pose = pair
    template = wedge.apply_mask(template, wedge.wedge_mask(BOX, TILTS))
    begin = off(pose, degrees=20, voxels=1)
    found = _refine(template, volume, begin, template_wedge=TILTS)
    assert errors(found.pose, pose)[0] < 4
    assert found.score > 0.9


def test_score_is_the_constrained_correlation_of_the_moved_template(pair):
    template, volume, pose = pair
    pose = off(pose, degrees=5, voxels=0.5)
    found = _refine(template, volume, pose, num_steps=0)
    mask = bandpass_mask(BOX, high=0.35) * wedge.wedge_mask(BOX, TILTS)
    moved = resample.transform(template, pose, order=3)
    # Both interpolate: splines in space, lines in the spectrum.
    assert float(found.score) == pytest.approx(
        float(constrained_correlation(volume, moved, mask)), abs=0.02
    )
    np.testing.assert_array_equal(found.pose.rotation, pose.rotation)


def test_no_step_lowers_the_score(pair):
    template, volume, pose = pair
    noise = jax.random.normal(jax.random.key(0), (2, *BOX)) * 2 * volume.std()
    begin = off(pose, degrees=15, voxels=1.5)
    scores = [
        float(_refine(template + noise[0], volume + noise[1], begin, num_steps=steps).score)
        for steps in (0, 1, 4)
    ]
    assert scores[0] < scores[1] < scores[2]


def test_contrast_does_not_matter(pair):
    template, volume, pose = pair
    begin = off(pose, degrees=5, voxels=0.5)
    found = _refine(template, volume, begin)
    again = _refine(30 * template + 2, 0.01 * volume - 1, begin)
    np.testing.assert_allclose(again.pose.rotation, found.pose.rotation, atol=1e-3)
    np.testing.assert_allclose(again.pose.shift, found.pose.shift, atol=2e-3)


def test_constant_volume_leaves_the_pose(pair):
    template, _, pose = pair
    found = _refine(template, jnp.full(BOX, 7.0), pose)
    assert found.score == 0
    np.testing.assert_allclose(found.pose.rotation, pose.rotation, atol=1e-6)


def test_score_has_gradients(x64):
    keys = jax.random.split(jax.random.key(1), 2)
    volumes = [jax.random.normal(key, (6, 6, 6)) for key in keys]
    pose = Pose(rotation.about_axis(0, 0.3), jnp.array([0.2, 0.0, -0.1]))

    def score(a, b):
        return refine_pose(a, b, pose, template_wedge=TILTS, num_steps=0).score

    check_grads(score, tuple(volumes), order=1, modes=("fwd", "rev"))


def test_fast_accurate_matching_is_finer_than_its_grid(pair, compiled):
    template, volume, pose = pair
    found = compiled(functools.partial(_match, num_best=2))(template, volume)
    angle, moved = errors(Pose(*(field[0] for field in found.pose)), pose)
    assert angle < 2  # of 16 degrees between rotations of the grid
    assert moved < 0.15
    assert found.score[0] > found.score[1]
    assert errors(Pose(*(field[1] for field in found.pose)), pose)[0] > 16


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (_refine, {"cutoff": 0.6}, "cutoff must be in"),
        (_refine, {"num_steps": -1}, "num_steps must be 0 or more, got -1"),
        (_refine, {"pose": Pose(jnp.eye(3)[None], jnp.zeros((1, 3)))}, "pose must be of"),
        (_refine, {"template": jnp.ones((8, 8, 8))}, "crop or pad it first"),
        (_match, {"num_bands": 0}, "num_bands must be 1 or more, got 0"),
        (_match, {"num_best": 3}, "num_kept must be at least num_best = 3, got 2"),
    ],
)
def test_mistakes_are_said(pair, function, options, message):
    template, volume, pose = pair
    given = {"template": template, "volume": volume}
    if function is _refine:
        given["pose"] = pose
    with pytest.raises(ValueError, match=message):
        function(**given | options)
