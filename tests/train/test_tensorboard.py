"""The log as TensorBoard's events, read back by their format's own description."""

import json
import struct

import pytest

from jimjax.io.errors import InputError
from jimjax.train.tensorboard import TensorBoardLog

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def _events(folder):
    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event()
            event.ParseFromString(data[place + 12 : place + 12 + length])
            place += 16 + length  # length, its checksum, the event, its checksum
            yield event


def test_every_number_is_an_event_of_its_step(tmp_path):
    log = TensorBoardLog(tmp_path / "metrics.jsonl", tmp_path / "events")
    log.write(stage="pairs", epoch=0, step=7, loss=0.5, note="text")
    log.write(stage="pairs", epoch=1, step=14, loss=0.25)
    log.close()
    found = [
        (e.step, v.tag, v.simple_value)
        for e in _events(tmp_path / "events")
        for v in e.summary.value
    ]
    assert found == [(7, "pairs/loss", 0.5), (14, "pairs/loss", 0.25)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [7, 14]


def test_resumed_run_takes_back_what_comes_after_its_step(tmp_path):
    TensorBoardLog(tmp_path / "metrics.jsonl", tmp_path / "events", step=7).close()
    assert [e.step for e in _events(tmp_path / "events") if e.HasField("session_log")] == [8]


def test_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(InputError, match="needs tensorboardX"):
        TensorBoardLog(tmp_path / "metrics.jsonl", tmp_path / "events")
