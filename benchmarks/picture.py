"""Draws the README's picture from a demo folder: a particle and an average of each class.

python benchmarks/picture.py jimjax-demo benchmarks/results/demo.png
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

from jimjax.data.subtomograms import load
from jimjax.io import read_particles, read_volume

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(demo: Path, path: Path) -> None:
    """Puts central z slices of the best-correlating particle above those of its class average."""
    particles = load(demo / "classes.star", with_poses=True)
    scores = read_particles(demo / "classes.star").floats("jimCorrelation")
    averages = sorted((demo / "averages").glob("class_[0-9][0-9][0-9].mrc"))
    figure, axes = plt.subplots(2, len(averages), figsize=(1.6 * len(averages), 3.5), squeeze=False)
    for column, average in zip(axes.T, averages, strict=True):
        label = int(average.stem.removeprefix("class_")) - 1
        members = np.flatnonzero(particles.labels == label)
        particle = particles.volumes[members[np.argmax(scores[members])]]
        for axis, volume in zip(column, (particle, read_volume(average).data), strict=True):
            low, high = np.percentile(volume, (1, 99))
            axis.imshow(volume[len(volume) // 2], cmap="gray", vmin=low, vmax=high, origin="lower")
            axis.set_xticks([])
            axis.set_yticks([])
        column[0].set_title(f"class {label + 1}, n = {members.size}", fontsize=9)
    axes[0, 0].set_ylabel("one particle", fontsize=9)
    axes[1, 0].set_ylabel("class average", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
