"""Overlap of masks."""

import numpy as np
import pytest

from jimjax.evaluate.segmentation import dice


def test_dice_by_hand():
    found, true = np.zeros((3, 2, 2, 2), bool), np.zeros((3, 2, 2, 2), bool)
    found[0, 0], true[0, 0, 0] = True, True  # 4 and 2 voxels, 2 of them shared
    found[1, 0], true[1, 1] = True, True
    np.testing.assert_allclose(dice(found, true), [2 * 2 / 6, 0, 1])  # the last: both empty


def test_masks_of_two_shapes_are_an_error():
    with pytest.raises(ValueError, match="of one shape"):
        dice(np.zeros((1, 2, 2, 2)), np.zeros((2, 2, 2, 2)))
