"""Facts about wedge-weighted averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.average import class_average
from jimjax.average.class_average import FourierSum
from jimjax.data import phantom
from jimjax.ops import fourier, wedge
from jimjax.ops.rotation import Pose, about_axis

SHAPE = (16, 16, 16)
FULL = (-90.0, 90.0)
TILTS = (-60.0, 60.0)


def _molecule() -> phantom.Phantom:
    """A chiral molecule smooth enough for cubic interpolation on 16 voxels."""
    molecule = phantom.phantom(0, SHAPE)
    return molecule._replace(widths=np.full_like(molecule.widths, 1.5))


def _poses(num: int, seed: int = 0) -> Pose:
    rotations = Rotation.random(num, random_state=seed).as_matrix().astype(np.float32)
    shifts = np.random.default_rng(seed).uniform(-1.5, 1.5, (num, 3)).astype(np.float32)
    return Pose(rotations, shifts)


def _particles(poses: Pose, tilt_range: tuple[float, float]) -> np.ndarray:
    """Exact copies of the molecule in their poses, seen through a wedge."""
    mask = wedge.wedge_mask(SHAPE, jnp.array(tilt_range))

    def one(pose: Pose) -> jax.Array:
        volume = phantom.render(_molecule(), SHAPE, pose)
        return fourier.irfft(mask * fourier.rfft(volume), SHAPE)

    return np.asarray(jax.vmap(one)(poses))


def _ranges(num: int, tilt_range: tuple[float, float]) -> np.ndarray:
    return np.tile(np.float32(tilt_range), (num, 1))


def _identity_poses(num: int) -> Pose:
    return Pose(np.tile(np.eye(3, dtype=np.float32), (num, 1, 1)), np.zeros((num, 3), np.float32))


def _average(volumes: np.ndarray, tilt_range: tuple[float, float], poses: Pose, **options):
    sums = class_average.sum_particles(volumes, _ranges(len(volumes), tilt_range), poses, **options)
    return np.asarray(class_average.divide_sum(sums, SHAPE[0]))


def _relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("order", [1, 3])
def test_one_unmoved_complete_particle_is_its_own_average(order):
    volume = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    average = _average(volume, FULL, _identity_poses(1), order=order)
    np.testing.assert_allclose(average, volume[0], atol=2e-5)  # one FFT round trip


def test_a_posed_particle_goes_back_into_the_frame_of_the_reference():
    # Rotation and shift of the wrong sign or order give errors above 0.5.
    poses = _poses(1, seed=3)
    average = _average(_particles(poses, FULL), FULL, poses)
    reference = np.asarray(phantom.render(_molecule(), SHAPE))
    assert _relative_error(average, reference) < 0.01  # cubic interpolation at this width


def test_a_constant_particle_stays_constant_when_turned():
    average = _average(np.full((1, *SHAPE), 7.0, np.float32), FULL, _poses(1))
    np.testing.assert_allclose(average, 7.0, rtol=1e-4)


def test_weights_count_the_particles_that_measured_a_coefficient():
    volumes = np.zeros((2, *SHAPE), np.float32)
    ranges = np.float32([FULL, TILTS])
    weights = class_average.sum_particles(volumes, ranges, _identity_poses(2)).weights
    assert weights[0, 0, 5] == 2  # x axis
    assert weights[0, 5, 0] == 2  # tilt axis
    assert weights[5, 0, 0] == 1  # beam: inside the missing wedge of the second particle


def test_the_wedge_turns_back_with_its_particle():
    # Ry(45 degrees) takes the direction at angle a = atan2(kz, kx) to a - 45 degrees, which is
    # measured between -60 and 60: in the frame of the reference that is -15 to 105.
    pose = Pose(np.asarray(about_axis(1, jnp.pi / 4))[None], np.zeros((1, 3), np.float32))
    volumes = np.zeros((1, *SHAPE), np.float32)
    weights = class_average.sum_particles(volumes, _ranges(1, TILTS), pose).weights
    assert weights[3, 0, 3] == 1  # 45 degrees
    assert weights[5, 0, 2] == 1  # 68 degrees
    assert weights[-3, 0, 3] == 0  # -45 degrees
    assert weights[-1, 0, 5] == 1  # -11 degrees


def test_average_of_wedged_copies_recovers_the_reference_and_beats_the_mean():
    num = 40
    poses = _poses(num)
    volumes = _particles(poses, TILTS)
    sums = class_average.sum_particles(volumes, _ranges(num, TILTS), poses)
    average = class_average.divide_sum(sums, SHAPE[0])
    naive = fourier.irfft(sums.spectrum / num, SHAPE)
    reference = np.asarray(phantom.render(_molecule(), SHAPE))
    assert np.min(sums.weights) >= class_average.COVERAGE_FLOOR * num
    # 0.12: a wedge with sharp edges smears each particle beyond its small box.
    assert _relative_error(average, reference) < 0.15
    # 0.38: each coefficient of the mean is scaled by its coverage, 2/3 on average.
    assert _relative_error(naive, reference) > 0.35


def test_a_coefficient_measured_by_few_is_damped_and_never_amplified():
    num = 40  # the floor is 4 particles
    weights = jnp.full(fourier.half_shape(SHAPE), 10.0)
    weights = weights.at[1, 2, 3].set(1.0).at[2, 1, 3].set(0.0).at[3, 2, 1].set(4.0)
    spectrum = jnp.where(weights > 0, 20.0 + 0j, 0.0)
    average = class_average.divide_sum(FourierSum(spectrum, weights, num), SHAPE[0])
    found = fourier.rfft(average)
    np.testing.assert_allclose(found[0, 0, 1], 2.0, rtol=1e-4)  # 20 / 10
    np.testing.assert_allclose(found[1, 2, 3], 5.0, rtol=1e-4)  # 20 / 4, not 20 / 1
    np.testing.assert_allclose(found[3, 2, 1], 5.0, rtol=1e-4)  # 20 / 4, at the floor
    np.testing.assert_allclose(found[2, 1, 3], 0.0, atol=1e-3)


def test_sums_do_not_depend_on_how_the_particles_are_divided():
    num = class_average.CHUNK_SIZE + 3
    poses = _poses(num)
    volumes = np.random.default_rng(0).normal(size=(num, *SHAPE)).astype(np.float32)
    ranges = np.random.default_rng(1).uniform([-70, 40], [-40, 70], (num, 2)).astype(np.float32)
    together = class_average.sum_particles(volumes, ranges, poses, order=1)
    parts = [
        class_average.sum_particles(
            volumes[rows], ranges[rows], Pose(poses.rotation[rows], poses.shift[rows]), order=1
        )
        for rows in (slice(0, 5), slice(5, num))
    ]
    added = class_average.add_sums(*parts)
    assert added.num_particles == together.num_particles == num
    np.testing.assert_allclose(added.weights, together.weights)
    np.testing.assert_allclose(added.spectrum, together.spectrum, atol=2e-3)  # values up to 200


def test_half_maps_are_the_averages_of_the_halves():
    num = 8
    poses = _poses(num)
    volumes = _particles(poses, TILTS)
    halves = np.array([1, 2, 2, 1, 2, 2, 2, 2])
    found = class_average.average_class(
        volumes, _ranges(num, TILTS), poses, halves, voxel_size=10.0
    )
    rows = halves == 1
    half1 = _average(volumes[rows], TILTS, Pose(poses.rotation[rows], poses.shift[rows]))
    np.testing.assert_allclose(found.half1, half1, atol=1e-6)
    np.testing.assert_allclose(found.volume, _average(volumes, TILTS, poses), atol=1e-5)
    assert (found.num_half1, found.num_half2) == (2, 6)


def test_clean_half_maps_agree_up_to_nyquist():
    poses = _poses(24)
    found = class_average.average_class(
        _particles(poses, FULL), _ranges(24, FULL), poses, np.arange(24) % 2 + 1, voxel_size=10.0
    )
    assert found.fsc.shape == (9,)
    assert found.fsc[:5].min() > 0.98
    assert found.resolution.angstrom <= 25.0


def test_half_maps_of_noise_do_not_agree():
    # Poses are random, not fitted to the noise, so the half sets share nothing. The mean over
    # shells 3..16 of a 32-voxel box has a standard deviation of about 0.03.
    size, num = 32, 40
    volumes = np.random.default_rng(0).normal(size=(num, size, size, size)).astype(np.float32)
    found = class_average.average_class(
        volumes, _ranges(num, TILTS), _poses(num), np.arange(num) % 2 + 1, voxel_size=1.0, order=1
    )
    assert np.mean(found.fsc[3:]) < 0.143
    assert abs(np.mean(found.fsc[3:])) < 0.1
    assert found.fsc[10:].max() < 0.143 + 3 * 0.1  # shells beyond 10: standard deviation 0.1
    assert not found.resolution.is_at_nyquist


def test_an_offset_of_both_half_maps_does_not_make_them_agree():
    halves = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    plain = class_average.correlate_half_maps(*halves)
    offset = class_average.correlate_half_maps(*(halves + 10.0))
    np.testing.assert_allclose(offset, plain, atol=1e-4)  # cancellation of 10 in float32


def test_equal_maps_correlate_fully():
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    np.testing.assert_allclose(class_average.correlate_half_maps(volume, volume), 1, atol=1e-5)


def test_without_a_second_half_there_is_no_resolution():
    poses = _poses(3)
    found = class_average.average_class(
        _particles(poses, TILTS), _ranges(3, TILTS), poses, np.ones(3, int), voxel_size=10.0
    )
    assert found.half2 is None
    assert found.fsc is None
    assert found.resolution is None
    np.testing.assert_allclose(found.volume, found.half1, atol=1e-6)


def test_soft_sphere_by_hand():
    sphere = class_average.soft_sphere((20, 20, 20))
    assert sphere[10, 10, 10] == 1
    assert sphere[10, 10, 18] == 1  # 8 voxels, 0.4 of the box
    assert sphere[10, 19, 10] == pytest.approx(0.5, abs=1e-5)  # 0.45
    assert sphere[0, 10, 10] == pytest.approx(0, abs=1e-6)  # 0.5
    assert sphere[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"halves": np.array([1, 3])}, r"halves must be 1 or 2, got \[1, 3\]"),
        ({"halves": np.array([1])}, r"halves must have shape \(2,\), got \(1,\)"),
        ({"tilt_ranges": np.zeros(2)}, r"tilt_ranges must have shape \(2, 2\)"),
        ({"volumes": np.zeros((2, 8, 8, 9))}, r"cubic boxes, got \(2, 8, 8, 9\)"),
        ({"volumes": np.zeros((0, 8, 8, 8))}, "at least one particle"),
    ],
)
def test_particles_that_do_not_fit_are_named(change, message):
    fields = {
        "volumes": np.zeros((2, 8, 8, 8)),
        "tilt_ranges": np.zeros((2, 2)),
        "poses": _identity_poses(2),
        "halves": np.array([1, 2]),
    }
    with pytest.raises(ValueError, match=message):
        class_average.average_class(**(fields | change), voxel_size=1.0)
