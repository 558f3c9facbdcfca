"""The loop where it is stopped between epochs, and where a step does not fit into the device."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jimjax.data.batches import map_chunks
from jimjax.io.errors import InputError
from jimjax.io.files import hold_folder
from jimjax.mesh import data_mesh
from jimjax.models import functional
from jimjax.train import loop
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.loop import Interrupted, Stage, TrainingError, train
from jimjax.train.resume import CHECKPOINTS, train_in_folder
from jimjax.train.state import TrainState, adam, initial_state
from jimjax.train.step import LossResult

STEPS, BATCH, EPOCHS = 2, 6, 3
TEN_MILLION = 10**7  # squared, more numbers than any machine has room for


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x, *, train):
        return self.linear(x)


def loss(network, batch, key):
    found, stats = functional.apply(network, batch, train=True)
    return jnp.mean((found - jax.random.normal(key, found.shape)) ** 2), LossResult(stats, {})


def batches(epoch, memory):
    for step in range(STEPS):
        rows = np.random.default_rng([epoch, step]).normal(size=(BATCH, 2))
        yield rows.astype(np.float32) + memory


def begin():
    network = functional.create(Layer, jax.random.key(0))
    optimizer = adam(optax.constant_schedule(0.1))
    return network, optimizer, initial_state(network, optimizer), np.zeros(2, np.float32)


def run(stage, state, memory, checkpoints=None):
    network, optimizer, *_ = begin()
    return train(
        network,
        state,
        memory,
        [stage],
        key=jax.random.key(5),
        optimizer=optimizer,
        mesh=data_mesh(1),
        checkpoints=checkpoints,
    )


def clustering(stop_in=None, at=0):
    """Work between epochs that changes state and memory, and is stopped in the midst of it."""
    begun = []

    def look(rows):
        if len(begun) == stop_in and rows[0] == at:
            signal.raise_signal(signal.SIGTERM)
        return np.asarray(rows, np.float32)

    def cluster(state, epoch, memory):
        begun.append(epoch)
        found = map_chunks(look, 4, 2)
        moved = jax.tree.map(lambda leaf: leaf * 1.5, state.params)
        return state._replace(params=moved), memory + found[:2], {}

    return Stage("layer", EPOCHS, loss, batches, STEPS, cluster)


@pytest.mark.parametrize("at", [0, 2])  # the first chunk, the last one
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_stopped_between_epochs_and_resumed_is_uninterrupted_bit_for_bit(epoch, at, tmp_path):
    wanted = run(clustering(), *begin()[2:])
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(Interrupted, match=f"stopped at step {epoch * STEPS} of 6"):
            run(clustering(epoch + 1, at), *begin()[2:], checkpoints)
        state, memory = begin()[2:]
        assert (checkpoints.latest_step is None) == (epoch == 0)
        if epoch:
            saved = checkpoints.restore({"state": state, "memory": memory})
            state, memory = TrainState(*saved["state"]), np.asarray(saved["memory"])
        found = run(clustering(), state, memory, checkpoints)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_step_that_does_not_fit_names_a_batch_that_might(monkeypatch):
    """Where nobody knows beforehand how much memory there is."""
    monkeypatch.setattr(loop, "device_bytes", lambda: None)

    def greedy(network, batch, key):
        value, result = loss(network, batch, key)
        ones = jnp.ones(TEN_MILLION)
        matrix = jnp.sin(jnp.outer(ones * jax.lax.stop_gradient(value), ones))
        return value + (matrix @ ones)[0], result

    told = r"'layer' with batches of 6 does not fit .* GiB asked for\); try a batch size of 3$"
    with pytest.raises(TrainingError, match=told):
        run(Stage("layer", 1, greedy, batches, STEPS), *begin()[2:])


def test_folder_that_another_run_writes_to_is_refused(tmp_path):
    network, optimizer, state, memory = begin()
    stage = Stage("layer", 1, loss, batches, STEPS)
    options = {"key": jax.random.key(5), "optimizer": optimizer, "mesh": data_mesh(1)}
    with hold_folder(tmp_path), pytest.raises(InputError, match=r"process \d+ on .* is writing to"):
        train_in_folder(tmp_path, network, state, memory, [stage], resume=False, **options)
    assert not (tmp_path / CHECKPOINTS).exists()
