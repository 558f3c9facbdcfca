"""A run without particles: its steps compiled, and what they would cost."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jimjax.align.references import Particles
from jimjax.config import RunConfig
from jimjax.data.subtomograms import Subtomograms
from jimjax.mesh import replicate, split_state
from jimjax.models.functional import Network
from jimjax.train import em, gumnet, jimnet
from jimjax.train.feeding import Feeder
from jimjax.train.loop import Stage
from jimjax.train.program import StepProgram, compile_step
from jimjax.train.recipes import recipe_of, settle
from jimjax.train.state import initial_state
from jimjax.train.step import make_step

TILT_RANGE = (-60.0, 60.0)  # degrees; of no influence on the program
VOXEL_SIZE = 12.0  # angstrom; likewise


class Rehearsed(NamedTuple):
    """A stage's step.

    Attributes:
        stage: its name.
        step: compiled.
    """

    stage: str
    step: StepProgram


def rehearse(config: RunConfig, *, box: int, num_particles: int, mesh: Mesh) -> list[Rehearsed]:
    """Compiles the steps of a training run.

    Args:
        config: the run.
        box: side of its particles in voxels.
        num_particles: as many as the run will have; what fits on the devices is put there, and is
            a part of the program.
        mesh: devices.

    Returns:
        One for each stage with steps.

    Raises:
        ValueError: if the network cannot be built for the box.
    """
    settled = settle(config)
    network = recipe_of(config).build_network(config, box)
    optimizer = jimnet.build_optimizer(settled, num_particles)
    state = split_state(initial_state(network, optimizer), mesh)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    memory = em.initial_memory(num_particles, settled.network.num_classes, box)
    memory = memory._replace(labels=np.zeros_like(memory.labels))
    key, feeder, found = replicate(jax.random.key(config.seed), mesh), Feeder(mesh), []
    for stage in _stages(settled, network, box, num_particles, mesh):
        if stage.num_epochs * stage.steps_per_epoch:
            batch = next(iter(feeder.feed(stage.batches(0, memory), 0)))
            step = make_step(network, stage.loss, optimizer, state_sharding=sharding)
            with jax.set_mesh(mesh):
                found.append(Rehearsed(stage.name, compile_step(step, state, batch, key)))
    return found


def _stages(
    config: RunConfig, network: Network, box: int, num_particles: int, mesh: Mesh
) -> list[Stage]:
    """Those of as many empty particles."""
    volumes = np.zeros((num_particles, *(box,) * 3), np.float32)
    tilt_ranges = np.tile(np.asarray(TILT_RANGE, np.float32), (num_particles, 1))
    if config.network.kind == "gumnet":
        names, halves = ("",) * num_particles, np.ones(num_particles, int)
        particles = Subtomograms(volumes, tilt_ranges, VOXEL_SIZE, names, halves)
        return gumnet.build_stages(config, particles, mesh)
    particles = Particles(volumes, tilt_ranges, np.zeros((num_particles, 3), np.float32))
    key = jax.random.key(config.seed)
    return recipe_of(config).build_stages(config, network, particles, mesh, key)
