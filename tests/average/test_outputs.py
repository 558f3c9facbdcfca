"""Facts about the files of class averages."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from jimjax.average import average_classes, fsc_frequencies, write_averages
from jimjax.data.subtomograms import Subtomograms
from jimjax.io import read_volume

SIZE, VOXEL_SIZE = 16, 5.0


@pytest.fixture
def particles() -> Subtomograms:
    """Class 0 in both halves, class 1 empty, class 2 in the first half only."""
    num = 7
    return Subtomograms(
        volumes=np.random.default_rng(0).normal(size=(num, SIZE, SIZE, SIZE)).astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (num, 1)),
        voxel_size=VOXEL_SIZE,
        names=tuple(f"{i + 1}@stack.mrcs" for i in range(num)),
        halves=np.array([1, 2, 1, 2, 2, 1, 1]),
        rotations=np.tile(np.eye(3, dtype=np.float32), (num, 1, 1)),
        shifts=np.zeros((num, 3), np.float32),
        labels=np.array([0, 0, 0, 0, 0, 2, 2]),
    )


def test_summary_lists_every_class_and_its_files(particles, tmp_path):
    write_averages(particles, tmp_path / "averages", num_classes=4, order=1)
    classes = json.loads((tmp_path / "averages" / "summary.json").read_text())["classes"]
    assert [entry["class"] for entry in classes] == [1, 2, 3, 4]
    assert [entry["num_particles"] for entry in classes] == [5, 0, 2, 0]
    assert [entry["num_half1"] for entry in classes] == [2, 0, 2, 0]
    assert [entry["num_half2"] for entry in classes] == [3, 0, 0, 0]
    assert [len(entry["files"]) for entry in classes] == [4, 0, 2, 0]
    assert classes[0]["resolution_angstrom"] >= 2 * VOXEL_SIZE
    assert classes[0]["at_nyquist"] in (True, False)
    assert classes[1]["resolution_angstrom"] is classes[2]["at_nyquist"] is None
    listed = {name for entry in classes for name in entry["files"]} | {"summary.json"}
    assert {path.name for path in (tmp_path / "averages").iterdir()} == listed


def test_maps_read_back_with_their_voxel_size(particles, tmp_path):
    averages = write_averages(particles, tmp_path, order=1)
    for name, volume in (
        ("class_001.mrc", averages[0].volume),
        ("class_001_half1.mrc", averages[0].half1),
        ("class_001_half2.mrc", averages[0].half2),
        ("class_003.mrc", averages[2].volume),
    ):
        stored = read_volume(tmp_path / name)
        np.testing.assert_array_equal(stored.data, volume)
        assert stored.voxel_size == pytest.approx(VOXEL_SIZE)
    assert averages[1] is None


def test_curve_is_written_with_frequencies_in_angstrom(particles, tmp_path):
    averages = write_averages(particles, tmp_path, order=1)
    rows = list(csv.DictReader((tmp_path / "class_001_fsc.csv").read_text().splitlines()))
    assert [int(row["shell"]) for row in rows] == list(range(SIZE // 2 + 1))
    assert float(rows[-1]["resolution_angstrom"]) == pytest.approx(2 * VOXEL_SIZE)
    assert float(rows[1]["frequency_per_angstrom"]) == pytest.approx(1 / (SIZE * VOXEL_SIZE))
    found = [float(row["fsc"]) for row in rows]
    np.testing.assert_allclose(found, averages[0].fsc, atol=1e-6)


def test_one_class_is_averaged_from_its_own_particles_only(particles):
    changed = particles.volumes.copy()
    changed[5:] += 100.0  # class 2
    before = average_classes(particles, order=1)
    after = average_classes(replace(particles, volumes=changed), order=1)
    np.testing.assert_array_equal(before[0].volume, after[0].volume)
    assert not np.allclose(before[2].volume, after[2].volume)


def test_last_shell_is_nyquist():
    assert fsc_frequencies(17, 32, 10.0)[-1] == pytest.approx(1 / 20.0)


@pytest.mark.parametrize("missing", ["labels", "rotations", "shifts"])
def test_particles_without_poses_or_labels_are_refused(particles, missing):
    with pytest.raises(ValueError, match=f"averages need {missing}"):
        average_classes(replace(particles, **{missing: None}))


def test_a_label_beyond_the_number_of_classes_is_refused(particles):
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        average_classes(particles, num_classes=2)


def test_nothing_is_written_if_the_particles_are_refused(particles, tmp_path):
    with pytest.raises(ValueError, match="averages need labels"):
        write_averages(replace(particles, labels=None), tmp_path / "averages")
    assert not (tmp_path / "averages").exists()
