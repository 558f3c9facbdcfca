"""Classes of particles as what a person looks at: a table, averages, an embedding, a report."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from jimjax.data.subtomograms import Subtomograms
    from jimjax.models.weights import Contrast
    from jimjax.train.run import Prediction

CLASSES, AVERAGES = "classes.star", "averages"
EMBEDDING, REPORT = "embedding.png", "report.html"
POSING = "jimnet"  # kind of network that poses the particles of a class


def pose(
    particles: "Subtomograms", labels: "np.ndarray", *, contrast: "Contrast", seed: int
) -> "Prediction":
    """Poses particles within their classes, with the Jim-Net that comes along.

    Args:
        particles: of that contrast.
        labels: ``(n,)`` classes from 0.
        contrast: of the protein.
        seed: of the references.
    """
    from jimjax.commands.align_network import open_weights
    from jimjax.commands.progress import say
    from jimjax.train.pretrained import pose_classes

    say("posing the particles of each class")
    weights = open_weights(None, POSING, particles.volumes.shape[-1])
    if contrast != weights.description.contrast:
        particles = dataclasses.replace(particles, volumes=-particles.volumes)
    return pose_classes(weights, particles, labels, seed=seed)


def write_posed(
    posed: "Prediction", particles: "Subtomograms", data: Path, folder: Path, *, num_classes: int
) -> None:
    """Writes classes and poses, and the averages that they make.

    Args:
        posed: classes, features and poses of the particles.
        particles: as loaded from ``data``.
        data: STAR file whose columns and blocks are kept.
        folder: to write ``CLASSES`` and ``AVERAGES`` into.
        num_classes: of the averages; some may be empty.
    """
    from jimjax.average import write_averages
    from jimjax.commands.average import describe
    from jimjax.commands.predict import write_prediction

    write_prediction(posed, particles, data, folder / CLASSES)
    known = dataclasses.replace(
        particles, labels=posed.labels, rotations=posed.rotations, shifts=posed.shifts
    )
    averages = write_averages(known, folder / AVERAGES, num_classes=num_classes)
    for number, average in enumerate(averages, start=1):
        print(f"class {number}: {describe(average)}")


def show(
    folder: Path, features: "np.ndarray", labels: "np.ndarray", *, title: str, seed: int
) -> None:
    """Draws the embedding, and, where there are averages, writes the report.

    Args:
        folder: with what was found, config.toml and provenance.json.
        features: ``(n, d)``.
        labels: ``(n,)`` classes from 0.
        title: of the report.
        seed: of the embedding.
    """
    from jimjax.commands.report import collect
    from jimjax.report.embedding import draw_embedding, embed
    from jimjax.report.page import write_report

    if features.size:
        draw_embedding(embed(features, seed=seed), labels, None, folder / EMBEDDING)
    if (folder / AVERAGES).is_dir():
        data = collect(folder, folder / CLASSES, averages=folder / AVERAGES, seed=seed, title=title)
        write_report(data, folder / REPORT)
        print(f"report: {folder / REPORT}")
