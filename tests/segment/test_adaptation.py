"""What each way of adaptation trains a tiny segmenter to do, and what it does not look at."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.data.phantom import demo_phantoms
from jimjax.data.simulate import simulate
from jimjax.data.subtomograms import normalize
from jimjax.evaluate.segmentation import score_segmentation
from jimjax.io.errors import InputError
from jimjax.mesh import data_mesh
from jimjax.models.voxresnet import VoxResNetConfig
from jimjax.ops import match_power, radial_power
from jimjax.progress import Interrupted
from jimjax.segment import adaptation, training
from jimjax.segment.adaptation import MOST_NOISE, mix_with_noise
from jimjax.segment.config import Method, SegmentConfig
from jimjax.segment.segmenter import segment_particles
from jimjax.segment.training import build_parts, train_segmenter
from jimjax.segment.view import Batch, Teacher, View, average
from jimjax.train import loop
from jimjax.train.step import make_step

BOX, NUM = 16, 8
SIZES = VoxResNetConfig(box=BOX, first_width=4, width=4)
CONFIG = SegmentConfig(
    preset="small", epochs=2, batch_size=4, num_sampled=3, ema_decay=0.9, ramp_epochs=1
)
METHODS = get_args(Method)
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(training.PRESETS, "small", lambda box: SIZES)


def particles(seed, snr=1.0, num=NUM):
    return simulate(
        jax.random.key(seed),
        demo_phantoms(1, seed, shape=(BOX,) * 3),
        num_per_class=num,
        snr=snr,
        voxel_size=24.0,
        box=BOX,
        max_shift=2.0,
        mask_threshold=0.3,
    )


def configured(method, **more):
    return dataclasses.replace(CONFIG, method=method, **more)


def arrays(weights):
    return [np.asarray(a) for a in jax.tree.leaves(weights.network[1:])]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(arrays(one), arrays(other), strict=True))


@pytest.fixture(scope="module")
def source():
    return particles(0)


@pytest.fixture(scope="module")
def target():
    return particles(1, snr=0.5)


@slow
def test_masks_of_particles_without_noise_are_learned(source):
    clean, fresh = particles(0, snr=1e3, num=16), particles(0, snr=1e3, num=4)
    config = configured("source-only", epochs=12, learning_rate=1e-2)
    found = segment_particles(train_segmenter(config, clean, source), fresh)
    assert found.shape == fresh.volumes.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert score_segmentation(found > 0.5, fresh.masks)["mean_dice"] > 0.7


@pytest.mark.parametrize(
    "method",
    [m if m in ("source-only", "supervised") else pytest.param(m, marks=slow) for m in METHODS],
)
def test_every_method_looks_at_what_it_says_and_nothing_else(method, source, target):
    blind = dataclasses.replace(target, masks=None)
    config = configured(method, epochs=1)
    if method == "supervised":
        with pytest.raises(InputError, match="the target has no masks"):
            train_segmenter(config, source, blind)
        blind = target
    trained = train_segmenter(config, source, blind)
    assert all(np.isfinite(a).all() for a in arrays(trained))
    others = dataclasses.replace(target, volumes=target.volumes[:, ::-1], masks=target.masks)
    is_blind = same(trained, train_segmenter(config, source, others))
    assert is_blind == (method == "source-only")
    if method != "supervised":
        with pytest.raises(InputError, match="the source has no masks"):
            train_segmenter(config, dataclasses.replace(source, masks=None), target)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dann", "pdam", "asc", "vox-uda"])
def test_interrupted_and_resumed_training_is_the_uninterrupted_one(
    method, source, target, tmp_path
):
    class StopAfter:
        def update(self, stage, step, num_steps, metrics):
            if step == 3:
                os.kill(os.getpid(), 15)

    config = configured(method)
    with pytest.raises(Interrupted, match="stopped at step 3 of 4"):
        train_segmenter(config, source, target, folder=tmp_path, progress=StopAfter())
    resumed = train_segmenter(config, source, target, folder=tmp_path, resume=True)
    assert same(resumed, train_segmenter(config, source, target))
    with pytest.raises(InputError, match="with another teacher"):
        train_segmenter(config, source, particles(2), folder=tmp_path, resume=True)


@pytest.fixture(scope="module")
def surest():
    """Vox-UDA with a confidence that every voxel has: what is taught hangs on all before it."""
    return configured("vox-uda", epochs=1, confidence=0.501)


@pytest.fixture(scope="module")
def steps():
    """Every compiled step of ``usual``."""
    return []


@pytest.fixture(scope="module")
def usual(surest, source, target, steps):
    class Counted:
        """A step whose programs are counted; one with arrays of other shapes is another."""

        def __init__(self, *arguments, **options):
            self.step, self.num_programs = make_step(*arguments, **options), 0
            steps.append(self)

        def trace(self, *arrays):
            self.num_programs += 1
            return self.step.trace(*arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.PRESETS, "small", lambda box: SIZES)
        patch.setattr(loop, "make_step", Counted)
        return train_segmenter(surest, source, target)


def test_filters_statistics_and_networks_are_one_step_that_compiles_once(usual, steps):
    assert [step.num_programs for step in steps] == [1]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"noise": "none"}, marks=slow),
        pytest.param({"denoiser": "none"}, marks=slow),
        pytest.param({"denoiser": "ngm"}, marks=slow),
        pytest.param({"adversarial": 0.0}, marks=slow),
        pytest.param({"match_spectrum": True}, marks=slow),
        pytest.param({"denoiser": "bilateral"}, marks=slow),
        pytest.param({"noise": "poisson"}, marks=slow),
        pytest.param({"noise": "speckle"}, marks=slow),
        pytest.param({"variance_order": "mean-of-variances"}, marks=slow),
        pytest.param({"kept": 0.1}, marks=slow),
        pytest.param({"num_sampled": 1}, marks=slow),
        pytest.param({"confidence": 0.7}, marks=slow),
        pytest.param({"sigma_range": 0.3}, marks=slow),
        pytest.param({"sigma_space": 0.3}, marks=slow),
        pytest.param({"consistency": (1.0, 0.0, 0.0, 0.0)}, marks=slow),
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_every_ablation_changes_what_is_learned(change, surest, usual, source, target):
    changed = train_segmenter(dataclasses.replace(surest, **change), source, target)
    assert not same(usual, changed)


def test_teacher_is_the_mean_of_the_first_students_and_then_follows_slowly():
    config = configured("vox-uda", ema_decay=0.75)
    teacher = Teacher({"w": jnp.zeros(2)}, {"count": jnp.array(0)})
    seen = []
    for step in range(8):
        student = Teacher({"w": jnp.full(2, float(step))}, {"count": jnp.array(step)})
        teacher = average(teacher, student, jnp.float32(step), config)
        seen.append(float(teacher.params["w"][0]))
    np.testing.assert_allclose(seen[:4], [0, 0.5, 1, 1.5])  # means of 0, 1, 2, 3
    np.testing.assert_allclose(seen[4], 0.75 * 1.5 + 0.25 * 4)
    assert int(teacher.stats["count"]) == 7  # whole numbers are copied


def look(config, source, target):
    """A view of a first step, its batch, and what asks for the terms of its method."""
    parts, mesh = build_parts(config, SIZES), data_mesh(1)
    network = parts.together(has_teacher=config.has_teacher)
    rows = slice(0, 4)
    sampled = normalize(target.volumes[:3])[None]
    batch = Batch(
        jnp.asarray(normalize(source.volumes[rows])),
        jnp.asarray(source.masks[rows].astype(np.int8)),
        jnp.asarray(normalize(target.volumes[rows])),
        jnp.asarray(sampled),
    )

    @jax.jit
    def ask(batch, key):
        view = View(config, parts, network, mesh, jnp.float32(0), jnp.float32(0))
        return adaptation.METHODS[config.method](view, batch, key)

    view = View(config, parts, network, mesh, jnp.float32(0), jnp.float32(0))
    return view, batch, ask


@slow
def test_pseudo_labels_of_unsure_voxels_count_nothing(source, target):
    for confidence, least, most in ((0.999999, 0.0, 0.0), (0.5, 1e-3, 1.0)):
        _, batch, ask = look(configured("vox-uda", confidence=confidence), source, target)
        terms = ask(batch, jax.random.key(0))
        assert least <= float(terms["pseudo"]) <= most


def test_noise_of_the_target_is_added_to_the_source(source, target):
    config = configured("vox-uda", variance_order="mean-of-variances", kept=1.0)
    view, batch, _ = look(config, source, target)
    loud = batch._replace(sampled=3 * batch.sampled)
    given = adaptation.add_target_noise(view, loud, jax.random.key(0))
    np.testing.assert_allclose(jnp.std(given, axis=(1, 2, 3)), 1, rtol=1e-3)
    for noisy, clean in zip(given, batch.source, strict=True):
        # signal 1, noise of deviation 3: they correlate by 1 / sqrt(10)
        alike = np.corrcoef(np.ravel(noisy), np.ravel(clean))[0, 1]
        assert abs(alike - 10**-0.5) < 0.05


def test_appearance_is_the_others_and_structure_ones_own(source, target):
    view, batch, _ = look(configured("asc"), source, target)
    styled = np.asarray(view.in_style(batch.source, batch.target))
    np.testing.assert_allclose(styled.std(axis=(1, 2, 3)), 1, rtol=1e-3)
    for made, own, other in zip(styled, batch.source, batch.target, strict=True):
        phases = [np.angle(np.fft.fftn(v)[0, 0, 1]) for v in (made, own, other)]
        assert abs(phases[0] - phases[1]) < 1e-2 < abs(phases[0] - phases[2])


def test_what_a_teacher_says_counts_in_full_after_the_ramp(source, target):
    config = configured("asc", ramp_epochs=4)
    parts = build_parts(config, SIZES)
    network = parts.together(has_teacher=True)
    weights = [
        float(View(config, parts, network, data_mesh(1), 0.0, epoch).ramp())
        for epoch in (0.0, 2.0, 4.0, 9.0)
    ]
    np.testing.assert_allclose(weights, np.exp([-5, -1.25, 0, 0]), rtol=1e-5)


def test_mixed_with_noise_volumes_have_the_targets_power_and_any_share_of_their_own():
    volumes = jax.random.normal(jax.random.key(0), (64, BOX, BOX, BOX))
    own, falling = radial_power(volumes), 1 / (1 + jnp.arange(BOX // 2 + 1.0)) ** 2
    keys = jax.random.split(jax.random.key(1), 64)
    mixed = jax.vmap(lambda key, volume: mix_with_noise(key, volume, own, falling))(keys, volumes)
    power = radial_power(mixed)[1:] / falling[1:]
    np.testing.assert_allclose(power, power.mean(), rtol=0.2)
    matched = jax.vmap(lambda volume: match_power(volume, own, falling))(volumes)
    pairs = zip(mixed, matched, strict=True)
    kept = np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]) ** 2
    assert (kept > 1 - MOST_NOISE - 0.15).all()
    np.testing.assert_allclose(kept.mean(), 1 - MOST_NOISE / 2, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "begin with 1"),
        ({"ramp_epochs": 0}, "begin with 1"),
        ({"kept": 0.0}, "kept must be above 0"),
        ({"band": 1.5}, "band must be above 0"),
        ({"confidence": 1.0}, "confidence must be 0.5 or more"),
        ({"ema_decay": 1.0}, "ema_decay must be"),
        ({"sigma_range": 0.0}, "must be above 0"),
        ({"consistency": (1.0,)}, "needs 4 weights"),
        ({"adversarial": -1.0}, "must be 0 or more"),
    ],
)
def test_impossible_settings_are_errors(change, message):
    with pytest.raises(InputError, match=message):
        SegmentConfig(**change)


def test_domains_of_other_boxes_or_scales_are_errors(source, target):
    other = dataclasses.replace(target, voxel_size=10.0)
    with pytest.raises(InputError, match="the source is for 24 A per voxel"):
        train_segmenter(CONFIG, source, other)


@slow
@pytest.mark.parametrize("method", METHODS)
def test_four_devices_learn_what_one_does(method):
    script = f"""
        import sys
        import jax, numpy as np
        sys.path.insert(0, "tests/segment")
        from test_adaptation import SIZES, arrays, configured, particles
        from jimjax.mesh import data_mesh
        from jimjax.segment import training
        training.PRESETS["small"] = lambda box: SIZES
        assert len(jax.devices()) == 4
        one, four = (
            training.train_segmenter(
                configured({method!r}, match_spectrum=True),
                particles(0),
                particles(1),
                mesh=data_mesh(n),
            )
            for n in (1, 4)
        )
        for a, b in zip(arrays(one), arrays(four), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
