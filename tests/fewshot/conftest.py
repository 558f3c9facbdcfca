"""Particles of a few kinds, and a small network that learns them."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from small_protonet import BOX, SIZES

from jimjax.data.subtomograms import Subtomograms
from jimjax.fewshot import pretraining


@pytest.fixture(scope="session")
def make_particles():
    """Makes blobs of several sizes, so many of each, with a little noise; classes from 0."""

    def make(sizes, num, seed=0):
        generator = np.random.default_rng(seed)
        labels = np.tile(np.arange(len(sizes)), num)
        points = np.zeros((len(labels), BOX, BOX, BOX))
        points[:, BOX // 2, BOX // 2, BOX // 2] = -1
        spread = np.asarray(sizes)[labels]
        blobs = [gaussian_filter(p, s) * s**3 for p, s in zip(points, spread, strict=True)]
        noise = 0.01 * generator.normal(size=points.shape)
        return Subtomograms(
            volumes=(np.stack(blobs) + noise).astype(np.float32),
            tilt_ranges=np.tile(np.float32([-60, 60]), (len(labels), 1)),
            voxel_size=10.0,
            names=("",) * len(labels),
            halves=np.arange(len(labels)) % 2 + 1,
            labels=labels.astype(np.int32),
        )

    return make


@pytest.fixture(scope="session")
def negate():
    """Light protein of dark, or dark of light."""
    return lambda particles: dataclasses.replace(particles, volumes=-particles.volumes)


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch):
    monkeypatch.setitem(pretraining.PRESETS, "small", lambda box: SIZES(box=box))
