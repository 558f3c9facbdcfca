"""Which files a table may name: those of its project, unless told otherwise."""

import os

import pytest

from jimjax.io import InputError, new_table, read_particles
from jimjax.io.places import project_roots


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A project with two folders of runs, and a folder of somebody else; names of the files."""
    for name in (
        "project/data/y.mrc",
        "project/runs/x/own.mrc",
        "project/runs/beside/z.mrc",
        "elsewhere/deep/other.mrc",
        "secret.mrc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    return tmp_path


def found(disk, name, *, star="project/runs/x", **options):
    """Where the image of a table in ``star`` is found."""
    path = disk / star / "p.star"
    new_table({"rlnImageName": [name]}).write(path)
    options = {"allow_outside": False, **options}
    return read_particles(path).image_references(**options)[0].path


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("own.mrc", "project/runs/x/own.mrc"),
        ("1@own.mrc", "project/runs/x/own.mrc"),
        ("../beside/z.mrc", "project/runs/beside/z.mrc"),
        ("other.mrc", "elsewhere/deep/other.mrc"),  # of the working directory
    ],
)
def test_files_of_the_project_are_found(name, place, disk):
    assert found(disk, name) == disk / place


def test_working_directory_is_a_project(disk, monkeypatch):
    monkeypatch.chdir(disk / "project")
    assert found(disk, "../../data/y.mrc") == disk / "project" / "data" / "y.mrc"
    assert found(disk, "data/y.mrc") == disk / "project" / "data" / "y.mrc"


def test_absolute_name_is_no_sin_inside_the_project(disk):
    place = disk / "project" / "runs" / "beside" / "z.mrc"
    assert found(disk, str(place)) == place


OUTSIDE = ["../../data/y.mrc", "../../../secret.mrc", "../../../../../../../../../etc/passwd"]


@pytest.mark.parametrize("name", [*OUTSIDE, "3@../../../secret.mrc", "/etc/passwd", "1@/etc/none"])
def test_files_outside_are_refused_in_one_line(name, disk):
    path = name.rpartition("@")[2]
    with pytest.raises(InputError) as caught:
        found(disk, name)
    assert str(caught.value) == (
        f"{disk}/project/runs/x/p.star:7: particle 1: '{path}' of rlnImageName lies outside of "
        f"{disk}/elsewhere/deep and {disk}/project/runs; allow it with --allow-outside"
    )


def test_whether_a_file_outside_exists_is_not_told(disk):
    told = []
    for name in ("../../../secret.mrc", "../../../nothing.mrc"):
        with pytest.raises(InputError) as caught:
            found(disk, name)
        told.append(str(caught.value).replace("nothing", "secret"))
    assert told[0] == told[1]


def test_steps_back_inside_do_not_matter(disk):
    assert found(disk, "../beside/../x/own.mrc") == disk / "project" / "runs" / "x" / "own.mrc"
    with pytest.raises(InputError, match="lies outside of"):
        found(disk, "../beside/../../data/y.mrc")


def test_what_is_outside_can_be_allowed(disk):
    assert found(disk, "../../data/y.mrc", allow_outside=True) == disk / "project" / "data/y.mrc"


def test_python_allows_it_unless_told_not_to(disk):
    path = disk / "project" / "runs" / "x" / "p.star"
    new_table({"rlnImageName": ["../../data/y.mrc"]}).write(path)
    assert read_particles(path).image_references()[0].path == disk / "project" / "data" / "y.mrc"


def test_link_in_the_project_is_the_users_own(disk):
    (disk / "project" / "runs" / "x" / "linked").symlink_to(disk / "project" / "data")
    place = disk / "project" / "runs" / "x" / "linked" / "y.mrc"
    assert found(disk, "linked/y.mrc") == place
    assert found(disk, "../x/linked/y.mrc") == disk / "project" / "data" / "y.mrc"


def test_link_is_no_way_out(disk):
    (disk / "project" / "runs" / "x" / "linked").symlink_to(disk / "project" / "data")
    with pytest.raises(InputError, match="lies outside of"):
        found(disk, "linked/../../secret.mrc")


def test_folders_that_are_links_are_seen_through(disk, monkeypatch):
    (disk / "short").symlink_to(disk / "project" / "runs")
    place = disk / "short" / "beside" / "z.mrc"
    assert found(disk, str(place)) == place
    assert found(disk, "../beside/z.mrc", star="short/x") == disk / "project/runs/beside/z.mrc"


def test_home_and_root_are_no_projects(disk, monkeypatch):
    monkeypatch.setenv("HOME", str(disk / "project"))
    assert project_roots(disk / "project" / "runs")[1:] == (disk / "project" / "runs",)
    monkeypatch.chdir("/")
    assert project_roots(disk / "project" / "runs") == (disk / "project" / "runs",)
    assert os.path.sep not in map(str, project_roots(disk / "project" / "runs"))


def test_missing_file_names_the_places_where_it_might_be(disk):
    with pytest.raises(InputError, match=r"'gone.mrc' is not at \S+/x/gone.mrc nor at \S+/deep/"):
        found(disk, "gone.mrc")


def test_masks_are_looked_at_likewise(disk):
    path = disk / "project" / "runs" / "x" / "p.star"
    new_table({"rlnImageName": ["own.mrc"], "rlnMaskName": ["../../data/y.mrc"]}).write(path)
    table = read_particles(path)
    with pytest.raises(InputError, match=r"'../../data/y.mrc' of rlnMaskName lies outside of"):
        table.image_references("rlnMaskName", allow_outside=False)
