"""Fast rotational matching against scipy's harmonics, its laws, and poses that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from jimjax.data.phantom import phantom, render
from jimjax.ops import rotation, wedge
from jimjax.ops.rotation import Pose
from jimjax.ops.rotational_matching import (
    fast_rotational_matching,
    matching_grid,
    rotational_correlation,
)
from jimjax.ops.search import search_rotations

TILTS = jnp.array([-60.0, 60.0])
BOX = (16, 16, 16)
MAX_DEGREE = 10
SPACING = 180 / (MAX_DEGREE + 1)  # degrees
SMALL_BOX = (7, 7, 7)
SMALL_DEGREE = 4
SIZE = 2 * (SMALL_DEGREE + 1)

_correlate = functools.partial(
    rotational_correlation, max_degree=SMALL_DEGREE, template_wedge=TILTS, volume_wedge=TILTS
)


def _match(template, volume, *, tilts=TILTS, num_best=1):
    return fast_rotational_matching(
        template,
        volume,
        max_shift=3,
        template_wedge=tilts,
        volume_wedge=tilts,
        cutoff=0.4,
        max_degree=MAX_DEGREE,
        num_candidates=16,
        num_best=num_best,
    )


def _pair(seed, *, noise=0.0, tilts=(-90.0, 90.0)):
    """A template, a volume that shows it in a random pose, and the pose."""
    key_turn, key_shift, *keys = jax.random.split(jax.random.key(seed), 4)
    shift = jax.random.uniform(key_shift, (3,), minval=-2.0, maxval=2.0)
    pose = Pose(rotation.random_rotation(key_turn), shift)
    molecule, tilts = phantom(seed, BOX), jnp.asarray(tilts)
    template = _observe(keys[0], molecule, rotation.identity(), noise, tilts)
    return template, _observe(keys[1], molecule, pose, noise, tilts), pose


@jax.jit
def _observe(key, molecule, pose, noise, tilts):
    volume = render(molecule, BOX, pose)
    volume = volume + noise * volume.std() * jax.random.normal(key, BOX)
    return wedge.apply_mask(volume, wedge.wedge_mask(BOX, tilts))


def _volumes():
    return jax.random.normal(jax.random.key(1), (2, *SMALL_BOX))


def _angle(a, b):
    return float(jnp.rad2deg(rotation.geodesic_angle(a, b)))


class _SlowSphere:
    """Quadrature on half a sphere, as fine as the tested one: functions are not band-limited."""

    def __init__(self, degree):
        cosines, weights = np.polynomial.legendre.leggauss(2 * (degree + 1))
        azimuths = 2 * np.pi * np.arange(4 * (degree + 1)) / (4 * (degree + 1))
        polar, self.azimuth = np.meshgrid(np.arccos(cosines), azimuths, indexing="ij")
        self.polar, self.degree = polar, degree
        self.weights = weights[:, None] * 2 * np.pi / len(azimuths) * np.ones_like(polar)
        self.points = self._cartesian(polar, self.azimuth)

    @staticmethod
    def _cartesian(polar, azimuth):
        flat = np.sin(polar)
        return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.cos(polar)], -1)

    def smooth(self, values, turn):
        """Cuts a function off after the highest degree and turns it."""
        points = self.points @ turn  # R^T u
        polar, azimuth = np.arccos(points[..., 2]), np.arctan2(points[..., 1], points[..., 0])
        total = 0
        for degree in range(self.degree + 1):
            for order in range(-degree, degree + 1):
                own = sph_harm_y(degree, order, self.polar, self.azimuth)
                coefficient = np.sum(self.weights * values * own.conj())
                total = total + coefficient * sph_harm_y(degree, order, polar, azimuth)
        return total.real


def _slow_functions(volume, directions):
    """A M^2, A^2 M^2 and M^2 on shells, from whole padded spectra."""
    volume = np.asarray(volume, np.float64)
    side = volume.shape[0]
    spectrum = np.abs(np.fft.fftn(volume - volume.mean(), (2 * side,) * 3, (0, 1, 2)))
    kz, _, kx = np.meshgrid(*(np.fft.fftfreq(2 * side),) * 3, indexing="ij")
    limit = np.tan(np.deg2rad(60))
    mask = (np.abs(kz) <= limit * np.abs(kx)) & (np.abs(kz) < 0.5)  # +-0.5 is one coefficient
    mask |= (np.abs(kz) == 0.5) & (np.abs(kx) >= 0.5 / limit)
    shells = []
    for radius in range(1, side // 2 + 1):
        position = 2 * radius * np.moveaxis(directions[..., ::-1], -1, 0)
        magnitude, measured = (
            ndimage.map_coordinates(array.astype(float), position, order=1, mode="grid-wrap")
            for array in (spectrum, mask)
        )
        squared = measured**2
        shells.append([magnitude * squared, magnitude**2 * squared, squared])
    return np.array(shells)


def _slow_score(template, volume, turn):
    sphere = _SlowSphere(SMALL_DEGREE)
    own, turned = (_slow_functions(v, sphere.points) for v in (volume, template))
    sums = np.zeros(3)
    for shell in range(len(own)):
        for term, (first, second) in enumerate([(0, 0), (1, 2), (2, 1)]):
            here = sphere.smooth(own[shell, first], np.eye(3))
            there = sphere.smooth(turned[shell, second], turn)
            sums[term] += (shell + 1) ** 2 * np.sum(sphere.weights * here * there)
    return sums[0] / np.sqrt(sums[1] * sums[2])


def test_round_particle_scores_one_in_every_orientation():
    z, y, x = np.indices(BOX) - 8
    ball = jnp.asarray(np.exp(-(x**2 + y**2 + z**2) / 4.0), jnp.float32)
    scores = rotational_correlation(ball, 3 * ball, max_degree=SMALL_DEGREE, cutoff=0.3)
    np.testing.assert_allclose(scores, 1, atol=0.01)  # the corners of the box are not round


@pytest.mark.parametrize("place", [(0, 0, 0), (3, 2, 7), (9, 5, 1), (4, 4, 0)])
def test_agrees_with_scipy(place):
    template, volume = _volumes()
    turn = np.asarray(matching_grid(SMALL_DEGREE)[place], np.float64)
    score = _correlate(template, volume)[place]
    np.testing.assert_allclose(score, _slow_score(template, volume, turn), atol=2e-5)


def test_compiled_and_batched_scores_are_the_same(compiled):
    scores = compiled(_correlate)(*_volumes())
    assert scores.shape == (SIZE, SIZE // 2 + 1, SIZE)
    template, volume = _volumes()
    np.testing.assert_allclose(scores, _correlate(template, volume), atol=1e-5)


def test_grid_is_that_of_scipy():
    grid = matching_grid(SMALL_DEGREE)
    assert grid.shape == (SIZE, SIZE // 2 + 1, SIZE, 3, 3)
    expected = Rotation.from_euler("ZYZ", [36 * 3, 36 * 2, 36 * 9], degrees=True).as_matrix()
    np.testing.assert_allclose(grid[3, 2, 9], expected, atol=1e-6)


def test_half_turn_of_the_template_moves_the_scores():
    # About z, where an odd box turns exactly: R becomes R Rz(180).
    template, volume = _volumes()
    turned = _correlate(template[:, ::-1, ::-1], volume)
    expected = jnp.roll(_correlate(template, volume), -SIZE // 2, axis=2)
    np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_swapping_the_volumes_inverts_the_rotations():
    template, volume = _volumes()
    swapped = _correlate(volume, template)
    rot, tilt, psi = np.indices(swapped.shape)
    # (Rz(a) Ry(b) Rz(c))^T = Rz(180 - c) Ry(b) Rz(180 - a) up to full turns
    inverse = (SIZE // 2 - psi) % SIZE, tilt, (SIZE // 2 - rot) % SIZE
    np.testing.assert_allclose(swapped, _correlate(template, volume)[inverse], atol=1e-5)


def test_shift_and_scale_do_not_matter():
    template, volume, _ = _pair(0)
    correlate = functools.partial(rotational_correlation, max_degree=SMALL_DEGREE)
    moved = 5 * jnp.roll(volume, (1, -1, 1), (0, 1, 2)) - 2
    # The edge of the padded box stays where it is.
    np.testing.assert_allclose(correlate(template, moved), correlate(template, volume), atol=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_random_pose_is_found_to_within_the_grid(seed):
    template, volume, pose = _pair(seed)
    matches = _match(template, volume, tilts=None)
    assert _angle(matches.pose.rotation[0], pose.rotation) < SPACING
    assert jnp.linalg.norm(matches.pose.shift[0] - pose.shift) < 0.75


@pytest.mark.parametrize("seed", range(5))
def test_random_pose_is_found_through_wedges_and_noise(seed):
    template, volume, pose = _pair(seed, noise=0.25, tilts=TILTS)
    matches = _match(template, volume)
    assert _angle(matches.pose.rotation[0], pose.rotation) < SPACING
    assert jnp.linalg.norm(matches.pose.shift[0] - pose.shift) < 0.75


@pytest.mark.parametrize("seed", range(2))
def test_finds_what_the_exhaustive_search_finds(seed):
    template, volume, _ = _pair(seed, noise=0.25, tilts=TILTS)
    grid = matching_grid(MAX_DEGREE).reshape(-1, 3, 3)
    exhaustive = search_rotations(
        template,
        volume,
        grid,
        max_shift=3,
        template_wedge=TILTS,
        volume_wedge=TILTS,
        cutoff=0.4,
    )
    matches = _match(template, volume)
    assert _angle(matches.pose.rotation[0], exhaustive.pose.rotation[0]) < SPACING
    assert exhaustive.score[0] - 0.05 < matches.score[0] < exhaustive.score[0] + 1e-5


def test_matches_lie_apart_and_fall_in_score():
    template, volume, _ = _pair(0)
    matches = _match(template, volume, num_best=3)
    assert jnp.all(jnp.diff(matches.score) <= 0)
    turns = matches.pose.rotation
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert _angle(turns[first], turns[second]) > 2 * SPACING - 1e-3


def test_gradients_of_the_scores_are_right(x64):
    template, volume = _volumes().astype(jnp.float64)
    correlate = functools.partial(rotational_correlation, max_degree=2, volume_wedge=TILTS)
    check_grads(correlate, (template, volume), order=1, modes=("fwd", "rev"))


def test_constant_volume_scores_zero_with_a_finite_gradient():
    template, _ = _volumes()
    flat = jnp.full(SMALL_BOX, 3.0, jnp.float32)
    slopes = jax.jit(jax.grad(lambda a, b: _correlate(a, b).sum(), argnums=(0, 1)))
    for pair in ((flat, template), (template, flat)):
        assert jnp.all(_correlate(*pair) == 0)
        assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes(*pair))


def test_wedges_without_overlap_score_zero():
    template, volume = _volumes()
    scores = rotational_correlation(
        template,
        volume,
        max_degree=2,
        template_wedge=jnp.array([-20.0, 20.0]),
        volume_wedge=jnp.array([70.0, 90.0]),
    )
    assert scores[0, 0, 0] == 0  # unturned
    assert jnp.any(scores > 0)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(8, 8), (8, 8, 8)], {}, r"template must have the volume's shape \(8, 8, 8\)"),
        ([(2, 8, 8, 8)] * 2, {}, "volume must be .* vmap a batch"),
        ([(8, 8, 8)] * 2, {"max_degree": 5}, "max_degree must be an even number above 0, got 5"),
        ([(8, 8, 8)] * 2, {"cutoff": 0.1}, r"cutoff must be in \[0.125, 0.5\] .* got 0.1"),
        ([(8, 8, 8)] * 2, {"num_candidates": 2, "num_best": 3}, "at least num_best = 3, got 2"),
        ([(8, 8, 8)] * 2, {"volume_wedge": jnp.ones(3)}, r"must be a tilt range \(2,\), a mask"),
    ],
)
def test_bad_shapes_and_options_are_named(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        fast_rotational_matching(*(jnp.zeros(shape) for shape in shapes), max_shift=2, **options)
