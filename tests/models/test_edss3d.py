"""EDSS3D: sizes and what it answers."""

import dataclasses

import jax
import numpy as np
import pytest

from jimjax.models import edss3d, functional, weights
from jimjax.models.edss3d import Edss3d, Edss3dConfig

TINY = Edss3dConfig(box=12, size=8, classes=(3, 1), width=4, kernel="isotropic")


def test_published_sizes_have_the_published_number_of_parameters():
    outline = functional.outline(lambda rngs: Edss3d(edss3d.paper(32, (1,)), rngs))
    wanted = (27 * 32 + 32) + 4 * (27 * 32 * 32 + 32) + (32 * 2 + 2)
    assert functional.num_parameters(outline) == wanted


def test_every_voxel_has_logits_of_background_and_each_class(smooth_volumes):
    network = weights.build(TINY, jax.random.key(0))
    found, _ = functional.apply(network, smooth_volumes(2, 12), train=False)
    assert found.shape == (2, 8, 8, 8, 3)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 6}, "multiple of 4 voxels, got 6"),
        ({"classes": (2, 2)}, "one or more different numbers"),
        ({"classes": ()}, "one or more different numbers"),
        ({"classes": (0,)}, "from 1 to 127"),
        ({"classes": (128,)}, "from 1 to 127"),
    ],
)
def test_impossible_sizes_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
