"""Densities of known molecules: atoms or a map, blurred to a resolution, on the grid of a box.

The resolution r of a density is twice the standard deviation of the Gaussian it was blurred with,
sigma = r / 2, as in Situs pdb2vol. The Gaussian passes 61 % at spacing pi r, and 8 % at spacing
1.4 r, so that a density "at 24 A" by this rule is smoother than a map whose FSC ends at 24 A.
"""

import math
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from jimjax.io.errors import InputError
from jimjax.io.files import open_input
from jimjax.io.mrc import read_volume

ATOM_FORMATS = {
    ".pdb": gemmi.CoorFormat.Pdb,
    ".ent": gemmi.CoorFormat.Pdb,
    ".cif": gemmi.CoorFormat.Mmcif,
    ".mmcif": gemmi.CoorFormat.Mmcif,
}
MAP_SUFFIXES = (".mrc", ".map", ".ccp4", ".rec")
RESOLUTION_IN_SIGMAS = 2.0  # Situs pdb2vol: "target resolution (2 sigma)"
STEPS_PER_SIGMA = 4  # grid steps: an atom's height is then right to 2 %, a molecule's to 0.1 %
STEPS_PER_VOXEL = 4  # grid steps, at most: bounds the memory where sigma is short
MARGIN_IN_SIGMAS = 4.0  # padding against the periodic edge
MAP_SUPPORT = 0.1  # of the blurred maximum: the molecule ends where a map falls below it


class _Grid(NamedTuple):
    """Samples at ``spacing`` (A); ``center`` is the centre of mass, x, y, z in grid steps."""

    values: np.ndarray
    spacing: float
    center: np.ndarray


def density_from_file(
    path: str | Path, *, voxel_size: float, resolution: float, box: int
) -> np.ndarray:
    """Reads a structure or a map as a density in a box, bright where there is mass.

    Atoms: the first model as deposited (no assembly is built), without waters and hydrogens, the
    first of alternative conformations; each atom is a Gaussian of its mass. Values are daltons per
    voxel. Maps: blurred by the same Gaussian on top of their own resolution; values keep the map's
    unit. Both are cut at the Nyquist frequency of ``voxel_size``, so resolutions below
    two voxels are not reached, and ring.

    Args:
        path: ``.pdb .ent .cif .mmcif`` for atoms, ``.mrc .map .ccp4 .rec`` for maps, or these
            with ``.gz``.
        voxel_size: angstrom per voxel of the result.
        resolution: angstrom, twice the standard deviation of the Gaussian.
        box: side of the result in voxels.

    Returns:
        ``(box, box, box)`` float32, ``[z, y, x]``; the centre of mass (of a map: of its positive
        part) lies at voxel ``box // 2``. Axes are those of the file.

    Raises:
        InputError: if the file cannot be read, has an unknown extension, no atoms, no voxel size
            or no positive density, or if the molecule, turned any way, does not fit the box;
            or if a number is not positive.
    """
    for name, number in (("voxel_size", voxel_size), ("resolution", resolution), ("box", box)):
        if not 0 < number < math.inf:
            raise InputError(f"{name} must be a positive number, got {number}")
    path = Path(path)
    sigma = resolution / RESOLUTION_IN_SIGMAS
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    if suffix.lower() in ATOM_FORMATS:
        positions, masses = _read_atoms(path, ATOM_FORMATS[suffix.lower()])
        center = masses @ positions / masses.sum()
        radius = np.linalg.norm(positions - center, axis=1).max() + sigma
        _check_fit(path, radius, voxel_size, box)
        grid = _deposit(positions - center, masses, sigma, voxel_size)
        density = _resample(grid, sigma, voxel_size, box, is_deposited=True)
    elif suffix.lower() in MAP_SUFFIXES:
        density = _read_map(path, sigma, voxel_size, box)
    else:
        known = " ".join((*ATOM_FORMATS, *MAP_SUFFIXES))
        raise InputError(f"{path}: unknown extension '{suffix}'; give one of {known}, or with .gz")
    return density.astype(np.float32)


def _read_atoms(path: Path, kind: gemmi.CoorFormat) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions ``(n, 3)`` in A and masses ``(n,)`` in Da of the heavy atoms."""
    open_input(path).close()
    try:
        structure = gemmi.read_structure(str(path), format=kind)
    except (RuntimeError, ValueError) as problem:
        raise InputError(f"{path}: is no valid structure: {problem}") from problem
    structure.remove_hydrogens()
    structure.remove_waters()
    atoms = _first_conformers(structure[0]) if len(structure) else []
    masses = np.array([atom.element.weight for atom in atoms])
    if not masses.any():
        raise InputError(f"{path}: has no atoms besides waters and hydrogens; check the file")
    positions = np.array([atom.pos.tolist() for atom in atoms])
    if not np.isfinite(positions).all():
        raise InputError(f"{path}: has atoms whose coordinates are not finite numbers")
    return positions[masses > 0], masses[masses > 0]


def _first_conformers(model: gemmi.Model) -> list[gemmi.Atom]:
    """Atoms without alternatives, and the first of those that have some.

    gemmi's own removal also takes atoms whose names repeat, as in files with wrapped numbering.
    """
    atoms, seen = [], set()
    for site in model.all():
        if site.atom.has_altloc():
            place = (site.chain.name, str(site.residue.seqid), site.atom.name)
            if place in seen:
                continue
            seen.add(place)
        atoms.append(site.atom)
    return atoms


def _deposit(positions: np.ndarray, masses: np.ndarray, sigma: float, voxel_size: float) -> _Grid:
    """Spreads each mass trilinearly over the eight grid points around it."""
    spacing = max(voxel_size / STEPS_PER_VOXEL, sigma / STEPS_PER_SIGMA)
    margin = MARGIN_IN_SIGMAS * sigma + spacing
    steps = (positions - positions.min(0) + margin) / spacing
    sides = np.ceil(steps.max(0) + margin / spacing).astype(int) + 1
    values = np.zeros(tuple(sides[::-1]), np.float32)
    lower = np.floor(steps).astype(int)
    fraction = steps - lower
    for corner in np.ndindex(2, 2, 2):
        weights = np.where(corner, fraction, 1 - fraction).prod(1) * masses
        x, y, z = (lower + corner).T
        np.add.at(values, (z, y, x), weights.astype(np.float32))
    return _Grid(values, spacing, (margin - positions.min(0)) / spacing)


def _read_map(path: Path, sigma: float, voxel_size: float, box: int) -> np.ndarray:
    volume = read_volume(path)
    if volume.voxel_size is None:
        raise InputError(f"{path}: the header gives no voxel size; set it in the file first")
    values, spacing = volume.data, volume.voxel_size
    if not np.isfinite(values).all():
        raise InputError(f"{path}: has voxels that are not finite numbers")
    positive = np.maximum(values, 0).astype(float)
    if not positive.any():
        raise InputError(f"{path}: has no positive density; mass must be bright, negate it first")
    center = np.empty(3)
    for axis, size in enumerate(values.shape):
        others = tuple({0, 1, 2} - {axis})
        center[2 - axis] = positive.sum(others) @ np.arange(size) / positive.sum()
    reach = spacing * np.maximum(center, np.array(values.shape[::-1]) - 1 - center).max()
    whole = 2 * math.ceil((reach + sigma) / voxel_size) + box
    whole += (whole - box) % 2  # same parity, so that both centres are voxel n // 2
    density = _resample(_Grid(values, spacing, center), sigma, voxel_size, whole)
    support = np.argwhere(density > MAP_SUPPORT * density.max()) - whole // 2
    _check_fit(path, np.linalg.norm(support, axis=1).max() * voxel_size, voxel_size, box)
    inner = slice(whole // 2 - box // 2, whole // 2 - box // 2 + box)
    return density[inner, inner, inner]


def _check_fit(path: Path, radius: float, voxel_size: float, box: int) -> None:
    """Raises unless a sphere about the centre of mass fits, as the molecule will be turned."""
    room = (box - 1) // 2 * voxel_size
    if radius > room:
        needed = 2 * math.ceil(radius / voxel_size) + 1
        needed += needed % 2
        raise InputError(
            f"{path}: does not fit the box: it reaches {radius:.0f} A from its centre of mass,"
            f" {radius - room:.0f} A beyond the {room:.0f} A of {box} voxels of {voxel_size:g} A;"
            f" use a box of {needed} voxels or larger voxels"
        )


def _resample(
    grid: _Grid, sigma: float, voxel_size: float, box: int, *, is_deposited: bool = False
) -> np.ndarray:
    """Blurs and resamples to a box about the grid's centre of mass.

    Every filter is separable, so one matrix for each axis does all of it. Deposited masses are
    freed of the trilinear kernel and returned as mass per voxel.
    """
    step = voxel_size / grid.spacing
    values = grid.values.astype(np.float32)
    for axis, size in enumerate(values.shape):
        places = grid.center[2 - axis] + (np.arange(box) - box // 2) * step
        matrix = _sampling_matrix(places, size, sigma / grid.spacing, step, is_deposited)
        values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
    return values


def _sampling_matrix(
    places: np.ndarray, size: int, sigma: float, step: float, is_deposited: bool
) -> np.ndarray:
    """Returns ``(places, size)``: samples of the blurred, band-limited function through a grid.

        A[i, j] = 1/n sum_k T(k/n) cos(2 pi (p_i - j) k/n),   T(f) = exp(-2 (pi sigma f)^2)

    over the frequencies below the Nyquist of both grids; ``n`` is padded against wrapping round.
    """
    reach = max(places.max(), size - 1) - min(places.min(), 0)
    period = math.ceil(reach + MARGIN_IN_SIGMAS * sigma) + 1
    frequency = np.arange(-(period // 2), period // 2 + 1) / period
    frequency = frequency[np.abs(frequency) < 0.5 / max(step, 1.0)]
    transfer = np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    if is_deposited:
        transfer *= step / np.sinc(frequency) ** 2
    wave = np.exp(2j * np.pi * frequency * places[:, None]) * transfer / period
    matrix = wave @ np.exp(-2j * np.pi * frequency[:, None] * np.arange(size))
    return matrix.real.astype(np.float32)
