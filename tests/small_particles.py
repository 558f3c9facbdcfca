"""Particles of nothing but noise, for tests of what is done with tables and files."""

import numpy as np

from jimjax.data.subtomograms import Subtomograms


def noise_particles(num: int, box: int, *, num_classes: int = 1) -> Subtomograms:
    """Particles whose classes take turns and whose poses are the identity; always the same ones."""
    volumes = np.random.default_rng(0).normal(size=(num, box, box, box))
    return Subtomograms(
        volumes=volumes.astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (num, 1)),
        voxel_size=10.0,
        names=tuple(map(str, range(num))),
        halves=1 + np.arange(num) % 2,
        rotations=np.tile(np.eye(3, dtype=np.float32), (num, 1, 1)),
        shifts=np.zeros((num, 3), np.float32),
        labels=(np.arange(num) % num_classes).astype(np.int32),
    )
