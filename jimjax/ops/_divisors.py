"""Equal parts that fit: loops over them compile once."""


def largest_divisor(size: int, most: int) -> int:
    """The largest divisor of a size that is at most so large; 1 if there is none."""
    return max((d for d in range(1, min(size, most) + 1) if size % d == 0), default=1)
