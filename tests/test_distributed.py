"""Several processes do what one does; they talk to each other over loopback."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jimjax import distributed
from jimjax.data.batches import index_batches, map_chunks
from jimjax.io.errors import InputError

# Trains one layer, with work between epochs that looks at all examples; prints what came of it.
PROGRAM = """
import json, os, re, signal, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from jimjax import distributed, mesh
from jimjax.data.batches import index_batches, map_chunks
from jimjax.mesh import data_mesh
from jimjax.models import functional
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.loop import Interrupted, Log, Stage, train
from jimjax.train.state import adam, initial_state
from jimjax.train.step import LossResult, make_step

folder, port, count, fsdp, stop_at, rank = sys.argv[1], *map(int, sys.argv[2:])
mesh.LEAST_SPLIT = 4
if count > 1:
    distributed.join(f"127.0.0.1:{port}", count, rank)
distributed.check_alike("settings", "the same")

class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, *, train):
        return self.linear(x)

examples = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)
network = functional.create(Layer, jax.random.key(0))

def loss(network, batch, key):
    found, stats = functional.apply(network, batch, train=True)
    noise = jax.random.normal(key, found.shape)
    return jnp.mean((found - noise) ** 2), LossResult(stats, {})

def batches(epoch, memory):
    for rows in index_batches(len(examples), 8, seed=1, epoch=epoch):
        yield examples[rows] + memory["mean"]

ask = jax.jit(lambda network, x: functional.apply(network, x, train=False)[0])

def between(state, epoch, memory):
    if stop_at < 0 and epoch == -stop_at and rank == count - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    own = network._replace(params=state.params, stats=state.stats)
    found = map_chunks(lambda rows: ask(own, examples[rows]), len(examples), 5)
    labels = found.argmax(axis=1).astype(np.int32)
    return state, {"labels": labels, "mean": found.mean(keepdims=True)[0]}, {}

class StopAt:
    def update(self, stage, step, num_steps, metrics):
        if step == stop_at and rank == count - 1:  # the last process alone is asked to
            os.kill(os.getpid(), signal.SIGTERM)

optimizer = adam(optax.constant_schedule(0.1))
state = initial_state(network, optimizer)
memory = {"labels": np.zeros(22, np.int32), "mean": np.zeros(1, np.float32)}
stage = Stage("layer", 3, loss, batches, 3, between)
with open_checkpoints(folder + "/checkpoints") as checkpoints:
    if checkpoints.latest_step is not None:
        like = {"state": mesh.split_state(state, data_mesh(fsdp=fsdp)), "memory": memory}
        saved = checkpoints.restore(like)
        state, memory = saved["state"], saved["memory"]
    try:
        state, memory = train(
            network, state, memory, [stage], key=jax.random.key(2), optimizer=optimizer,
            mesh=data_mesh(fsdp=fsdp), checkpoints=checkpoints, log=Log(folder + "/log"),
            progress=StopAt(),
        )
    except Interrupted as stopped:
        print(json.dumps({"stopped": str(stopped)}))
        sys.exit()
    saved = checkpoints.restore({"state": state, "memory": memory})
with jax.set_mesh(data_mesh(fsdp=fsdp)):
    whole = mesh.split_state(saved["state"], data_mesh(fsdp=fsdp))
    like = jax.tree.map(lambda leaf: leaf.sharding, whole)
    step = make_step(network, loss, optimizer, state_sharding=like)
    batch = mesh.split_batch(next(batches(0, memory)), data_mesh(fsdp=fsdp))
    text = step.lower(whole, batch, jax.random.key(2)).compile().as_text()
said = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
parts = {len({str(shard.index) for shard in leaf.addressable_shards})
         for leaf in jax.tree.leaves(saved["state"].params)}
saved["state"] = mesh.whole(saved["state"], data_mesh(fsdp=fsdp))
leaves = [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(saved["state"].params)]
print(json.dumps({
    "collectives": [name for name in said if re.search(rf"{name}(-start)?\\(", text)],
    "devices": len(jax.devices()), "parts": max(parts), "params": sum(leaves, []),
    "labels": saved["memory"]["labels"].tolist(), "mean": float(saved["memory"]["mean"][0]),
}))
"""

# Trains one layer on rows that are read, or lie on the devices; prints which were read.
READING = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from jimjax import distributed
from jimjax.data.batches import Taken, index_batches
from jimjax.data.lazy import LazyVolumes
from jimjax.mesh import data_mesh
from jimjax.models import functional
from jimjax.train import feeding
from jimjax.train.loop import Stage, train
from jimjax.train.state import adam, initial_state
from jimjax.train.step import LossResult, make_step

folder, port, count, _, is_resident, rank = sys.argv[1], *map(int, sys.argv[2:])
if count > 1:
    distributed.join(f"127.0.0.1:{port}", count, rank)
feeding.RESIDENT_BYTES *= is_resident

class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x, *, train):
        return self.linear(x)

examples = np.random.default_rng(0).normal(size=(22, 2, 2, 2)).astype(np.float32)
seen = []

def read(rows):
    seen.append(rows.tolist())
    return examples[rows]

def loss(network, batch, key):
    found, stats = functional.apply(network, batch, train=True)
    return jnp.mean((found - jax.random.normal(key, found.shape)) ** 2), LossResult(stats, {})

def batches(epoch, memory):
    for rows in index_batches(len(examples), 8, seed=1, epoch=epoch):
        yield Taken(rows, volumes)

volumes = LazyVolumes(read, examples.shape)
network, optimizer = functional.create(Layer, jax.random.key(0)), adam(lambda step: 0.1)
mesh = data_mesh()
state, _ = train(network, initial_state(network, optimizer), np.zeros(1),
                 [Stage("layer", 2, loss, batches, 3)], key=jax.random.key(2),
                 optimizer=optimizer, mesh=mesh)
read_by_training = list(seen)
(batch,) = feeding.Feeder(mesh).feed(list(batches(0, None))[:1], 0)
with jax.set_mesh(mesh):
    step = make_step(network, loss, optimizer)
    text = step.lower(state, batch, jax.random.key(2)).compile().as_text()
said = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
params = [np.asarray(leaf).ravel().tolist() for leaf in jax.tree.leaves(state.params)]
print(json.dumps({
    "collectives": [name for name in said if re.search(rf"{name}(-start)?\\(", text)],
    "params": sum(params, []), "read": sorted(read_by_training),
}))
"""


def _run(folder, num_processes=1, devices_each=1, fsdp=1, stop_at=0, program=PROGRAM):
    """What each process says; the folder is shared."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}",
    }
    numbers = port, num_processes, fsdp, stop_at
    command = [sys.executable, "-c", program, str(folder), *map(str, numbers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    running = [subprocess.Popen([*command, str(rank)], **pipes) for rank in range(num_processes)]
    ended = [process.communicate(timeout=300) for process in running]
    assert all(process.returncode == 0 for process in running), ended[0][1].decode()[-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same on one device: what it says and what it logs."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    return _run(folder)[0], _losses(folder)


def _losses(folder):
    """One line an epoch, whoever wrote them."""
    return [json.loads(line)["loss"] for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize(
    ("num_processes", "devices_each", "fsdp"),
    [
        (2, 2, 1),
        pytest.param(1, 4, 2, marks=pytest.mark.slow),
        pytest.param(2, 2, 2, marks=pytest.mark.slow),
        pytest.param(1, 2, 1, marks=pytest.mark.slow),
        pytest.param(1, 8, 1, marks=pytest.mark.slow),
    ],
)
def test_many_devices_and_processes_train_what_one_device_trains(
    num_processes, devices_each, fsdp, one, tmp_path
):
    wanted, losses = one
    told = _run(tmp_path / "many", num_processes, devices_each, fsdp)
    assert len(told) == num_processes
    for found in told:
        assert found["devices"] == num_processes * devices_each
        assert found["parts"] == fsdp
        # Gradients are summed; parameters that are split are put together, and nothing else.
        assert found["collectives"] == ["all-reduce", "all-gather"][: 2 if fsdp > 1 else 1]
        assert found["labels"] == wanted["labels"]
        np.testing.assert_allclose(found["params"], wanted["params"], rtol=1e-5, atol=1e-6)
        assert found["mean"] == pytest.approx(wanted["mean"], rel=1e-5)
    np.testing.assert_allclose(_losses(tmp_path / "many"), losses, rtol=1e-5)


@pytest.mark.slow
def test_processes_stop_together_and_others_go_on_with_what_they_saved(one, tmp_path):
    """One of two is asked to stop; four devices in one process, then one, finish."""
    wanted, losses = one
    told = _run(tmp_path / "run", 2, 2, stop_at=4)
    assert [found["stopped"] for found in told] == ["stopped at step 5 of 9"] * 2
    (told,) = _run(tmp_path / "run", 1, 4, fsdp=2, stop_at=7)
    assert told["stopped"] == "stopped at step 7 of 9"
    (found,) = _run(tmp_path / "run")
    assert found["labels"] == wanted["labels"]
    np.testing.assert_allclose(found["params"], wanted["params"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(_losses(tmp_path / "run")[0], losses[0], rtol=1e-5)


@pytest.mark.slow
def test_each_process_reads_the_rows_of_its_own_devices(tmp_path):
    (one,) = _run(tmp_path, program=READING)
    two = _run(tmp_path, 2, 2, program=READING)
    order = [rows for epoch in (0, 1) for rows in index_batches(22, 8, seed=1, epoch=epoch)]
    assert one["read"] == sorted(rows.tolist() for rows in order)
    for rank, found in enumerate(two):
        own = [rows[first : first + 2] for rows in order for first in (4 * rank, 4 * rank + 2)]
        assert found["read"] == sorted(rows.tolist() for rows in own)
        np.testing.assert_allclose(found["params"], one["params"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_rows_of_what_every_device_has_are_taken_without_talking(tmp_path):
    (one,) = _run(tmp_path, program=READING)
    for found in _run(tmp_path, 2, 2, stop_at=1, program=READING):
        assert found["read"] == [list(range(22))]  # once, by each process
        assert found["collectives"] == ["all-reduce"]
        np.testing.assert_allclose(found["params"], one["params"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_processes_leave_work_between_epochs_together(one, tmp_path):
    wanted, losses = one
    told = _run(tmp_path / "run", 2, 1, stop_at=-1)
    assert [found["stopped"] for found in told] == ["stopped at step 3 of 9"] * 2
    (found,) = _run(tmp_path / "run")
    assert found["labels"] == wanted["labels"]
    np.testing.assert_allclose(found["params"], wanted["params"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(_losses(tmp_path / "run"), losses, rtol=1e-5)


def test_one_process_needs_nobody():
    tree = {"a": np.arange(3)}
    assert distributed.is_first()
    assert distributed.gather(tree)["a"].tolist() == [[0, 1, 2]]
    assert distributed.from_first(tree) is tree
    assert distributed.local(tree) is tree
    distributed.wait("nowhere")
    distributed.check_alike("nothing", "text")


def test_process_that_differs_is_named(monkeypatch):
    def others(digest):
        return np.stack([digest, digest, digest ^ 1])

    monkeypatch.setattr(distributed, "gather", others)
    with pytest.raises(InputError, match="process 2 has settings other than process 0"):
        distributed.check_alike("settings", "text")


@pytest.mark.parametrize("given", [("host:1", None, 0), (None, 2, 0), ("host:1", 2, None)])
def test_half_an_address_is_an_error(given):
    with pytest.raises(InputError, match="give coordinator, num_processes and process_id together"):
        distributed.join(*given)


@pytest.mark.parametrize("num", [1, 7, 16, 17])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_that_take_turns_see_every_example_in_order(num, count, monkeypatch):
    """Each process in turn, with what the others would say."""

    def ask(rows):
        return {"square": rows**2, "pair": np.stack([rows, -rows], axis=1)}

    said = []

    def listen(mine):
        said.append(mine)
        return jax.tree.map(lambda *parts: np.stack(parts), *said)  # of those that spoke so far

    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(distributed, "gather", listen)
    for rank in range(count):
        monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
        found = map_chunks(ask, num, 4)  # that of the last process has heard all
    np.testing.assert_array_equal(found["square"], np.arange(num) ** 2)
    np.testing.assert_array_equal(found["pair"][:, 1], -np.arange(num))
