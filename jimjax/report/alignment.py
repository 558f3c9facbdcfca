"""Results of the alignment benchmark as a table and as curves."""

from pathlib import Path
from typing import Any

# Rotation and translation error, accuracy; other structures and simulator. Both tables are Zeng,
# Howe, Xu 2021's.
PUBLISHED: dict[str, dict[float, tuple[float, float, float | None]]] = {
    "Jim-Net as published": {
        100.0: (0.29, 1.28, 1.0),
        0.1: (0.51, 2.12, 0.997),
        0.05: (0.80, 3.20, 0.961),
        0.03: (1.02, 4.12, 0.855),
        0.01: (1.58, 6.78, 0.481),
    },
    "Gum-Net as published": {
        100.0: (0.41, 1.59, None),
        0.1: (0.62, 2.41, None),
        0.05: (0.87, 3.20, None),
        0.03: (1.13, 4.29, None),
        0.01: (1.50, 6.78, None),
    },
}


def make_table(results: list[dict[str, Any]], names: list[str]) -> str:
    """The results as Markdown, beside Jim-Net's published ones.

    Args:
        results: of the benchmark.
        names: of the structures, in order of class.

    Returns:
        Two tables: all classes together, and the errors of each.
    """
    lines = [
        "| SNR | method | scored on | accuracy | rotation error mean / std / median | below 10, "
        "20 degrees | translation error mean / std (voxels) | s per particle |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for snr in sorted({result["snr"] for result in results}, reverse=True):
        for own in (result for result in results if result["snr"] == snr):
            accuracy = own.get("clustering_accuracy")
            shares = [own[f"rotation_share_below_{angle}_degrees"] for angle in (10, 20)]
            cells = [
                f"{snr:g}",
                own["method"],
                own["scored_on"],
                "-" if accuracy is None else f"{accuracy:.3f}",
                f"{own['rotation_error_mean']:.2f} / {own['rotation_error_std']:.2f} / "
                f"{own['rotation_error_median']:.2f}",
                ", ".join(f"{share:.0%}" for share in shares),
                f"{own['translation_error_mean']:.2f} / {own['translation_error_std']:.2f}",
                f"{own['seconds_per_particle']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        for name, rows in PUBLISHED.items():
            if snr in rows:
                rotation, translation, accuracy = rows[snr]
                share = "-" if accuracy is None else f"{accuracy:.3f}"
                lines.append(
                    f"| {snr:g} | {name} | other data | {share} | "
                    f"{rotation:.2f} / - / - | - | {translation:.2f} / - | - |"
                )
    each = [result for result in results if "per_class" in result]
    if each:
        count = len(each[0]["per_class"])
        heads = names if len(names) == count else [f"class {n + 1}" for n in range(count)]
        lines += ["", f"| SNR | method | {' | '.join(heads)} |", "|---|---" + "|---" * count + "|"]
        lines += [
            f"| {own['snr']:g} | {own['method']} | "
            + " | ".join(
                f"{one['rotation_error_mean']:.2f} / {one['rotation_error_median']:.2f}"
                for one in own["per_class"]
            )
            + " |"
            for own in each
        ]
        lines.append("")
        lines.append("The second table: rotation error within each class, mean / median.")
    return "\n".join(lines) + "\n"


def draw_curves(results: list[dict[str, Any]], path: Path) -> None:
    """Draws accuracy and errors of every method over the SNR."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "clustering_accuracy": "clustering accuracy",
        "rotation_error_mean": "rotation error, mean",
        "translation_error_mean": "translation error, mean (voxels)",
    }
    published = dict(zip(panels, (2, 0, 1), strict=True))
    for axes, (name, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for method in dict.fromkeys(result["method"] for result in results):
            own = [r for r in results if r["method"] == method and name in r]
            if own:
                values = [result[name] for result in own]
                axes.plot([result["snr"] for result in own], values, "o-", label=method)
        for (paper, rows), style in zip(PUBLISHED.items(), ("k:", "k-."), strict=True):
            snrs = sorted({result["snr"] for result in results} & set(rows))
            values = [rows[snr][published[name]] for snr in snrs]
            if None not in values:
                axes.plot(snrs, values, style, label=paper)
        axes.set(xscale="log", xlabel="SNR", title=title)
        axes.set_ylim(bottom=0)
    # Of the second panel, in which every method has a line.
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)
