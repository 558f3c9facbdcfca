"""Results of the multi-task benchmark as a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np

COLUMNS = {
    "clustering_accuracy": "accuracy",
    "rotation_error_mean": "rotation error",
    "rotation_share_below_20_degrees": "below 20 degrees",
    "pair_rotation_error_mean": "rotation error of pairs",
    "mean_dice": "Dice",
    "mean_iou": "mIoU",
    "seconds": "seconds",
}
JOINT = "umtl"
ALONE = {  # what is compared with the joint training, and whether more is better
    "clustering_accuracy": ("umtl-cluster", True),
    "rotation_error_mean": ("umtl-align", False),
    "pair_rotation_error_mean": ("umtl-align", False),
    "mean_dice": ("umtl-segment", True),
}
NOTES = (
    "Scored on fresh particles; mean ± standard deviation where there are several seeds. Poses are "
    "those against references that the method made, one for each class that it knows (without "
    "clustering one for all); of pairs, the network's answer when asked once about two noisy "
    "particles of one class. Rotation errors are |R - R*|, 2.40 by chance. Dice and mIoU are means "
    "over particles. gmm: the voxel-wise mixture's pseudo-labels; gmm-central: their central part; "
    "gmm-corrected: of that what is above half height, from which a UMTL learns; no-masks: without "
    "the known masks of random molecules; constant: one class, no turn, a ball of five voxels."
)


def make_table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown.

    Args:
        results: of the benchmark.

    Returns:
        For each noise all scores, and what each task gains from the others.
    """
    lines = []
    for snr in sorted({r["snr"] for r in results}, reverse=True):
        chosen = [r for r in results if r["snr"] == snr]
        names = dict.fromkeys(r["method"] for r in chosen)
        lines += [f"SNR {snr:g}", "", f"| method | seeds | {' | '.join(COLUMNS.values())} |"]
        lines.append("|---" * (len(COLUMNS) + 2) + "|")
        for name in names:
            own = [r for r in chosen if r["method"] == name]
            cells = [_spread([r[column] for r in own if column in r], column) for column in COLUMNS]
            lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
        lines += ["", *_gains(chosen), ""]
    return "\n".join([*lines, NOTES, ""])


def _gains(results: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each score: the joint training beside the task alone, seed by seed."""
    sentences = []
    for column, (alone, is_more_better) in ALONE.items():
        scores = [
            {r["seed"]: r[column] for r in results if r["method"] == name and column in r}
            for name in (JOINT, alone)
        ]
        seeds = sorted(set(scores[0]) & set(scores[1]))
        if not seeds:
            continue
        joint, single = ([own[seed] for seed in seeds] for own in scores)
        gain = np.subtract(joint, single) * (1 if is_more_better else -1)
        verdict = "helps" if gain.mean() > 0 else "does not help"
        sentences.append(
            f"- {COLUMNS[column]}: {_spread(joint, column)} together, {_spread(single, column)} "
            f"alone; better in {int(np.sum(gain > 0))} of {len(seeds)} seeds: joint training "
            f"{verdict}."
        )
    return sentences


def _spread(values: list[float], column: str) -> str:
    if not values:
        return "-"
    if column == "seconds":
        return f"{np.median(values):.0f}"
    digits = 2 if "error" in column else 3
    text = f"{np.mean(values):.{digits}f}"
    return f"{text} ± {np.std(values):.{digits}f}" if len(values) > 1 else text
