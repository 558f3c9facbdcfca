import numpy as np
import pytest

from jimjax.tomogram.extraction import extract_boxes


@pytest.mark.parametrize("box", [4, 5])
def test_center_becomes_voxel_n_half_and_boxes_beyond_the_border_are_left_out(box):
    tomogram = np.arange(10 * 12 * 14, dtype=np.float32).reshape(10, 12, 14)
    centers = np.array([[5, 6, 7], [1, 6, 7], [5, 6, 12], [2, 2, 2]])
    volumes, rows = extract_boxes(tomogram, centers, box)
    np.testing.assert_array_equal(rows, [0, 2, 3] if box == 4 else [0, 3])
    if box == 5:
        np.testing.assert_array_equal(volumes[1], tomogram[:5, :5, :5])
    middle = volumes[:, box // 2, box // 2, box // 2]
    np.testing.assert_array_equal(middle, tomogram[tuple(centers[rows].T)])
