"""Facts about the one-call summary."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.evaluate import evaluate

REQUIRED_KEYS = {
    "clustering_accuracy",
    "ari",
    "v_measure",
    "rotation_error_mean",
    "rotation_error_std",
    "rotation_error_median",
    "translation_error_mean",
    "translation_error_std",
}


@pytest.fixture
def truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1, 2], [8, 12, 10])
    rotations = Rotation.random(30, random_state=0).as_matrix()
    return labels, rotations, np.random.default_rng(0).uniform(-5, 5, (30, 3))


def test_right_answer_in_other_names_and_frames_is_perfect(truth):
    labels, rotations, shifts = truth
    frames = Rotation.random(3, random_state=1).as_matrix()[labels]
    moves = np.random.default_rng(2).normal(size=(3, 3))[labels]
    scores = evaluate(
        np.array([2, 0, 1])[labels],
        rotations @ frames,
        shifts + np.einsum("nij,nj->ni", rotations, moves),
        *truth,
    )
    assert scores["clustering_accuracy"] == scores["ari"] == scores["v_measure"] == 1.0
    for name in REQUIRED_KEYS - {"clustering_accuracy", "ari", "v_measure"}:
        assert scores[name] == pytest.approx(0, abs=1e-12), name


def test_keys_are_the_agreed_ones_and_values_go_into_json(truth):
    scores = evaluate(*truth, *truth)
    assert REQUIRED_KEYS.issubset(scores)
    assert all(type(value) is float for value in scores.values())
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_predicted_classes_do_not_choose_the_pairs(truth):
    labels, _, shifts = truth
    poses = Rotation.random(30, random_state=7).as_matrix(), shifts[::-1]
    right = evaluate(labels, *poses, *truth)
    constant = evaluate(np.zeros_like(labels), *poses, *truth)
    assert right["rotation_error_mean"] == constant["rotation_error_mean"]
    assert constant["clustering_accuracy"] == pytest.approx(12 / 30)


def test_number_of_pairs_is_bounded_and_reported(truth):
    assert evaluate(*truth, *truth)["num_pairs"] == 28 + 66 + 45
    assert evaluate(*truth, *truth, max_pairs=50)["num_pairs"] == 50
    assert evaluate(*truth, *truth)["num_particles"] == 30
