"""Facts about relative pose errors."""

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.evaluate import pose

NUM = 30
CHANCE_MEAN = 16 * np.sqrt(2) / (3 * np.pi)  # E[2 sqrt(2) sin(w/2)] under (1 - cos w)/pi


def _truth(num: int = NUM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    labels = np.arange(num) % 3
    rotations = Rotation.random(num, random_state=2).as_matrix()
    return labels, rotations, generator.uniform(-6, 6, (num, 3))


def _errors_pair_by_pair(rotations, shifts, labels, true_rotations, true_shifts):
    """Slow twin: composes 4x4 matrices, particle j after the inverse of particle i."""

    def as_matrix(rotation, shift):
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, shift
        return matrix

    found = []
    for i, j in combinations(range(len(labels)), 2):
        if labels[i] == labels[j]:
            relative, true_relative = (
                as_matrix(R[j], t[j]) @ np.linalg.inv(as_matrix(R[i], t[i]))
                for R, t in ((rotations, shifts), (true_rotations, true_shifts))
            )
            difference = relative - true_relative
            found.append((np.linalg.norm(difference[:3, :3]), np.linalg.norm(difference[:3, 3])))
    return np.array(found)


def test_perfect_poses_have_no_error():
    labels, rotations, shifts = _truth()
    errors = pose.relative_pose_errors(rotations, shifts, labels, rotations, shifts)
    np.testing.assert_allclose(errors.rotation, 0, atol=1e-12)
    np.testing.assert_allclose(errors.translation, 0, atol=1e-12)


def test_equivalent_poses_of_a_symmetric_class_have_no_error():
    labels, rotations, shifts = _truth()
    group = Rotation.create_group("D4").as_matrix()
    none = np.eye(3)[None]
    drawn = group[np.random.default_rng(3).integers(8, size=NUM)]
    drawn[labels != 1] = np.eye(3)
    frames = Rotation.random(3, random_state=5).as_matrix()[labels]
    given = rotations @ drawn @ frames, shifts, labels, rotations, shifts
    modulo = pose.relative_pose_errors(*given, groups=[none, group, none])
    np.testing.assert_allclose(modulo.rotation, 0, atol=1e-12)
    np.testing.assert_allclose(modulo.translation, 0, atol=1e-12)
    assert pose.relative_pose_errors(*given).rotation.max() > 1
    with pytest.raises(ValueError, match="2 classes, class 2"):
        pose.relative_pose_errors(*given, groups=[none, group])


def test_symmetry_brings_chance_down():
    labels, rotations, shifts = _truth(300)
    random = Rotation.random(300, random_state=9).as_matrix()
    groups = [Rotation.create_group("D4").as_matrix()] * 3
    given = random, shifts, labels, rotations, shifts
    modulo = pose.relative_pose_errors(*given, groups=groups).rotation
    assert modulo.mean() < 0.7 * pose.relative_pose_errors(*given).rotation.mean()
    assert modulo.mean() > 0.8


def test_the_frame_of_each_class_is_free():
    labels, rotations, shifts = _truth()
    frames = Rotation.random(3, random_state=5).as_matrix()[labels]
    moves = np.array([[3.0, -1.0, 2.0], [0.0, 4.0, 0.5], [-2.0, 0.0, 7.0]])[labels]
    errors = pose.relative_pose_errors(
        rotations @ frames,
        shifts + np.einsum("nij,nj->ni", rotations, moves),
        labels,
        rotations,
        shifts,
    )
    np.testing.assert_allclose(errors.rotation, 0, atol=1e-12)
    np.testing.assert_allclose(errors.translation, 0, atol=1e-12)


def test_turning_every_particle_by_the_same_rotation_is_an_error():
    # Q R instead of R Q: the lab frame is not free, because the wedge lives in it.
    labels, rotations, shifts = _truth()
    turned = Rotation.from_euler("z", 90, degrees=True).as_matrix() @ rotations
    errors = pose.relative_pose_errors(turned, shifts, labels, rotations, shifts)
    assert errors.rotation.mean() > 0.5


def test_one_pair_by_hand():
    # Estimate says particle 1 is particle 0 turned by 90 degrees about z; truth says not turned.
    # |Rz(90) - 1|_F = 2 sqrt(2) sin(45 degrees) = 2. Shifts: (3, 0, 0) - Rz(90)(1, 0, 0)
    # = (3, -1, 0), truth (3, 0, 0) - (1, 0, 0) = (2, 0, 0): difference (1, -1, 0).
    turned = np.stack([np.eye(3), Rotation.from_euler("z", 90, degrees=True).as_matrix()])
    true_rotations = np.stack([np.eye(3), np.eye(3)])
    shifts = np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    errors = pose.relative_pose_errors(turned, shifts, np.array([0, 0]), true_rotations, shifts)
    np.testing.assert_allclose(errors.rotation, [2.0], atol=1e-12)
    np.testing.assert_allclose(errors.translation, [np.sqrt(2)], atol=1e-12)


def test_rounded_shifts_differ_by_whole_voxels():
    """As published: 1.4 and 0.6 become 1 and 1, and 0.4 and 0.6 become 0 and 1."""
    still, labels = np.tile(np.eye(3), (2, 1, 1)), np.zeros(2, int)
    shifts = np.array([[0, 0, 0], [1.4, 0.4, 0]])
    true_shifts = np.array([[0, 0, 0], [0.6, 0.6, 0]])
    args = still, shifts, labels, still, true_shifts
    exact = pose.relative_pose_errors(*args).translation
    rounded = pose.relative_pose_errors(*args, is_shift_rounded=True).translation
    np.testing.assert_allclose(exact, [np.hypot(0.8, 0.2)])
    np.testing.assert_allclose(rounded, [1.0])


def test_errors_equal_composition_of_homogeneous_matrices():
    labels, true_rotations, true_shifts = _truth(9)
    rotations = Rotation.random(9, random_state=8).as_matrix()
    shifts = np.random.default_rng(9).normal(size=(9, 3))
    errors = pose.relative_pose_errors(rotations, shifts, labels, true_rotations, true_shifts)
    expected = _errors_pair_by_pair(rotations, shifts, labels, true_rotations, true_shifts)
    np.testing.assert_allclose(np.sort(errors.rotation), np.sort(expected[:, 0]), atol=1e-12)
    np.testing.assert_allclose(np.sort(errors.translation), np.sort(expected[:, 1]), atol=1e-12)


def test_random_poses_are_at_chance():
    rotations, true_rotations = (
        Rotation.random(1200, random_state=0).as_matrix().reshape(2, 600, 3, 3)
    )
    zeros = np.zeros((600, 3))
    errors = pose.relative_pose_errors(rotations, zeros, np.zeros(600, int), true_rotations, zeros)
    scores = pose.score_poses(errors)
    # 179 700 pairs of 600 particles: the pairs are dependent, so 0.01 instead of 0.001.
    assert scores["rotation_error_mean"] == pytest.approx(CHANCE_MEAN, abs=0.01)
    assert scores["rotation_error_std"] == pytest.approx(0.485, abs=0.01)
    assert pytest.approx(2.40, abs=0.005) == CHANCE_MEAN


def test_only_pairs_of_one_class_count():
    first, second = pose.sample_pairs(np.array([0, 1, 0, 2, 1, 0]))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [
        (0, 2), (0, 5), (1, 4), (2, 5),
    ]  # fmt: skip


def test_all_pairs_are_the_combinations():
    first, second = pose.sample_pairs(np.zeros(200, int))
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    assert found == set(combinations(range(200), 2))
    assert first.size == len(found)


def test_a_subset_has_distinct_pairs_repeats_with_its_seed_and_changes_with_it():
    labels = np.repeat([0, 1], [300, 100])
    first, second = pose.sample_pairs(labels, max_pairs=1000, seed=3)
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(pairs) == 1000
    assert all(i < j and labels[i] == labels[j] for i, j in pairs)
    again = pose.sample_pairs(labels, max_pairs=1000, seed=3)
    np.testing.assert_array_equal(again, (first, second))
    other = pose.sample_pairs(labels, max_pairs=1000, seed=4)
    assert pairs != set(zip(other[0].tolist(), other[1].tolist(), strict=True))


def test_a_subset_weighs_classes_by_their_pairs():
    # 44 850 and 4 950 pairs: 90.06 % of the draw; binomial standard deviation 0.7 %, bound 4.
    first, _ = pose.sample_pairs(np.repeat([0, 1], [300, 100]), max_pairs=2000, seed=0)
    assert np.mean(first < 300) == pytest.approx(44_850 / 49_800, abs=0.027)


def test_pairs_of_a_huge_class_are_drawn_without_listing_them():
    first, second = pose.sample_pairs(np.zeros(100_000, int), max_pairs=500, seed=0)
    assert first.size == 500
    assert np.all(first < second)
    assert second.max() > 90_000


def test_frobenius_distance_of_known_angles():
    angles = np.array([0.0, 30.0, 90.0, 120.0, 180.0])
    turned = Rotation.from_euler("x", angles[:, None], degrees=True).as_matrix()
    distances = np.linalg.norm(turned - np.eye(3), axis=(1, 2))
    np.testing.assert_allclose(pose.rotation_error_degrees(distances), angles, atol=1e-5)


def test_summary_of_three_errors_by_hand():
    errors = pose.PoseErrors(
        rotation=np.array([0.0, 2.0, 2 * np.sqrt(2)]), translation=np.array([1.0, 2.0, 6.0])
    )
    scores = pose.score_poses(errors)
    assert scores["translation_error_mean"] == pytest.approx(3.0)
    assert scores["translation_error_std"] == pytest.approx(np.sqrt(14 / 3))  # population
    assert scores["rotation_error_median"] == pytest.approx(2.0)
    assert scores["rotation_error_median_degrees"] == pytest.approx(90.0)
    assert scores["rotation_share_below_10_degrees"] == pytest.approx(1 / 3)
    assert scores["num_pairs"] == 3


def test_one_particle_per_class_is_an_error():
    with pytest.raises(ValueError, match="no two particles have the same true class"):
        pose.sample_pairs(np.arange(5))


def test_nan_pose_is_named():
    labels, rotations, shifts = _truth()
    broken = shifts.copy()
    broken[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"shifts of 1 particles are not finite.*particle 4"):
        pose.relative_pose_errors(rotations, broken, labels, rotations, shifts)


def test_wrong_shape_is_named():
    labels, rotations, shifts = _truth()
    with pytest.raises(ValueError, match=r"true_rotations must have shape \(30, 3, 3\)"):
        pose.relative_pose_errors(rotations, shifts, labels, rotations[:, 0], shifts)
