"""The loop and its step, with a network of one layer."""

import json
import os
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jimjax.mesh import data_mesh
from jimjax.models import functional
from jimjax.train.checkpoint import open_checkpoints
from jimjax.train.loop import MAX_BAD_STEPS, Interrupted, Log, Stage, TrainingError, train
from jimjax.train.profile import Profile
from jimjax.train.state import Optimizer, TrainState, adam, initial_state
from jimjax.train.step import LossResult, make_step

BATCH, STEPS = 4, 3


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x, *, train):
        return self.linear(x)


class StopAt:
    """Asks the process to stop after some step, as a batch system does."""

    def __init__(self, step):
        self.step, self.seen = step, []

    def update(self, stage, step, num_steps, metrics):
        self.seen.append(step)
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Setting(NamedTuple):
    network: functional.Network
    optimizer: Optimizer
    stages: list[Stage]
    clustered: list[int]

    def begin(self):
        # A step donates its state: every run begins with its own copy.
        network = jax.tree.map(jnp.copy, self.network)
        return initial_state(network, self.optimizer), np.zeros(2, np.float32)

    def train(self, state, memory, **options):
        return train(
            self.network,
            state,
            memory,
            self.stages,
            key=jax.random.key(5),
            optimizer=self.optimizer,
            mesh=data_mesh(1),
            **options,
        )


def _loss(network, batch, key):
    found, stats = functional.apply(network, batch, train=True)
    noise = jax.random.normal(key, found.shape)  # a resumed run must repeat it
    value = jnp.mean((found - noise) ** 2)
    return value, LossResult(stats, {"square": value**2})


def _batches(epoch, memory):
    generator = np.random.default_rng(epoch)
    for _ in range(STEPS):
        yield generator.normal(size=(BATCH, 2)).astype(np.float32) + memory


@pytest.fixture
def setting():
    network = functional.create(Layer, jax.random.key(0))
    clustered = []

    def cluster(state, epoch, memory):
        clustered.append(epoch)
        moved = memory + np.asarray(jax.tree.leaves(state.params)[1]).ravel()[:2]
        return state, moved, {"noted": 1.0}

    stages = [
        Stage("first", 1, _loss, _batches, STEPS),
        Stage("second", 2, _loss, _batches, STEPS, cluster),
    ]
    return Setting(network, adam(optax.constant_schedule(0.1)), stages, clustered)


def _assert_same(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def _train_with_a_stop(setting, folder, step, log=None):
    """Stops after a step, restores, and goes on to the end."""
    with open_checkpoints(folder) as checkpoints:
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 9"):
            setting.train(*setting.begin(), checkpoints=checkpoints, log=log, progress=StopAt(step))
        state, memory = setting.begin()
        saved = checkpoints.restore({"state": state, "memory": memory})
        state, memory = TrainState(*saved["state"]), np.asarray(saved["memory"])
        return setting.train(state, memory, checkpoints=checkpoints, log=log)


# Within the first stage, at its end, within and at the end of an epoch with clusters, at the end.
@pytest.mark.parametrize("step", [1, 3, 4, 6, 9])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(step, setting, tmp_path):
    wanted = setting.train(*setting.begin())
    setting.clustered.clear()
    _assert_same(_train_with_a_stop(setting, tmp_path, step), wanted)
    assert setting.clustered == [0, 1]


def test_work_between_epochs_may_change_the_parameters(setting):
    def forget(state, epoch, memory):
        return state._replace(params=jax.tree.map(jnp.zeros_like, state.params)), memory, {}

    still = adam(optax.constant_schedule(0.0))
    stages = [setting.stages[1]._replace(before_epoch=forget)]
    state, _ = setting._replace(stages=stages, optimizer=still).train(*setting.begin())
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.params))


def test_stage_that_is_over_counts_as_done(setting, tmp_path):
    """Over at its second epoch, of four: what is trained is one epoch, and the next stage."""

    def count(state, epoch, memory):
        return state, memory + 1, {}

    first, second = setting.stages
    ending = second._replace(
        num_epochs=4, before_epoch=count, is_over=lambda memory: memory[0] == 2
    )
    with open_checkpoints(tmp_path / "run") as checkpoints:
        state, memory = setting._replace(stages=[ending, first]).train(
            *setting.begin(), log=Log(tmp_path / "log"), checkpoints=checkpoints
        )
    assert memory[0] == 2
    assert int(state.step) == 5 * STEPS
    steps = [line["step"] for line in _lines(tmp_path / "log")]
    assert steps == [STEPS, 4 * STEPS, 5 * STEPS]


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_has_one_line_per_epoch(setting, tmp_path):
    setting.train(*setting.begin(), log=Log(tmp_path / "log"))
    lines = _lines(tmp_path / "log")
    found = [(line["stage"], line["epoch"], line["step"]) for line in lines]
    assert found == [("first", 0, 3), ("second", 0, 6), ("second", 1, 9)]
    assert ["noted" in line for line in lines] == [False, True, True]
    assert all({"loss", "square", "gradient_norm", "learning_rate"} <= set(line) for line in lines)


def test_log_tells_how_fast_an_epoch_was(setting, tmp_path):
    setting.train(*setting.begin(), log=Log(tmp_path / "log"))
    lines = _lines(tmp_path / "log")
    timed = {"step_seconds", "particles_per_second", "input_wait_share", "goodput"}
    assert all(timed <= set(line) for line in lines)
    assert [line["compile_seconds"] > 0 for line in lines] == [True, True, False]
    for line in lines:
        assert line["particles_per_second"] == pytest.approx(BATCH / line["step_seconds"])


@pytest.mark.parametrize("step", [3, 4])
def test_log_of_an_interrupted_run_misses_no_epoch(step, setting, tmp_path):
    log = Log(tmp_path / "log")
    _train_with_a_stop(setting, tmp_path / "checkpoints", step, log)
    assert [line["step"] for line in _lines(tmp_path / "log")] == [3, 6, 9]


def test_progress_is_told_of_every_step(setting):
    progress = StopAt(None)
    setting.train(*setting.begin(), progress=progress)
    assert progress.seen == list(range(1, 10))


@pytest.mark.parametrize("num_traced", [2, 100])  # within the run, and beyond its end
def test_steps_are_traced_where_asked(num_traced, setting, tmp_path):
    profile = Profile(tmp_path, 5, num_traced)
    setting.train(*setting.begin(), profile=profile)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_nothing_is_traced_of_steps_that_do_not_come(setting, tmp_path):
    setting.train(*setting.begin(), profile=Profile(tmp_path, 10, 1))
    assert list(tmp_path.iterdir()) == []


def test_signal_handlers_are_put_back(setting):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        setting.train(*setting.begin(), progress=StopAt(1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_trained_state_trains_no_further(setting):
    done = setting.train(*setting.begin())
    wanted = jax.tree.map(np.asarray, done)
    setting.clustered.clear()
    _assert_same(setting.train(*done), wanted)
    assert setting.clustered == []


def _poisoned(epoch, memory):
    for batch in _batches(epoch, memory):
        yield batch * np.nan


def test_loss_that_stays_non_finite_stops_naming_stage_and_step(setting):
    setting.stages[1] = setting.stages[1]._replace(batches=_poisoned)
    message = f"stage 'second' for {MAX_BAD_STEPS} steps up to step {STEPS + MAX_BAD_STEPS}"
    with pytest.raises(TrainingError, match=message):
        setting.train(*setting.begin())


def test_bad_steps_are_counted_across_short_epochs(setting):
    setting.stages[:] = [
        Stage("short", 5, _loss, lambda *_: iter([np.full((BATCH, 2), np.nan)]), 1)
    ]
    with pytest.raises(TrainingError, match=f"up to step {MAX_BAD_STEPS};"):
        setting.train(*setting.begin())


def test_too_few_batches_are_an_error(setting):
    setting.stages[0] = setting.stages[0]._replace(steps_per_epoch=STEPS + 1)
    with pytest.raises(TrainingError, match="'first' gave 3 batches in epoch 0, 4 were promised"):
        setting.train(*setting.begin())


def test_bad_step_changes_nothing_but_the_count(setting):
    step = make_step(setting.network, _loss, setting.optimizer)
    state, _ = setting.begin()
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, jnp.full((BATCH, 2), jnp.nan), jax.random.key(0))
    assert not metrics["is_finite"]
    _assert_same(after[:3], before[:3])
    assert int(after.step) == 1


def test_step_compiles_once(setting):
    step = make_step(setting.network, _loss, setting.optimizer)
    state, memory = setting.begin()
    for batch in _batches(0, memory):
        state, _ = step(state, batch, jax.random.key(0))
    assert step._cache_size() == 1


def test_training_compiles_each_stage_once(setting):
    traces = []

    def counted(network, batch, key):
        traces.append(1)
        return _loss(network, batch, key)

    setting.stages[:] = [stage._replace(loss=counted) for stage in setting.stages]
    setting.train(*setting.begin())
    assert len(traces) == 2


def test_layer_learns_a_line(setting):
    def loss(network, batch, key):
        found, stats = functional.apply(network, batch, train=True)
        wanted = batch @ jnp.array([[1.0], [-2.0]]) + 0.5
        return jnp.mean((found - wanted) ** 2), LossResult(stats, {})

    epochs = Stage("line", 100, loss, _batches, STEPS)
    setting.stages[:] = [epochs]
    state, _ = setting.train(*setting.begin())
    bias, kernel = jax.tree.leaves(state.params)
    np.testing.assert_allclose(np.ravel(kernel), [1.0, -2.0], atol=0.02)
    np.testing.assert_allclose(bias, [0.5], atol=0.02)
