"""Times of training, by a clock that is moved by hand."""

import types

import jax
import pytest

from jimjax.train import costs
from jimjax.train.meter import Meter


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _epoch(own, clock, *, seconds=2.0, num_steps=4):
    own.begin_epoch()
    for _ in range(num_steps):
        clock.now += seconds
        own.stepped(16)
    return own.end_epoch()


def test_compilation_and_work_between_epochs_are_not_the_steps(clock):
    own = Meter(clock)
    clock.now += 6  # such as clustering
    own.begin_epoch()
    with own.compiling():
        clock.now += 10
    clock.now += 4
    own.stepped(16)
    own.stepped(16)
    told = own.end_epoch()
    assert told == {
        "step_seconds": 2.0,
        "particles_per_second": 8.0,
        "input_wait_share": 0.0,
        "compile_seconds": 10.0,
        "goodput": 4 / 20,
    }
    assert _epoch(own, clock)["goodput"] == (4 + 8) / 28
    assert own.end_epoch()["compile_seconds"] == 0


def test_only_idle_devices_wait(clock):
    own = Meter(clock)
    own.fed(0.5, was_idle=True)
    own.fed(3.0, was_idle=False)
    clock.now += 5
    own.stepped(1)
    assert own.end_epoch()["input_wait_share"] == 0.1


def test_epoch_without_steps_has_nothing_to_tell(clock):
    assert Meter(clock).end_epoch() == {}


def test_utilisation_is_what_a_step_costs_over_what_the_device_can(clock, monkeypatch):
    own = Meter(clock)
    own.know(256.0)
    assert "flop_utilisation" not in _epoch(own, clock)  # of a CPU it is not known
    device = types.SimpleNamespace(device_kind="NVIDIA H200")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setitem(costs.PEAKS, "H200", 1024.0)
    told = _epoch(own, clock, seconds=2.0)
    assert told["flop_utilisation"] == 256 / 2.0 / 1024
