"""Features in two dimensions."""

import numpy as np
import pytest

from jimjax.report import embedding
from jimjax.report.embedding import draw_embedding, embed


@pytest.fixture(scope="module")
def clouds():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    return 8 * np.eye(3, 5)[labels] + generator.normal(size=(60, 5)), labels


def test_principal_coordinates_have_the_variances_of_the_features(clouds):
    features, _ = clouds
    laid = embed(features)
    variances = np.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1]
    np.testing.assert_allclose(laid.principal.var(axis=0), variances[:2], rtol=1e-6)
    np.testing.assert_allclose(laid.explained, variances[:2] / variances.sum(), rtol=1e-6)


def test_neighbours_in_space_are_neighbours_in_the_plane(clouds):
    features, labels = clouds
    points = embed(features).neighbours
    distances = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(60)
    assert np.mean(labels[distances.argmin(axis=1)] == labels) > 0.95


def test_many_particles_are_thinned_out(clouds, monkeypatch):
    monkeypatch.setattr(embedding, "MAX_POINTS", 20)
    laid = embed(clouds[0])
    assert len(laid.rows) == len(set(laid.rows)) == 20
    assert laid.principal.shape == laid.neighbours.shape == (20, 2)


@pytest.mark.parametrize("features", [np.ones((30, 4)), np.zeros((3, 2)), np.arange(2.0)[:, None]])
def test_few_or_identical_particles_are_finite(features):
    laid = embed(features)
    assert np.isfinite(laid.principal).all()
    assert laid.neighbours is None


def test_picture_is_written(clouds, tmp_path):
    features, labels = clouds
    draw_embedding(embed(features), labels, (labels + 1) % 3, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
