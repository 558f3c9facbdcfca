"""Episodes: who is drawn, and what interval their accuracy has."""

import jax
import numpy as np
import pytest

from jimjax.fewshot import episodes
from jimjax.io.errors import InputError
from jimjax.models import weights
from jimjax.models.protonet import ProtoNetConfig

LABELS = np.repeat([0, 2, 5], 6)  # numbers may be missing
SIZES = ProtoNetConfig(box=8, size=8, widths=(2,), num_halvings=1, pools=("mean",), dense_width=2)
TASK = {"ways": 2, "shots": 2, "queries": 3, "num_episodes": 20, "seed": 0}


@pytest.fixture(scope="module")
def network():
    return weights.build(SIZES, jax.random.key(0))


def draw(**changes):
    options = {"ways": 2, "members": 4, "seed": 0, "epoch": 0, "index": 0}
    return episodes.draw_rows(LABELS, **(options | changes))


def test_episode_has_different_members_of_different_classes():
    for index in range(20):
        rows = draw(index=index)
        assert len(set(rows.ravel())) == rows.size == 8
        assert all(len(set(LABELS[each])) == 1 for each in rows)
        assert len(set(LABELS[rows[:, 0]])) == 2


def test_every_class_is_drawn():
    assert {label for index in range(20) for label in LABELS[draw(index=index)[:, 0]]} == {0, 2, 5}


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"index": 1}])
def test_episode_is_a_function_of_seed_epoch_and_index(change):
    np.testing.assert_array_equal(draw(), draw())
    assert np.any(draw() != draw(**change))


@pytest.mark.parametrize("method", ["protonet", "protonet-ce"])
def test_classes_far_apart_are_always_told_apart(network, method):
    features = np.stack([LABELS * 100.0, np.zeros(len(LABELS))], axis=1).astype(np.float32)
    found = episodes.score_episodes(network, features, LABELS, method=method, **TASK)
    assert found == (1.0, 0.0)


def test_interval_is_1_96_standard_errors_of_the_episodes(network):
    """One query of each of two classes: accuracies are 0, 1/2 or 1, counted here one by one."""
    features = np.random.default_rng(0).normal(size=(len(LABELS), 2)).astype(np.float32)
    task = TASK | {"queries": 1}
    found = episodes.score_episodes(network, features, LABELS, method="protonet", **task)
    each = []
    for index in range(20):
        rows = draw(members=3, index=index)
        prototypes = features[rows[:, :2]].mean(axis=1)
        apart = ((features[rows[:, 2], None] - prototypes) ** 2).sum(axis=2)
        each.append(np.mean(apart.argmin(axis=1) == [0, 1]))
    np.testing.assert_allclose(found.mean, np.mean(each), rtol=1e-6)
    np.testing.assert_allclose(found.half_width, 1.96 * np.std(each, ddof=1) / 20**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 4}, "are of 3 classes, episodes want 4"),
        ({"shots": 4}, "class 1 has 6 particles, episodes take 7"),
        ({"num_episodes": 1}, "needs 2 episodes or more, got 1"),
    ],
)
def test_impossible_episodes_are_errors(network, change, message):
    features = np.zeros((len(LABELS), 2), np.float32)
    with pytest.raises(InputError, match=message):
        episodes.score_episodes(network, features, LABELS, method="protonet", **(TASK | change))


def test_particles_without_classes_are_an_error():
    with pytest.raises(InputError, match="these have no classes; give a STAR file"):
        episodes.check_classes(None, 2, 2, "these")
