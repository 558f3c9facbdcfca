"""Agreement between voxels that were found and those that are meant."""

import numpy as np

__all__ = ["dice", "iou", "score_segmentation"]


def dice(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Overlap of masks, for each volume, by the mean of their sizes.

        2 |A and B| / (|A| + |B|)

    Args:
        found: ``(n, z, y, x)``, boolean.
        true: same shape, boolean.

    Returns:
        ``(n,)`` in [0, 1]; 1 where both are empty.

    Raises:
        ValueError: if shapes differ.
    """
    shared, total = _counts(found, true)
    return np.where(total > 0, 2 * shared / np.maximum(total, 1), 1.0)


def iou(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Overlap of masks, for each volume, by what both cover together (Jaccard index).

        |A and B| / |A or B| = dice / (2 - dice)

    Args:
        found: ``(n, z, y, x)``, boolean.
        true: same shape, boolean.

    Returns:
        ``(n,)`` in [0, 1]; 1 where both are empty.

    Raises:
        ValueError: if shapes differ.
    """
    shared, total = _counts(found, true)
    return np.where(total > 0, shared / np.maximum(total - shared, 1), 1.0)


def score_segmentation(
    found: np.ndarray, true: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, float]:
    """Scores masks of particles, all together and class by class.

    The overlap of the foreground is measured for each particle and then averaged, so that every
    particle counts the same, large or small. ``mean_iou`` is a mean over particles, not over
    foreground and background, nor over classes.

    Vox-UDA (Li et al., section IV-A) gives "the mean intersection of union (mIoU) and dice
    similarity coefficient (Dice)" no formula, but its Tables I and II tell which they are.
    Background is not counted: an mIoU of 9.7 % without adaptation leaves no room for it. The
    figures of all particles are near the mean of the classes' figures weighted by their 901, 66
    and 66 particles (10.0 for 9.7, 46.7 for 46.0, 48.7 for 48.5 % mIoU) and far from the plain mean
    (5.4, 34.7, 40.5). Voxels of all particles are not counted in one pot, as Dice would then be
    2 mIoU / (1 + mIoU): it stays below, as the mean of single values does, but for two of 72
    figures, which exceed that by less than 0.2. As far as can be told, ``mean_iou`` and
    ``mean_dice`` are thus that paper's mIoU and Dice (its percent are fractions here), and those of
    a class its columns of that class.

    Args:
        found: ``(n, z, y, x)``, boolean.
        true: same shape, boolean.
        labels: ``(n,)`` true classes from 0; none leaves out the scores of classes.

    Returns:
        ``mean_dice`` and ``mean_iou`` in [0, 1]; with labels also ``mean_dice_class_K`` and
        ``mean_iou_class_K`` for each class that occurs, counted from 1 as in a STAR file.

    Raises:
        ValueError: if shapes differ, there is no particle, or labels are not one integer each.
    """
    scores = {"mean_dice": dice(found, true), "mean_iou": iou(found, true)}
    num = len(scores["mean_dice"])
    if num == 0:
        raise ValueError("there are no masks to compare; give at least one particle")
    groups = {"": np.ones(num, bool)}
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (num,) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be {num} integers, one for each mask, got {labels.dtype} of shape"
                f" {labels.shape}"
            )
        groups |= {f"_class_{label + 1}": labels == label for label in np.unique(labels)}
    return {
        f"{name}{group}": float(values[members].mean())
        for group, members in groups.items()
        for name, values in scores.items()
    }


def _counts(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(n,)`` that both masks of a volume hold, and the sum of what each holds."""
    found, true = np.asarray(found, bool), np.asarray(true, bool)
    if found.shape != true.shape:
        raise ValueError(f"masks must be of one shape, got {found.shape} and {true.shape}")
    axes = tuple(range(1, found.ndim))
    return (found & true).sum(axis=axes), found.sum(axis=axes) + true.sum(axis=axes)
