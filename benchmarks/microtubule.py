"""A real tomogram, segmented: a TIFF becomes MRC, walls are made to learn from, results are drawn.

    python benchmarks/microtubule.py prepare 13pf_MT.tif OUT
    python benchmarks/microtubule.py draw OUT/tomogram.mrc PICTURE.png NAME=SEGMENTS ...

The tomogram is the crop of a microtubule that comes with cylindra (H. Liu, BSD-3, file
``13pf_MT.tif``: 36 x 206 x 94 voxels of 10.52 A, protein bright). ``prepare`` writes
OUT/tomogram.mrc beside two densities that are made from the published sizes of a microtubule and
from nothing else: OUT/tube.mrc, a piece as long as a box allows, and OUT/wall.mrc, a part of its
wall. ``draw`` takes folders of ``jimjax segment predict``, draws them beside two thresholds that
learn nothing, and prints what can be counted without a truth. TIFF and PNG are pillow's, which
comes with matplotlib.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image, ImageSequence
from scipy import ndimage, optimize

from jimjax.io import mrc
from jimjax.ops import mixture

matplotlib.use("Agg")
import matplotlib.pyplot as plt

VOXEL_SIZE = 10.52  # angstrom, of the crop
MODEL_VOXEL_SIZE = 5.0  # angstrom, of the densities

SECTIONS = (8, 18, 28)  # that are drawn
NUM_GREYS = 24  # of the picture: noise takes many bytes
SMOOTHING = 1.5  # voxels, of the threshold
AXIS_START = (52.0, 17.0, -0.32, 0.0)  # (x, z, dx, dz) by eye, see ``fit_axis``
HALF_WALL = 3.0  # voxels: the wall is about 50 A thick, and seen at 21 A or worse

# The usual sizes of a microtubule of 13 protofilaments and three starts; its hand does not matter
# for masks.
NUM_PROTOFILAMENTS = 13
RADIUS = 112.0  # angstrom, of the protofilaments' middle
MONOMER = 41.0  # angstrom along a protofilament
RISE = 3 * MONOMER / NUM_PROTOFILAMENTS  # angstrom from one protofilament to the next
MONOMER_SIGMA = 11.0  # angstrom, that of an even ball of 49 A


class Parts(NamedTuple):
    """Voxels ``(z, y, x)`` of the wall.

    Attributes:
        wall: all of them.
        sides: those within 30 degrees of the z section through the axis, as seen from it.
        caps: those within 30 degrees of the beam, top and bottom.
    """

    wall: np.ndarray
    sides: np.ndarray
    caps: np.ndarray


def main() -> None:
    """Does one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("prepare")
    step.add_argument("tiff", type=Path)
    step.add_argument("out", type=Path)
    step = steps.add_parser("draw")
    step.add_argument("tomogram", type=Path)
    step.add_argument("picture", type=Path)
    step.add_argument("segments", nargs="+", help="NAME=FOLDER of jimjax segment predict")
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.tiff, options.out)
    else:
        folders = dict(named.split("=", 1) for named in options.segments)
        draw(options.tomogram, options.picture, {name: Path(f) for name, f in folders.items()})


def prepare(tiff: Path, folder: Path) -> None:
    """Writes the tomogram and the two densities."""
    folder.mkdir(parents=True, exist_ok=True)
    mrc.write_volume(folder / "tomogram.mrc", read_tiff(tiff), voxel_size=VOXEL_SIZE)
    everywhere = range(NUM_PROTOFILAMENTS)
    for name, volume in (
        ("tube", lattice(everywhere, num_monomers=3)),
        ("wall", lattice(range(5), num_monomers=4)),
    ):
        mrc.write_volume(folder / f"{name}.mrc", volume, voxel_size=MODEL_VOXEL_SIZE)


def read_tiff(path: Path) -> np.ndarray:
    """Reads the pages of a TIFF file as sections ``(z, y, x)`` float32."""
    with Image.open(path) as image:
        return np.stack([np.asarray(page, np.float32) for page in ImageSequence.Iterator(image)])


def lattice(protofilaments: range, *, num_monomers: int) -> np.ndarray:
    """Density of monomers, Gaussian balls, on a part of a microtubule whose axis is z.

    Args:
        protofilaments: which of them.
        num_monomers: along each.

    Returns:
        ``(z, y, x)`` float32, mass bright, of ``MODEL_VOXEL_SIZE``.
    """
    numbers = np.array(protofilaments)
    angles = 2 * np.pi * numbers / NUM_PROTOFILAMENTS
    heights = MONOMER * (np.arange(num_monomers) - (num_monomers - 1) / 2)
    side = 2 * int((RADIUS + num_monomers * MONOMER / 2) / MODEL_VOXEL_SIZE) + 1
    axis = MODEL_VOXEL_SIZE * (np.arange(side) - side // 2)
    volume = np.zeros((side,) * 3, np.float32)
    for angle, number in zip(angles, numbers, strict=True):
        rise = RISE * number % MONOMER - MONOMER / 2  # every row begins within one monomer
        across = [
            np.exp(-((axis - RADIUS * place) ** 2) / (2 * MONOMER_SIGMA**2))
            for place in (np.sin(angle), np.cos(angle))
        ]
        along = np.exp(-((axis[:, None] - heights - rise) ** 2) / (2 * MONOMER_SIGMA**2)).sum(1)
        volume += along[:, None, None] * across[0][:, None] * across[1]
    return volume


def draw(tomogram: Path, picture: Path, folders: dict[str, Path]) -> None:
    """Draws everything found beside the tomogram, and prints what can be counted as JSON."""
    volume = mrc.read_volume(tomogram).data
    axis = fit_axis(volume)
    rows, found = {"tomogram": volume}, {}
    for name, folder in folders.items():
        rows[f"{name}:\nprobability"] = mrc.read_volume(folder / "probability.mrc").data
        found[name] = mrc.read_volume(folder / "mask.mrc").data > 0
        rows[f"{name}:\nmask"] = found[name]
        # As many voxels, so that the two can be compared; the last one is drawn.
        bright = brightest(volume, np.count_nonzero(found[name]))
        found[f"brightest, as many as {name}"] = bright
    rows["brightest of\nthe smoothed"] = bright
    found["mixture"] = rows["mixture of two\nGaussians"] = brighter_component(volume)
    paint(rows, axis, picture)
    facts = {name: describe(mask, volume, axis) for name, mask in found.items()}
    result = {
        "axis": axis,
        "wall_share": rounded(wall_parts(volume.shape, axis, HALF_WALL).wall.mean()),
        "brightness": brightness(volume, axis),
        "found": facts,
    }
    print(json.dumps(result, indent=2))


def brightest(volume: np.ndarray, num: int) -> np.ndarray:
    """The ``num`` brightest voxels after smoothing."""
    smooth = ndimage.gaussian_filter(volume, SMOOTHING)
    return smooth >= np.partition(smooth.ravel(), -num)[-num]


def brighter_component(volume: np.ndarray) -> np.ndarray:
    """Voxels, each by itself, that are rather of the brighter of two Gaussians."""
    values = (volume.reshape(-1, 1) - volume.mean()) / volume.std()
    fitted, _ = mixture.fit(jax.random.key(0), jnp.asarray(values), num_components=2)
    told = mixture.e_step(jnp.asarray(values), fitted)
    brighter = int(np.argmax(fitted.means[:, 0]))
    return np.asarray(jnp.argmax(told.log_responsibilities, axis=1) == brighter).reshape(
        volume.shape
    )


def fit_axis(volume: np.ndarray) -> tuple[float, ...]:
    """Finds the straight line about which the wall is brightest, near ``AXIS_START``.

    It looks at the tomogram alone, not at what was found in it.

    Returns:
        x and z where the line crosses the middle y section, and their change from one y section
        to the next, voxels: (x, z, dx, dz).
    """
    smooth = ndimage.gaussian_filter(volume, 1.0)[:, ::4]
    middle = volume.shape[1] // 2

    def darkness(line: np.ndarray) -> float:
        off_wall = distances(volume.shape, line)[0][:, ::4] - RADIUS / VOXEL_SIZE
        narrow, wide = (np.exp(-(off_wall**2) / (2 * width**2)) for width in (1.5, 4.0))
        return np.average(smooth, weights=wide) - np.average(smooth, weights=narrow)

    start = np.array(AXIS_START)
    steps = np.diag([2.0, 2.0, 4.0 / middle, 2.0 / middle])
    simplex = start + np.concatenate([np.zeros((1, 4)), steps])
    options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-4}
    best = optimize.minimize(darkness, start, method="Nelder-Mead", options=options)
    return tuple(rounded(value) for value in best.x)


def distances(shape: tuple[int, ...], line: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each voxel from the axis, and the height above it along z, in voxels."""
    z, y, x = np.indices(shape)
    x0, z0, dx, dz = line
    away_x, away_z = x - x0 - dx * (y - shape[1] // 2), z - z0 - dz * (y - shape[1] // 2)
    along = (dx * away_x + dz * away_z) / np.sqrt(1 + dx**2 + dz**2)
    return np.sqrt(np.maximum(away_x**2 + away_z**2 - along**2, 0)), away_z


def wall_parts(shape: tuple[int, ...], line: Sequence[float], half_width: float) -> Parts:
    """Voxels within ``half_width`` voxels of the radius, and of these the sides and the caps."""
    distance, height = distances(shape, line)
    wall = np.abs(distance - RADIUS / VOXEL_SIZE) <= half_width
    is_side = np.abs(height) <= distance * np.sin(np.pi / 6)
    is_cap = np.abs(height) >= distance * np.cos(np.pi / 6)
    return Parts(wall, wall & is_side, wall & is_cap)


def brightness(volume: np.ndarray, line: Sequence[float]) -> dict[str, float]:
    """How much brighter the middle of the wall is than the surroundings, in deviations of all."""
    parts = wall_parts(volume.shape, line, HALF_WALL / 2)
    outside = distances(volume.shape, line)[0] > RADIUS / VOXEL_SIZE + 2 * HALF_WALL
    level, deviation = volume[outside].mean(), volume.std()
    return {
        name: rounded((volume[part].mean() - level) / deviation)
        for name, part in parts._asdict().items()
    }


def describe(found: np.ndarray, volume: np.ndarray, line: Sequence[float]) -> dict[str, float]:
    """Counts what needs no truth: where the found voxels are, in how many pieces, how bright."""
    parts = wall_parts(volume.shape, line, HALF_WALL)
    contrast = (volume[found].mean() - volume[~found].mean()) / volume.std()
    return {
        "found_share": rounded(found.mean()),
        "pieces": ndimage.label(found)[1],
        "in_wall_share_of_found": rounded(parts.wall[found].mean()),
        "found_share_of_wall": rounded(found[parts.wall].mean()),
        "found_share_of_sides": rounded(found[parts.sides].mean()),
        "found_share_of_caps": rounded(found[parts.caps].mean()),
        "contrast_in_deviations": rounded(contrast),
    }


def rounded(value: float) -> float:
    """Three digits after the point."""
    return round(float(value), 3)


def along_axis(volume: np.ndarray, line: Sequence[float], reach: int = 20) -> np.ndarray:
    """The mean ``(z, across)`` of a volume along the axis, about it."""
    x0, z0, dx, dz = line
    y = np.arange(volume.shape[1])
    away = y - volume.shape[1] // 2
    across = np.arange(-reach, reach + 1) * np.sqrt(1 + dx**2)
    x = (x0 + dx * away)[:, None, None] + across
    z = (z0 + dz * away)[:, None, None] + np.arange(-reach, reach + 1)[:, None]
    places = np.broadcast_arrays(z, y[:, None, None], x)
    sampled = ndimage.map_coordinates(
        volume.astype(np.float32), places, order=1, mode="constant", cval=np.nan
    )
    inside = np.isfinite(sampled)
    count = inside.sum(0)
    return np.where(count, np.where(inside, sampled, 0).sum(0) / np.maximum(count, 1), np.nan)


def paint(rows: dict[str, np.ndarray], axis: Sequence[float], path: Path) -> None:
    """Draws sections of each volume, and its mean along the axis, one row for each."""
    widths = [206] * len(SECTIONS) + [96]
    figure, axes = plt.subplots(
        len(rows),
        len(widths),
        figsize=(10.5, 1.36 * len(rows)),
        width_ratios=widths,
        layout="constrained",
    )
    for line, (name, volume) in zip(axes, rows.items(), strict=True):
        is_tomogram = name == "tomogram"
        low, high = np.percentile(volume, (1, 99)) if is_tomogram else (0, 1)
        mean = along_axis(volume, axis)
        pictures = [volume[section].T for section in SECTIONS] + [mean]
        for panel, picture in zip(line, pictures, strict=True):
            if picture is mean and is_tomogram:
                low, high = np.nanpercentile(mean, (1, 99))
            panel.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower")
            panel.set_xticks([])
            panel.set_yticks([])
        line[0].set_ylabel(name, fontsize=8)
    for panel, section in zip(axes[0], SECTIONS, strict=False):
        panel.set_title(f"z = {section}", fontsize=8)
    axes[0, -1].set_title("mean along the axis\n(z upwards)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    Image.open(drawn).convert("L").quantize(NUM_GREYS).save(path, optimize=True)


if __name__ == "__main__":
    main()
