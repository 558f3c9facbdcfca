"""Agreement between voxels that were found and those that are meant."""

import numpy as np

__all__ = ["dice"]


def dice(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Overlap of masks, for each volume.

        2 |A and B| / (|A| + |B|)

    Args:
        found: ``(n, z, y, x)``, boolean.
        true: same shape, boolean.

    Returns:
        ``(n,)`` in [0, 1]; 1 where both are empty.

    Raises:
        ValueError: if shapes differ.
    """
    found, true = np.asarray(found, bool), np.asarray(true, bool)
    if found.shape != true.shape:
        raise ValueError(f"masks must be of one shape, got {found.shape} and {true.shape}")
    axes = tuple(range(1, found.ndim))
    total = found.sum(axis=axes) + true.sum(axis=axes)
    shared = 2 * (found & true).sum(axis=axes)
    return np.where(total > 0, shared / np.maximum(total, 1), 1.0)
