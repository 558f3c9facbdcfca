"""Fixtures of the aligners' tests."""

import pytest
import small_world


@pytest.fixture(scope="package")
def world():
    """Two molecules, a few poses and two wedges."""
    return small_world.make_world()
