"""Distillation: what a teacher's labels weigh, and that they teach."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import STAGE, steerable

from jimjax.config import JointSection, NetworkSection, PretrainSection, RunConfig
from jimjax.data.batches import fetch
from jimjax.data.phantom import demo_phantoms
from jimjax.data.simulate import simulate
from jimjax.data.subtomograms import load, to_star
from jimjax.evaluate.pose import relative_poses
from jimjax.io import star
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh
from jimjax.models import functional, weights
from jimjax.train import em, jimnet, loop, losses, teacher
from jimjax.train.run import train_run
from jimjax.train.state import initial_state, network_of

BOX, NUM, NUM_EPOCHS = 16, 64, 15
CONFIG = RunConfig(
    network=NetworkSection(num_classes=2),
    pretrain=PretrainSection(steps=0),
    joint=JointSection(epochs=NUM_EPOCHS, batch_size=16, learning_rate=1e-2, molecule_share=0.0),
)
TINY_STAGE = dataclasses.replace(
    STAGE, widths=(4,), sizes=(9, 7), keeps=(9, 7), pools=("mean",), momentum=0.8
)
TINY = steerable(BOX, 2, stage=TINY_STAGE, num_rotations=128)


@pytest.fixture(scope="module")
def particles():
    molecules = demo_phantoms(2, shape=(BOX,) * 3)
    how = {"snr": 4.0, "voxel_size": 24.0, "box": BOX, "max_shift": 1.0}
    return simulate(jax.random.key(0), molecules, num_per_class=NUM, **how)


@pytest.fixture
def taught(particles, tmp_path):
    """The first half of each class as a file with poses; columns are added by the tests."""
    to_star(particles, tmp_path / "all.star", stack_path=tmp_path / "stack.mrcs")
    return tmp_path / "all.star"


def perfect(particles):
    own = (particles.labels, particles.rotations, particles.shifts)
    return teacher.Teacher(*own, np.ones(len(particles), np.float32))


def with_columns(path, **columns):
    table = star.read_particles(path)
    table.with_columns({name: list(map(str, column)) for name, column in columns.items()}).write(
        path
    )


def trained_with(stages, particles, memory):
    network = weights.build(TINY, jax.random.key(0))
    optimizer = jimnet.build_optimizer(CONFIG, len(particles))
    state, _ = loop.train(
        network,
        initial_state(network, optimizer),
        memory,
        stages,
        key=jax.random.key(1),
        optimizer=optimizer,
        mesh=data_mesh(1),
    )
    return network_of(network, state)


def mean_error(network, particles):
    """Frobenius error of the poses between each particle and the next of its class."""
    first, second = np.arange(len(particles)), np.arange(len(particles))
    for label in range(2):
        members = np.flatnonzero(particles.labels == label)
        second[members] = np.roll(members, 1)
    volumes = particles.volumes
    volumes = (volumes - volumes.mean((1, 2, 3), keepdims=True)) / volumes.std(
        (1, 2, 3), keepdims=True
    )
    run = jax.jit(lambda *pair: functional.apply(network, *pair, train=False)[0].fine)
    found = run(volumes[first], volumes[second]).rotation
    true, _ = relative_poses(particles.rotations, particles.shifts, first, second)
    return np.linalg.norm(found - true, axis=(1, 2)).mean()


@pytest.mark.slow
def test_teacher_lowers_the_error_of_held_out_pairs(particles):
    is_taught = np.tile([True, False], NUM)
    learned, held_out = particles.select(is_taught), particles.select(~is_taught)
    mesh, labels = data_mesh(1), perfect(learned)
    memory = teacher.initial_memory(learned, labels)
    stages = teacher.build_stages(CONFIG, learned, labels, mesh)
    with_teacher = trained_with(stages, learned, memory)
    # The same classes and as many steps; poses from the correlation of pairs.
    network = weights.build(TINY, jax.random.key(0))
    prepared = em.prepare(learned, CONFIG)
    alone = jimnet.build_stages(CONFIG, network, prepared, mesh, jax.random.key(2))
    alone = [stage._replace(before_epoch=None) for stage in alone]
    without = trained_with(alone, learned, memory)
    # Chance is 2.4; the correlation of pairs alone hardly leaves it in so few steps.
    assert mean_error(with_teacher, held_out) < 0.85 * mean_error(without, held_out)


def test_weights_fall_with_doubt(taught):
    num = 2 * NUM
    deviations = np.where(np.arange(num) < NUM, 0.0, teacher.ANGLE_UNIT)
    probabilities = np.where(np.arange(num) % 2, 1.0, 0.5)
    with_columns(taught, jimAngleDeviation=deviations, jimClassProbability=probabilities)
    found = teacher.read_teacher(taught, load(taught, with_poses=True)).weights
    np.testing.assert_allclose(found / found[1], probabilities / (1 + (deviations > 0)), rtol=1e-5)
    np.testing.assert_allclose(found.mean(), 1.0, rtol=1e-5)


def test_weights_are_equal_without_columns(taught, particles):
    found = teacher.read_teacher(taught, load(taught, with_poses=True))
    np.testing.assert_array_equal(found.weights, np.ones(2 * NUM))
    np.testing.assert_array_equal(found.labels, particles.labels)


def test_pairs_have_the_pose_between_them(particles):
    """Noiseless poses: sources moved by the batch's pose lie on their targets."""
    labels = perfect(particles)
    stage = teacher.build_stages(CONFIG, particles, labels, data_mesh(1))[1]
    memory = teacher.initial_memory(particles, labels)
    batch = fetch(next(iter(stage.batches(0, memory))))
    tilts = np.tile(np.float32([-60, 60]), (len(batch.source), 1))
    is_average = batch.is_average[:, None, None, None]
    volumes = np.where(is_average, batch.average, batch.source), batch.target
    correlate = functools.partial(losses.pair_correlations, cutoff=0.2, mesh=data_mesh(1))
    with jax.set_mesh(data_mesh(1)):
        likeness = jax.jit(lambda pose: jnp.mean(correlate(*volumes, pose, tilts, tilts)))
        inverse = jax.vmap(teacher.invert)(batch.pose)
        assert likeness(batch.pose) > 0.8
        assert likeness(inverse) < 0.6


@pytest.mark.slow
def test_references_of_the_run_are_the_teachers_averages(particles, tmp_path, monkeypatch):
    monkeypatch.setitem(jimnet.PRESETS, "small", lambda box, num: TINY)
    config = dataclasses.replace(CONFIG, joint=dataclasses.replace(CONFIG.joint, epochs=1))
    labels = perfect(particles)
    found = train_run(config, particles, tmp_path / "run", teacher=labels)
    memory = teacher.initial_memory(particles, labels)
    np.testing.assert_array_equal(found.references, memory.references)
    other = labels._replace(weights=2 * labels.weights)
    for changed in (other, None):
        with pytest.raises(InputError, match="another teacher, or with none"):
            train_run(config, particles, tmp_path / "run", teacher=changed, resume=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rlnClassNumber": [1] * NUM + [3] * NUM}, "class 2 has 0 particles"),
        ({"rlnClassNumber": [1] + [2] * (2 * NUM - 1)}, "class 1 has 1 particles"),
        ({"jimClassProbability": [0.0] * 2 * NUM}, "zero throughout"),
        ({"jimAngleDeviation": [1.0, -1.0] * NUM}, "must not be negative, got -1"),
    ],
)
def test_teacher_that_cannot_teach_is_one_line(taught, columns, message):
    with_columns(taught, **columns)
    with pytest.raises(InputError, match=message) as problem:
        teacher.read_teacher(taught, load(taught, with_poses=True))
    assert "\n" not in str(problem.value)
