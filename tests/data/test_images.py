"""Files that go away or change while others are read."""

import numpy as np
import pytest

from jimjax.data import images
from jimjax.data.subtomograms import load
from jimjax.io import InputError, new_table, write_volume

NAMES = ["a.mrc", "b.mrc", "c.mrc"]


@pytest.fixture
def star(tmp_path):
    for number, name in enumerate(NAMES):
        volume = np.random.default_rng(number).normal(size=(8, 8, 8)).astype(np.float32)
        write_volume(tmp_path / name, volume, voxel_size=5.0)
    columns = {"rlnImageName": NAMES, "jimTiltMin": [-60.0] * 3, "jimTiltMax": [60.0] * 3}
    new_table(columns).write(tmp_path / "p.star")
    return tmp_path / "p.star"


def after_the_first(monkeypatch, change):
    """Changes something once the first file has been read."""
    read, seen = images.mrc.read_volume, []

    def spy(path, **options):
        found = read(path, **options)
        if not seen:
            change()
        seen.append(path)
        return found

    monkeypatch.setattr(images.mrc, "read_volume", spy)


def test_file_that_vanishes_is_named(star, monkeypatch):
    after_the_first(monkeypatch, (star.parent / "c.mrc").unlink)
    with pytest.raises(InputError, match=r"p.star:\d+: particle 3: \S+/c.mrc: cannot be read: No"):
        load(star)


def test_file_that_is_cut_is_named(star, monkeypatch):
    path = star.parent / "b.mrc"
    after_the_first(monkeypatch, lambda: path.write_bytes(path.read_bytes()[:2000]))
    with pytest.raises(InputError, match=r"p.star:\d+: particle 2: \S+/b.mrc: "):
        load(star)
