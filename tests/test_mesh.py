"""One axis of devices: what is computed on four is what is computed on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jimjax.mesh import AXIS, data_mesh, split_batch

STEPS_OF_BOTH_STAGES = """
import json
import jax
import numpy as np
import optax
from jimjax.config import NetworkSection, RunConfig
from jimjax.train import jimnet
from jimjax.mesh import data_mesh, replicate, split_batch
from jimjax.train.state import MAX_GRADIENT_NORM, Optimizer, initial_state
from jimjax.train.step import make_step

config = RunConfig(network=NetworkSection(num_classes=2))
network = jimnet.build_network(config, 16)
# In float32 the solved poses amplify the order of a sum; in float64 one cannot tell.
wide = lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf
network = jax.tree.map(wide, network)
# Clipped as in training, but plain descent: Adam divides by the gradient's size, and turns
# rounding into a whole step wherever a gradient vanishes.
clip = optax.clip_by_global_norm(MAX_GRADIENT_NORM)
optimizer = Optimizer(optax.chain(clip, optax.sgd(1e-2)), lambda step: 1e-2)
tilt_ranges = np.tile([-60.0, 60.0], (8, 1))
random = np.random.default_rng(0)
pairs = jimnet.PairBatch(
    *(random.normal(size=(8, 16, 16, 16)) for _ in range(2)),
    tilt_ranges, tilt_ranges - 10, np.arange(8, dtype=np.int32) % 2, tilt_ranges[:4],
)

def train(mesh):
    molecules = jimnet.molecule_stage(config, tilt_ranges, 16, mesh).loss
    stages = ((molecules, tilt_ranges), (jimnet._pair_loss(config, 16, mesh), pairs))
    state = replicate(initial_state(jax.tree.map(np.array, network), optimizer), mesh)
    losses = []
    with jax.set_mesh(mesh):
        for loss, batch in stages:
            step = make_step(network, loss, optimizer)
            for _ in range(2):
                state, metrics = step(state, split_batch(batch, mesh), jax.random.key(1))
                losses.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return np.array(losses), [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]

start = [np.asarray(leaf) for leaf in jax.tree.leaves(network.params)]
(one, params), (four, others) = train(data_mesh(1)), train(data_mesh(4))
print(json.dumps({
    "losses": float(np.max((np.abs(one - four) / np.abs(one))[:, 0])),
    "norms": float(np.max((np.abs(one - four) / np.abs(one))[:, 1])),
    "params": float(max(np.max(np.abs(a - b)) for a, b in zip(params, others))),
    "moved": float(max(np.max(np.abs(a - b)) for a, b in zip(params, start))),
}))
"""

# The same of a UMTL, whose pairs have rough masks besides.
STEPS_OF_UMTL = (
    STEPS_OF_BOTH_STAGES.replace("from jimjax.train import jimnet", "from jimjax.train import umtl")
    .replace("jimnet.", "umtl.")
    .replace("NetworkSection(num_classes=2)", "NetworkSection(kind='umtl', num_classes=2)")
    .replace(
        "np.arange(8, dtype=np.int32) % 2, tilt_ranges[:4],",
        "np.arange(8, dtype=np.int32) % 2, *random.uniform(size=(2, 8, 16, 16, 16)), "
        "np.full(8, 0.5), tilt_ranges[:4],",
    )
)

TEMPLATES_IN_TILES = """
import json
import jax
import numpy as np
from jimjax.tomogram import search
from jimjax.mesh import data_mesh
from jimjax.ops.rotation import super_fibonacci

random = np.random.default_rng(0)
tomogram = random.normal(size=(20, 38, 38)).astype(np.float32)
template = random.normal(size=(1, 14, 14, 14)).astype(np.float32)
rotations = np.asarray(super_fibonacci(9))
tilings = []
plan_tiles = search.plan_tiles
search.plan_tiles = lambda *a, **k: tilings.append(plan_tiles(*a, **k)) or tilings[-1]

def search_on(num_devices, max_bytes):
    return search.match_templates(
        tomogram, template, rotations, diameter=10.0, tilt_range=(-60, 60), cutoff=0.3,
        max_bytes=max_bytes, mesh=data_mesh(num_devices),
    )

one, three = search_on(1, 2**31), search_on(3, 2.5 * 2**20)
print(json.dumps({
    "num_tiles": len(tilings[-1].starts),
    "scores": float(np.abs(one.scores - three.scores).max()),
    "rotations": float(np.mean(one.rotations == three.rotations)),
}))
"""


def test_mesh_has_one_axis_of_the_devices_asked_for():
    assert dict(data_mesh(1).shape) == {AXIS: 1}


@pytest.mark.parametrize("num", [0, 1000])
def test_devices_that_are_not_there_are_an_error(num):
    with pytest.raises(ValueError, match=f"{num} devices asked for, [0-9]+ present"):
        data_mesh(num)


def test_devices_that_do_not_fill_rows_are_an_error():
    with pytest.raises(ValueError, match="1 devices do not fill rows of 2 that share parameters"):
        data_mesh(1, fsdp=2)


def test_batch_that_does_not_divide_is_an_error_that_says_what_to_choose():
    mesh = AbstractMesh((4,), (AXIS,))
    message = (
        "a batch of 6 cannot be split over 4 devices; choose a batch_size that is a multiple of 4"
    )
    with pytest.raises(ValueError, match=message):
        split_batch({"volumes": np.zeros((6, 2))}, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("program", [STEPS_OF_BOTH_STAGES, STEPS_OF_UMTL], ids=["jimnet", "umtl"])
def test_training_on_four_devices_is_training_on_one(program):
    difference = _run_on_four_devices(program, JAX_ENABLE_X64="1")
    # Each stage's second step as well, which stands on the first one's parameters.
    assert difference["losses"] < 1e-12, difference
    assert difference["params"] < 1e-12, difference
    assert difference["norms"] < 1e-12, difference
    assert difference["moved"] > 1e-3  # so that the lines above say something


@pytest.mark.slow
def test_a_tomogram_searched_on_three_devices_gives_what_one_gives():
    done = _run_on_four_devices(TEMPLATES_IN_TILES)
    assert done["num_tiles"] % 3  # a last group that is not full
    assert done["scores"] < 2e-5, done
    assert done["rotations"] > 0.999, done


def _run_on_four_devices(program, **environment):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        **environment,
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
