"""Axes of symmetry are brought to where a point group has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.align.symmetry_axes import find_setting
from jimjax.data.phantom import demo_phantoms, render
from jimjax.ops import resample, rotation, symmetry

BOX = 24


def symmetric(group):
    volume = render(demo_phantoms(1, shape=(BOX,) * 3)[0], (BOX,) * 3)
    return symmetry.symmetrize(volume, symmetry.point_group(group))


@pytest.mark.parametrize("group", ["C3", "D2", "D4"])
def test_turned_density_is_brought_back(group):
    volume = symmetric(group)
    turned = resample.rotate(volume, rotation.random_rotation(jax.random.key(1)), order=3)
    found, similarity = find_setting(np.asarray(turned), group)
    assert similarity > 0.98
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
    back = resample.rotate(turned, jnp.asarray(found, jnp.float32), order=3)
    for element in symmetry.point_group(group):
        copy = resample.rotate(back, element, order=3)
        assert np.corrcoef(np.ravel(back), np.ravel(copy))[0, 1] > 0.97


def test_density_of_another_group_is_told():
    similarity = find_setting(np.asarray(symmetric("C3")), "C4")[1]
    assert similarity < 0.95


def test_without_symmetry_nothing_is_turned():
    found, similarity = find_setting(np.zeros((BOX, BOX, BOX)), "C1")
    np.testing.assert_array_equal(found, np.eye(3))
    assert similarity == 1
