"""The golden test: every sign of the conventions table, pinned by a chiral set of blobs.

The oracle is independent of the package: blobs are moved by hand-made matrices and rendered
by numpy, and the STAR files are literal text as RELION writes it.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.io import convert, write_volume
from jimjax.ops.resample import transform
from jimjax.ops.rotation import Pose

BOX = 16
VOXEL_SIZE = 6.0  # angstrom
WIDTH = 1.2  # voxels; the blobs end inside the box
ANGLES = (30.0, 50.0, 70.0)  # rot, tilt, psi, degrees
ORIGIN = (-9.0, 6.0, -3.0)  # angstrom
SHIFT = np.array([1.5, -1.0, 0.5])  # voxels, x, y, z
SPLINE_ERROR = 2e-2  # scipy's cubic spline is 1.4e-2 off these blobs, whose highest is 1

# Four blobs of different weight on no common plane: their mirror image is no rotation of them.
CENTERS = np.array([[-2.5, 1.0, -1.5], [-1.0, -2.0, 1.5], [2.5, -2.5, 0.0], [-0.5, 2.0, 0.0]])
WEIGHTS = np.array([1.0, 0.8, 0.6, 0.4])

# scipy 1.17: Rotation.from_euler("ZYZ", [30, 50, 70], degrees=True).as_matrix()
ROTATION = np.array(
    [
        [-0.2794538207, -0.6941091380, 0.6634139482],
        [0.9237208365, -0.0058132541, 0.3830222216],
        [-0.2620026302, 0.7198463104, 0.6427876097],
    ]
)

STAR = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 6.000000

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnAngleRot #2
_rlnAngleTilt #3
_rlnAnglePsi #4
_rlnOriginXAngst #5
_rlnOriginYAngst #6
_rlnOriginZAngst #7
_rlnOpticsGroup #8
particle.mrc 30.0 50.0 70.0 -9.0 6.0 -3.0 1
"""


def blobs(centers, shape=(BOX,) * 3):
    z, y, x = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) // 2
    volume = np.zeros(shape)
    for (cx, cy, cz), weight in zip(centers, WEIGHTS, strict=True):
        distance = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2
        volume += weight * np.exp(-distance / (2 * WIDTH**2))
    return volume.astype(np.float32)


def likeness(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def particle_at(rotation, shift):
    """The particle, exactly: its blobs are moved, not its voxels."""
    return blobs(CENTERS @ np.transpose(rotation) + shift)


def transformed(rotation, shift):
    pose = Pose(jnp.asarray(rotation, jnp.float32), jnp.asarray(shift, jnp.float32))
    return np.asarray(transform(jnp.asarray(blobs(CENTERS)), pose, order=3))


@pytest.fixture
def loaded(tmp_path):
    """A particle at the angles and origins of the literal STAR file, as a user would load it."""
    (tmp_path / "particles.star").write_text(STAR)
    write_volume(tmp_path / "particle.mrc", particle_at(ROTATION, SHIFT), voxel_size=VOXEL_SIZE)
    return load(tmp_path / "particles.star", tilt_range=(-60, 60), with_poses=True)


def test_relion_angles_are_scipys_intrinsic_zyz():
    np.testing.assert_allclose(convert.rotation_from_relion([ANGLES])[0], ROTATION, atol=1e-9)
    scipys = Rotation.from_euler("ZYZ", ANGLES, degrees=True).as_matrix()
    np.testing.assert_allclose(scipys, ROTATION, atol=1e-9)


def test_origin_is_minus_shift_times_voxel_size():
    np.testing.assert_allclose(convert.shift_from_relion([ORIGIN], VOXEL_SIZE)[0], SHIFT)


def test_loaded_pose_is_that_of_the_star_file(loaded):
    np.testing.assert_allclose(loaded.rotations[0], ROTATION, atol=1e-7)  # float32
    np.testing.assert_allclose(loaded.shifts[0], SHIFT, atol=1e-7)
    assert loaded.voxel_size == VOXEL_SIZE


def test_loaded_pose_carries_the_reference_into_the_particle(loaded):
    moved = transformed(loaded.rotations[0], loaded.shifts[0])
    np.testing.assert_allclose(moved, loaded.volumes[0], atol=SPLINE_ERROR)


@pytest.mark.parametrize("index", range(len(CENTERS)))
def test_each_blob_moves_to_rotation_times_center_plus_shift(index):
    x, y, z = np.rint(ROTATION @ CENTERS[index] + SHIFT).astype(int) + BOX // 2
    moved = transformed(ROTATION, SHIFT)
    expected = particle_at(ROTATION, SHIFT)
    np.testing.assert_allclose(moved[z, y, x], expected[z, y, x], atol=SPLINE_ERROR)
    around = moved[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
    assert around.mean() > 0.4 * WEIGHTS[index]  # a blob is there, not the tail of another


@pytest.mark.parametrize(
    ("rotation", "shift"),
    [
        (ROTATION.T, SHIFT),  # passive instead of active
        (ROTATION, -SHIFT),  # sign of the origin
        (ROTATION, SHIFT[::-1]),  # z, y, x instead of x, y, z
        (ROTATION, ROTATION @ SHIFT),  # shifted before it is rotated
        (ROTATION, ROTATION.T @ SHIFT),
        (ROTATION[::-1, ::-1], SHIFT),  # axes of the matrix in z, y, x
        (Rotation.from_euler("zyz", ANGLES, degrees=True).as_matrix(), SHIFT),  # extrinsic
        (Rotation.from_euler("ZYZ", np.negative(ANGLES), degrees=True).as_matrix(), SHIFT),
        (Rotation.from_euler("ZXZ", ANGLES, degrees=True).as_matrix(), SHIFT),
    ],
)
def test_every_other_convention_misses_the_particle(loaded, rotation, shift):
    assert likeness(transformed(ROTATION, SHIFT), loaded.volumes[0]) > 0.999
    assert likeness(transformed(rotation, shift), loaded.volumes[0]) < 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_reference_fits_in_no_orientation(axis):
    mirrored_centers = CENTERS * np.where(np.arange(3) == axis, -1, 1)
    reference = blobs(CENTERS)
    fits = [
        likeness(blobs(mirrored_centers @ R.T), reference)
        for R in Rotation.random(500, random_state=0).as_matrix()
    ]
    assert max(fits) < 0.9


def test_writing_and_loading_keeps_pose_and_voxels(loaded, tmp_path):
    to_star(loaded, tmp_path / "again.star", stack_path=tmp_path / "again.mrcs")
    again = load(tmp_path / "again.star", with_poses=True)
    np.testing.assert_array_equal(again.volumes, loaded.volumes)
    np.testing.assert_array_equal(again.shifts, loaded.shifts)
    np.testing.assert_allclose(again.rotations, loaded.rotations, atol=1e-7)  # float32


def test_written_star_has_relions_angles_and_origins(tmp_path):
    particles = Subtomograms(
        volumes=particle_at(ROTATION, SHIFT)[None],
        tilt_ranges=np.float32([[-60, 60]]),
        voxel_size=VOXEL_SIZE,
        names=("particle",),
        halves=np.array([1]),
        rotations=ROTATION[None],
        shifts=SHIFT[None],
    )
    to_star(particles, tmp_path / "p.star", stack_path=tmp_path / "p.mrcs")
    row = dict(zip(*_columns(tmp_path / "p.star"), strict=True))
    angles = [float(row[f"_rlnAngle{name}"]) for name in ("Rot", "Tilt", "Psi")]
    origins = [float(row[f"_rlnOrigin{axis}Angst"]) for axis in "XYZ"]
    np.testing.assert_allclose(angles, ANGLES, atol=1e-6)
    np.testing.assert_allclose(origins, ORIGIN, atol=1e-12)


def _columns(path):
    """Column names and values of the one particle, read without the package."""
    lines = path.read_text().split("data_particles")[1].splitlines()
    names = [line.split()[0] for line in lines if line.startswith("_")]
    return names, [line for line in lines if line.strip()][-1].split()
