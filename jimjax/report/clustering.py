"""Results of the clustering benchmark as a table and as curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jimjax.report.timing import median_seconds

# Accuracies on five simulated classes; other structures and simulator. Of Zeng, Howe, Xu 2021
# (table 2) the first four, of Uddin et al. the others.
PUBLISHED: dict[str, dict[float, float]] = {
    "Jim-Net as published": {100.0: 1.0, 0.1: 0.997, 0.05: 0.961, 0.03: 0.855, 0.01: 0.481},
    "Jim-Net (cluster) as published": {
        100.0: 0.995, 0.1: 0.775, 0.05: 0.628, 0.03: 0.513, 0.01: 0.353
    },
    "DeepCluster as published": {100.0: 0.687, 0.1: 0.488, 0.05: 0.394, 0.03: 0.340, 0.01: 0.272},
    "PICA as published": {100.0: 1.0, 0.1: 0.865, 0.05: 0.558, 0.03: 0.292, 0.01: 0.284},
    "DISCA as published": {100.0: 0.912, 0.1: 0.814, 0.05: 0.806, 0.03: 0.781, 0.01: 0.560},
    "Autoencoder3D as published": {
        100.0: 0.215, 0.1: 0.214, 0.05: 0.212, 0.03: 0.203, 0.01: 0.200
    },
    "ProtoNet3D as published, 2-way 5-shot": {
        100.0: 0.963, 0.1: 0.867, 0.05: 0.798, 0.03: 0.776, 0.01: 0.570
    },
}  # fmt: skip
TITLES = {
    "five": "Five classes of equal size",
    "imbalanced": "Five classes among 82 % of background",
    "unknown-k": "Five classes, 2 to 10 to choose from",
}
COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "ari": "ARI",
    "nmi": "NMI",
    "v_measure": "V-measure",
    "num_classes_found": "classes found",
    "seconds": "seconds",
}
DIFFERENCES = (
    "Published rows are of other structures, another simulator and more particles (1000 of each "
    "class); few-shot classification is of two classes, where chance is 0.5, and is shown "
    "examples. Accuracy names classes in the most favourable one-to-one way. Mean ± standard "
    'deviation where there are several seeds; "fitted": scored on the particles that the method '
    "was fitted to, without labels, all others on fresh ones. Seconds are medians, as the first "
    "run of a method compiles its programs, on the device that most runs were on."
)


def make_table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown, beside the published ones.

    Args:
        results: of the benchmark.

    Returns:
        Accuracies over the noise, then all scores of each data set.
    """
    lines = []
    snrs = sorted({r["snr"] for r in results if r["dataset"] == "five"}, reverse=True)
    if snrs:
        heads = [f"SNR {snr:g}" for snr in snrs]
        lines += [
            f"{TITLES['five']}, accuracy",
            "",
            f"| method | scored on | {' | '.join(heads)} | seconds |",
        ]
        lines.append("|---" * (len(heads) + 3) + "|")
        lines += [_accuracies(own, snrs) for own in _methods(results, "five")]
        lines += [
            f"| {name} | other data | "
            + " | ".join(f"{row[snr]:.3f}" if snr in row else "-" for snr in snrs)
            + " | - |"
            for name, row in PUBLISHED.items()
        ]
    sets = sorted({(r["dataset"], -r["snr"]) for r in results})
    for dataset, negative in sets:
        chosen = [r for r in results if (r["dataset"], -r["snr"]) == (dataset, negative)]
        lines += ["", f"{TITLES[dataset]}, SNR {-negative:g}", ""]
        lines += [
            f"| method | seeds | scored on | {' | '.join(COLUMNS.values())} |",
            "|---" * (len(COLUMNS) + 3) + "|",
            *(_scores(own) for own in _methods(chosen, dataset)),
        ]
    return "\n".join([*lines, "", DIFFERENCES, ""])


def draw_curves(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the accuracy of every method over the SNR, beside the published ones."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, own in enumerate(_methods(results, "five")):
        snrs = sorted({r["snr"] for r in own})
        means = [np.mean([r["accuracy"] for r in own if r["snr"] == snr]) for snr in snrs]
        style = ("o-", "s--", "^:")[number // 10 % 3]
        axes.plot(snrs, means, style, markersize=4, label=own[0]["method"])
    for name, row in PUBLISHED.items():
        axes.plot(list(row), list(row.values()), "-", color="0.75", linewidth=1)
        axes.annotate(name.partition(" as ")[0], (0.01, row[0.01]), fontsize=6, color="0.5")
    axes.set(xscale="log", xlabel="SNR", ylabel="accuracy", ylim=(0, 1.02))
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)


def _methods(results: Sequence[dict[str, Any]], dataset: str) -> list[list[dict[str, Any]]]:
    """The results of a data set, by method."""
    chosen = [r for r in results if r["dataset"] == dataset]
    names = dict.fromkeys(r["method"] for r in chosen)
    return [[r for r in chosen if r["method"] == name] for name in names]


def _accuracies(own: list[dict[str, Any]], snrs: Sequence[float]) -> str:
    cells = [_spread([r for r in own if r["snr"] == snr], "accuracy") for snr in snrs]
    cells = [own[0]["method"], own[0]["scored_on"], *cells, median_seconds(own)]
    return f"| {' | '.join(cells)} |"


def _scores(own: list[dict[str, Any]]) -> str:
    cells = [median_seconds(own) if name == "seconds" else _spread(own, name) for name in COLUMNS]
    return f"| {own[0]['method']} | {len(own)} | {own[0]['scored_on']} | {' | '.join(cells)} |"


def _spread(own: list[dict[str, Any]], name: str) -> str:
    values = [r[name] for r in own if name in r]
    if not values:
        return "-"
    digits = 0 if name == "num_classes_found" else 3
    text = f"{np.mean(values):.{digits}f}"
    return f"{text} ± {np.std(values):.{digits}f}" if len(values) > 1 else text
