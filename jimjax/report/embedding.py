"""Features of particles in two dimensions: principal components, and t-SNE beside them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jimjax.report.figures import class_colour, scatter_classes

__all__ = ["Embedding", "draw_embedding", "embed"]

MAX_POINTS = 2000  # particles drawn; t-SNE of more takes minutes and looks the same
PERPLEXITY = 30  # of t-SNE, with enough particles
LEAST_NEIGHBOURS = 4  # particles below which t-SNE says nothing


class Embedding(NamedTuple):
    """Particles as points in a plane.

    Attributes:
        rows: ``(m,)`` which particles, ascending.
        principal: ``(m, 2)`` coordinates along the first two principal components.
        explained: ``(2,)`` shares of the variance along these.
        neighbours: ``(m, 2)`` of t-SNE; None where there are too few particles, or all are alike.
    """

    rows: np.ndarray
    principal: np.ndarray
    explained: np.ndarray
    neighbours: np.ndarray | None


def embed(features: np.ndarray, *, seed: int = 0) -> Embedding:
    """Lays out particles by their features.

    Args:
        features: ``(n, d)``, finite; a part of them is laid out if there are many.
        seed: which part, and of t-SNE.
    """
    features = np.asarray(features, np.float64).reshape(len(features), -1)
    rows = np.arange(len(features))
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_POINTS, replace=False))
    centred = features[rows] - features[rows].mean(axis=0)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    points, explained = np.zeros((len(rows), 2)), np.zeros(2)
    kept = min(2, strengths.size)
    points[:, :kept] = left[:, :kept] * strengths[:kept]
    explained[:kept] = strengths[:kept] ** 2 / max(np.sum(strengths**2), np.finfo(float).tiny)
    neighbours = None
    if len(rows) >= LEAST_NEIGHBOURS and np.any(strengths > 0):
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
        method = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        neighbours = method.fit_transform(centred)
    return Embedding(rows, points, explained, neighbours)


def draw_embedding(
    embedding: Embedding, labels: np.ndarray, true_labels: np.ndarray | None, path: Path
) -> None:
    """Draws particles as a PNG, coloured by class, shaped by the truth where it is known.

    Args:
        embedding: of ``embed``.
        labels: ``(n,)`` classes from 0, of all particles.
        true_labels: ``(n,)`` from 0, or None.
        path: file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layouts = {"principal components": embedding.principal, "t-SNE": embedding.neighbours}
    drawn = {name: points for name, points in layouts.items() if points is not None}
    figure = Figure(figsize=(5.2 * len(drawn), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    own = np.asarray(labels)[embedding.rows]
    shapes = None if true_labels is None else np.asarray(true_labels)[embedding.rows]
    panels = np.ravel(figure.subplots(1, len(drawn)))
    for axes, (name, points) in zip(panels, drawn.items(), strict=True):
        scatter_classes(axes, points, own, shapes)
        axes.set(title=name, xticks=[], yticks=[])
    shares = embedding.explained
    panels[0].set(xlabel=f"first ({shares[0]:.0%} of the variance)")
    panels[0].set(ylabel=f"second ({shares[1]:.0%})")
    for label in np.unique(own):
        panels[-1].scatter([], [], color=class_colour(label), label=f"class {label + 1}")
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)
