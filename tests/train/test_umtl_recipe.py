"""UMTL's training: what each task adds to the loss, whole tiny runs, and that masks are learned."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_blobs import StopAfter
from small_networks import STAGE
from small_networks import umtl as tiny

from jimjax.config import (
    ClusterSection,
    JointSection,
    NetworkSection,
    PredictSection,
    PretrainSection,
    RunConfig,
    UMTLSection,
)
from jimjax.data.subtomograms import Subtomograms
from jimjax.evaluate.segmentation import dice
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh
from jimjax.models.umtl import Answer, Masks
from jimjax.ops import rotation
from jimjax.ops.rotation import Pose, identity
from jimjax.progress import Interrupted
from jimjax.train import umtl
from jimjax.train.molecules import MoleculePairs
from jimjax.train.run import load_run, predict, train_run, untrained_run
from jimjax.train.teacher import Teacher

NUM, BOX = 12, 12
CERTAIN = 12.0  # logits of masks that are sure
CONFIG = RunConfig(
    network=NetworkSection(kind="umtl", num_classes=2),
    pretrain=PretrainSection(steps=4, batch_size=4),
    joint=JointSection(epochs=1, batch_size=6, regulariser_weight=0.1),
    cluster=ClusterSection(surplus=1.0, rounds=1, num_proposals=1),
    predict=PredictSection(batch_size=12, num_proposals=1),
)


def _for(*tasks, **section):
    return dataclasses.replace(CONFIG, umtl=UMTLSection(tasks=tasks, **section))


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(umtl.PRESETS, "small", tiny)
        yield


def _made_of(volumes):
    num = len(volumes)
    return Subtomograms(
        volumes=volumes,
        tilt_ranges=np.tile(np.float32([-60, 60]), (num, 1)),
        voxel_size=10.0,
        names=tuple(f"{row + 1}@/data/stack.mrcs" for row in range(num)),
        halves=np.arange(num) % 2 + 1,
    )


@pytest.fixture(scope="module")
def particles(smooth_volumes):
    return _made_of(smooth_volumes(NUM, BOX))


@pytest.fixture(scope="module")
def trained(particles, tmp_path_factory):
    return train_run(CONFIG, particles, tmp_path_factory.mktemp("runs") / "run")


# What a configuration settles to


def test_without_clustering_there_is_one_class():
    assert umtl.settle(_for("align", "segment")).network.num_classes == 1
    assert umtl.settle(_for("align", "cluster")).network.num_classes == 2


def test_without_alignment_classes_come_from_features():
    assert umtl.settle(_for("cluster")).cluster.method == "features"
    assert umtl.settle(_for("align", "cluster")).cluster.method == "alignment"


def test_molecules_are_left_out_where_they_teach_nothing():
    settled = umtl.settle(_for("segment", molecule_masks=False))
    assert (settled.pretrain.steps, settled.joint.molecule_share) == (0, 0.0)
    assert umtl.settle(_for("segment")).pretrain.steps == 4
    assert umtl.settle(_for("cluster", "segment", molecule_masks=False)).pretrain.steps == 4


# Losses


def _ball(centre, radius=3.0):
    points = np.indices((BOX,) * 3).transpose(1, 2, 3, 0)
    return np.linalg.norm(points - np.array(centre), axis=-1) <= radius


def _sure(mask):
    return jnp.where(jnp.asarray(mask), CERTAIN, -CERTAIN)[None]


def _poses(pose):
    return jax.tree.map(lambda field: field[None], pose)


def _answer(source, target, coarse, *, fine_source=None):
    """Sure of masks; the second stage adds nothing to the coarse pose."""
    source_masks = Masks(_sure(source), _sure(source if fine_source is None else fine_source))
    return Answer(
        coarse=_poses(coarse),
        fine=_poses(coarse),
        residual=_poses(identity()),
        features=jnp.ones((1, 4)),
        target_features=jnp.ones((1, 4)),
        logits=jnp.zeros((1, 2)),
        rotation_logits=None,
        source_masks=source_masks,
        target_masks=Masks(_sure(target), _sure(target)),
    )


SOURCE, TARGET = _ball((6, 6, 4)), _ball((6, 6, 7))
MOVE = Pose(rotation.about_axis(0, 0.0), jnp.array([3.0, 0.0, 0.0]))


def _molecules(with_masks=True):
    volumes = jnp.zeros((1, BOX, BOX, BOX))
    masks = (jnp.asarray(SOURCE)[None], jnp.asarray(TARGET)[None]) if with_masks else ()
    return MoleculePairs(volumes, volumes, _poses(MOVE), *masks)


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        (("align",), {"alignment", "rotation_error_coarse", "rotation_error_fine"}),
        (("cluster",), {"contrast"}),
        (("segment",), {"masks"}),
    ],
)
def test_molecules_teach_the_tasks_that_are_on(tasks, names):
    section = UMTLSection(tasks=tasks)
    answer = _answer(SOURCE, TARGET, identity())
    total, metrics = umtl.molecule_loss(answer, _molecules(), BOX, section=section)
    assert set(metrics) == names
    first = next(name for name in ("alignment", "contrast", "masks") if name in names)
    np.testing.assert_allclose(total, metrics[first], rtol=1e-6)


def test_molecules_without_masks_teach_none():
    section = UMTLSection(tasks=("segment",))
    answer = _answer(SOURCE, TARGET, identity())
    total, metrics = umtl.molecule_loss(answer, _molecules(with_masks=False), BOX, section=section)
    assert total == 0
    assert metrics == {}


def test_mask_of_the_second_stage_is_wanted_where_the_source_was_moved_to():
    right = _answer(SOURCE, TARGET, MOVE, fine_source=TARGET)
    wrong = _answer(SOURCE, TARGET, MOVE, fine_source=SOURCE)
    assert umtl.taught_masks_loss(right, _molecules()) < 0.01
    assert umtl.taught_masks_loss(wrong, _molecules()) > 0.2


def _batch(source_rough, target_rough, bootstrap):
    volume, ranges = np.zeros((1, BOX, BOX, BOX), np.float32), np.float32([[-60, 60]])
    rough = (np.float32(mask)[None] for mask in (source_rough, target_rough))
    share = np.full(1, bootstrap, np.float32)
    return umtl.PairBatch(volume, volume, ranges, ranges, np.zeros(1), *rough, share, ranges)


def _terms(answer, batch, section=UMTLSection()):  # noqa: B008
    mesh = data_mesh(1)
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(umtl.segment_terms, section=section, mesh=mesh))(
            answer, batch
        )
    return {name: float(value) for name, value in found.items()}


def test_masks_that_agree_with_labels_and_with_each_other_cost_only_their_surface():
    answer = _answer(SOURCE, TARGET, MOVE, fine_source=TARGET)
    found = _terms(answer, _batch(SOURCE, TARGET, 0.0))
    assert found["labels"] < 0.01
    assert found["agreement"] < 0.01
    assert found["size"] == 0
    assert 6 < found["smoothness"] < 12


def test_masks_that_do_not_meet_disagree():
    found = _terms(_answer(SOURCE, TARGET, identity()), _batch(SOURCE, TARGET, 0.0))
    assert found["agreement"] > 0.5


def test_without_alignment_there_is_nothing_to_agree_on():
    section = UMTLSection(tasks=("segment",))
    found = _terms(_answer(SOURCE, TARGET, identity()), _batch(SOURCE, TARGET, 0.0), section)
    assert set(found) == {"labels", "size", "smoothness"}


def test_what_both_particles_say_corrects_wrong_labels():
    answer = _answer(SOURCE, TARGET, MOVE, fine_source=TARGET)
    wrong = _batch(_ball((3, 3, 3)), _ball((3, 3, 3)), 0.0)
    assert _terms(answer, wrong)["labels"] > 0.5
    believed = wrong._replace(bootstrap=np.ones(1, np.float32))
    assert _terms(answer, believed)["labels"] < 0.01


def test_network_that_is_sure_of_nothing_keeps_its_labels():
    """Its likeliest voxels are believed, not none: where it says more of them, it pays less."""

    def unsure(level):
        answer = _answer(SOURCE, TARGET, MOVE, fine_source=TARGET)
        weaken = functools.partial(jnp.minimum, level)
        masks = (jax.tree.map(weaken, each) for each in (answer.source_masks, answer.target_masks))
        source, target = masks
        return answer._replace(source_masks=source, target_masks=target)

    batch = _batch(SOURCE, TARGET, 1.0)
    assert _terms(unsure(-1.0), batch)["labels"] < _terms(unsure(-2.0), batch)["labels"]


def test_sizes_outside_the_interval_cost():
    section = UMTLSection(size_min=0.2)
    answer = _answer(SOURCE, TARGET, MOVE, fine_source=TARGET)
    share = SOURCE.mean()
    found = _terms(answer, _batch(SOURCE, TARGET, 0.0), section)
    np.testing.assert_allclose(found["size"], np.log(0.2 / share) ** 2, rtol=0.01)


def test_nothing_is_labelled_where_nothing_is_segmented(particles):
    assert umtl.rough_masks(_for("align"), particles.volumes).shape == (NUM, 0, 0, 0)


# Runs


def test_run_logs_what_every_task_costs(trained):
    text = (trained.folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["stage"] for line in lines] == ["molecules", "pairs"]
    assert {"alignment", "contrast", "masks"} <= set(lines[0])
    names = {"cluster", "correlation_fine", "regulariser", "mask_labels", "mask_agreement"}
    assert names <= set(lines[1])


def test_prediction_has_a_class_a_pose_and_a_mask_per_particle(trained, particles):
    found = predict(trained, particles)
    assert set(found.labels) <= {0, 1}
    np.testing.assert_allclose(np.linalg.det(found.rotations), np.ones(NUM), rtol=1e-4)
    assert found.masks.shape == particles.volumes.shape
    assert found.masks.dtype == bool


def test_loaded_run_predicts_what_the_trained_one_did(trained, particles):
    again, found = predict(load_run(trained.folder), particles), predict(trained, particles)
    for name in found._fields:
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5])
def test_interrupted_and_resumed_run_is_the_uninterrupted_one(step, trained, particles, tmp_path):
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 6"):
        train_run(CONFIG, particles, tmp_path / "run", progress=StopAfter(step))
    resumed = train_run(CONFIG, particles, tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.network.params, trained.network.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.network.stats, trained.network.stats)
    np.testing.assert_array_equal(resumed.references, trained.references)


@pytest.mark.slow
def test_run_that_only_clusters_has_classes_and_no_poses(particles, tmp_path):
    run = train_run(_for("cluster"), particles, tmp_path / "run")
    found = predict(load_run(run.folder), particles)
    assert found.rotations is found.shifts is found.correlations is found.masks is None
    assert set(found.labels) <= {0, 1}
    assert found.probabilities.shape == (NUM, 2)


@pytest.mark.slow
def test_run_that_only_aligns_has_one_class_and_poses(particles, tmp_path):
    run = train_run(_for("align"), particles, tmp_path / "run")
    assert len(run.references) == 1
    found = predict(load_run(run.folder), particles)
    assert set(found.labels) == {0}
    assert found.rotations.shape == (NUM, 3, 3)
    assert found.masks is None


@pytest.mark.slow
def test_untrained_network_says_all_that_a_trained_one_does(particles):
    found = predict(untrained_run(CONFIG, particles), particles)
    assert found.rotations is not None
    assert found.masks is not None


def test_teacher_is_refused(particles, tmp_path):
    turns = np.tile(np.eye(3, dtype=np.float32), (NUM, 1, 1))
    teacher = Teacher(np.arange(NUM) % 2, turns, np.zeros((NUM, 3)), np.ones(NUM))
    with pytest.raises(InputError, match="learns without a teacher"):
        train_run(CONFIG, particles, tmp_path / "run", teacher=teacher)


@pytest.mark.slow
def test_masks_are_learned_without_labels_by_one_program(tmp_path):
    generator = np.random.default_rng(0)
    truth = np.stack([_ball(5 + 2 * generator.random(3), 3.5) for _ in range(24)])
    noise = generator.normal(size=truth.shape)
    particles = _made_of((1.3 * noise - 2.0 * truth).astype(np.float32))
    stage = dataclasses.replace(STAGE, widths=(8,), num_features=8, momentum=0.9)
    sizes = functools.partial(tiny, coarse=stage, fine=stage, mask_size=12, mask_width=8)
    config = dataclasses.replace(
        _for("segment", molecule_masks=False),
        joint=JointSection(epochs=16, batch_size=6, learning_rate=0.004),
    )
    traces, count = [], umtl.segment_terms

    def counted(*inputs):
        traces.append(1)
        return count(*inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(umtl.PRESETS, "small", sizes)
        patch.setattr(umtl, "segment_terms", counted)
        run = train_run(config, particles, tmp_path / "run")
        found = predict(run, particles)
    assert len(traces) == 1  # one program for all epochs
    assert np.mean(dice(found.masks, truth)) > 0.75
