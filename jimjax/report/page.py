"""A run as one page: numbers, curves, slices and averages in a single HTML file.

The page loads nothing, so it can be mailed, archived and opened years later. Whoever has results
fills a :class:`ReportData` with what there is; sections without data say so.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jimjax.io.errors import InputError
from jimjax.io.files import replace_file
from jimjax.report import html, sections

__all__ = ["ReportData", "read_history", "render", "write_report"]


@dataclass(frozen=True)
class ReportData:
    """What a report can show; every field is optional. Classes are counted from 0 here.

    Attributes:
        title: of the page.
        config_text: the resolved configuration as written next to the results.
        provenance: name -> text: command, versions, seed, device, date, input files.
        metrics: score -> value, as ``jimjax.evaluate.evaluate`` returns them.
        baselines: name (untrained, identity poses, ...) -> its scores.
        history: lines of ``metrics.jsonl``.
        example_volumes: class -> one input particle ``(z, y, x)``.
        averages: one ``(z, y, x)`` per class, None where the class is empty.
        fsc: one ``(n//2+1,)`` per class, None where there are no two half maps.
        features: ``(n, d)`` of the particles.
        predicted_labels: ``(n,)``.
        true_labels: ``(n,)``.
        rotation_errors: ``(num_pairs,)`` Frobenius norms of relative poses.
        voxel_size: Angstrom.
        caveats: sentences to add to the standing ones.
    """

    title: str = "jimjax report"
    config_text: str = ""
    provenance: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    history: Sequence[Mapping[str, object]] = ()
    example_volumes: Mapping[int, np.ndarray] = field(default_factory=dict)
    averages: Sequence[np.ndarray | None] = ()
    fsc: Sequence[np.ndarray | None] = ()
    features: np.ndarray | None = None
    predicted_labels: np.ndarray | None = None
    true_labels: np.ndarray | None = None
    rotation_errors: np.ndarray | None = None
    voxel_size: float | None = None
    caveats: Sequence[str] = ()


def write_report(
    report: ReportData, path: Path | str, *, run_dir: Path | str | None = None
) -> None:
    """Writes the report as one self-contained HTML file, all at once or not at all.

    Args:
        report: what to show.
        path: of the HTML file; replaced if it exists.
        run_dir: folder of a training run; its ``metrics.jsonl`` is shown if ``report.history``
            is empty.

    Raises:
        InputError: if the folder of ``path`` or ``metrics.jsonl`` is missing or broken.
        ValueError: as :func:`render`.
    """
    if run_dir is not None and not report.history:
        report = dataclasses.replace(report, history=read_history(Path(run_dir) / "metrics.jsonl"))
    text = render(report)
    with replace_file(path) as stream:
        stream.write(text.encode())


def read_history(path: Path | str) -> list[dict[str, object]]:
    """Reads one JSON object per line.

    A last line without its line end was cut off when the run was stopped, and is left out.

    Args:
        path: of ``metrics.jsonl``.

    Returns:
        The objects in order.

    Raises:
        InputError: if the file cannot be read or a complete line is not a JSON object; the
            message names the line.
    """
    try:
        lines = Path(path).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read as text: {problem}") from problem
    history = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
        except ValueError as problem:
            raise InputError(f"{path}:{number}: is not JSON: {problem}") from problem
        if not isinstance(entry, dict):
            raise InputError(f"{path}:{number}: must be a JSON object, got {line[:40]!r}")
        history.append(entry)
    return history


def render(report: ReportData) -> str:
    """Makes the page.

    Args:
        report: what to show.

    Returns:
        A complete HTML document.

    Raises:
        ValueError: if label lists and features differ in length, a map is not a cube, or features
            or rotation errors are not finite.
    """
    _check(report)
    predicted, true = report.predicted_labels, report.true_labels
    size = next((len(volume) for volume in report.averages if volume is not None), None)
    parts = {
        "summary": ("Numbers", sections.numbers(report.metrics, report.baselines, true)),
        "run": ("What was run", sections.run(report.provenance, report.config_text)),
        "slices": (
            "Particles and averages",
            sections.slices(report.example_volumes, report.averages, report.voxel_size),
        ),
        "training": ("Training", sections.training(report.history)),
        "clusters": ("Cluster sizes", sections.cluster_sizes(predicted, len(report.averages))),
        "confusion": ("Confusion", sections.confusion(predicted, true)),
        "features": ("Features", sections.features(report.features, predicted, true)),
        "resolution": ("Resolution", sections.resolution(report.fsc, report.voxel_size, size)),
        "poses": ("Pose errors", sections.pose_errors(report.rotation_errors)),
        "caveats": ("Caveats", sections.caveats(report.caveats)),
    }
    body = "".join(html.section(name, title, text) for name, (title, text) in parts.items())
    contents = {name: title for name, (title, _) in parts.items()}
    subtitle = " · ".join(
        str(report.provenance[name]) for name in ("date", "device") if name in report.provenance
    )
    tiles = sections.tiles(report.metrics, report.baselines, report.fsc, report.voxel_size, size)
    return html.page(report.title, subtitle, tiles, contents, body)


def _check(report: ReportData) -> None:
    sizes = {
        name: len(getattr(report, name))
        for name in ("features", "predicted_labels", "true_labels")
        if getattr(report, name) is not None
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"one entry per particle is needed in each of these, got {sizes}")
    for volume in (*report.example_volumes.values(), *report.averages):
        if volume is not None and (np.ndim(volume) != 3 or len(set(np.shape(volume))) != 1):
            raise ValueError(f"maps must be cubic (z, y, x), got {np.shape(volume)}")
    for name in ("features", "rotation_errors"):
        values = getattr(report, name)
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite to be drawn; find out where nan came from")
