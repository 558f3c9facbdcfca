"""A run on packed particles that stay in their store is the run on those in memory, to the bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_networks

from jimjax.config import (
    ClusterSection,
    JointSection,
    NetworkSection,
    PredictSection,
    PretrainSection,
    RunConfig,
)
from jimjax.data.packing import pack
from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.io import packed
from jimjax.models.gumnet import GumNetConfig
from jimjax.train import feeding, gumnet, jimnet, umtl
from jimjax.train.run import train_run
from jimjax.train.teacher import Teacher

NUM, BOX = 12, 16
CONFIG = RunConfig(
    pretrain=PretrainSection(steps=0),
    joint=JointSection(epochs=2, batch_size=4, molecule_share=0.0),
    cluster=ClusterSection(surplus=1.0, rounds=1, num_proposals=1),
    predict=PredictSection(batch_size=12, num_proposals=1),
)
TINY_GUMNET = GumNetConfig(
    box=BOX,
    widths=(2, 3),
    sizes=(8,),
    keeps=(7,),
    tower_width=4,
    dense_width=4,
    is_batch_norm_shared=False,
)


@pytest.fixture
def star_path(smooth_volumes, tmp_path):
    particles = Subtomograms(
        volumes=smooth_volumes(NUM, BOX),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=tuple(map(str, range(NUM))),
        halves=np.arange(NUM) % 2 + 1,
    )
    to_star(particles, tmp_path / "p.star", stack_path=tmp_path / "p.mrcs")
    return tmp_path / "p.star"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "is_taught"),
    [("jimnet", True), ("jimnet", False), ("gumnet", False), ("umtl", False)],
)
def test_run_is_the_same(star_path, tmp_path, monkeypatch, kind, is_taught):
    monkeypatch.setitem(gumnet.PRESETS, "small", lambda box: TINY_GUMNET)
    monkeypatch.setitem(jimnet.PRESETS, "small", small_networks.steerable)
    monkeypatch.setitem(umtl.PRESETS, "small", small_networks.umtl)
    monkeypatch.setattr(packed, "SHARD_BYTES", 5 * 4 * BOX**3)
    network = NetworkSection(kind=kind, num_classes=2)
    config = dataclasses.replace(CONFIG, network=network)
    turns = np.tile(np.eye(3, dtype=np.float32), (NUM, 1, 1))
    known = np.arange(NUM, dtype=np.int32) % 2, turns, np.zeros((NUM, 3), np.float32)
    teacher = Teacher(*known, np.ones(NUM, np.float32)) if is_taught else None
    wanted = train_run(config, load(star_path), tmp_path / "memory", teacher=teacher)
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)
    lazy = load(pack(star_path, tmp_path / "packed", precision="float32").star_path, max_bytes=0)
    assert not isinstance(lazy.volumes, np.ndarray)
    found = train_run(config, lazy, tmp_path / "lazy", teacher=teacher)
    for one, other in zip(*map(jax.tree.leaves, (found.network, wanted.network)), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.references, wanted.references)
    hashes = [
        json.loads((tmp_path / name / "provenance.json").read_text())["particles_sha256"]
        for name in ("memory", "lazy")
    ]
    assert hashes[0] == hashes[1]
    # What began in memory may go on from the store: nothing is left to do, and nothing changes.
    again = train_run(config, lazy, tmp_path / "memory", teacher=teacher, resume=True)
    np.testing.assert_array_equal(again.references, wanted.references)
