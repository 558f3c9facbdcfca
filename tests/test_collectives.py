"""What devices tell each other in a training step, in the forms that GPUs compute.

Two devices of a CPU compile those forms here. A CPU's own walk over particles one by one, to save
memory, and gather batches for it.
"""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, re, sys
import jax
from jax import lax

def on_gpu(*operands, default=None, cuda=None, **_):
    return (cuda or default)(*operands)

lax.platform_dependent = on_gpu

import jax.numpy as jnp, numpy as np, optax
from jimjax.mesh import data_mesh, replicate, split_batch
from jimjax.models import functional, gumnet, jimnet, umtl, voxresnet, weights, yopo
from jimjax.train.state import Optimizer, initial_state
from jimjax.train.step import LossResult, make_step

BOX = 16
CONFIGS = {
    "gumnet": gumnet.small(BOX),
    "jimnet": jimnet.small(BOX, 3),
    "umtl": umtl.small(BOX, 3),
    "voxresnet": voxresnet.small(BOX),
    "yopo": yopo.YopoConfig(box=BOX, size=BOX, widths=(8, 8), dense_width=8, num_classes=3),
}
name, mesh = sys.argv[1], data_mesh(2)
network = weights.build(CONFIGS[name], jax.random.key(0))

def loss(network, batch, key):
    found, stats = functional.apply(network, *batch, train=True)
    leaves = [leaf for leaf in jax.tree.leaves(found) if leaf.dtype == jnp.float32]
    return sum(jnp.mean(leaf**2) for leaf in leaves), LossResult(stats, {})

optimizer = Optimizer(optax.sgd(1e-3), lambda step: jnp.float32(1e-3))
state = replicate(initial_state(network, optimizer), mesh)
volumes = np.zeros((4, BOX, BOX, BOX), np.float32)
batch = split_batch([volumes] * (2 if name in ("gumnet", "jimnet", "umtl") else 1), mesh)
lies = jax.tree.map(lambda leaf: leaf.sharding, state)
with jax.set_mesh(mesh):
    step = make_step(network, loss, optimizer, state_sharding=lies)
    program = step.lower(state, batch, replicate(jax.random.key(1), mesh)).compile().as_text()
kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
print(json.dumps(sorted(set(re.findall(rf"({kinds})(?:-start)?\\(", program)))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gumnet", "jimnet", "umtl", "voxresnet", "yopo"])
def test_devices_add_up_and_nothing_else(name):
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    arguments = [sys.executable, "-c", PROGRAM, name]
    found = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout.splitlines()[-1]) == ["all-reduce"]
