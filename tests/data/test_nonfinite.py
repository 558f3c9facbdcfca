"""Particles with voxels that are NaN or infinite: refused, left out, or filled."""

import numpy as np
import pytest

from jimjax.average import average_classes
from jimjax.commands.poses import write_poses
from jimjax.commands.predict import write_classes
from jimjax.data.subtomograms import Subtomograms, load, table_of, to_star
from jimjax.fewshot.support import load_labelled
from jimjax.io import InputError, InputWarning, read_particles
from jimjax.train.teacher import read_teacher

NUM, BOX = 8, 8
BAD = [1, 4]  # particles, from 0


@pytest.fixture
def whole():
    rng = np.random.default_rng(0)
    return Subtomograms(
        volumes=(1 + rng.normal(size=(NUM, BOX, BOX, BOX))).astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=tuple(map(str, range(NUM))),
        halves=1 + np.arange(NUM) % 2,
        rotations=np.tile(np.eye(3, dtype=np.float32), (NUM, 1, 1)),
        shifts=np.arange(NUM * 3, dtype=np.float32).reshape(NUM, 3) / 10,
        labels=np.arange(NUM) // 4,
        masks=rng.random((NUM, BOX, BOX, BOX)) > 0.5,
    )


@pytest.fixture
def star(whole, tmp_path):
    """Particles 2 and 5 have a NaN and an infinite voxel."""
    to_star(whole, tmp_path / "p.star", stack_path=tmp_path / "p.mrcs")
    raw = bytearray((tmp_path / "p.mrcs").read_bytes())
    for particle, value in zip(BAD, (np.nan, -np.inf), strict=True):
        place = 1024 + 4 * (particle * BOX**3 + 7)
        raw[place : place + 4] = np.float32(value).tobytes()
    (tmp_path / "p.mrcs").write_bytes(raw)
    return tmp_path / "p.star"


KEPT = np.setdiff1d(np.arange(NUM), BAD)


def test_they_are_refused_unless_told_otherwise(star):
    with pytest.raises(InputError, match=r"particle 2: .* has 1 voxels .*--nonfinite drop"):
        load(star)


def dropped(star, **options):
    told = r"2 of 8 particles .* are left out: 2@\S+p.mrcs, 5@\S+p.mrcs$"
    with pytest.warns(InputWarning, match=told):
        return load(star, nonfinite="drop", **options)


def test_they_are_left_out_and_named(star, whole):
    found = dropped(star, with_poses=True, with_masks=True)
    wanted = whole.select(KEPT)
    for name in ("volumes", "halves", "labels", "shifts", "masks", "tilt_ranges"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-6)
    assert [name.split("@")[0] for name in found.names] == [str(row + 1) for row in KEPT]


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_their_voxels_are_filled(how, star, whole):
    with pytest.warns(InputWarning, match=rf"2 of 8 particles .* are filled with {how}: 2@"):
        found = load(star, nonfinite=how)
    for row in BAD:
        others = np.delete(whole.volumes[row].ravel(), 7)
        wanted = 0.0 if how == "zero" else others.mean()
        assert found.volumes[row].ravel()[7] == pytest.approx(wanted, abs=1e-6)
        np.testing.assert_array_equal(np.delete(found.volumes[row].ravel(), 7), others)
    np.testing.assert_array_equal(found.volumes[KEPT], whole.volumes[KEPT])


@pytest.mark.parametrize("how", ["drop", "zero", "mean"])
def test_averages_stay_finite(how, star):
    with pytest.warns(InputWarning):
        found = load(star, nonfinite=how, with_poses=True)
    for average in average_classes(found):
        assert np.isfinite(average.volume).all()


def test_nothing_is_left_of_nothing(star, tmp_path):
    read_particles(star).select(BAD).write(tmp_path / "bad.star")
    with pytest.raises(InputError, match="all particles have voxels that are NaN or infinite"):
        load(tmp_path / "bad.star", nonfinite="drop")


def test_rows_that_are_written_are_those_of_the_particles(star, tmp_path):
    found = dropped(star, with_poses=True)
    write_poses(found, star, tmp_path / "c.star", found.labels, found.rotations, found.shifts)
    again = load(tmp_path / "c.star", with_poses=True)
    assert again.names == found.names
    np.testing.assert_array_equal(again.volumes, found.volumes)
    np.testing.assert_allclose(again.shifts, found.shifts, atol=1e-6)


def test_classes_that_are_written_are_those_of_the_particles(star, tmp_path):
    found = dropped(star)
    probabilities = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 1, 0]]
    write_classes(found, star, tmp_path / "c.star", np.zeros((6, 2)), probabilities)
    table = read_particles(tmp_path / "c.star")
    assert table.ints("rlnClassNumber").tolist() == [1, 2, 3, 3, 2, 1]
    assert [name[:6] for name in table.strings("rlnImageName")] == [
        f"{row + 1:06d}" for row in KEPT
    ]


def test_labels_are_those_of_the_particles(star, whole):
    with pytest.warns(InputWarning):
        found = load_labelled(star, nonfinite="drop")
    np.testing.assert_array_equal(found.labels, whole.labels[KEPT])


def test_teacher_speaks_of_the_particles(star, whole, tmp_path):
    weights = np.linspace(0.1, 0.8, NUM)
    table = read_particles(star).with_columns({"jimClassProbability": weights})
    table.write(star)
    found = dropped(star, with_poses=True)
    teacher = read_teacher(star, found)
    np.testing.assert_array_equal(teacher.labels, whole.labels[KEPT])
    np.testing.assert_allclose(teacher.weights, weights[KEPT] / weights[KEPT].mean(), rtol=1e-6)


def test_file_that_changed_meanwhile_is_told(star):
    found = dropped(star)
    read_particles(star).select([0, 1]).write(star)
    with pytest.raises(InputError, match="has changed since its particles were loaded"):
        table_of(found, star)
