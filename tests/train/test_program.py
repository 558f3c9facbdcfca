"""What a compiled step needs, and whether it fits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jimjax.mesh import data_mesh
from jimjax.models.functional import Network
from jimjax.train import loop, program
from jimjax.train.loop import Stage, TrainingError, train
from jimjax.train.program import Program, StepProgram, compile_step, fitting_rows, lack_of_memory
from jimjax.train.state import Optimizer, initial_state
from jimjax.train.step import LossResult, make_step

GIB = 2**30
OPTIMIZER = Optimizer(optax.sgd(1.0), lambda step: jnp.float32(1.0))


def _program(*, rows=16, devices=1, state=GIB, needed=9 * GIB):
    return StepProgram(Program(None, 0.0, 0.0, needed), rows, devices, state)


def _network():
    return Network(None, {"w": jnp.zeros((3, 5))}, {})


def _loss(network, batch, key):
    return jnp.mean((batch @ network.params["w"]) ** 2), LossResult({}, {})


@pytest.mark.parametrize(
    ("available", "devices", "rows"), [(5, 1, 8), (9, 1, 16), (6, 4, 8), (1, 1, 0), (0.5, 2, 0)]
)
def test_what_rows_need_is_shared_among_what_the_state_leaves(available, devices, rows):
    """Eight GiB for 16 rows beside a state of one."""
    assert fitting_rows(_program(devices=devices), int(available * GIB)) == rows


def test_what_does_not_fit_is_told_with_a_batch_that_does():
    lack = lack_of_memory(_program(), 5 * GIB)
    assert lack.startswith("a batch of 16 needs 9 GiB on each device, which has 5 GiB; one of 8")
    assert "not even the smallest" in lack_of_memory(_program(), GIB // 2)


@pytest.mark.parametrize("available", [9 * GIB, None])
def test_nothing_is_told_of_what_fits_or_is_not_known(available):
    assert lack_of_memory(_program(), available) is None
    assert lack_of_memory(_program(needed=None), GIB) is None


def test_step_is_measured_without_being_run():
    network, mesh = _network(), data_mesh(1)
    state = jax.device_put(initial_state(network, OPTIMIZER), mesh.devices.flat[0])
    key = jax.device_put(jax.random.key(0), mesh.devices.flat[0])
    found = compile_step(make_step(network, _loss, OPTIMIZER), state, jnp.ones((8, 3)), key)
    assert (found.num_rows, found.num_devices) == (8, 1)
    assert found.program.flops == 2 * 2 * 8 * 3 * 5  # there and back to the kernel
    assert found.state_bytes == 4 * (3 * 5 + 1)
    assert found.program.needed_bytes >= found.state_bytes + 4 * 8 * 3


def test_training_that_does_not_fit_is_refused_before_a_step(monkeypatch):
    stage = Stage("pairs", 1, _loss, lambda epoch, memory: iter([np.ones((8, 3), np.float32)]), 1)
    network = _network()
    monkeypatch.setattr(loop, "device_bytes", lambda: 300)
    monkeypatch.setattr(loop.Meter, "stepped", lambda *_: pytest.fail("a step was run"))
    with pytest.raises(TrainingError, match=r"stage 'pairs': a batch of 8 needs .* should fit"):
        train(
            network,
            initial_state(network, OPTIMIZER),
            None,
            [stage],
            key=jax.random.key(0),
            optimizer=OPTIMIZER,
            mesh=data_mesh(1),
        )


def test_memory_of_a_cpu_is_the_machine_s(monkeypatch):
    alone = program.device_bytes()
    assert alone is None or alone > 2**28
    device = jax.local_devices()[0]
    monkeypatch.setattr(jax, "local_devices", lambda: [device, device])
    assert program.device_bytes() == (alone if alone is None else alone // 2)
