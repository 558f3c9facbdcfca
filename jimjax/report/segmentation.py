"""Results of the segmentation benchmark and its ablations as tables and as bars."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jimjax.report.timing import median_seconds

# mIoU and Dice in percent on the Poly-GA tomograms, Vox-UDA's tables I and II: sources 1bxn, 1f1b,
# 1yg6, and 2byu, 2h12, 2ldb.
PUBLISHED: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "source-only": ((9.7, 17.4), (12.7, 22.2)),
    "supervised": ((46.0, 61.6), (46.0, 61.6)),
    "dann": ((38.4, 53.0), (31.9, 45.9)),
    "pdam": ((39.8, 55.1), (39.1, 54.1)),
    "asc": ((40.4, 55.8), (41.7, 56.9)),
    "le-uda": ((41.5, 56.8), (43.1, 58.6)),
    "vox-uda-ngm": ((48.5, 64.4), (47.5, 63.2)),
    "vox-uda-bilateral": ((49.1, 64.5), (48.0, 63.8)),
    "vox-uda": ((50.3, 65.9), (49.5, 65.2)),
}
# The same of tables III and IV, sources 1bxn, 1f1b, 1yg6.
PUBLISHED_ABLATIONS: dict[str, tuple[float, float]] = {
    "vox-uda": (50.3, 65.9),
    "dann": (31.9, 45.9),
    "noise=none": (41.9, 57.5),
    "denoiser=none": (46.2, 61.8),
    "num_sampled=5": (41.2, 57.1),
    "num_sampled=15": (43.6, 59.4),
    "num_sampled=20": (42.6, 58.3),
    "kept=0.084": (41.7, 57.3),
    "kept=0.178": (43.5, 59.6),
    "kept=0.422": (41.0, 56.8),
    "consistency=0.1,0.1,0.4,0.4": (44.4, 60.2),
    "consistency=0.3,0.3,0.2,0.2": (45.3, 61.0),
    "consistency=0.4,0.4,0.1,0.1": (42.2, 57.8),
    "sigma_space=100": (49.3, 64.9),
    "sigma_space=140": (49.1, 64.5),
    "sigma_space=160": (47.0, 62.5),
    "sigma_range=0.8": (47.5, 63.2),
    "sigma_range=1.0": (48.0, 63.8),
    "sigma_range=1.4": (49.5, 65.2),
}
LEGEND = (
    "Percent, of fresh particles of the target, mean of particles; mean ± standard deviation where "
    "there are several seeds. Voxels share: found, of those that there are. Published rows are of "
    "other particles: real ones (26S, TRiC, ribosomes), a source of 3000, and a network of four "
    "times the channels, trained for 300 epochs; how its masks were made is not stated."
)
ABLATION_LEGEND = (
    f"{LEGEND} The published baseline (dann) is that of the other sources: its row equals theirs."
)


def make_table(results: Sequence[dict[str, Any]]) -> str:
    """The methods as Markdown, beside the published ones.

    Args:
        results: of the benchmark.

    Returns:
        One table for each noise of the target.
    """
    rows = {
        name: [" / ".join(f"{pair[column]:.1f}" for pair in pairs) for column in range(2)]
        for name, pairs in PUBLISHED.items()
    }
    return _tables(results, rows, LEGEND)


def make_ablation_table(results: Sequence[dict[str, Any]]) -> str:
    """Vox-UDA with parts left out and other settings as Markdown, beside the published figures.

    Args:
        results: of the benchmark.

    Returns:
        One table for each noise of the target.
    """
    rows = {name: [f"{v:.1f}" for v in pair] for name, pair in PUBLISHED_ABLATIONS.items()}
    return _tables(results, rows, ABLATION_LEGEND)


def draw_bars(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the Dice coefficient of every row, a dot for each seed, beside the published one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["method"] for r in results))
    snrs = sorted({r["snr"] for r in results}, reverse=True)
    figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.8 / len(snrs)
    for number, snr in enumerate(snrs):
        for place, name in enumerate(names):
            values = [100 * r["dice"] for r in _of(results, name, snr)]
            if not values:
                continue
            at = place + (number - (len(snrs) - 1) / 2) * height
            label = f"target of SNR {snr:g}" if place == 0 else None
            axes.barh(at, np.mean(values), height, color=f"C{number}", alpha=0.6, label=label)
            axes.plot(values, [at] * len(values), "k.", markersize=4)
    for place, name in enumerate(names):
        if name in PUBLISHED:
            axes.plot(PUBLISHED[name][0][1], place, "d", color="0.4", markersize=5)
    axes.plot([], [], "d", color="0.4", markersize=5, label="published, real particles")
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100), xlabel="Dice, %")
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def _tables(
    results: Sequence[dict[str, Any]],
    published: dict[str, list[str]],
    legend: str,
) -> str:
    lines = []
    for snr in sorted({r["snr"] for r in results}, reverse=True):
        chosen = [r for r in results if r["snr"] == snr]
        classes = sorted({k for r in chosen for k in r if k.startswith("dice_class_")})
        columns = ["miou", "dice", *classes]
        of_classes = [f"Dice {name.removeprefix('dice_').replace('_', ' ')}" for name in classes]
        titles = ["method", "seeds", "mIoU", "Dice", *of_classes, "voxels' share", "seconds"]
        titles += ["published mIoU", "published Dice"]
        lines += [f"Target of SNR {snr:g}", "", f"| {' | '.join(titles)} |"]
        lines.append("|---" * len(titles) + "|")
        for name in dict.fromkeys(r["method"] for r in chosen):
            own = _of(chosen, name, snr)
            cells = [_spread([100 * r[k] for r in own if k in r]) for k in columns]
            share = np.mean([r["found_share"] / r["true_share"] for r in own])
            cells += [f"{share:.2f}", median_seconds(own), *published.get(name, ["-", "-"])]
            lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, legend, ""])


def _of(results: Sequence[dict[str, Any]], name: str, snr: float) -> list[dict[str, Any]]:
    return [r for r in results if r["method"] == name and r["snr"] == snr]


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return (
        f"{np.mean(values):.1f} ± {np.std(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
    )
