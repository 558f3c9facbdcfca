"""Overlap of masks."""

import numpy as np
import pytest

from jimjax.evaluate.segmentation import dice, iou, score_segmentation


def test_dice_by_hand():
    found, true = np.zeros((3, 2, 2, 2), bool), np.zeros((3, 2, 2, 2), bool)
    found[0, 0], true[0, 0, 0] = True, True  # 4 and 2 voxels, 2 of them shared
    found[1, 0], true[1, 1] = True, True
    np.testing.assert_allclose(dice(found, true), [2 * 2 / 6, 0, 1])  # the last: both empty


def test_iou_by_hand():
    found, true = np.zeros((3, 2, 2, 2), bool), np.zeros((3, 2, 2, 2), bool)
    found[0, 0], true[0, 0, 0], true[0, 1, 1, 1] = True, True, True  # 4 and 3 voxels, 2 shared
    found[1, 0], true[1, 1] = True, True
    np.testing.assert_allclose(iou(found, true), [2 / 5, 0, 1])  # the last: both empty


@pytest.mark.parametrize("score", [dice, iou])
def test_overlap_is_1_with_itself_and_does_not_ask_which_is_true(score, masks):
    found, true = masks
    np.testing.assert_array_equal(score(true, true), 1)
    np.testing.assert_array_equal(score(found, true), score(true, found))
    empty = np.zeros_like(true)
    np.testing.assert_array_equal(score(empty, true), 0)


@pytest.fixture
def masks():
    generator = np.random.default_rng(0)
    density = generator.uniform(0.05, 0.9, (40, 1, 1, 1))
    found, true = generator.random((2, 40, 4, 5, 6)) < density
    return found, true


def test_overlap_agrees_with_sets_of_voxels(masks):
    found, true = masks
    for row, (a, b) in enumerate(zip(found, true, strict=True)):
        first, second = ({tuple(place) for place in np.argwhere(mask)} for mask in (a, b))
        union, shared = len(first | second), len(first & second)
        np.testing.assert_allclose(iou(found, true)[row], shared / union)
        np.testing.assert_allclose(dice(found, true)[row], 2 * shared / (len(first) + len(second)))


def test_scores_are_means_over_particles_whatever_their_size():
    true = np.zeros((3, 4, 4, 4), bool)
    true[0, 0, 0, :2] = True  # 2 voxels
    true[1, :2] = True  # 32 voxels
    true[2, :2] = True
    found = true.copy()
    found[0, 0, 0, 1] = False  # half of the small one
    found[2] = False
    scores = score_segmentation(found, true, np.array([2, 0, 2]))
    assert scores == pytest.approx(
        {
            "mean_dice": (2 / 3 + 1 + 0) / 3,
            "mean_iou": (1 / 2 + 1 + 0) / 3,
            "mean_dice_class_1": 1.0,
            "mean_iou_class_1": 1.0,
            "mean_dice_class_3": (2 / 3 + 0) / 2,
            "mean_iou_class_3": (1 / 2 + 0) / 2,
        }
    )


def test_scores_of_classes_weighted_by_their_numbers_are_those_of_all(masks):
    labels = np.random.default_rng(1).integers(0, 3, 40)
    scores = score_segmentation(*masks, labels)
    shares = np.bincount(labels) / 40
    for name in ("mean_dice", "mean_iou"):
        mean = sum(share * scores[f"{name}_class_{k + 1}"] for k, share in enumerate(shares))
        assert mean == pytest.approx(scores[name])


def test_scores_without_labels_are_two_plain_numbers(masks):
    scores = score_segmentation(*masks)
    assert list(scores) == ["mean_dice", "mean_iou"]
    assert {type(score) for score in scores.values()} == {float}
    # Background is not counted: voxels that both leave out do not help.
    padded = [np.pad(mask, ((0, 0), (9, 9), (0, 0), (0, 0))) for mask in masks]
    assert score_segmentation(*padded) == scores


@pytest.mark.parametrize("score", [dice, iou, score_segmentation])
def test_masks_of_two_shapes_are_an_error(score):
    with pytest.raises(ValueError, match="of one shape"):
        score(np.zeros((1, 2, 2, 2)), np.zeros((2, 2, 2, 2)))


@pytest.mark.parametrize("labels", [[0, 1], [[0, 1, 2]], [0.0, 1.0, 2.0]])
def test_labels_that_do_not_fit_are_an_error(labels):
    with pytest.raises(ValueError, match="labels must be 3 integers, one for each mask, got"):
        score_segmentation(*np.ones((2, 3, 2, 2, 2), bool), np.array(labels))


def test_no_masks_are_an_error():
    with pytest.raises(ValueError, match="no masks to compare"):
        score_segmentation(*np.ones((2, 0, 2, 2, 2), bool))
