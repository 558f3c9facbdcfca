"""A whole run, tiny: what it leaves in its folder, and what can be made of that."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from small_networks import steerable

from jimjax.config import (
    ClusterSection,
    JointSection,
    NetworkSection,
    PredictSection,
    PretrainSection,
    RunConfig,
    read_config,
)
from jimjax.data.subtomograms import Subtomograms
from jimjax.io import mrc
from jimjax.io.errors import InputError
from jimjax.train import jimnet
from jimjax.train.loop import Interrupted
from jimjax.train.run import load_run, predict, train_run

NUM, BOX = 12, 16
CONFIG = RunConfig(
    network=NetworkSection(num_classes=2),
    pretrain=PretrainSection(steps=4, batch_size=4),
    joint=JointSection(epochs=1, batch_size=6),
    cluster=ClusterSection(surplus=1.0, rounds=1, num_proposals=1),
    predict=PredictSection(batch_size=12, num_proposals=1),
)


@pytest.fixture(scope="module")
def particles(smooth_volumes):
    return Subtomograms(
        volumes=smooth_volumes(NUM, BOX),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=tuple(f"{row + 1}@/data/stack.mrcs" for row in range(NUM)),
        halves=np.arange(NUM) % 2 + 1,
    )


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(jimnet.PRESETS, "small", steerable)
        yield


@pytest.fixture(scope="module")
def trained(particles, tmp_path_factory):
    return train_run(CONFIG, particles, tmp_path_factory.mktemp("runs") / "run", command="typed")


@pytest.fixture(scope="module")
def predicted(trained, particles):
    return predict(trained, particles)


def _assert_same(found, wanted):
    for name in wanted._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def test_folder_has_the_resolved_configuration(trained):
    assert read_config(trained.folder / "config.toml") == CONFIG


def test_folder_has_the_provenance(trained):
    record = json.loads((trained.folder / "provenance.json").read_text())
    found = {name: record[name] for name in ("command", "seed", "num_particles", "box")}
    assert found == {"command": "typed", "seed": 0, "num_particles": NUM, "box": BOX}
    assert {"jax", "flax", "optax", "numpy"} <= set(record["versions"])


def test_folder_has_a_line_of_metrics_per_epoch(trained):
    lines = (trained.folder / "metrics.jsonl").read_text().splitlines()
    found = [(line["stage"], line["step"]) for line in map(json.loads, lines)]
    assert found == [("molecules", 4), ("pairs", 6)]


def test_folder_has_a_reference_per_class(trained):
    stack = mrc.read_images(trained.folder / "references.mrcs")
    assert np.shape(stack.data) == (2, BOX, BOX, BOX)
    np.testing.assert_array_equal(stack.data, trained.references)


def test_prediction_has_a_class_and_a_pose_per_particle(predicted):
    assert set(predicted.labels) <= {0, 1}
    np.testing.assert_allclose(predicted.probabilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.det(predicted.rotations), np.ones(NUM), rtol=1e-4)
    assert predicted.shifts.shape == (NUM, 3)
    assert np.all(np.abs(predicted.correlations) <= 1 + 1e-5)


def test_loaded_run_predicts_what_the_trained_one_did(trained, predicted, particles):
    _assert_same(predict(load_run(trained.folder), particles), predicted)


def test_resuming_a_finished_run_changes_nothing(trained, predicted, particles):
    metrics = (trained.folder / "metrics.jsonl").read_bytes()
    again = train_run(CONFIG, particles, trained.folder, resume=True)
    assert (trained.folder / "metrics.jsonl").read_bytes() == metrics
    np.testing.assert_array_equal(again.references, trained.references)
    _assert_same(predict(again, particles), predicted)


def test_folder_with_a_run_is_not_written_to_again(trained, particles):
    with pytest.raises(InputError, match="already holds a run"):
        train_run(CONFIG, particles, trained.folder)


def test_resuming_with_another_configuration_is_an_error(trained, particles):
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(InputError, match="its configuration differs"):
        train_run(other, particles, trained.folder, resume=True)


@pytest.mark.parametrize("change", ["fewer", "other voxels", "other tilts"])
def test_resuming_with_other_particles_is_an_error(change, trained, particles):
    others = {
        "fewer": particles.select(range(8)),
        "other voxels": dataclasses.replace(particles, volumes=particles.volumes * 2),
        "other tilts": dataclasses.replace(particles, tilt_ranges=particles.tilt_ranges - 1),
    }[change]
    with pytest.raises(InputError, match="trained on other particles than those given"):
        train_run(CONFIG, others, trained.folder, resume=True)


class _StopAfter:
    """Asks for a stop, as SIGTERM does, once a step is done."""

    def __init__(self, step: int):
        self.step = step

    def update(self, stage, step, num_steps, metrics):
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5])  # in the middle of molecules, and of pairs
def test_interrupted_and_resumed_run_is_the_uninterrupted_one(step, trained, particles, tmp_path):
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 6"):
        train_run(CONFIG, particles, tmp_path / "run", progress=_StopAfter(step))
    resumed = train_run(CONFIG, particles, tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.network.params, trained.network.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.network.stats, trained.network.stats)
    np.testing.assert_array_equal(resumed.references, trained.references)


def test_resuming_nothing_is_an_error(particles, tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        train_run(CONFIG, particles, tmp_path, resume=True)


def test_too_few_particles_are_an_error_that_says_how_many(particles, tmp_path):
    with pytest.raises(InputError, match="3 particles are too few for 2 classes; give at least 4"):
        train_run(CONFIG, particles.select(range(3)), tmp_path / "run")


def test_box_of_other_size_is_an_error(trained, particles):
    small = dataclasses.replace(particles, volumes=particles.volumes[:, 2:-2, 2:-2, 2:-2])
    with pytest.raises(InputError, match="the run is for boxes of 16 voxels, these have 12"):
        predict(trained, small)


def test_other_voxel_size_is_an_error(trained, particles):
    with pytest.raises(
        InputError, match="the run is for 10 A per voxel, these particles are at 12 A"
    ):
        predict(trained, dataclasses.replace(particles, voxel_size=12.0))


def test_folder_without_a_run_cannot_be_loaded(tmp_path):
    with pytest.raises(InputError, match="not a run"):
        load_run(tmp_path)


def test_unfinished_run_cannot_be_loaded(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(InputError, match="has not finished; go on with jimjax train --resume"):
        load_run(tmp_path)
