"""Exhaustive search against numpy and known poses, and what crop and wedges must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from jimjax.data.phantom import phantom, render
from jimjax.ops import correlation, fourier, resample, rotation, wedge
from jimjax.ops.rotation import Pose
from jimjax.ops.search import measured_mask, pick_distinct, search_rotations

TILTS = jnp.array([-60.0, 60.0])
BOX = (16, 16, 16)
QUARTER_TURNS = jnp.stack([rotation.about_axis(1, n * jnp.pi / 2) for n in range(4)])
GRID = rotation.super_fibonacci(60)
CUTOFF = 0.3  # of 16 voxels: the search crops to 9
NOISE = 0.25  # standard deviation in units of the particle's


@functools.partial(jax.jit, static_argnames="shape")
def _smooth(key, *, shape=BOX):
    return fourier.bandpass(jax.random.normal(key, shape), high=0.25)


def _pair(key, *, noise=0.0, tilts=(-90.0, 90.0)):
    """A template, a volume that shows it in a random pose, and the pose."""
    seed, key_turn, key_shift, *keys = jax.random.split(key, 5)
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


def _angle(a, b):
    return float(jnp.rad2deg(rotation.geodesic_angle(a, b)))


def _search_in_band(template, volume, rotations=GRID, *, min_angle=0.0):
    """One set of static options for most tests, so that they share a program."""
    return search_rotations(
        template,
        volume,
        rotations,
        max_shift=3,
        template_wedge=TILTS,
        volume_wedge=TILTS,
        cutoff=CUTOFF,
        num_best=3,
        min_angle=min_angle,
    )


def _total_score(template, volume):
    return _search_in_band(template, volume).score.sum()


@jax.jit
def _score_in_full_box(template, volume, turn):
    """The score and shift of one rotation, put together from other operations."""
    band = fourier.bandpass_mask(BOX, high=CUTOFF)
    mask = band * wedge.wedge_mask(BOX, TILTS) * wedge.wedge_mask(BOX, TILTS, rotation=turn)
    turned = resample.rotate(template, turn, fill=template.mean())
    return correlation.correlation_peak(turned, volume, mask=mask, max_shift=3)


_measured = jax.jit(measured_mask, static_argnums=0)
_transform = jax.jit(resample.transform, static_argnames="order")
_SLOPES = jax.value_and_grad(_total_score, argnums=(0, 1))


def _slow_mask(shape, matrix, cutoff):
    """Band-pass, wedge and turned wedge of 60 degrees, by the definition."""
    kz, ky, kx = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    turned = np.stack([kx, ky, kz], axis=-1) @ matrix  # R^T k
    limit = np.tan(np.deg2rad(60))
    return (
        (np.sqrt(kx**2 + ky**2 + kz**2) <= cutoff)
        & (np.abs(kz) <= limit * np.abs(kx))
        & (np.abs(turned[..., 2]) <= limit * np.abs(turned[..., 0]))
    )


def _slow_search(template, volume, rotations, *, cutoff, max_shift):
    """Score and shift of each rotation, one at a time, in float64."""
    template, volume = np.asarray(template, np.float64), np.asarray(volume, np.float64)
    scores, shifts = [], []
    for matrix in np.asarray(rotations, np.float64):
        reverse = matrix.T[::-1, ::-1]  # z, y, x
        centre = np.array(volume.shape) // 2
        turned = ndimage.affine_transform(
            template - template.mean(),
            reverse,
            centre - reverse @ centre,
            order=1,
            mode="grid-constant",
        )
        mask = _slow_mask(volume.shape, matrix, cutoff)
        mask[0, 0, 0] = False
        a, b = (np.fft.fftn(v) * mask for v in (turned, volume))
        found = np.fft.ifftn(a.conj() * b).real * volume.size
        found /= np.sqrt(np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2))
        score, shift = _slow_peak(found, max_shift)
        scores.append(score)
        shifts.append(shift)
    return np.array(scores), np.array(shifts)


def _slow_peak(scores, max_shift):
    lags = list(np.ndindex(*(2 * max_shift + 1,) * 3))
    best = max(lags, key=lambda lag: scores[tuple(np.array(lag) - max_shift)])
    best = np.array(best) - max_shift
    score, shift = scores[tuple(best)], best.astype(float)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        below, above = (scores[tuple((best + s * step) % scores.shape)] for s in (-1, 1))
        slope, bend = (above - below) / 2, above + below - 2 * scores[tuple(best)]
        offset = np.clip(-slope / bend, -0.5, 0.5)
        score += slope * offset + bend / 2 * offset**2
        shift[axis] += offset
    return score, np.clip(shift, -max_shift, max_shift)[::-1]


def test_quarter_turn_and_roll_are_found(compiled, key):
    # A quarter turn of an odd box is exact on the grid.
    template = _smooth(key, shape=(9, 9, 9))
    turned = _transform(template, Pose(QUARTER_TURNS[3], jnp.zeros(3)))
    volume = jnp.roll(turned, (2, -1, 0), (0, 1, 2))
    fn = compiled(functools.partial(search_rotations, max_shift=3))
    matches = fn(template, volume, QUARTER_TURNS)
    np.testing.assert_allclose(matches.pose.rotation[0], QUARTER_TURNS[3], atol=1e-6)
    np.testing.assert_allclose(matches.pose.shift[0], [0, -1, 2], atol=0.1)  # of the parabola
    assert 0.999 < matches.score[0] <= 1


def test_every_rotation_agrees_with_numpy(key):
    template, volume, _ = _pair(key, noise=NOISE, tilts=TILTS)
    grid = GRID[:12]
    matches = search_rotations(
        template,
        volume,
        grid,
        max_shift=3,
        template_wedge=TILTS,
        volume_wedge=TILTS,
        cutoff=0.45,
        num_best=12,
        batch_size=5,  # does not divide the number
    )
    scores, shifts = _slow_search(template, volume, grid, cutoff=0.45, max_shift=3)
    order = np.argsort(-scores)
    np.testing.assert_allclose(matches.score, scores[order], atol=1e-5)
    np.testing.assert_allclose(matches.pose.shift, shifts[order], atol=1e-3)  # a quotient
    np.testing.assert_allclose(matches.pose.rotation, grid[order], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_random_pose_is_found_through_wedges_and_noise(seed):
    template, volume, pose = _pair(jax.random.key(seed), noise=NOISE, tilts=TILTS)
    grid = rotation.super_fibonacci(1500)
    matches = _search_in_band(template, volume, grid)
    nearest = jnp.argmin(jnp.sum((grid - pose.rotation) ** 2, axis=(1, 2)))
    # The best of a grid about 16 degrees apart need not be the nearest.
    assert _angle(matches.pose.rotation[0], pose.rotation) < 10 + _angle(
        grid[nearest], pose.rotation
    )
    assert jnp.linalg.norm(matches.pose.shift[0] - pose.shift) < 0.75


def test_results_do_not_depend_on_the_crop(key):
    template, volume, _ = _pair(key, noise=NOISE, tilts=TILTS)
    found = _search_in_band(template, volume)
    for index in range(3):
        peak = _score_in_full_box(template, volume, found.pose.rotation[index])
        np.testing.assert_allclose(found.score[index], peak.score, atol=1e-5)
        np.testing.assert_allclose(found.pose.shift[index], peak.shift, atol=1e-3)


def test_scale_offset_and_hidden_frequencies_do_not_matter(key):
    template, volume, _ = _pair(key, noise=NOISE)
    hidden = wedge.apply_mask(_smooth(key), 1 - wedge.wedge_mask(BOX, TILTS))
    found = _search_in_band(template, volume)
    changed = _search_in_band(3 * template + 7, 0.5 * volume + 9 * hidden - 2)
    np.testing.assert_allclose(changed.score, found.score, atol=1e-4)  # of float32 beside 9
    np.testing.assert_allclose(changed.pose.shift, found.pose.shift, atol=1e-2)
    np.testing.assert_array_equal(changed.pose.rotation, found.pose.rotation)


def test_masks_of_wedges_score_about_as_tilt_ranges(key):
    template, volume, _ = _pair(key, noise=NOISE, tilts=TILTS)
    mask = wedge.wedge_mask(BOX, TILTS)
    by_range = _search_in_band(template, volume)
    by_mask = search_rotations(
        template, volume, GRID, max_shift=3, template_wedge=mask, volume_wedge=mask, cutoff=CUTOFF
    )
    np.testing.assert_array_equal(by_mask.pose.rotation[0], by_range.pose.rotation[0])
    np.testing.assert_allclose(by_mask.score[0], by_range.score[0], atol=0.03)  # soft, turned edges


def test_cubic_interpolation_and_oblong_boxes_find_the_pose(key):
    template = _smooth(key, shape=(15, 15, 11))
    pose = Pose(rotation.about_axis(0, 0.7), jnp.array([1.0, -1.0, 0.0]))
    volume = _transform(template, pose, order=3)
    turns = jnp.stack([rotation.about_axis(0, angle) for angle in (-0.7, 0.0, 0.7)])
    found = search_rotations(template, volume, turns, max_shift=3, cutoff=0.3, order=3)
    np.testing.assert_allclose(found.pose.rotation[0], pose.rotation, atol=1e-6)
    np.testing.assert_allclose(found.pose.shift[0], pose.shift, atol=0.1)
    assert found.score[0] > 0.95  # the corners have turned out of the box


def test_half_precision_is_searched_in_single(key):
    template, volume, _ = _pair(key)
    found = _search_in_band(template.astype(jnp.bfloat16), volume.astype(jnp.bfloat16))
    assert found.score.dtype == jnp.float32
    expected = _search_in_band(template, volume)
    np.testing.assert_allclose(found.score, expected.score, atol=0.01)  # 8 bits of input


@pytest.mark.parametrize("flat", [0, 1])
def test_constant_volume_scores_zero_with_a_finite_gradient(flat, key):
    volumes = [_smooth(key), _smooth(jax.random.key(1))]
    volumes[flat] = jnp.full(BOX, 3.3, jnp.float32)
    score, slopes = _SLOPES(*volumes)
    assert score == 0
    assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes)


def test_gradients_of_scores_and_shifts_are_right(x64):
    template, volume = (_smooth(jax.random.key(n), shape=(6, 6, 6)) for n in range(2))

    def search(template, volume):
        found = search_rotations(template, volume, QUARTER_TURNS[:2], max_shift=2)
        return jnp.append(found.pose.shift[0], found.score[0])

    check_grads(search, (template, volume), order=1, modes=("fwd", "rev"))


def test_returned_rotations_lie_apart_and_fall_in_score(key):
    template, volume, _ = _pair(key)
    found = _search_in_band(template, volume, min_angle=1.5)
    assert jnp.all(jnp.diff(found.score) <= 0)
    turns = found.pose.rotation
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert rotation.geodesic_angle(turns[first], turns[second]) >= 1.5


def test_picks_the_best_then_the_best_beyond_the_angle(compiled):
    turns = jnp.stack([rotation.about_axis(2, angle) for angle in (0.0, 0.1, 0.5, 0.7, 3.0)])
    scores = jnp.array([0.8, 0.9, 0.5, 0.7, -jnp.inf])
    pick = compiled(functools.partial(pick_distinct, num=3, min_angle=0.3))
    assert pick(scores, turns).tolist() == [1, 3, -1]
    alone = compiled(functools.partial(pick_distinct, num=5))
    assert alone(scores, turns).tolist() == [1, 0, 3, 2, -1]


def test_too_few_distinct_rotations_score_minus_infinity(key):
    template, volume, _ = _pair(key)
    found = _search_in_band(template, volume, min_angle=jnp.pi)
    assert jnp.isfinite(found.score).tolist() == [True, False, False]


def test_mask_turned_by_a_quarter_is_the_turned_tilt_range():
    shape = (9, 7, 9)
    mask = measured_mask(shape, TILTS)
    np.testing.assert_array_equal(mask, wedge.wedge_mask(shape, TILTS))
    by_range = _measured(shape, TILTS, rotation=QUARTER_TURNS[1])
    turned = _measured(shape, mask, rotation=QUARTER_TURNS[1])
    np.testing.assert_allclose(turned, by_range, atol=1e-5)
    assert float(jnp.abs(by_range - mask).mean()) > 0.1  # it does turn


def test_mask_of_an_oblong_box_turns_in_frequency():
    shape, turn = (24, 16, 20), GRID[3]
    k = fourier.frequencies(shape)
    turned = _measured(shape, jnp.abs(k[..., 0]), rotation=turn)
    expected = jnp.abs(k @ turn)[..., 0]
    inside = fourier.bandpass_mask(shape, high=0.4) > 0
    # |kx| is linear up to its kink, which interpolation rounds off by half a cell at most.
    np.testing.assert_allclose(turned[inside], expected[inside], atol=0.5 / 16)


def test_everything_is_measured_without_a_wedge():
    full = measured_mask((4, 5, 6), None, rotation=QUARTER_TURNS[1])
    np.testing.assert_array_equal(full, np.ones((4, 5, 4)))


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((8, 8), (8, 8, 8), (2, 3, 3)), {}, r"template must have the volume's shape \(8, 8, 8\)"),
        (((2, 8, 8, 8),) * 2 + ((2, 3, 3),), {}, "volume must be .* vmap a batch"),
        (((8, 8, 8),) * 2 + ((3, 3),), {}, r"rotations must be \(num, 3, 3\), got shape \(3, 3\)"),
        (((8, 8, 8),) * 2 + ((2, 3, 3),), {"num_best": 3}, "num_best must be from 1 to the 2"),
        (((8, 8, 8),) * 2 + ((2, 3, 3),), {"cutoff": 0.6}, r"cutoff must be in \(0, 0.5\]"),
        (((8, 8, 8),) * 2 + ((2, 3, 3),), {"batch_size": 0}, "batch_size must be 1 or more"),
        (
            ((8, 8, 8),) * 2 + ((2, 3, 3),),
            {"volume_wedge": jnp.ones((8, 8, 8))},
            r"must be a tilt range \(2,\), a mask \(8, 8, 5\) or None, got shape \(8, 8, 8\)",
        ),
    ],
)
def test_bad_shapes_and_options_are_named(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        search_rotations(*(jnp.zeros(shape) for shape in shapes), max_shift=2, **options)


def test_bad_lists_are_named():
    with pytest.raises(ValueError, match=r"must be \(n,\) and \(n, 3, 3\), got \(4,\)"):
        pick_distinct(jnp.zeros(4), jnp.zeros((3, 3, 3)), num=1)
    with pytest.raises(ValueError, match="num must be 1 or more, got 0"):
        pick_distinct(jnp.zeros(3), jnp.zeros((3, 3, 3)), num=0)
