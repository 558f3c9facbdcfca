import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jimjax.io import InputError, StarFormatError, new_table, read_particles
from jimjax.io.star import MASK_COLUMN

RELION_5 = """
# version 50001

data_general

_rlnTomoSubTomosAre2DStacks                       0
_jimNote   'kept as written'


# version 50001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
           1 opticsGroup1     5.360000
           3 opticsGroup3     2.680000


# version 50001

data_particles

loop_
_rlnTomoName #1
_rlnImageName #2
_rlnAngleRot #3
_rlnOpticsGroup #4
_rlnTomoVisibleFrames #5
_somebodysColumn #6
01 1@sub/stack.mrcs   30.000000  3  [1,1,0]  1e-3
 1 2@sub/stack.mrcs  -10.5       1  [0,1,1]  'two words'
01 3@sub/stack.mrcs  +.5E1       3  [1,1,1]  it's~a5~#1
"""

RELION_3 = """data_

loop_
_rlnImageName #1
_rlnMagnification #2
a/1.mrc 10000.0
a/2.mrc 10000.0"""


@pytest.fixture
def star(tmp_path):
    """Writes STAR text and gives its path."""

    def write(text, name="particles.star"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


# --- reading


def test_columns_are_named_in_file_order(star):
    table = read_particles(star(RELION_5))
    assert table.num_particles == len(table) == 3
    assert table.columns[:3] == ("rlnTomoName", "rlnImageName", "rlnAngleRot")


def test_name_01_stays_text(star):
    assert read_particles(star(RELION_5)).strings("rlnTomoName") == ["01", "1", "01"]


def test_numbers_are_read(star):
    np.testing.assert_array_equal(
        read_particles(star(RELION_5)).floats("rlnAngleRot"), [30.0, -10.5, 5.0]
    )


def test_quotes_are_not_part_of_the_text(star):
    assert read_particles(star(RELION_5)).strings("_somebodysColumn"[1:])[1] == "two words"


def test_values_that_cif_forbids_are_read(star):
    table = read_particles(star(RELION_5.replace("two words", "zwei Wörter ~ é")))
    assert table.strings("rlnTomoVisibleFrames") == ["[1,1,0]", "[0,1,1]", "[1,1,1]"]
    assert table.strings("somebodysColumn") == ["1e-3", "zwei Wörter ~ é", "it's~a5~#1"]


def test_old_file_with_one_unnamed_block_and_no_last_line_end(star):
    table = read_particles(star(RELION_3))
    assert table.strings("rlnImageName") == ["a/1.mrc", "a/2.mrc"]
    assert table.optics_floats("rlnImagePixelSize") is None


def test_single_particle_written_without_loop(star):
    table = read_particles(star("data_particles\n_rlnImageName a.mrc\n_rlnAngleRot 5\n"))
    assert table.num_particles == 1
    assert table.floats("rlnAngleRot") == [5.0]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems(star, end):
    table = read_particles(star(RELION_5.replace("\n", end)))
    assert table.strings("rlnTomoName") == ["01", "1", "01"]


def test_byte_order_mark_is_skipped(star):
    assert read_particles(star("\ufeff" + RELION_3)).num_particles == 2


def test_comments_and_blank_lines_between_rows(star):
    table = read_particles(star(RELION_3.replace("a/2", "\n# a comment\n  # another\n\na/2")))
    assert table.strings("rlnImageName") == ["a/1.mrc", "a/2.mrc"]


def test_comment_after_a_row_is_no_value(star):
    table = read_particles(star(RELION_3.replace("10000.0\n", "10000.0 # bad one\n")))
    np.testing.assert_array_equal(table.floats("rlnMagnification"), [10000, 10000])


def test_whole_numbers_may_be_written_as_floats(star):
    table = read_particles(star(RELION_3))
    assert table.ints("rlnMagnification").tolist() == [10000, 10000]


# --- optics


def test_optics_value_is_looked_up_by_group(star):
    np.testing.assert_array_equal(
        read_particles(star(RELION_5)).optics_floats("rlnImagePixelSize"), [2.68, 5.36, 2.68]
    )


def test_optics_column_that_is_not_there_is_none(star):
    assert read_particles(star(RELION_5)).optics_floats("rlnVoltage") is None


def test_particles_without_group_belong_to_the_only_one():
    table = new_table({"rlnImageName": ["a", "b"]}, {"rlnImagePixelSize": [4.5]})
    np.testing.assert_array_equal(table.optics_floats("rlnImagePixelSize"), [4.5, 4.5])


def test_group_without_optics_names_the_line(star):
    path = star(RELION_5.replace("-10.5       1 ", "-10.5       2 "))
    with pytest.raises(
        StarFormatError,
        match=r"particles.star:34: particle 2: rlnOpticsGroup 2 is not .* has \[1, 3\]",
    ):
        read_particles(path).optics_floats("rlnImagePixelSize")


def test_group_defined_twice_is_refused(star):
    path = star(RELION_5.replace("           3 optics", "           1 optics"))
    with pytest.raises(StarFormatError, match="two optics groups have the same rlnOpticsGroup"):
        read_particles(path).optics_floats("rlnImagePixelSize")


# --- what is not a STAR file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", r"s.star: is empty"),
        (b" \n\n", r"s.star: is empty"),
        (b"\0\1\2MRC", r"s.star: is binary, expected STAR text; is it an image"),
        (b"data_\n_a \xe9\n", r"s.star:2: byte 0xe9 is not UTF-8"),
        (b"hello world\n", r"s.star:1: expected block header"),
        (b"# only a comment\n", r"s.star: has no data_ block"),
        (b"data_x\n\n_a 1\n", r"s.star: expected a block data_particles, .* found data_x;"),
        (b"data_particles\n", r"s.star: the block data_particles is empty"),
        (b"data_particles\nloop_\n_a\n_b\n", r"s.star: the table data_particles has no rows"),
        (b"data_particles\nloop_\n_a\n_b\n1 2\n3\n", r"s.star:6: expected 2 values, .* found 1"),
        (b"data_particles\nloop_\n_a\n_b\n1\n2 3 4\n", r"s.star:5: expected 2 values, .* found 1"),
        (b"data_particles\nloop_\n_a\n_b\n1 2 3\n4\n", r"s.star:5: expected 2 values, .* found 3"),
        (b"data_particles\nloop_\n_a\n_b\n1 'x y\n", r"s.star:5: "),
        (b"data_particles\nloop_\n_a _b\n1 2\n", r"s.star:3: expected one column name on a line"),
        (b"data_particles\nloop_\n_a\n_a\n1 2\n", r"s.star:2: in data_particles: duplicate tag _a"),
        (b"data_p\n_a 1\ndata_p\n_b 1\n", r"s.star: duplicate block name: p"),
        (b"data_p\nsave_f\n_a 1\nsave_\n", r"s.star:2: save_ frames are not supported"),
        (
            b"data_particles\nloop_\n_rlnImageName\na.mrc\ndata_1/b.mrc\n",
            r"s.star:5: 'data_1/b.mrc' would start a block; quote this value",
        ),
    ],
)
def test_bad_file_is_refused_with_its_line(star, text, problem):
    with pytest.raises(StarFormatError, match=problem):
        read_particles(star(text, "s.star"))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(StarFormatError, match=r"no.star: cannot be read: No such file"):
        read_particles(tmp_path / "no.star")


@pytest.mark.parametrize(
    "value", ["None", "nan", "<NA>", "inf", "1_0", "1,5", "''", "0x1", "1e999"]
)
def test_value_that_is_no_number_names_line_column_and_value(star, value):
    table = read_particles(star(RELION_3.replace("10000.0", value)))
    with pytest.raises(
        StarFormatError,
        match=rf"particles.star:6: particle 1: column rlnMagnification: '{value.strip(chr(39))}'",
    ):
        table.floats("rlnMagnification")


def test_value_that_is_not_whole_is_named(star):
    with pytest.raises(StarFormatError, match=r"star:6: .*'10000.5' is not a whole number"):
        read_particles(star(RELION_3.replace("10000.0\n", "10000.5\n"))).ints("rlnMagnification")


def test_line_is_still_right_after_selection(star):
    table = read_particles(star(RELION_5)).select([2, 0])
    with pytest.raises(StarFormatError, match=r"star:35: particle 1: column rlnTomoVisible"):
        table.floats("rlnTomoVisibleFrames")


def test_missing_column_lists_what_is_required_and_available(star):
    with pytest.raises(
        StarFormatError,
        match=r"lack column rlnB \(required: rlnImageName, rlnB; available: rlnImageName, rlnM",
    ):
        read_particles(star(RELION_3)).require("rlnImageName", "rlnB")


# --- writing


def raw_values(text):
    """Everything but comments, column numbers and white space."""
    lines = [re.sub(r"^(_\S+)\s+#\d+\s*$", r"\1", line) for line in text.splitlines()]
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def test_every_block_column_and_value_survives_as_written(star, tmp_path):
    text = RELION_5.replace("two words", "zwei ü ~ 'n")
    read_particles(star(text)).write(tmp_path / "again.star")
    assert raw_values((tmp_path / "again.star").read_text()) == raw_values(text)


def test_second_round_trip_changes_no_byte(star, tmp_path):
    read_particles(star(RELION_5)).write(tmp_path / "1.star")
    read_particles(tmp_path / "1.star").write(tmp_path / "2.star")
    assert (tmp_path / "1.star").read_bytes() == (tmp_path / "2.star").read_bytes()


def test_version_comment_is_kept(star, tmp_path):
    read_particles(star(RELION_5)).write(tmp_path / "again.star")
    assert (tmp_path / "again.star").read_text().count("# version 50001") == 3


def test_text_fields_survive(star, tmp_path):
    text = "data_particles\nloop_\n_rlnImageName\n_n\na.mrc\n;two\nlines\n;\nb.mrc x\n"
    read_particles(star(text)).write(tmp_path / "again.star")
    assert read_particles(tmp_path / "again.star").strings("n") == ["two\nlines", "x"]


def test_value_with_semicolon_first_in_its_row_survives(star, tmp_path):
    text = "data_particles\nloop_\n_n\n_rlnImageName\n ;a a.mrc\n ;b b.mrc\n"
    read_particles(star(text)).write(tmp_path / "again.star")
    assert read_particles(tmp_path / "again.star").strings("n") == [";a", ";b"]


def test_edit_changes_only_the_edited_column(star, tmp_path):
    table = read_particles(star(RELION_5))
    table.with_columns({"rlnAngleRot": [1.5, 2.0, 3.0]}).write(tmp_path / "again.star")
    expected = RELION_5
    for old, new in (("30.000000 ", "1.5 "), ("-10.5 ", "2.0 "), ("+.5E1 ", "3.0 ")):
        expected = expected.replace(old, new)
    assert raw_values((tmp_path / "again.star").read_text()) == raw_values(expected)


def test_edit_leaves_the_old_table_alone(star):
    table = read_particles(star(RELION_5))
    table.with_columns({"rlnAngleRot": [0, 0, 0], "new": ["a", "b", "c"]})
    assert "new" not in table.columns
    assert table.floats("rlnAngleRot")[0] == 30.0


def test_new_column_comes_last(star):
    table = read_particles(star(RELION_3)).with_columns({"rlnClassNumber": [1, 2]})
    assert table.columns == ("rlnImageName", "rlnMagnification", "rlnClassNumber")


@pytest.mark.parametrize("indices", [[2, 0], np.array([2, 0]), [-1, 0]])
def test_selection_keeps_the_order_asked_for(star, indices):
    table = read_particles(star(RELION_5)).select(indices)
    assert table.strings("rlnImageName") == ["3@sub/stack.mrcs", "1@sub/stack.mrcs"]


def test_selection_by_mask(star):
    table = read_particles(star(RELION_5)).select(np.array([False, True, False]))
    assert table.strings("rlnTomoName") == ["1"]


@pytest.mark.parametrize("indices", [[3], np.array([True, False])])
def test_selection_out_of_range_is_refused(star, indices):
    with pytest.raises(InputError, match=r"particles.star: cannot select particles"):
        read_particles(star(RELION_5)).select(indices)


@given(
    texts=st.lists(
        st.text(st.characters(blacklist_categories=["Cc", "Cs"]), max_size=12)
        | st.text("ab 01_;#'\"$[]~?.-", max_size=6)
        | st.sampled_from(["data_x", "loop_", "save_", "stop_", "global_", "?", "."]),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=200, deadline=None, database=None)
def test_any_text_reads_back_the_same(tmp_path_factory, texts):
    texts = [text for text in texts if not ("'" in text and '"' in text)]
    path = tmp_path_factory.mktemp("text") / "t.star"
    names = [f"{n}@a.mrcs" for n in range(len(texts) + 1)]
    new_table({"other": ["first", *texts], "rlnImageName": names}).write(path)
    assert read_particles(path).strings("other") == ["first", *texts]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None, database=None)
def test_any_float_reads_back_the_same(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("float") / "t.star"
    new_table({"rlnImageName": ["a"] * len(values), "x": values}).write(path)
    np.testing.assert_array_equal(read_particles(path).floats("x"), values)


def test_numpy_values_are_written_short(tmp_path):
    columns = {"rlnImageName": ["a"], "f": np.float32([0.1]), "i": np.int32([7]), "b": [True]}
    new_table(columns).write(tmp_path / "t.star")
    assert (tmp_path / "t.star").read_text().splitlines()[-1].split() == ["a", "0.1", "7", "1"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"a": [1.0, np.nan]}, "column a: nan is not finite"),
        ({"a": ["x\ny"]}, "column a: .* control characters"),
        ({"a": ["x\udcff"]}, "column a: .* control characters"),
        ({"a": ['it\'s "x"']}, "column a: .* cannot be written as one STAR value"),
        ({"a": [1], "b": [1, 2]}, "column b must have 1 values, got 2"),
        ({"_a": [1]}, "column name '_a' must be printable, without space or leading _"),
        ({"a b": [1]}, "column name 'a b' must be printable"),
        ({}, "at least one column"),
    ],
)
def test_values_that_cannot_be_written_are_refused(columns, problem):
    with pytest.raises(InputError, match=problem):
        new_table(columns)


def test_failed_write_leaves_the_old_file(star, tmp_path, monkeypatch):
    path = star(RELION_3)
    table = read_particles(path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        table.select([0]).write(path)
    assert path.read_text() == RELION_3
    assert list(tmp_path.iterdir()) == [path]


# --- image names


@pytest.fixture
def project(star, tmp_path):
    """A STAR file in a/ that lists a/sub/stack.mrcs."""
    path = star(RELION_5, "a/particles.star")
    (tmp_path / "a" / "sub").mkdir()
    (tmp_path / "a" / "sub" / "stack.mrcs").touch()
    return path


def test_relative_image_is_looked_for_beside_the_star_file(project):
    found = read_particles(project).image_references()
    assert found[1] == (2, project.parent / "sub" / "stack.mrcs")


def test_relative_image_is_then_looked_for_in_the_working_directory(star, tmp_path, monkeypatch):
    path = star(RELION_3, "job/p.star")
    (tmp_path / "a").mkdir()
    for name in ("1.mrc", "2.mrc"):
        (tmp_path / "a" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert read_particles(path).image_references()[0] == (None, tmp_path / "a" / "1.mrc")


def test_missing_image_names_line_and_places(star, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = star(RELION_3, "job/p.star")
    with pytest.raises(
        StarFormatError,
        match=r"p.star:6: particle 1: image file 'a/1.mrc' is not at \S+/job/a/1.mrc nor at \S+;",
    ):
        read_particles(path).image_references()


def test_malformed_image_name_names_the_line(star):
    path = star(RELION_3.replace("a/2.mrc", "0@a.mrcs"))
    (path.parent / "a").mkdir()
    (path.parent / "a" / "1.mrc").touch()
    with pytest.raises(StarFormatError, match=r"star:7: particle 2: .*'0' must be a whole number"):
        read_particles(path).image_references()


@pytest.mark.parametrize("folder", ["b", "a/deeper/still", "."])
def test_table_written_elsewhere_still_finds_its_images(project, tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    table = read_particles(project)
    table.write(tmp_path / folder / "p.star")
    moved = read_particles(tmp_path / folder / "p.star")
    for old, new in zip(table.image_references(), moved.image_references(), strict=True):
        assert old.index == new.index
        assert os.path.samefile(old.path, new.path)
    assert not any(Path(name.split("@")[1]).is_absolute() for name in moved.strings("rlnImageName"))


@pytest.fixture
def masked(project):
    """The project's table with masks: in a stack, in a file of its own, and none."""
    (project.parent / "sub" / "mask one.mrc").touch()
    names = ["2@sub/stack.mrcs", "sub/mask one.mrc", ""]
    read_particles(project).with_columns({MASK_COLUMN: names}).write(project)
    return project


@pytest.mark.parametrize("folder", ["b", "a/deeper/still", "."])
def test_table_written_elsewhere_still_finds_its_masks(masked, tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    read_particles(masked).write(tmp_path / folder / "p.star")
    moved = read_particles(tmp_path / folder / "p.star")
    found = moved.select([0, 1]).image_references(MASK_COLUMN)
    assert [reference.index for reference in found] == [2, None]
    assert os.path.samefile(found[0].path, masked.parent / "sub" / "stack.mrcs")
    assert os.path.samefile(found[1].path, masked.parent / "sub" / "mask one.mrc")
    assert moved.strings(MASK_COLUMN)[2] == ""


def test_mask_that_names_no_file_matters_only_where_masks_are_wanted(masked):
    table = read_particles(masked)
    assert len(table.image_references()) == 3
    problem = f"particle 3: column {MASK_COLUMN}: image name '' names no file"
    with pytest.raises(StarFormatError, match=problem):
        table.image_references(MASK_COLUMN)


def test_malformed_image_is_not_carried_elsewhere(project, tmp_path):
    names = ["1@sub/stack.mrcs", "0@sub/stack.mrcs", "3@sub/stack.mrcs"]
    table = read_particles(project).with_columns({"rlnImageName": names})
    with pytest.raises(
        StarFormatError, match=r"particle 2: column rlnImageName: .* counted from 1"
    ):
        table.write(tmp_path / "p.star")


def test_table_written_beside_keeps_its_names(project):
    read_particles(project).write(project.parent / "other.star")
    assert read_particles(project.parent / "other.star").strings("rlnImageName")[0] == (
        "1@sub/stack.mrcs"
    )


def test_absolute_names_stay(star, tmp_path):
    path = star(RELION_3.replace("a/", f"{tmp_path}/a/"), "x/p.star")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.mrc").touch()
    (tmp_path / "y").mkdir()
    read_particles(path).write(tmp_path / "y" / "p.star")
    assert read_particles(tmp_path / "y" / "p.star").strings("rlnImageName") == [
        f"{tmp_path}/a/1.mrc",
        f"{tmp_path}/a/2.mrc",
    ]


def test_names_that_belong_to_the_working_directory_stay(star, tmp_path, monkeypatch):
    path = star(RELION_3, "job/p.star")
    (tmp_path / "a").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "a" / "1.mrc").touch()
    monkeypatch.chdir(tmp_path)
    read_particles(path).write(tmp_path / "out" / "p.star")
    names = read_particles(tmp_path / "out" / "p.star").strings("rlnImageName")
    assert names == ["a/1.mrc", "a/2.mrc"]


def test_name_that_another_file_would_hide_becomes_absolute(star, tmp_path, monkeypatch):
    path = star(RELION_3, "job/p.star")
    for folder in ("a", "out/a"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.mrc").touch()
    monkeypatch.chdir(tmp_path)
    read_particles(path).select([0]).write(tmp_path / "out" / "p.star")
    names = read_particles(tmp_path / "out" / "p.star").strings("rlnImageName")
    assert names == [f"{tmp_path}/a/1.mrc"]


def test_linked_folders_are_followed_as_the_system_does(project, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    read_particles(project).write(tmp_path / "link" / "p.star")
    found = read_particles(tmp_path / "link" / "p.star").image_references()[0].path
    assert os.path.samefile(found, project.parent / "sub" / "stack.mrcs")


def test_path_with_spaces_and_umlauts(star, tmp_path):
    path = star(RELION_3.replace("a/1.mrc", "'ä b/1.mrc'"), "my ö/p.star")
    (path.parent / "ä b").mkdir()
    (path.parent / "ä b" / "1.mrc").touch()
    read_particles(path).select([0]).write(tmp_path / "p.star")
    assert read_particles(tmp_path / "p.star").image_references()[0].path.is_file()


@given(row=st.integers(0, 2), column=st.integers(0, 5))
@settings(max_examples=18, deadline=None, database=None)
def test_row_that_lost_a_value_is_refused(tmp_path_factory, row, column):
    lines = RELION_5.replace("two words", "two_words").splitlines()
    values = lines[32 + row].split()
    del values[column]
    lines[32 + row] = " ".join(values)
    path = tmp_path_factory.mktemp("cut") / "s.star"
    path.write_text("\n".join(lines))
    with pytest.raises(StarFormatError, match=rf"s.star:{33 + row}: expected 6 values"):
        read_particles(path)
