"""Densities from atoms and maps: place, axes, mass, width, and what does not fit."""

import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest

from jimjax.data.structures import density_from_file
from jimjax.io.mrc import write_volume

SHARED = Path(__file__).parents[3] / "shared" / "data"
MASSES = {"C": 12.011, "N": 14.007, "O": 15.999, "P": 30.974}
SETTINGS = {"voxel_size": 5.0, "resolution": 12.0, "box": 16}

needs_shared = pytest.mark.skipif(
    not (SHARED / "structures").is_dir(), reason="the shared structures are not beside the project"
)


def pdb_line(position, element="C", residue="GLY", altloc=" ", serial=1):
    x, y, z = position
    return (
        f"ATOM  {serial:5d}  {element:<3s}{altloc}{residue} A{serial % 9999:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {element:>2s}\n"
    )


def write_pdb(path, *lines):
    path.write_text("".join(lines) + "END\n")
    return path


def gaussians(positions, masses, sigma, voxel_size, box):
    """The slow twin: mass per voxel, about the centre of mass at voxel box // 2."""
    positions = np.asarray(positions) - np.average(positions, axis=0, weights=masses)
    z, y, x = (np.indices((box, box, box)) - box // 2) * voxel_size
    density = np.zeros((box, box, box))
    for (px, py, pz), mass in zip(positions, masses, strict=True):
        squared = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
        density += mass * np.exp(-squared / (2 * sigma**2))
    return density * (voxel_size / (np.sqrt(2 * np.pi) * sigma)) ** 3


@pytest.mark.parametrize("box", [15, 16])
def test_one_atom_is_a_gaussian_of_its_mass_at_the_box_centre(tmp_path, box):
    path = write_pdb(tmp_path / "one.pdb", pdb_line((31.3, -7.7, 12.9), "P"))
    density = density_from_file(path, **SETTINGS | {"box": box})
    expected = gaussians([(0, 0, 0)], [MASSES["P"]], 6.0, 5.0, box)
    # Trilinear deposition of one atom on steps of sigma / 4 moves its height by up to 2 %.
    np.testing.assert_allclose(density, expected, atol=2e-2 * expected.max())
    np.testing.assert_allclose(density.sum(), MASSES["P"], rtol=1e-4)
    assert density.dtype == np.float32


@pytest.mark.parametrize(
    ("voxel_size", "resolution", "box"), [(5.0, 12.0, 16), (2.0, 12.0, 32), (12.0, 24.0, 12)]
)
def test_atoms_agree_with_gaussians_added_one_by_one(tmp_path, voxel_size, resolution, box):
    generator = np.random.default_rng(0)
    positions = generator.normal(scale=(8, 5, 3), size=(40, 3)).round(3)
    elements = generator.choice(list(MASSES), 40)
    path = write_pdb(tmp_path / "many.pdb", *map(pdb_line, positions, elements))
    masses = [MASSES[element] for element in elements]
    density = density_from_file(path, voxel_size=voxel_size, resolution=resolution, box=box)
    expected = gaussians(positions, masses, resolution / 2, voxel_size, box)
    # At a resolution of two voxels 0.7 % of the amplitude lies beyond Nyquist and is cut.
    np.testing.assert_allclose(density, expected, atol=1e-2 * expected.max())
    assert np.corrcoef(density.ravel(), expected.ravel())[0, 1] > 0.9999


def test_waters_hydrogens_second_conformers_and_second_models_are_left_out(tmp_path):
    kept = pdb_line((0, 0, 0), serial=1), pdb_line((10, 4, -6), "N", altloc="A", serial=2)
    extra = (
        pdb_line((20, 0, 0), "H", serial=3),
        pdb_line((0, 20, 0), "O", residue="HOH", serial=4),
    )
    second = pdb_line((12, 4, -6), "N", altloc="B", serial=2)
    plain = write_pdb(tmp_path / "plain.pdb", *kept)
    full = write_pdb(
        tmp_path / "full.pdb",
        "MODEL        1\n",
        *(*kept, second, *extra),
        "ENDMDL\nMODEL        2\n",
        pdb_line((-20, 0, 0), "P"),
        "ENDMDL\n",
    )
    expected = density_from_file(plain, **SETTINGS)
    np.testing.assert_allclose(density_from_file(full, **SETTINGS), expected, atol=1e-6)
    np.testing.assert_allclose(expected.sum(), MASSES["C"] + MASSES["N"], rtol=1e-4)


@pytest.mark.parametrize("name", ["x.cif", "x.mmcif", "x.cif.gz", "x.pdb.gz", "x.ent", "X.PDB"])
def test_every_atom_format_gives_the_same_density(tmp_path, name):
    lines = [pdb_line(p, serial=i + 1) for i, p in enumerate([(0, 0, 0), (9, 1, 0), (0, 5, 12)])]
    pdb = write_pdb(tmp_path / "source.pdb", *lines)
    text = pdb.read_text()
    if "cif" in name:
        text = gemmi.read_structure(str(pdb)).make_mmcif_document().as_string()
    data = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    (tmp_path / name).write_bytes(data)
    expected = density_from_file(pdb, **SETTINGS)
    np.testing.assert_allclose(density_from_file(tmp_path / name, **SETTINGS), expected, atol=1e-6)


def blob_map(path, shape, center, sigma, spacing=4.0):
    """Writes a Gaussian blob of height 1; ``center`` and ``sigma`` in A, center as x, y, z."""
    z, y, x = np.indices(shape) * spacing
    squared = (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2
    write_volume(path, np.exp(-squared / (2 * sigma**2)).astype(np.float32), voxel_size=spacing)
    return path


@pytest.mark.parametrize("voxel_size", [4.0, 6.5, 3.0])
@pytest.mark.parametrize("box", [20, 21])
def test_a_map_is_blurred_resampled_and_centred(tmp_path, voxel_size, box):
    path = blob_map(tmp_path / "blob.mrc", (20, 24, 28), (41.0, 53.0, 38.0), sigma=6.0)
    density = density_from_file(path, voxel_size=voxel_size, resolution=14.0, box=box)
    variance = 6.0**2 + 7.0**2
    squared = ((np.indices((box,) * 3) - box // 2) ** 2).sum(0) * voxel_size**2
    expected = (36 / variance) ** 1.5 * np.exp(-squared / (2 * variance))
    np.testing.assert_allclose(density, expected, atol=3e-3 * expected.max())


def test_axes_of_a_map_stay_where_they_are(tmp_path):
    blobs = [
        blob_map(tmp_path / f"{i}.mrc", (24, 24, 24), c, 5.0)
        for i, c in enumerate([(36.0, 44.0, 44.0), (64.0, 44.0, 44.0)])
    ]
    one, two = (density_from_file(p, voxel_size=4.0, resolution=8.0, box=24) for p in blobs)
    np.testing.assert_allclose(one, two, atol=1e-3 * one.max())  # centred: the same blob
    z, y, x = np.indices((24, 24, 24)) * 4.0
    near, far = (np.exp(-((x - c) ** 2 + (y - 44) ** 2 + (z - 44) ** 2) / 50) for c in (36, 64))
    write_volume(tmp_path / "pair.mrc", (near + 0.5 * far).astype(np.float32), voxel_size=4.0)
    pair = density_from_file(tmp_path / "pair.mrc", voxel_size=4.0, resolution=8.0, box=24)
    # Centre of mass at x = (36 + 0.5 * 64) / 1.5 = 45.33 A, so the large blob lies 9.33 A below 12.
    assert np.unravel_index(pair.argmax(), pair.shape) == (12, 12, 10)


def test_a_structure_that_does_not_fit_names_the_box_that_does(tmp_path):
    path = write_pdb(tmp_path / "long.pdb", pdb_line((0, 0, 0)), pdb_line((120, 0, 0), serial=2))
    # 60 A from the centre of mass plus sigma of 6 A; 16 voxels reach 7 * 5 A.
    message = "reaches 66 A .* 31 A beyond the 35 A of 16 voxels of 5 A; use a box of 30 voxels"
    with pytest.raises(ValueError, match=message):
        density_from_file(path, **SETTINGS)
    assert density_from_file(path, **SETTINGS | {"box": 30}).shape == (30, 30, 30)


def test_a_map_that_does_not_fit_names_a_box_that_does(tmp_path):
    path = blob_map(tmp_path / "large.mrc", (24, 24, 24), (46.0, 46.0, 46.0), sigma=20.0)
    with pytest.raises(ValueError, match="does not fit the box") as caught:
        density_from_file(path, **SETTINGS | {"box": 10})
    box = int(str(caught.value).split("use a box of ")[1].split()[0])
    assert density_from_file(path, **SETTINGS | {"box": box}).shape == (box, box, box)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.xyz", b"C 0 0 0", "unknown extension '.xyz'; give one of .pdb"),
        ("x.pdb", b"END\n", "has no atoms"),
        ("x.pdb", pdb_line((0, 0, 0), "O", "HOH").encode(), "has no atoms"),
        ("x.cif", b"nonsense {", "is no valid structure"),
        ("x.cif", b"data_empty\n", "has no atoms"),
        ("x.mrc", b"short", "x.mrc"),
    ],
)
def test_a_file_without_a_density_says_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        density_from_file(tmp_path / name, **SETTINGS)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"absent.pdb: cannot be read"):
        density_from_file(tmp_path / "absent.pdb", **SETTINGS)


def test_a_map_of_dark_protein_is_refused(tmp_path):
    write_volume(tmp_path / "dark.mrc", -np.ones((8, 8, 8), np.float32), voxel_size=4.0)
    with pytest.raises(ValueError, match="no positive density; mass must be bright"):
        density_from_file(tmp_path / "dark.mrc", **SETTINGS)


@pytest.mark.parametrize("name", ["voxel_size", "resolution", "box"])
def test_sizes_must_be_positive(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got 0"):
        density_from_file(tmp_path / "any.pdb", **SETTINGS | {name: 0})


@needs_shared
def test_the_spliceosome_fits_the_benchmark_box_with_its_whole_mass():
    path = SHARED / "structures" / "3jb9.cif"
    density = density_from_file(path, voxel_size=12.0, resolution=24.0, box=32)
    np.testing.assert_allclose(density.sum(), 1.152e6, rtol=1e-3)  # Da
    radial = (np.indices(density.shape) - 16).reshape(3, -1) @ density.ravel() / density.sum()
    np.testing.assert_allclose(radial, 0, atol=0.01)


@needs_shared
@pytest.mark.parametrize("name", ["1qvr", "3d2f"])
def test_atoms_and_an_independent_map_of_them_agree(name):
    atoms, mapped = (
        density_from_file(SHARED / path, voxel_size=10.0, resolution=30.0, box=32)
        for path in (f"structures/{name}.pdb", f"maps_5A/{name}.mrc")
    )
    assert np.corrcoef(atoms.ravel(), mapped.ravel())[0, 1] > 0.95
