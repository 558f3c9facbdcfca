"""Training until examples kept apart gain nothing: when it ends, and what is kept."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.cluster.autoencoder_config import AutoencoderConfig
from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.models import functional, weights
from jimjax.models.autoencoder import Autoencoder3DConfig
from jimjax.train import patience
from jimjax.train.patience import train_best
from jimjax.train.records import Origin, Record

NUM, BOX = 10, 4
SCHEDULE = AutoencoderConfig(
    candidates=(2,), epochs=6, batch_size=3, learning_rate=3e-3, validation=0.3, patience=2
)
SIZES = Autoencoder3DConfig(box=BOX, size=BOX, width=4, code_length=8)


@pytest.fixture(scope="module")
def network():
    return weights.build(SIZES, jax.random.key(0))


@pytest.fixture(scope="module")
def examples():
    """Volumes of one kind, each of another strength."""
    generator = np.random.default_rng(0)
    strength = generator.uniform(0.5, 1.5, (NUM, 1, 1, 1))
    return (strength * generator.normal(size=(1, BOX, BOX, BOX))).astype(np.float32)


def errors(network, volumes):
    found, _ = functional.apply(network, volumes, train=True, method="reconstruct")
    return jnp.mean((found.decoded - volumes) ** 2, axis=(1, 2, 3))


def same(one, other):
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


class Steps:
    num = 0

    def update(self, stage, step, num_steps, metrics):
        self.num = step


def test_training_gains_on_examples_kept_apart(network, examples):
    kept, _ = patience._split(NUM, SCHEDULE)
    found = train_best("test", network, examples, errors, SCHEDULE)
    assert errors(found, examples[kept]).mean() < 0.95 * errors(network, examples[kept]).mean()


def test_without_gain_it_ends_after_as_many_epochs_as_patience_lasts(network, examples):
    steps = Steps()
    idle = dataclasses.replace(SCHEDULE, learning_rate=0.0)
    found = train_best("test", network, examples, errors, idle, progress=steps)
    assert steps.num == 2 * 3  # epochs of 7 examples in batches of 3
    assert same(found, network)


def test_network_that_got_worse_is_not_kept(network, examples):
    wild = dataclasses.replace(SCHEDULE, learning_rate=10.0)
    assert same(train_best("test", network, examples, errors, wild), network)


def test_last_epoch_counts_as_well(network, examples):
    once = dataclasses.replace(SCHEDULE, epochs=1)
    assert not same(train_best("test", network, examples, errors, once), network)


def test_log_tells_the_error_of_examples_kept_apart(network, examples, tmp_path):
    particles = Subtomograms(examples, np.zeros((NUM, 2), np.float32), 1.0, ("",) * NUM, None)
    record = Record(tmp_path / "run", Origin(SCHEDULE, particles))
    train_best("test", network, examples, errors, SCHEDULE, record=record)
    log = tmp_path / "run/metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kept, _ = patience._split(NUM, SCHEDULE)
    before = float(errors(network, examples[kept]).mean())
    np.testing.assert_allclose(lines[0]["validation"], before, rtol=1e-5)
    assert lines[-1]["validation"] < before


def test_each_example_is_either_kept_apart_or_used():
    kept, used = patience._split(NUM, SCHEDULE)
    assert len(kept) == 3
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, used])), np.arange(NUM))
    other, _ = patience._split(NUM, dataclasses.replace(SCHEDULE, seed=1))
    assert set(other) != set(kept)


@pytest.mark.parametrize(("num", "sizes"), [(1, (1, 1)), (2, (1, 1))])
def test_few_examples_are_enough(num, sizes):
    assert tuple(map(len, patience._split(num, SCHEDULE))) == sizes


def test_rate_falls_as_keras_lets_it():
    rate = patience._adam(dataclasses.replace(SCHEDULE, learning_rate_decay=0.5)).schedule
    np.testing.assert_allclose([rate(0), rate(2)], [3e-3, 1.5e-3], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 0}, "epochs, batch_size and patience must be 1 or more"),
        ({"validation": 1.0}, "validation must be between 0 and 1, got 1"),
    ],
)
def test_meaningless_number_is_an_error(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SCHEDULE, **changes)
