"""Equal parts that fit."""

import pytest

from jimjax.ops._divisors import largest_divisor


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [(12, 5, 4), (12, 12, 12), (12, 100, 12), (13, 12, 1), (12, 0, 1), (0, 5, 1), (1, 1, 1)],
)
def test_largest_divisor_up_to_a_limit(size, most, expected):
    assert largest_divisor(size, most) == expected
