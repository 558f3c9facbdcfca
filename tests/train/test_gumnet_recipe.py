"""The Gum-Net recipe: that both losses train, and what a run leaves."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align.inference import encode
from jimjax.config import JointSection, NetworkSection, PretrainSection, RunConfig
from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh
from jimjax.models import functional, weights
from jimjax.models.gumnet import GumNetConfig, Match
from jimjax.ops.correlation import pearson
from jimjax.ops.rotation import Pose
from jimjax.train import gumnet, losses
from jimjax.train.run import load_run, predict, train_run, weights_of
from jimjax.train.teacher import Teacher

BOX, NUM = 14, 6
TINY = GumNetConfig(
    box=BOX,
    widths=(2, 3),
    sizes=(8,),
    keeps=(7,),
    tower_width=4,
    dense_width=4,
    is_batch_norm_shared=False,
)
CONFIG = RunConfig(
    network=NetworkSection(kind="gumnet"),
    pretrain=PretrainSection(steps=2, batch_size=3),
    joint=JointSection(epochs=2, batch_size=3),
)


@pytest.fixture
def particles(smooth_volumes):
    return Subtomograms(
        volumes=smooth_volumes(NUM, BOX),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=tuple(f"{row + 1}@/data/stack.mrcs" for row in range(NUM)),
        halves=np.arange(NUM) % 2 + 1,
    )


@pytest.fixture(scope="module")
def network():
    return weights.build(TINY, jax.random.key(0))


def pairs_of(particles):
    partners = np.roll(np.arange(NUM), 1)
    tilts = particles.tilt_ranges
    return gumnet.AnyPairs(particles.volumes, particles.volumes[partners], tilts, tilts)


@pytest.mark.slow
def test_run_keeps_weights_and_is_not_to_be_predicted_with(particles, tmp_path, monkeypatch):
    monkeypatch.setitem(gumnet.PRESETS, "small", lambda box: TINY)
    trained = train_run(CONFIG, particles, tmp_path / "run")
    kept = load_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, kept.network[1:], trained.network[1:])
    assert weights_of(kept).description.kind == "gumnet"
    begun = gumnet.build_network(CONFIG, BOX)
    assert np.any(kept.network.params["out"]["bias"][...] != begun.params["out"]["bias"][...])
    with pytest.raises(InputError, match="jimjax align --method gumnet"):
        predict(kept, particles)


def test_teacher_pays_by_weight_for_the_matrix_and_the_shift():
    """Squared errors; 2 voxels off in a box of 16 are one unit."""
    true = Pose(jnp.tile(jnp.eye(3), (2, 1, 1)), jnp.zeros((2, 3)))
    found = Match(true._replace(shift=true.shift.at[1, 0].set(2.0)), 0.5 * true.rotation)
    config = RunConfig(joint=JointSection(alignment_weight=3.0))
    pay = functools.partial(gumnet.taught_loss, config, found, true, jnp.zeros(2, int))
    value, metrics = pay(jnp.array([2.0, 0.0]), 16)
    np.testing.assert_allclose(value, 3 * (2 * 0.75 + 0) / 2, rtol=1e-5)
    np.testing.assert_allclose(pay(jnp.array([0.0, 1.0]), 16)[0], 3 * (0.75 + 1) / 2, rtol=1e-5)
    assert metrics["rotation_error"] == 0.0


@pytest.mark.slow
def test_teacher_trains_a_gumnet(particles, tmp_path, monkeypatch):
    monkeypatch.setitem(gumnet.PRESETS, "small", lambda box: TINY)
    rotations = np.tile(np.eye(3, dtype=np.float32), (NUM, 1, 1))
    labels = Teacher(
        np.arange(NUM) % 2, rotations, np.zeros((NUM, 3), np.float32), np.ones(NUM, np.float32)
    )
    train_run(CONFIG, particles, tmp_path / "run", teacher=labels)
    records = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    taught = [record for record in records if record["stage"] == "teacher"]
    assert [set(record) >= {"rotation_error", "shift_error"} for record in taught] == [True] * 2
    kept, begun = load_run(tmp_path / "run").network, gumnet.build_network(CONFIG, BOX)
    assert np.any(kept.params["out"]["bias"][...] != begun.params["out"]["bias"][...])


def test_imputed_loss_is_that_of_upstream(particles, network):
    """One minus the squared correlation over the batch, of sources filled up with targets."""
    mesh, batch = data_mesh(1), pairs_of(particles)
    config = RunConfig(joint=JointSection(loss="imputed"))
    with jax.set_mesh(mesh):
        loss = jax.jit(gumnet._pair_loss(config, mesh))
        value = loss(network, batch, jax.random.key(0))[0]
        ask = jax.jit(functools.partial(functional.apply, train=True))
        found, _ = ask(network, batch.source, batch.target)
        filled = jax.jit(lambda *both: gumnet._imputed(*both, mesh))(batch, found.pose)
    np.testing.assert_allclose(value, 1 - pearson(filled, batch.target) ** 2, rtol=1e-5)


def test_imputed_source_has_the_targets_wedge(particles):
    """At the identity only what the source has not measured is the target's."""
    mesh, batch = data_mesh(1), pairs_of(particles)
    still = Pose(jnp.tile(jnp.eye(3), (NUM, 1, 1)), jnp.zeros((NUM, 3)))
    whole = batch._replace(source_tilt_range=np.tile(np.float32([-90, 90]), (NUM, 1)))
    with jax.set_mesh(mesh):
        kept = jax.jit(lambda: gumnet._imputed(whole, still, mesh))()
        filled = jax.jit(lambda: gumnet._imputed(batch, still, mesh))()
    np.testing.assert_allclose(kept, batch.source, atol=1e-4)
    spectrum, target = np.fft.fftn(filled[0]), np.fft.fftn(batch.target[0])
    np.testing.assert_allclose(spectrum[3, 0, 0], target[3, 0, 0], atol=1e-3)  # along the beam
    assert abs(spectrum[0, 0, 3] - target[0, 0, 3]) > 1e-2


def test_constrained_loss_is_small_for_aligned_pairs_only(particles):
    mesh, batch = data_mesh(1), pairs_of(particles)
    same = batch._replace(target=batch.source)
    still = Pose(jnp.tile(jnp.eye(3), (NUM, 1, 1)), jnp.zeros((NUM, 3)))
    with jax.set_mesh(mesh):
        correlate = jax.jit(functools.partial(losses.pair_correlations, cutoff=0.2, mesh=mesh))
        np.testing.assert_allclose(correlate(*same[:2], still, *same[2:]), 1.0, atol=1e-4)
        assert np.all(correlate(*batch[:2], still, *batch[2:]) < 0.8)


def test_codes_of_unshared_batch_norm_give_the_poses_of_the_network(particles, network):
    """The separate way of prediction and the one call of training agree."""
    source, target = particles.volumes[:3], particles.volumes[3:]
    whole, _ = functional.apply(network, source, target, train=False)
    codes = encode(network, source), encode(network, target)
    apart, _ = functional.apply(network, *codes, train=False, method="match")
    np.testing.assert_allclose(apart.rotation, whole.pose.rotation, atol=1e-5)
    np.testing.assert_allclose(apart.shift, whole.pose.shift, atol=1e-5)
