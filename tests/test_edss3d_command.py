"""``jimjax edss3d``: what it writes, resumes and refuses."""

import functools
import json

import jax
import numpy as np
import pytest
import tyro

from jimjax.cluster.assignment import Linear
from jimjax.cluster.model import Model, save_model
from jimjax.commands.edss3d import Edss3d
from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.io import mrc, star
from jimjax.io.errors import InputError
from jimjax.models import weights
from jimjax.models.autoencoder import Autoencoder3DConfig
from jimjax.models.edss3d import Edss3dConfig
from jimjax.models.weights import Description, Weights, load_weights
from jimjax.segment import edss3d
from jimjax.segment.edss3d import Segmenter

BOX, NUM = 8, 9
SETTINGS = "epochs = 2\nbatch_size = 4\nlearning_rate = 0.003\nbalance_voxels = true\n"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    sizes = functools.partial(Edss3dConfig, size=BOX, width=4, kernel="isotropic")
    monkeypatch.setitem(edss3d.PRESETS, "small", lambda box, classes: sizes(box, classes=classes))


@pytest.fixture
def folder(tmp_path):
    """Particles of three kinds, and the folder in which they were clustered."""
    volumes = np.random.default_rng(0).normal(size=(NUM, BOX, BOX, BOX))
    volumes[0::3, 2:5, 2:5, 2:5] -= 5
    volumes[1::3, 4:7, 4:7, 4:7] -= 5
    particles = Subtomograms(
        volumes=volumes.astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=("",) * NUM,
        halves=np.arange(NUM) % 2 + 1,
        labels=np.zeros(NUM, np.int32),
    )
    to_star(particles, tmp_path / "particles.star", stack_path=tmp_path / "particles.mrcs")
    config = Autoencoder3DConfig(box=BOX, size=BOX, width=4, code_length=16)
    kept = Weights(Description(config, "light", 10.0), weights.build(config, jax.random.key(0)))
    empty = Linear(np.zeros((16, 3), np.float32), np.zeros(3, np.float32))
    features = Model(kept, empty, "dark").transform(particles)
    (tmp_path / "run").mkdir()
    assignment = Linear.from_centres(features, np.arange(NUM) % 3)
    save_model(tmp_path / "run", Model(kept, assignment, "dark"))
    (tmp_path / "settings.toml").write_text(SETTINGS)
    return tmp_path


def parse(folder, *more):
    given = ["--run", folder / "run", "--data", folder / "particles.star", "--out", folder / "out"]
    given += ["--config", folder / "settings.toml", *more]
    return tyro.cli(Edss3d, args=list(map(str, given)))


def test_segments_table_and_weights_are_written(folder, capsys):
    parse(folder, "--clusters", 1, 3).run()
    out = folder / "out"
    assert f"of {NUM} particles" in capsys.readouterr().out
    table = star.read_particles(out / "segments.star")
    np.testing.assert_array_equal(table.ints("rlnClassNumber"), np.arange(NUM) % 3 + 1)
    segments = mrc.read_images(out / "segments.mrcs").data
    assert set(np.unique(segments)) <= {0, 1, 3}
    np.testing.assert_array_equal(
        table.ints("jimSegmentVoxels"), np.count_nonzero(segments, axis=(1, 2, 3))
    )
    assert table.strings("jimSegmentName")[1] == "000002@segments.mrcs"
    particles = load(out / "segments.star")  # the images are still found
    again = Segmenter(load_weights(out / "weights.safetensors"), "dark")
    np.testing.assert_array_equal(again.predict(particles), segments)
    assert json.loads((out / "provenance.json").read_text())["num_particles"] == NUM
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_finished_folder_is_resumed_and_not_overwritten(folder):
    parse(folder, "--clusters", 2).run()
    before = (folder / "out/segments.mrcs").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        parse(folder, "--clusters", 2).run()
    parse(folder, "--clusters", 2, "--resume").run()
    after = (folder / "out/segments.mrcs").read_bytes()
    assert after == before
    with pytest.raises(InputError, match="its configuration differs"):
        parse(folder, "--clusters", 3, "--resume").run()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--clusters", "4"], "there is no cluster 4; choose from 1 to 3, as in rlnClassNumber"),
        (["--clusters", "0"], "clusters must be from 1 to 127, got 0"),
        (["--clusters", "2", "2"], "clusters must be one or more different numbers, got 2, 2"),
        (["--clusters", "1", "--seed", "-1"], "--seed must be 0 or more, got -1"),
    ],
)
def test_mistake_is_an_error_and_nothing_is_written(more, message, folder):
    with pytest.raises(InputError, match=message):
        parse(folder, *more).run()
    assert not (folder / "out").exists()
