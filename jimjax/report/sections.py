"""The sections of the report: each takes its data and returns HTML, or a note that there is none.

Classes are counted from 0 in the data and from 1 on the page, as in rlnClassNumber.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jimjax.report import figures
from jimjax.report.embedding import embed
from jimjax.report.html import bar, escape, note, table

__all__ = [
    "caveats", "cluster_sizes", "confusion", "features", "numbers", "pose_errors", "resolution",
    "run", "slices", "tiles", "training",
]  # fmt: skip

PLANES = (("xy", "x right, y up"), ("xz", "x right, z up"), ("yz", "y right, z up"))
GRAY_PERCENTILES = (1, 99)
SCALE_BARS = (10, 20, 50, 100, 200, 500, 1000, 2000)  # Angstrom
COORDINATES = ("phase", "epoch", "step")  # of a history line; everything else is a measurement
LABELS = {
    "clustering_accuracy": "Clustering accuracy",
    "ari": "Adjusted Rand index",
    "v_measure": "V-measure",
    "rotation_error": "Rotation error, Frobenius norm (random: 2.40 ± 0.49)",
    "rotation_error_median": "Rotation error, median of the norm",
    "rotation_error_median_degrees": "Rotation error, median (degrees)",
    "rotation_share_below_10_degrees": "Pairs below 10 degrees (share)",
    "rotation_share_below_20_degrees": "Pairs below 20 degrees (share)",
    "translation_error": "Translation error (voxels)",
    "num_particles": "Particles",
    "num_pairs": "Pairs of particles compared",
}
STANDING_CAVEATS = (
    "Pose errors are measured between pairs of particles of one true class, because the frame of "
    "each class is free. Symmetry of the molecules is not divided out: for a symmetric molecule "
    "the errors are upper bounds.",
    "Clustering accuracy names the clusters in the most favourable one-to-one way. Compare it with "
    "the share of the largest class, which a constant answer reaches.",
    "A resolution at 0.143 counts as gold standard only if the half sets were also aligned "
    "independently. If they shared one alignment, noise aligned to a common reference counts as "
    "signal, and the resolution looks better than it is.",
    "The shell correlation is computed inside a soft sphere and is not corrected for that mask.",
    "One run with one seed is one sample: the spread between seeds is not in this page.",
)


def tiles(
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    fsc: Sequence[np.ndarray | None],
    voxel_size: float | None,
    size: int | None,
) -> str:
    """Shows the leading numbers, each with the baselines under it."""
    chosen = (
        ("clustering_accuracy", "Clustering accuracy", ""),
        ("rotation_error_median_degrees", "Median rotation error", "°"),
        ("translation_error_mean", "Mean translation error", " voxels"),
    )
    shown = []
    for key, title, unit in chosen:
        if key in metrics:
            compared = [
                f"{name}: {_number(key, scores[key])}"
                for name, scores in baselines.items()
                if key in scores
            ]
            shown.append((title, _number(key, metrics[key]), unit, compared))
    curves = [curve for curve in fsc if curve is not None]
    if curves and voxel_size is not None:
        best = min(
            (_resolution_of(curve, voxel_size, size) for curve in curves), key=lambda r: r[0]
        )
        limit = "at or below Nyquist" if best[1] else "half maps, correlation 0.143"
        shown.append(("Best class resolution", f"{best[0]:.1f}", " Å", [limit]))
    if not shown:
        return ""
    items = "".join(
        f'<div class="tile"><dt>{escape(title)}</dt><dd>{escape(value)}'
        f'<span class="unit">{escape(unit)}</span>'
        + "".join(f"<small>{escape(line)}</small>" for line in below)
        + "</dd></div>"
        for title, value, unit, below in shown
    )
    return f'<dl class="tiles">{items}</dl>'


def numbers(
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    true_labels: np.ndarray | None,
) -> str:
    """Tabulates every score of the run beside those of the baselines."""
    columns = {"this run": metrics, **baselines}
    keys = list(dict.fromkeys(key for scores in columns.values() for key in scores))
    known = list(LABELS)
    keys.sort(key=lambda key: known.index(_stem(key)) if _stem(key) in known else len(known))
    if not keys:
        return note("No scores were given: without a known truth there is nothing to compare with.")
    rows = []
    for key in keys:
        stem = _stem(key)
        has_spread = key.endswith("_mean") and f"{stem}_std" in keys
        if key.endswith("_std") and f"{stem}_mean" in keys:
            continue
        name = stem if has_spread else key
        cells = []
        for scores in columns.values():
            cell = _number(key, scores[key]) if key in scores else "-"
            if has_spread and f"{stem}_std" in scores:
                cell += f" ± {_number(key, scores[f'{stem}_std'])}"
            cells.append(escape(cell))
        rows.append((escape(LABELS.get(name, name.replace("_", " "))), *cells))
    classes = ["", "number main", *["number"] * len(baselines)]
    text = table(
        ["score", *columns],
        rows,
        caption="Mean ± population standard deviation over pairs where two numbers stand.",
        classes=classes,
    )
    if true_labels is not None:
        share = np.unique(true_labels, return_counts=True)[1].max() / len(true_labels)
        text += note(f"Putting every particle into one class would score {share:.3f} in accuracy.")
    return text


def run(provenance: Mapping[str, object], config_text: str) -> str:
    """Shows the command, the environment and the configuration."""
    text = ""
    if provenance:
        rows = [(escape(name), escape(value)) for name, value in provenance.items()]
        text += table(["item", "value"], rows, classes=["", "text"])
    if config_text:
        text += (
            f"<details><summary>Configuration</summary><pre>{escape(config_text)}</pre></details>"
        )
    return text or note("Nothing was recorded about how these results were made.")


def slices(
    examples: Mapping[int, np.ndarray],
    averages: Sequence[np.ndarray | None],
    voxel_size: float | None,
) -> str:
    """Shows central slices of a particle and of the average of each class."""
    num_classes = max([len(averages), *(label + 1 for label in examples)])
    if num_classes == 0:
        return note("No particles or averages were given.")
    cards = []
    for label in range(num_classes):
        average = averages[label] if label < len(averages) else None
        maps = {"particle": examples.get(label), "average": average}
        rows = "".join(
            _slice_row(name, volume, label) for name, volume in maps.items() if volume is not None
        )
        swatch = f'<span class="swatch" style="background: {figures.class_colour(label)}"></span>'
        title = f"<h3>{swatch}Class {label + 1}</h3>"
        if not rows:
            cards.append(f'<div class="card">{title}{note("No particle is in this class.")}</div>')
            continue
        axes = "".join(f'<span class="axes">{name}</span>' for name, _ in PLANES)
        size = next(len(volume) for volume in maps.values() if volume is not None)
        cards.append(
            f'<div class="card">{title}<div class="triple"><span></span>{axes}{rows}</div>'
            f"{_scale_bar(size, voxel_size)}</div>"
        )
    explained = (
        "Slices through the box centre: " + "; ".join(f"{a}: {b}" for a, b in PLANES) + ". "
        "Each map is drawn from its 1st to its 99th percentile; contrast is not inverted. The "
        "missing wedge stretches single particles along z."
    )
    return f'{note(explained)}<div class="classes">{"".join(cards)}</div>'


def training(history: Sequence[Mapping[str, object]]) -> str:
    """Draws every number that was recorded during training."""
    names = dict.fromkeys(
        key
        for entry in history
        for key, value in entry.items()
        if key not in COORDINATES and _is_number(value)
    )
    if not names:
        return note("No training history was given.")
    ordered = sorted(names, key=lambda name: ("loss" not in name, "accuracy" not in name))
    charts = "".join(
        f"<figure>{figures.draw_series(name, *_series(history, name))}</figure>" for name in ordered
    )
    return f'<div class="charts">{charts}</div>'


def cluster_sizes(labels: np.ndarray | None, num_classes: int) -> str:
    """Tabulates how many particles each class holds, empty classes included."""
    if labels is None or len(labels) == 0:
        return note("No predicted classes were given.")
    counts = np.bincount(labels, minlength=num_classes)
    rows = [
        (
            f"class {label + 1}",
            f"{count:,}",
            f"{count / counts.sum():.1%}",
            bar(count / counts.max(), figures.class_colour(label)),
        )
        for label, count in enumerate(counts)
    ]
    return table(
        ["predicted", "particles", "share", ""], rows, classes=["", "number", "number", "bars"]
    )


def confusion(labels: np.ndarray | None, true_labels: np.ndarray | None) -> str:
    """Tabulates predicted against true classes, matched classes on the diagonal."""
    if labels is None or true_labels is None:
        return note("The truth is not known, or no classes were predicted.")
    from scipy.optimize import linear_sum_assignment

    predicted_names, columns = np.unique(labels, return_inverse=True)
    true_names, rows = np.unique(true_labels, return_inverse=True)
    counts = np.zeros((true_names.size, predicted_names.size), np.int64)
    np.add.at(counts, (rows, columns), 1)
    matched = linear_sum_assignment(counts, maximize=True)[1]
    order = [*matched, *np.setdiff1d(np.arange(predicted_names.size), matched)]
    counts, predicted_names = counts[:, order], predicted_names[order]
    body = []
    for name, line in zip(true_names, counts, strict=True):
        cells = [
            f'<span class="heat" style="--share: {count / line.sum():.3f}">{count:,}</span>'
            for count in line
        ]
        body.append((f"true {name + 1}", *cells))
    header = ["", *(f"predicted {name + 1}" for name in predicted_names)]
    return table(
        header,
        body,
        caption="Particles of each true class (rows) in each predicted class (columns). Columns "
        "are ordered so that the best one-to-one match stands on the diagonal.",
        classes=["", *["number cell"] * predicted_names.size],
    )


def features(
    values: np.ndarray | None, labels: np.ndarray | None, true_labels: np.ndarray | None
) -> str:
    """Draws the features on their first two principal components, and by t-SNE."""
    if values is None or labels is None:
        return note("No features were given.")
    if len(values) and np.size(values) == 0:
        return note("The method describes no particle by features.")
    laid = embed(values)
    truth = None if true_labels is None else np.asarray(true_labels)[laid.rows]
    shares = laid.explained
    names = (
        f"first principal component ({shares[0]:.0%} of the variance)",
        f"second ({shares[1]:.0%})",
    )
    own = np.asarray(labels)[laid.rows]
    charts = [figures.draw_scatter(laid.principal, names, own, truth)]
    if laid.neighbours is not None:
        charts.append(figures.draw_scatter(laid.neighbours, ("t-SNE", ""), own, truth))
    said = f"{len(own):,} of {len(values):,} particles. Colour is the predicted class"
    said += "." if truth is None else ", shape the true one."
    if laid.neighbours is not None:
        said += " In the second chart distances between groups mean nothing."
    return f"<figure>{''.join(charts)}<figcaption>{said}</figcaption></figure>"


def resolution(fsc: Sequence[np.ndarray | None], voxel_size: float | None, size: int | None) -> str:
    """Draws the correlation of the half maps and reads off the resolution of each class."""
    curves = {label: np.asarray(curve) for label, curve in enumerate(fsc) if curve is not None}
    if not curves:
        return note("There are no two half maps to compare.")
    unit = "voxels" if voxel_size is None else "Å"
    rows = []
    for label in range(len(fsc)):
        cells = ("-", "no two half maps")
        if label in curves:
            value, at_nyquist = _resolution_of(curves[label], voxel_size or 1.0, size)
            cells = (f"{value:.1f}", "first crossing of 0.143")
            if at_nyquist:
                cells = (f"≤ {value:.1f}", "at or below Nyquist: the curve stays above 0.143")
        rows.append((f"class {label + 1}", *cells))
    listing = table(["class", f"resolution ({unit})", ""], rows, classes=["", "number main", ""])
    return f"<figure>{figures.draw_fsc(curves, voxel_size, size)}</figure>{listing}"


def pose_errors(rotation_errors: np.ndarray | None) -> str:
    """Draws the distribution of rotation errors of pairs."""
    if rotation_errors is None or len(rotation_errors) == 0:
        return note("The true poses are not known, or no poses were estimated.")
    from jimjax.evaluate.pose import rotation_error_degrees

    degrees = rotation_error_degrees(np.asarray(rotation_errors))
    said = f"{len(degrees):,} pairs of particles of one true class; bins of 5 degrees."
    if np.mean(rotation_errors) > 2.3:  # within 0.1 of the mean of random rotations
        said += " The mean error is that of random rotations: these poses carry no information."
    chart = figures.draw_pose_errors(degrees)
    return f"<figure>{chart}<figcaption>{said}</figcaption></figure>"


def caveats(more: Sequence[str]) -> str:
    """Lists what a reader must know before quoting a number."""
    items = "".join(f"<li>{escape(text)}</li>" for text in (*more, *STANDING_CAVEATS))
    return f'<ul class="plain">{items}</ul>'


def _slice_row(name: str, volume: np.ndarray, label: int) -> str:
    volume = np.asarray(volume, np.float32)
    middle = volume.shape[0] // 2
    images = (volume[middle], volume[:, middle], volume[:, :, middle])
    low, high = np.percentile(volume, GRAY_PERCENTILES)
    cells = [f"<span>{name}</span>"]
    for (plane, _), image in zip(PLANES, images, strict=True):
        address = figures.slice_image(image, low, high)
        text = f"Class {label + 1}, {name}, central {plane} slice"
        cells.append(f'<img src="{address}" alt="{text}" title="{text}">')
    return "".join(cells)


def _scale_bar(size: int, voxel_size: float | None) -> str:
    if voxel_size is None:
        text, share = f"{size // 4} voxels, box {size} voxels", (size // 4) / size
    else:
        width = size * voxel_size
        length = max([SCALE_BARS[0], *(bar for bar in SCALE_BARS if bar <= width / 3)])
        text, share = f"{length} Å, box {size} voxels of {voxel_size:g} Å", length / width
    return (
        f'<div class="scale-row"><span></span><span><span class="scale" style="width: '
        f'{100 * share:.1f}%"></span></span><span class="scale-text">{text}</span></div>'
    )


def _series(
    history: Sequence[Mapping[str, object]], name: str
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str]:
    """Collects a quantity by phase; a step recorded twice, as after a resume, counts once."""
    records = [entry for entry in history if _is_number(entry.get(name))]
    units = [unit for unit in ("step", "epoch") if all(_is_number(r.get(unit)) for r in records)]
    unit = units[0] if units else "record"
    values: dict[str, dict[tuple[float, float], float]] = {}
    for index, record in enumerate(records):
        epoch = record["epoch"] if "epoch" in units else 0
        order = (epoch, record["step"] if unit == "step" else index)
        values.setdefault(str(record.get("phase", name)), {})[order] = float(record[name])
    series = {}
    for phase, by_order in values.items():
        orders = sorted(by_order)
        steps = np.array([order[1] if unit == "step" else order[0] for order in orders], float)
        series[phase] = (steps, np.array([by_order[order] for order in orders]))
    if unit == "record" or any(np.any(np.diff(steps) <= 0) for steps, _ in series.values()):
        unit = "record"  # no common clock, or one that starts again in each epoch
        series = {phase: (np.arange(y.size, dtype=float), y) for phase, (_, y) in series.items()}
    return series, unit


def _resolution_of(curve: np.ndarray, voxel_size: float, size: int | None) -> tuple[float, bool]:
    from jimjax.ops.fourier import fsc_resolution

    found = fsc_resolution(np.asarray(curve), voxel_size, size=size)
    return float(found.angstrom), bool(found.is_at_nyquist)


def _stem(key: str) -> str:
    return key.removesuffix("_mean").removesuffix("_std")


def _number(key: str, value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    if key.startswith("num_"):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 or key.endswith("median_degrees") else f"{value:.3f}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
