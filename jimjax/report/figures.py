"""Figures of the report: inline SVG charts that follow the page's colours, PNG slices.

Charts are drawn by matplotlib in placeholder colours, which are then replaced by the page's CSS
variables: the same chart is dark on a light page and light on a dark one. Text stays text.
matplotlib is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CLASS_COLOURS",
    "class_colour",
    "draw_fsc",
    "draw_pose_errors",
    "draw_scatter",
    "draw_series",
    "scatter_classes",
    "slice_image",
]

FSC_GOLD_STANDARD = 0.143  # Rosenthal & Henderson 2003
MAX_POINTS = 1500  # points of a chart; more make the file large and the picture no clearer
LOG_SCALE_RATIO = 1000  # a positive series that spans more is drawn on a logarithmic axis
TRUTH_MARKERS = "os^DvPX*"
DEGREE_BINS = np.arange(0, 181, 5)
# Okabe & Ito 2008, safe for colour-blind readers; yellow is darkened for white paper.
CLASS_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a400", "#7a7a7a",
)  # fmt: skip
INK, MUTED, LINE, ACCENT = "#010203", "#040506", "#070809", "#0a0b0c"  # placeholders, see _as_svg
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent"}


def class_colour(label: int) -> str:
    """Colours a class; the colours repeat after eight."""
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


def draw_series(name: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str) -> str:
    """Draws one recorded quantity over the steps, a line for each phase.

    Args:
        name: of the quantity.
        series: phase -> (steps, values), both ``(n,)``; values that are not finite leave a gap.
        unit: what the steps count.

    Returns:
        Inline SVG.
    """
    figure, axes = _new_figure(3.6, 2.3)
    values = np.concatenate([y for _, y in series.values()])
    values = values[np.isfinite(values)]
    for number, (phase, (steps, heights)) in enumerate(series.items()):
        steps, heights = _thinned(steps, heights)
        marker = "o" if steps.size < 30 else ""
        axes.plot(
            steps,
            heights,
            color=class_colour(number),
            marker=marker,
            markersize=3,
            label=_plain(phase),
        )
    if values.size and values.min() > 0 and values.max() / values.min() > LOG_SCALE_RATIO:
        axes.set_yscale("log")
    axes.set_xlabel(unit)
    axes.set_title(
        _plain(name).replace("_", " "), loc="left", color=INK, fontsize=9.5, fontweight="bold"
    )
    if len(series) > 1:
        _add_legend(axes)
    return _as_svg(figure, f"{name} over training, by {unit}")


def draw_scatter(
    points: np.ndarray,
    names: tuple[str, str],
    labels: np.ndarray,
    true_labels: np.ndarray | None,
) -> str:
    """Draws features in two dimensions, coloured by class, shaped by the truth.

    Args:
        points: ``(n, 2)``.
        names: of the two axes.
        labels: ``(n,)`` predicted classes, 0-based.
        true_labels: ``(n,)`` 0-based, or None.

    Returns:
        Inline SVG.
    """
    figure, axes = _new_figure(6.4, 4.2)
    scatter_classes(axes, points, labels, true_labels)
    handles = [
        _marker(axes, "o", class_colour(label), f"predicted {label + 1}")
        for label in np.unique(labels)
    ]
    if true_labels is not None:
        handles += [
            _marker(axes, TRUTH_MARKERS[shape % len(TRUTH_MARKERS)], MUTED, f"true {shape + 1}")
            for shape in np.unique(true_labels)
        ]
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    _add_legend(axes, handles=handles, outside=True)
    return _as_svg(figure, f"Features of the particles in two dimensions, by {names[0]}")


def scatter_classes(
    axes: Axes, points: np.ndarray, labels: np.ndarray, true_labels: np.ndarray | None
) -> None:
    """Puts points ``(n, 2)`` onto axes; labels and true ones as of ``draw_scatter``."""
    shapes = np.zeros_like(labels) if true_labels is None else true_labels
    for label in np.unique(labels):
        for shape in np.unique(shapes[labels == label]):
            chosen = (labels == label) & (shapes == shape)
            axes.scatter(
                *points[chosen].T,
                s=16,
                marker=TRUTH_MARKERS[shape % len(TRUTH_MARKERS)],
                color=class_colour(label),
                alpha=0.75,
                linewidths=0,
            )


def draw_fsc(curves: Mapping[int, np.ndarray], voxel_size: float | None, size: int | None) -> str:
    """Draws the correlation of the half maps of each class.

    Args:
        curves: class (0-based) -> ``(n//2+1,)``, from frequency 0 to Nyquist.
        voxel_size: Angstrom; cycles per voxel are drawn if None.
        size: n, the box; None for the even ``2 (number of shells - 1)``.

    Returns:
        Inline SVG.
    """
    figure, axes = _new_figure(6.4, 3.6)
    nyquist = 0.5 / (voxel_size or 1.0)
    lowest = min(0.0, *(float(np.min(curve)) for curve in curves.values()))
    for label, curve in curves.items():
        shells = np.arange(len(curve))
        frequencies = 2 * nyquist * shells / (size or 2 * (len(curve) - 1))
        axes.plot(
            frequencies, curve, color=class_colour(label), marker="o", markersize=2.5,
            linestyle=("-", "--", ":")[label // len(CLASS_COLOURS) % 3], label=f"class {label + 1}",
        )  # fmt: skip
    axes.axhline(FSC_GOLD_STANDARD, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(0.01 * nyquist, FSC_GOLD_STANDARD + 0.02, "0.143", color=INK, fontsize=8)
    axes.axvline(nyquist, color=MUTED, linewidth=0.9, linestyle=":")
    axes.text(nyquist, 1.04, "Nyquist ", color=MUTED, fontsize=8, ha="right", va="bottom")
    axes.set_ylim(max(lowest - 0.03, -0.5), 1.03)
    axes.set_xlim(0, nyquist)
    axes.set_ylabel("Fourier shell correlation")
    if voxel_size is None:
        axes.set_xlabel("spatial frequency (cycles per voxel)")
    else:
        ticks = nyquist * np.array([0.25, 0.5, 0.75, 1.0])
        axes.set_xticks(ticks, [f"1/{1 / tick:.3g}" for tick in ticks])
        axes.set_xlabel("spatial frequency (1/Å)")
    _add_legend(axes, outside=True)
    return _as_svg(figure, "Fourier shell correlation of the half maps of each class")


def draw_pose_errors(degrees: np.ndarray) -> str:
    """Draws the distribution of rotation errors beside that of random rotations.

    Random rotations differ by an angle with density ``(1 - cos w) / pi``, so the share of a bin
    is the difference of ``(w - sin w) / pi`` at its ends.

    Args:
        degrees: ``(num_pairs,)``, 0 to 180.

    Returns:
        Inline SVG.
    """
    figure, axes = _new_figure(6.4, 3.2)
    shares = np.histogram(degrees, DEGREE_BINS)[0] / max(len(degrees), 1)
    axes.stairs(100 * shares, DEGREE_BINS, fill=True, color=CLASS_COLOURS[0], alpha=0.75)
    edges = np.radians(DEGREE_BINS)
    chance = np.diff((edges - np.sin(edges)) / np.pi)
    centres = (DEGREE_BINS[:-1] + DEGREE_BINS[1:]) / 2
    axes.plot(centres, 100 * chance, color=INK, linestyle="--", label="random rotations")
    median = float(np.median(degrees))
    axes.axvline(median, color=CLASS_COLOURS[3], label=f"median {median:.1f}°")
    axes.set_xlim(0, 180)
    axes.set_xticks(range(0, 181, 30))
    axes.set_xlabel("rotation error of a pair (degrees)")
    axes.set_ylabel("share of pairs (%)")
    _add_legend(axes, outside=True)
    return _as_svg(figure, "Distribution of rotation errors, with that of random rotations")


def slice_image(image: np.ndarray, low: float, high: float) -> str:
    """Encodes a slice as a grey PNG.

    Args:
        image: ``(rows, columns)``; the first row is drawn at the bottom, as y and z point up.
        low: value drawn black.
        high: value drawn white.

    Returns:
        A ``data:`` address.
    """
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(
        stream, image, cmap="gray", vmin=low, vmax=high, origin="lower", format="png",
        metadata={"Software": None},
    )  # fmt: skip
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Makes a figure in inches without pyplot, so that no backend or window is touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=8, width=0.8)
    axes.grid(True, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(color=MUTED, fontsize=8.5)
    return figure, axes


def _marker(axes: Axes, marker: str, colour: str, label: str) -> object:
    return axes.plot([], [], marker=marker, color=colour, linestyle="", markersize=5, label=label)[
        0
    ]


def _add_legend(axes: Axes, *, handles: list | None = None, outside: bool = False) -> None:
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if outside else {"loc": "best"}
    axes.legend(
        handles=handles, frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4,
        borderaxespad=0.2, ncols=1 + len(handles) // 14, **place,
    )  # fmt: skip


def _plain(text: str) -> str:
    """Keeps matplotlib from reading a name as a formula ($) or as hidden (leading underscore)."""
    return text.lstrip("_").replace("$", r"\$") or "unnamed"


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replaces blocks of neighbouring points by their means if there are very many."""
    block = -(-steps.size // MAX_POINTS)
    if block <= 1:
        return steps, values
    starts = np.arange(0, steps.size, block)
    sizes = np.diff(np.append(starts, steps.size))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def _as_svg(figure: Figure, description: str) -> str:
    import warnings

    import matplotlib

    stream = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "jimjax"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The reader's browser draws the text with its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="--width: \1pt"', svg, count=1)
    label = html.escape(description, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
