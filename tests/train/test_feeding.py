"""How batches come to the devices has no influence on what they are."""

import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jimjax.data.batches import Taken, fetch, index_batches
from jimjax.data.lazy import LazyVolumes
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh, split_rows
from jimjax.models import functional
from jimjax.progress import Interrupted
from jimjax.train import feeding
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.feeding import Feeder, resident_limit
from jimjax.train.loop import Log, Stage, train
from jimjax.train.state import TrainState, adam, initial_state
from jimjax.train.step import LossResult

NUM, BOX, BATCH = 22, 4, 4
STEPS = 6  # of an epoch


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(BOX, 3, rngs=rngs)

    def __call__(self, x, *, train):
        return jax.nn.relu(self.linear(x)).mean(axis=(1, 2))


@pytest.fixture
def volumes():
    return np.random.default_rng(0).normal(size=(NUM, BOX, BOX, BOX)).astype(np.float32)


@pytest.fixture
def nothing_stays(monkeypatch):
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)


def lazily(volumes, seen=None):
    """The same, read when asked for; ``seen`` is told of the rows."""

    def read(rows):
        if seen is not None:
            seen.append(rows.tolist())
        return volumes[rows]

    return LazyVolumes(read, volumes.shape)


def rows_of_epoch(epoch):
    return list(index_batches(NUM, BATCH, seed=3, epoch=epoch))


def batches_of(source):
    def batches(epoch, memory):
        del memory
        for rows in rows_of_epoch(epoch):
            yield Taken(rows, source), Taken(rows[::-1], source), np.float32(rows)

    return batches


def loss(network, batch, key):
    first, second, weight = batch
    one, stats = functional.apply(network, first, train=True)
    other, _ = functional.apply(network, second, train=True)
    noise = jax.random.normal(key, one.shape)
    value = jnp.mean(weight[:, None] * (one - other * noise) ** 2)
    return value, LossResult(stats, {})


class StopAt:
    """Asks the process to stop after some step."""

    def __init__(self, step):
        self.step = step

    def update(self, stage, step, num_steps, metrics):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


OPTIMIZER = adam(optax.constant_schedule(0.1))


def begin():
    network = functional.create(Layer, jax.random.key(0))
    return {"state": initial_state(network, OPTIMIZER), "memory": np.zeros(1)}


def run(source, *, begun=None, **options):
    begun = begun or begin()
    state, _ = train(
        functional.create(Layer, jax.random.key(0)),
        TrainState(*begun["state"]),
        begun["memory"],
        [Stage("layer", 2, loss, batches_of(source), STEPS)],
        key=jax.random.key(1),
        optimizer=OPTIMIZER,
        mesh=data_mesh(1),
        **options,
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_resident_is_host_fed_bit_for_bit(volumes, monkeypatch):
    resident = run(volumes)
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", 0)
    assert_same(resident, run(volumes))


def test_read_ahead_is_in_memory_bit_for_bit(volumes, nothing_stays):
    assert_same(run(lazily(volumes)), run(volumes))


def test_what_fits_is_read_once(volumes):
    seen = []
    assert_same(run(lazily(volumes, seen)), run(volumes))
    assert seen == [list(range(NUM))]


@pytest.mark.parametrize("done", [2, STEPS, STEPS + 3])
def test_resumed_run_reads_no_batch_that_is_done(volumes, nothing_stays, tmp_path, done):
    wanted = run(lazily(volumes))
    seen = []
    source = lazily(volumes, seen)
    with open_checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(Interrupted):
            run(source, checkpoints=checkpoints, progress=StopAt(done))
        saved = checkpoints.restore(begin())
    seen.clear()
    assert_same(run(source, begun=saved), wanted)
    left = [rows.tolist() for epoch in range(2) for rows in rows_of_epoch(epoch)][done:]
    assert sorted(seen) == sorted(each for rows in left for each in (rows, rows[::-1]))


def test_few_batches_are_read_ahead(volumes, nothing_stays):
    seen, going = [], threading.Event()

    def read(rows):
        seen.append(rows)
        if len(seen) > 2 * (feeding.AHEAD + feeding.NUM_THREADS):
            going.set()
        return volumes[rows]

    many = [Taken(np.arange(BATCH), LazyVolumes(read, volumes.shape))] * 100
    coming = Feeder(data_mesh(1)).feed(many, 0)
    next(coming)
    assert not going.wait(0.3)
    coming.close()
    num_read = len(seen)
    assert not going.wait(0.1)
    assert len(seen) == num_read


def test_waiting_for_files_is_told(volumes, nothing_stays, tmp_path):
    """Two threads read what a step takes in 20 ms; steps of this network take far less."""

    def slowly(rows):
        time.sleep(0.02)
        return volumes[rows]

    shares = []
    for name, source in (("slow", LazyVolumes(slowly, volumes.shape)), ("there", volumes)):
        run(source, log=Log(tmp_path / name))
        lines = map(json.loads, (tmp_path / name).read_text().splitlines())
        shares.append([line["input_wait_share"] for line in lines][-1])
    assert shares[0] > 0.5
    assert shares[0] > shares[1]


def test_mistake_in_a_file_is_raised_where_training_waits_for_it(volumes, nothing_stays):
    def fail(rows):
        raise InputError("particle 3 is damaged")

    with pytest.raises(InputError, match="particle 3 is damaged"):
        run(LazyVolumes(fail, volumes.shape))


def test_devices_keep_what_an_epoch_takes_from_and_no_more(volumes, monkeypatch):
    feeder = Feeder(data_mesh(1))
    rows = np.arange(BATCH)
    first, second = volumes, volumes + 1
    (placed,) = feeder.feed([(Taken(rows, first), Taken(rows, second))], 0)
    assert all(isinstance(leaf, Taken) for leaf in placed)
    np.testing.assert_array_equal(fetch(placed)[1], second[:BATCH])
    (again,) = feeder.feed([Taken(rows, second)], 0)
    assert again.source is placed[1].source
    assert len(feeder._resident) == 1
    monkeypatch.setattr(feeding, "RESIDENT_BYTES", volumes.nbytes)
    (placed,) = Feeder(data_mesh(1)).feed([(Taken(rows, first), Taken(rows, second))], 0)
    assert [isinstance(leaf, Taken) for leaf in placed] == [True, False]


def test_share_of_a_device_that_tells_its_memory():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000}

    class Mesh:
        local_devices = (Device(),)

    assert resident_limit(Mesh()) == 250
    assert resident_limit(data_mesh(1)) == 2**30


def test_batch_that_devices_do_not_divide_is_told(volumes):
    class Mesh:
        size = 3

    with pytest.raises(ValueError, match="a batch of 4 cannot be split over 3 devices"):
        split_rows(volumes, np.arange(4), Mesh())
