"""Particles of two kinds, a small blob and a large one, that any network tells apart."""

import functools
import signal

import numpy as np
from scipy.ndimage import gaussian_filter

from jimjax.data.subtomograms import Subtomograms
from jimjax.models.yopo import YopoConfig

BOX, NUM = 12, 24
LABELS = np.arange(NUM) % 2
YOPO = functools.partial(
    YopoConfig,
    size=8,
    widths=(4, 6),
    dense_width=8,
    kernel="isotropic",
    pools=("max", "mean", "std"),
    momentum=0.9,
)


def yopo(box: int, num_classes: int) -> YopoConfig:
    """A YOPO small enough to train in a test."""
    return YOPO(box=box, num_classes=num_classes)


def two_sizes(*, noise: float = 0.1) -> Subtomograms:
    """Dark blobs of the classes ``LABELS``, and a little noise."""
    generator = np.random.default_rng(0)
    points = np.zeros((NUM, BOX, BOX, BOX))
    points[(np.arange(NUM), *generator.integers(4, 8, (3, NUM)))] = 1
    sizes = LABELS + 1.0
    blurred = np.stack([gaussian_filter(p, s) / s**-3 for p, s in zip(points, sizes, strict=True)])
    volumes = -blurred + noise * blurred.std() * generator.normal(size=blurred.shape)
    return Subtomograms(
        volumes=volumes.astype(np.float32),
        tilt_ranges=np.tile(np.float32([-90, 90]), (NUM, 1)),
        voxel_size=10.0,
        names=tuple(f"{row + 1}@stack.mrcs" for row in range(NUM)),
        halves=np.arange(NUM) % 2 + 1,
    )


class StopAfter:
    """Progress that asks the run to stop once a step is done."""

    def __init__(self, step: int):
        self.step = step

    def update(self, stage, step, num_steps, metrics):
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)
