"""Runs that are killed at any moment, also while they save, end as if they had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

# Trains a layer with batch norm, clusters between epochs, and saves after each of them.
PROGRAM = """
import hashlib, json, sys
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from jimjax.data.batches import index_batches
from jimjax.mesh import data_mesh
from jimjax.models import functional
from jimjax.models.blocks import batch_norm
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.loop import Stage, train
from jimjax.train.state import adam, initial_state
from jimjax.train.step import LossResult

class Tell:
    def update(self, stage, step, num_steps, metrics):
        print("step", step, flush=True)

class Layers(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(3, 2, rngs=rngs), batch_norm(2, 0.9, rngs)
        self.large = nnx.Param(jnp.zeros((400, 400)))  # makes saving take a while

    def __call__(self, x, *, train):
        return self.norm(self.linear(x), use_running_average=not train) + self.large[0, 0]

examples = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)
network = functional.create(Layers, jax.random.key(0))
optimizer = adam(optax.constant_schedule(0.1))
state = initial_state(network, optimizer)
memory = {"labels": np.zeros(22, np.int32)}

def loss(network, batch, key):
    found, stats = functional.apply(network, batch["x"], train=True)
    wanted = jax.random.normal(key, found.shape) + batch["label"][:, None]
    return jnp.mean((found - wanted) ** 2), LossResult(stats, {})

def batches(epoch, memory):
    for rows in index_batches(22, 8, seed=1, epoch=epoch):
        yield {"x": examples[rows], "label": memory["labels"][rows].astype(np.float32)}

ask = jax.jit(lambda network: functional.apply(network, examples, train=False)[0])

def cluster(state, epoch, memory):
    own = network._replace(params=state.params, stats=state.stats)
    return state, {"labels": np.asarray(ask(own)).argmax(axis=1).astype(np.int32)}, {}

stage = Stage("layer", 12, loss, batches, 3, cluster)
with open_checkpoints(sys.argv[1]) as checkpoints:
    if checkpoints.latest_step is not None:
        saved = checkpoints.restore({"state": state, "memory": memory})
        state, memory = saved["state"], saved["memory"]
    print("step", int(state.step), flush=True)
    state, memory = train(
        network, state, memory, [stage], key=jax.random.key(2), optimizer=optimizer,
        mesh=data_mesh(), checkpoints=checkpoints, progress=Tell(),
    )
arrays = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))
print(json.dumps({"sha": hashlib.sha256(arrays).hexdigest(), "labels": memory["labels"].tolist()}))
"""
SAVING = "*orbax-checkpoint-tmp*"  # what Orbax calls a checkpoint that is not complete


def _start(folder):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def _finish(process):
    """The step at which it began, and what it ends with."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    begins, *_, told = out.splitlines()
    return int(begins.split()[1]), json.loads(told)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """What an uninterrupted run ends with."""
    begun, told = _finish(_start(tmp_path_factory.mktemp("run") / "checkpoints"))
    assert begun == 0
    assert len(set(told["labels"])) == 2
    return told


def _kill(process, folder, seed):
    """After a step that is drawn; every other time when something is next being saved."""
    draw = random.Random(seed)
    last = draw.randrange(30)
    while int(process.stdout.readline().split()[1]) < last:
        pass
    if seed % 2:
        while not any(folder.glob(SAVING)):
            assert process.poll() is None
    else:
        time.sleep(draw.uniform(0, 0.05))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return last


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_and_resumed_run_is_the_uninterrupted_one_to_the_bit(seed, wanted, tmp_path):
    folder = tmp_path / "checkpoints"
    process = _start(folder)
    last = _kill(process, folder, seed)
    begun, found = _finish(_start(folder))
    assert abs(begun - last) <= 6  # two epochs: one may be on its way to the disk
    assert found == wanted
