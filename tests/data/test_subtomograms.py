import dataclasses
import gzip
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.data.subtomograms import Subtomograms, concatenate, load, normalize, to_star
from jimjax.io import (
    InputError,
    InputWarning,
    new_table,
    read_particles,
    write_stack,
    write_volume,
)

NUM, BOX = 5, 8


def random_volumes(num, box=BOX, seed=0):
    return np.random.default_rng(seed).normal(size=(num, box, box, box)).astype(np.float32)


@pytest.fixture
def particles():
    rng = np.random.default_rng(1)
    return Subtomograms(
        volumes=random_volumes(NUM),
        tilt_ranges=np.float32([[-60, 60], [-50, 40], [-60, 60], [-90, 90], [0, 60.5]]),
        voxel_size=5.36,
        names=tuple("abcde"),
        halves=np.array([1, 2, 2, 1, 2]),
        rotations=Rotation.random(NUM, random_state=2).as_matrix().astype(np.float32),
        shifts=rng.normal(size=(NUM, 3)).astype(np.float32),
        labels=np.array([0, 1, 2, 0, 1]),
    )


@pytest.fixture
def write_star(tmp_path):
    """Writes a stack of ``volumes`` and a STAR file with a tilt range; columns can be changed."""

    def write(changes=None, volumes=None, voxel_size=5.0):
        volumes = random_volumes(3) if volumes is None else volumes
        write_stack(tmp_path / "s.mrcs", volumes, voxel_size=voxel_size)
        num = len(volumes)
        columns = {
            "rlnImageName": [f"{n + 1}@s.mrcs" for n in range(num)],
            "jimTiltMin": [-60.0] * num,
            "jimTiltMax": [60.0] * num,
        } | (changes or {})
        columns = {name: values for name, values in columns.items() if values is not None}
        new_table(columns).write(tmp_path / "p.star")
        return tmp_path / "p.star"

    return write


def poison(path, voxel, value):
    """Puts a value into an MRC file that the writer would refuse."""
    raw = bytearray(path.read_bytes())
    raw[1024 + 4 * voxel : 1028 + 4 * voxel] = np.float32(value).tobytes()
    path.write_bytes(raw)


# --- the record


def test_round_trip_keeps_everything(particles, tmp_path):
    to_star(particles, tmp_path / "p.star", stack_path=tmp_path / "s.mrcs")
    again = load(tmp_path / "p.star", with_poses=True)
    np.testing.assert_array_equal(again.volumes, particles.volumes)
    np.testing.assert_array_equal(again.tilt_ranges, particles.tilt_ranges)
    np.testing.assert_array_equal(again.halves, particles.halves)
    np.testing.assert_array_equal(again.labels, particles.labels)
    np.testing.assert_allclose(again.rotations, particles.rotations, atol=2e-7)  # float32
    np.testing.assert_allclose(again.shifts, particles.shifts, rtol=2e-7)
    assert again.voxel_size == particles.voxel_size
    assert again.names == tuple(f"{n}@{tmp_path}/s.mrcs" for n in range(1, NUM + 1))
    assert {a.dtype for a in (again.volumes, again.tilt_ranges, again.rotations, again.shifts)} == {
        np.dtype(np.float32)
    }


def test_parts_of_a_data_set_are_concatenated_to_the_whole(particles):
    whole = concatenate([particles.select([0, 1]), particles.select([2, 3, 4])])
    for field in dataclasses.fields(Subtomograms):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(particles, field.name))


def test_what_only_some_parts_know_is_left_out_of_the_whole(particles):
    whole = concatenate([particles, dataclasses.replace(particles, labels=None)])
    assert len(whole) == len(whole.names) == 2 * NUM
    assert whole.labels is None
    assert whole.rotations is not None
    with pytest.raises(ValueError, match=r"must be the same, got .*5\.36.*10\.0"):
        concatenate([particles, dataclasses.replace(particles, voxel_size=10.0)])
    with pytest.raises(ValueError, match="nothing to concatenate"):
        concatenate([])


def test_stack_in_another_folder_is_found(particles, tmp_path):
    (tmp_path / "stars").mkdir()
    (tmp_path / "stacks").mkdir()
    to_star(particles, tmp_path / "stars/p.star", stack_path=tmp_path / "stacks/s.mrcs")
    assert read_particles(tmp_path / "stars/p.star").strings("rlnImageName")[0] == (
        "000001@../stacks/s.mrcs"
    )
    np.testing.assert_array_equal(load(tmp_path / "stars/p.star").volumes, particles.volumes)


def test_truth_is_not_read_unless_asked_for(particles, tmp_path):
    to_star(particles, tmp_path / "p.star", stack_path=tmp_path / "s.mrcs")
    blind = load(tmp_path / "p.star")
    assert blind.rotations is None
    assert blind.shifts is None
    assert blind.labels is None


def test_particles_without_truth_are_written_without(particles, tmp_path):
    blind = Subtomograms(
        *[getattr(particles, n) for n in ("volumes", "tilt_ranges")],
        4.0,
        particles.names,
        particles.halves,
    )
    to_star(blind, tmp_path / "p.star", stack_path=tmp_path / "s.mrcs")
    columns = read_particles(tmp_path / "p.star").columns
    assert not {"rlnAngleRot", "rlnOriginXAngst", "rlnClassNumber"} & set(columns)


@pytest.mark.parametrize("indices", [[4, 1], np.array([4, 1]), [-1, 1]])
def test_selection_takes_every_field_along(particles, indices):
    some = particles.select(indices)
    assert len(some) == 2
    assert some.names == ("e", "b")
    for name in ("volumes", "tilt_ranges", "halves", "rotations", "shifts", "labels"):
        np.testing.assert_array_equal(getattr(some, name), getattr(particles, name)[[4, 1]])
    assert some.voxel_size == particles.voxel_size


def test_selection_by_mask(particles):
    assert particles.select(particles.halves == 1).names == ("a", "d")


def test_selection_of_blind_particles_stays_blind(write_star):
    assert load(write_star()).select([0]).rotations is None


# --- masks


@pytest.fixture
def masked(particles):
    masks = np.random.default_rng(3).random(particles.volumes.shape) > 0.7
    return dataclasses.replace(particles, masks=masks)


def test_masks_make_a_round_trip(masked, tmp_path):
    to_star(masked, tmp_path / "p.star", stack_path=tmp_path / "s.mrcs")
    again = load(tmp_path / "p.star", with_masks=True)
    np.testing.assert_array_equal(again.masks, masked.masks)
    assert again.masks.dtype == bool
    np.testing.assert_array_equal(again.volumes, masked.volumes)
    assert again.rotations is None
    assert read_particles(tmp_path / "p.star").strings("rlnMaskName")[1] == "000002@s_masks.mrcs"


def test_masks_in_a_folder_of_their_own_are_found(masked, tmp_path):
    (tmp_path / "stars").mkdir()
    (tmp_path / "masks").mkdir()
    files = {"stack_path": tmp_path / "s.mrcs", "mask_path": tmp_path / "masks/m.mrcs"}
    to_star(masked, tmp_path / "stars/p.star", **files)
    again = load(tmp_path / "stars/p.star", with_masks=True)
    np.testing.assert_array_equal(again.masks, masked.masks)
    assert not (tmp_path / "s_masks.mrcs").exists()


def test_masks_are_not_read_unless_asked_for(masked, tmp_path):
    to_star(masked, tmp_path / "p.star", stack_path=tmp_path / "s.mrcs")
    (tmp_path / "s_masks.mrcs").unlink()
    assert load(tmp_path / "p.star", with_poses=True).masks is None


def test_particles_without_masks_are_written_without(particles, tmp_path):
    files = {"stack_path": tmp_path / "s.mrcs", "mask_path": tmp_path / "m.mrcs"}
    to_star(particles, tmp_path / "p.star", **files)
    assert "rlnMaskName" not in read_particles(tmp_path / "p.star").columns
    assert not (tmp_path / "m.mrcs").exists()


@pytest.mark.parametrize("rows", [[4, 1], np.array([True, False, False, True, False])])
def test_selection_takes_masks_along(masked, rows):
    np.testing.assert_array_equal(masked.select(rows).masks, masked.masks[rows])


def test_masks_are_read_row_by_row_from_stacks_and_files(write_star, tmp_path):
    soft = np.random.default_rng(4).random((3, BOX, BOX, BOX)).astype(np.float32)
    soft[0, 0, 0, :4] = [0.5, 0.501, 1.0005, -0.0005]  # the last two: rounding of some program
    write_stack(tmp_path / "m.mrcs", soft[:2], voxel_size=1.0)  # a header that does not know
    write_volume(tmp_path / "one.mrc", soft[2], voxel_size=7.0)
    path = write_star({"rlnMaskName": ["2@m.mrcs", "one.mrc", "1@m.mrcs"]})
    masks = load(path, with_masks=True).masks
    np.testing.assert_array_equal(masks, soft[[1, 2, 0]] > 0.5)
    np.testing.assert_array_equal(masks[2, 0, 0, :4], [False, True, True, False])


def test_empty_and_full_masks_are_masks(write_star, tmp_path):
    masks = np.stack([np.zeros((BOX,) * 3), np.ones((BOX,) * 3)]) > 0
    write_stack(tmp_path / "m.mrcs", masks, voxel_size=5.0)
    path = write_star({"rlnMaskName": ["1@m.mrcs", "2@m.mrcs", "1@m.mrcs"]})
    sums = load(path, with_masks=True).masks.sum(axis=(1, 2, 3))
    np.testing.assert_array_equal(sums, [0, BOX**3, 0])


def test_masks_that_are_not_there_are_told_with_what_to_do(write_star):
    path = write_star()
    assert refusal(path, with_masks=True) == (
        f"{path}: the particles have no masks; add a column rlnMaskName (NUMBER@STACK or the path"
        " of each, 1 inside the particle and 0 outside), or simulate particles with --masks"
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("9@m.mrcs", "particle 2: {folder}/m.mrcs: no volume 9, the file holds 2"),
        ("0@m.mrcs", "particle 2: column rlnMaskName: image name '0@m.mrcs': '0' must be a whole"),
        ("no.mrc", "particle 2: image file 'no.mrc' is not at {folder}/no.mrc; correct rlnMaskN"),
        ("", "particle 2: column rlnMaskName: image name '' names no file"),
        ("big.mrc", "particle 2: mask {folder}/big.mrc has 8 x 10 x 12 voxels, its particle 8 x"),
        ("map.mrc", "particle 2: mask {folder}/map.mrc has values from 0 to 3; a mask is 1 inside"),
        ("255.mrc", "particle 2: mask {folder}/255.mrc has values from 0 to 255; a mask is 1 in"),
        ("dark.mrc", "particle 2: mask {folder}/dark.mrc has values from -1 to 0; a mask is 1 ins"),
        ("nan.mrc", "particle 2: mask {folder}/nan.mrc has values from nan to nan; a mask is 1 i"),
        ("cut.mrc", "particle 2: {folder}/cut.mrc: expected 3072 bytes"),
    ],
)
def test_bad_mask_is_refused(write_star, tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)
    cube = np.random.default_rng(5).random((BOX,) * 3) > 0.5
    write_stack(tmp_path / "m.mrcs", np.stack([cube, cube]), voxel_size=5.0)
    write_volume(tmp_path / "big.mrc", np.zeros((12, 10, 8)), voxel_size=5.0)
    for bad, inside in {"map": 3, "255": 255, "dark": -1, "nan": 1}.items():
        write_volume(tmp_path / f"{bad}.mrc", np.where(cube, inside, 0), voxel_size=5.0)
    poison(tmp_path / "nan.mrc", 77, np.nan)
    write_volume(tmp_path / "cut.mrc", np.ones((8, 8, 8)), voxel_size=5.0)
    (tmp_path / "cut.mrc").write_bytes((tmp_path / "cut.mrc").read_bytes()[:-1])
    path = write_star({"rlnMaskName": ["1@m.mrcs", name, "2@m.mrcs"]})
    message = refusal(path, with_masks=True)
    assert problem.format(folder=tmp_path) in message
    assert message.startswith(f"{path}:11: ")
    assert load(path).masks is None  # who does not want masks is not bothered


@pytest.mark.parametrize(
    ("masks", "problem"),
    [
        (np.zeros((NUM, BOX, BOX, BOX - 1), bool), r"shape \(5, 8, 8, 8\), got bool of shape \(5,"),
        (np.zeros((NUM, BOX, BOX, BOX)), "must be boolean .* got float64"),
    ],
)
def test_masks_that_do_not_fit_are_not_written(particles, tmp_path, masks, problem):
    odd = dataclasses.replace(particles, masks=masks)
    with pytest.raises(InputError, match=problem):
        to_star(odd, tmp_path / "p.star", stack_path=tmp_path / "s.mrcs")
    assert list(tmp_path.iterdir()) == []


def test_masks_do_not_replace_the_volumes(masked, tmp_path):
    path = tmp_path / "s.mrcs"
    with pytest.raises(InputError, match="is the stack of the volumes; give masks another file"):
        to_star(masked, tmp_path / "p.star", stack_path=path, mask_path=tmp_path / "." / "s.mrcs")
    assert list(tmp_path.iterdir()) == []


# --- where values come from


def test_tilt_range_argument_is_for_all(write_star):
    particles = load(write_star(), tilt_range=(-48, 52))
    np.testing.assert_array_equal(particles.tilt_ranges, [[-48, 52]] * 3)


def test_tilt_range_may_be_in_the_optics_block(tmp_path):
    write_stack(tmp_path / "s.mrcs", random_volumes(2), voxel_size=5.0)
    new_table(
        {"rlnImageName": ["1@s.mrcs", "2@s.mrcs"], "rlnOpticsGroup": [2, 1]},
        {"rlnOpticsGroup": [1, 2], "jimTiltMin": [-60, -40], "jimTiltMax": [60, 50]},
    ).write(tmp_path / "p.star")
    np.testing.assert_array_equal(load(tmp_path / "p.star").tilt_ranges, [[-40, 50], [-60, 60]])


def test_voxel_size_argument_beats_star_beats_header(write_star):
    assert load(write_star(voxel_size=3.0)).voxel_size == 3.0
    path = write_star({"rlnImagePixelSize": [4.0] * 3}, voxel_size=3.0)
    assert load(path).voxel_size == 4.0
    assert load(path, voxel_size=5.5).voxel_size == 5.5


def test_halves_of_the_table_are_kept(write_star):
    assert load(write_star({"rlnRandomSubset": [2, 1, 2]})).halves.tolist() == [2, 1, 2]


def test_halves_from_names_do_not_depend_on_the_other_particles(write_star, tmp_path):
    path = write_star(volumes=random_volumes(40))
    halves = load(path).halves
    assert 10 < np.sum(halves == 1) < 30
    read_particles(path).select([7, 3]).write(tmp_path / "few.star")
    np.testing.assert_array_equal(load(tmp_path / "few.star").halves, halves[[7, 3]])


def test_half_of_a_name_never_changes(write_star):
    # A release that changes these mixes the half sets of running projects.
    assert load(write_star(volumes=random_volumes(8))).halves.tolist() == [1, 1, 2, 1, 2, 2, 1, 1]


def test_seed_deals_other_halves_but_leaves_those_of_the_table(write_star):
    path = write_star(volumes=random_volumes(40))
    zero, one, again = (load(path, seed=seed).halves for seed in (0, 1, 1))
    assert 10 < np.sum(zero != one) < 30
    np.testing.assert_array_equal(one, again)
    given = write_star({"rlnRandomSubset": [2, 1, 2]})
    assert load(given, seed=1).halves.tolist() == [2, 1, 2]


def test_origins_of_old_relion_are_in_voxels(write_star):
    angles = {f"rlnAngle{name}": [0.0] * 3 for name in ("Rot", "Tilt", "Psi")}
    origins = {"rlnOriginX": [1, 2, 3], "rlnOriginY": [0] * 3, "rlnOriginZ": [-4] * 3}
    particles = load(write_star(angles | origins), with_poses=True)
    np.testing.assert_array_equal(particles.shifts, [[-1, 0, 4], [-2, 0, 4], [-3, 0, 4]])


def test_missing_origins_are_zero_and_missing_classes_none(write_star):
    angles = {f"rlnAngle{name}": [0.0] * 3 for name in ("Rot", "Tilt", "Psi")}
    particles = load(write_star(angles), with_poses=True)
    np.testing.assert_array_equal(particles.shifts, np.zeros((3, 3)))
    assert particles.labels is None


def test_single_files_and_stacks_mix(write_star, tmp_path):
    path = write_star({"rlnImageName": ["2@s.mrcs", "one é.mrc", "1@s.mrcs"]})
    one = random_volumes(1, seed=5)[0]
    write_volume(tmp_path / "one é.mrc", one, voxel_size=5.0)
    volumes = load(path).volumes
    np.testing.assert_array_equal(volumes[[2, 0]], random_volumes(3)[:2])
    np.testing.assert_array_equal(volumes[1], one)


def test_compressed_volume_is_loaded(write_star, tmp_path):
    path = write_star({"rlnImageName": ["a.mrc.gz"] * 3})
    one = random_volumes(1, seed=5)[0]
    write_volume(tmp_path / "a.mrc", one, voxel_size=5.0)
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    np.testing.assert_array_equal(load(path).volumes, np.stack([one] * 3))


# --- how files are treated


def test_stack_is_read_once_and_opened_only_for_reading(write_star, monkeypatch):
    path = write_star()
    opened = []
    real_open = open

    def spy(file, mode="r", *args, **kwargs):
        opened.append((str(file).rsplit("/", 1)[-1], mode))
        return real_open(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", spy)
    load(path)
    headers, voxels = [("s.mrcs", "rb")] * 2, ("s.mrcs", "rb")
    assert opened == [("p.star", "rb"), *headers, voxels]


def test_no_jax_is_imported():
    code = "import sys, jimjax.io, jimjax.data.subtomograms; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_warning_for_many_files_of_unknown_size(write_star, tmp_path):
    names = [f"{n}.mrc" for n in range(3)]
    path = write_star({"rlnImageName": names})
    for name, volume in zip(names, random_volumes(3), strict=True):
        write_volume(tmp_path / name, volume, voxel_size=1.0)
    with pytest.warns(InputWarning, match=r"exactly 1 A.*\(and 2 more files\)$") as caught:
        load(path)
    assert len(caught) == 1


def test_no_warning_about_a_header_that_is_not_needed(write_star):
    path = write_star(voxel_size=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(path, voxel_size=5.0).voxel_size == 5.0


# --- one line for each mistake


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nan_voxels_are_counted_and_the_first_is_placed(write_star, tmp_path):
    path = write_star()
    poison(tmp_path / "s.mrcs", BOX**3 + 2 * BOX**2 + 3 * BOX + 4, np.nan)
    poison(tmp_path / "s.mrcs", 2 * BOX**3 - 1, np.inf)
    assert refusal(path) == (
        f"{path}:10: particle 2: 2@{tmp_path}/s.mrcs has 2 voxels that are NaN or infinite,"
        " the first at [z, y, x] = [2, 3, 4]; leave this particle out (--nonfinite drop) or extract"
        " it again"
    )


def test_constant_particles_are_listed(write_star, tmp_path):
    volumes = random_volumes(8)
    volumes[1:8] = 3.5
    message = refusal(write_star(volumes=volumes))
    assert f"7 particles are constant, without any signal: 2@{tmp_path}/s.mrcs, 3@" in message
    assert message.endswith("6@" + f"{tmp_path}/s.mrcs and 2 more; leave them out")


def test_mixed_boxes_are_listed_with_an_example_each(write_star, tmp_path):
    path = write_star({"rlnImageName": ["1@s.mrcs", "big.mrc", "big2.mrc"]})
    for name in ("big.mrc", "big2.mrc"):
        write_volume(tmp_path / name, random_volumes(1, 10)[0], voxel_size=5.0)
    assert refusal(path) == (
        f"{path}: all particles must have one box size, found 8 x 8 x 8 ({tmp_path}/s.mrcs),"
        f" 10 x 10 x 10 ({tmp_path}/big.mrc); crop, pad or re-extract them"
    )


def test_box_that_is_no_cube_is_refused(write_star):
    message = refusal(write_star(volumes=np.ones((3, 4, 6, 8)) * np.arange(8)))
    assert "p.star:9: particle 1: expected a cubic box, got 8 x 6 x 4 voxels; crop" in message


def test_missing_image_column_lists_those_there_are(write_star):
    message = refusal(write_star({"rlnImageName": None}))
    assert message.endswith(
        "the particles lack column rlnImageName"
        " (required: rlnImageName; available: jimTiltMin, jimTiltMax)"
    )


@pytest.mark.parametrize("missing", ["jimTiltMin", "jimTiltMax"])
def test_missing_tilt_range_tells_the_options(write_star, missing):
    message = refusal(write_star({missing: None}))
    assert "pass --tilt-min and --tilt-max, or add columns jimTiltMin and jimTiltMax" in message


@pytest.mark.parametrize(("low", "high"), [(-91, 60), (-60, 91), (60, -60), (0, 0)])
def test_impossible_tilt_range_is_refused(write_star, low, high):
    path = write_star({"jimTiltMin": [-60, low, -60], "jimTiltMax": [60, high, 60]})
    assert "p.star:10: particle 2: jimTiltMin and jimTiltMax must be" in refusal(path)
    assert f"got {float(low)} to {float(high)}" in refusal(path, tilt_range=(low, high))


def test_tilt_range_argument_with_nan_is_refused(write_star):
    assert "tilt range must be" in refusal(write_star(), tilt_range=(np.nan, 60))


def test_unknown_voxel_size_tells_the_option(write_star, tmp_path):
    path = write_star()
    raw = bytearray((tmp_path / "s.mrcs").read_bytes())
    raw[40:52] = bytes(12)
    (tmp_path / "s.mrcs").write_bytes(raw)
    message = refusal(path)
    assert "p.star:9: particle 1: the voxel size is neither in the STAR file" in message
    assert message.endswith("pass --voxel-size")


def test_two_voxel_sizes_are_refused(write_star):
    message = refusal(write_star({"rlnImagePixelSize": [4.0, 4.0, 5.0]}))
    assert "particle 3: rlnImagePixelSize is 5 A but 4 A for particle 1" in message


@pytest.mark.parametrize("size", [0.0, -2.0])
def test_voxel_size_that_is_not_positive_is_refused(write_star, size):
    assert "voxel size must be positive" in refusal(write_star({"rlnImagePixelSize": [size] * 3}))
    assert "voxel size must be positive" in refusal(write_star(), voxel_size=size)


def test_index_beyond_the_stack_names_its_particle(write_star, tmp_path):
    path = write_star({"rlnImageName": ["1@s.mrcs", "2@s.mrcs", "9@s.mrcs"]})
    assert refusal(path) == (
        f"{path}:11: particle 3: {tmp_path}/s.mrcs: no volume 9, the file holds 3, counted from 1"
    )


def test_damaged_image_names_star_line_and_image(write_star, tmp_path):
    path = write_star()
    (tmp_path / "s.mrcs").write_bytes((tmp_path / "s.mrcs").read_bytes()[:-1])
    message = refusal(path)
    assert message.startswith(f"{path}:9: particle 1: {tmp_path}/s.mrcs: expected 7168 bytes")


def test_missing_image_names_its_particle(write_star):
    message = refusal(write_star({"rlnImageName": ["1@s.mrcs", "no.mrc", "2@s.mrcs"]}))
    assert "p.star:10: particle 2: image file 'no.mrc' is not at" in message


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("rlnRandomSubset", [1, 2, 3], "particle 3: rlnRandomSubset must be 1 or 2, got 3"),
        ("rlnClassNumber", [1, 0, 1], "particle 2: rlnClassNumber must count from 1, got 0"),
        ("rlnClassNumber", [1, 2**40, 1], "particle 2: rlnClassNumber must count from 1"),
        ("rlnAngleRot", ["0", "None", "0"], "particle 2: column rlnAngleRot: 'None' is not"),
        ("rlnAnglePsi", None, "lack column rlnAnglePsi (required: rlnAngleRot, rlnAngleTilt,"),
        ("rlnOriginYAngst", None, "lack column rlnOriginYAngst (required: rlnOriginXAngst,"),
    ],
)
def test_bad_truth_is_refused(write_star, column, values, problem):
    names = ("AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst", "OriginZAngst")
    good = {f"rln{name}": [0.0] * 3 for name in names}
    path = write_star(good | {column: values})
    assert problem in refusal(path, with_poses=True)


def test_too_little_memory_is_told(write_star, monkeypatch):
    path = write_star()

    real_empty = np.empty

    def refuse(shape, *args):
        if np.ndim(shape) and len(shape) == 4:
            raise MemoryError
        return real_empty(shape, *args)

    monkeypatch.setattr("numpy.empty", refuse)
    assert "p.star: 3 particles of 8^3 voxels need 5.72e-06 GiB of memory" in refusal(path)


# --- normalize


def test_normalized_particle_has_mean_zero_and_deviation_one():
    volumes = normalize(random_volumes(3) * 7 + 1000)
    np.testing.assert_allclose(volumes.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(volumes.std(axis=(1, 2, 3)), 1, rtol=1e-5)
    assert volumes.dtype == np.float32


def test_normalization_forgets_gain_and_offset():
    volumes = random_volumes(2)
    np.testing.assert_allclose(normalize(3 * volumes - 2), normalize(volumes), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_constant_particle_normalizes_to_zeros(value):
    volumes = np.full((1, 4, 4, 4), value, np.float32)
    np.testing.assert_array_equal(normalize(volumes), np.zeros_like(volumes))


def test_normalization_leaves_its_argument_alone():
    volumes = random_volumes(2)
    normalize(volumes)
    np.testing.assert_array_equal(volumes, random_volumes(2))
