"""Import of an .npz: the tilt range behind a mask, its sign, and the files written."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.data.npz_import import fit_tilt_range, import_npz
from jimjax.data.subtomograms import load
from jimjax.io.mrc import read_volume
from jimjax.ops.wedge import wedge_mask

RIBOSOMES = Path(__file__).parents[3] / "shared/data/real/ribosome70S_real_20x32_12A.npz"


def full_mask(size, low, high):
    """The wedge convention written out: atan2(kz, kx) in [low, high], zero frequency centred."""
    kz, _, kx = np.indices((size,) * 3) - size // 2
    angle = (np.degrees(np.arctan2(kz, kx)) + 90) % 180 - 90
    return ((angle >= low) & (angle <= high)) | ((kz == 0) & (kx == 0))


def arrays(**changes):
    generator = np.random.default_rng(0)
    contents = {
        "subtomograms": generator.normal(size=(3, 16, 16, 16)).astype(np.float32),
        "wedge_mask": np.stack([full_mask(16, -40, 70)] * 2 + [full_mask(16, -70, 40)]),
        "rot_ref_to_tomo_xyz": Rotation.random(3, random_state=0).as_matrix(),
        "warp_reference": generator.normal(size=(16, 16, 16)),
        "voxel_size_A": np.array(12.0),
    }
    return contents | changes


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize(("low", "high"), [(-60, 60), (-47, 76), (-76, 47), (-80, -5), (-90, 90)])
def test_the_tilt_range_of_an_analytic_mask_is_found_with_its_sign(size, low, high):
    fit = fit_tilt_range(full_mask(size, low, high))
    assert fit.agreement == 1.0
    np.testing.assert_allclose(
        fit.tilt_range, (low, high), atol=3
    )  # angles at 24^3 are that sparse


def test_the_fitted_range_reproduces_the_mask_through_the_wedge_operator():
    mask = full_mask(17, -47, 63)  # odd: no Nyquist plane, so the grids are the same
    fit = fit_tilt_range(mask)
    rebuilt = wedge_mask(mask.shape, jnp.asarray(fit.tilt_range, jnp.float32))
    in_band = (np.indices(mask.shape) - 8 <= 8).all(0)
    half = np.fft.ifftshift(mask & in_band)[:, :, : 17 // 2 + 1]
    np.testing.assert_array_equal(rebuilt, half)


def test_a_spherical_cut_is_no_disagreement():
    mask = full_mask(32, -50, 60) & (((np.indices((32,) * 3) - 16) ** 2).sum(0) <= 12**2)
    fit = fit_tilt_range(mask)
    assert fit.agreement == 1.0
    np.testing.assert_allclose(fit.tilt_range, (-50, 60), atol=3)


def test_damage_to_a_mask_lowers_the_agreement_not_the_range():
    mask = full_mask(24, -50, 60)
    flipped = np.random.default_rng(0).random(mask.shape) < 0.1
    flipped[12, 12, 12] = False
    fit = fit_tilt_range(mask ^ flipped)
    np.testing.assert_allclose(fit.tilt_range, (-50, 60), atol=4)
    np.testing.assert_allclose(fit.agreement, 0.9, atol=0.01)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((4, 4)), r"must be a cube \(n, n, n\), got shape \(4, 4\)"),
        (np.zeros((8, 8, 8)), "must measure zero frequency, at voxel 4"),
        (np.roll(full_mask(16, -60, 60), 8, axis=0), "must measure zero frequency, at voxel 8"),
    ],
)
def test_what_is_no_wedge_mask_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        fit_tilt_range(mask)


def test_what_is_imported_loads_as_it_was(tmp_path):
    contents = arrays()
    np.savez(tmp_path / "in.npz", **contents)
    imported = import_npz(tmp_path / "in.npz", tmp_path / "out")
    particles = load(imported.star_path, with_poses=True)
    np.testing.assert_array_equal(particles.volumes, contents["subtomograms"])
    np.testing.assert_allclose(particles.rotations, contents["rot_ref_to_tomo_xyz"], atol=1e-5)
    np.testing.assert_array_equal(particles.shifts, np.zeros((3, 3)))
    np.testing.assert_allclose(particles.tilt_ranges, imported.tilt_ranges, atol=1e-3)
    np.testing.assert_allclose(particles.tilt_ranges[:, 0], [-40, -40, -70], atol=5)
    np.testing.assert_array_equal(particles.halves, [1, 2, 1])
    assert particles.voxel_size == 12.0
    reference = read_volume(imported.reference_path)
    np.testing.assert_allclose(reference.data, contents["warp_reference"], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subtomograms": np.zeros((3, 16, 16, 8))}, "subtomograms must be .* cubes"),
        ({"wedge_mask": np.zeros((3, 8, 8, 8))}, "wedge_mask must have shape"),
        ({"rot_ref_to_tomo_xyz": np.zeros((3, 3, 3))}, "must be rotation matrices"),
        ({"rot_ref_to_tomo_xyz": -np.stack([np.eye(3)] * 3)}, "must be rotation matrices"),
        ({"warp_reference": np.full((16, 16, 16), np.nan)}, "warp_reference has values"),
        ({"voxel_size_A": np.array(0.0)}, "voxel_size_A must be positive"),
    ],
)
def test_misshapen_arrays_are_named(tmp_path, changes, message):
    np.savez(tmp_path / "in.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=message):
        import_npz(tmp_path / "in.npz", tmp_path)


def test_missing_arrays_are_named(tmp_path):
    np.savez(tmp_path / "in.npz", subtomograms=np.zeros(3))
    with pytest.raises(ValueError, match=r"arrays rot_ref_to_tomo_xyz, .* missing; found subtomo"):
        import_npz(tmp_path / "in.npz", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "in.npz").write_bytes(content)
    with pytest.raises(ValueError, match="is no NumPy archive"):
        import_npz(tmp_path / "in.npz", tmp_path)


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "in.npz", **arrays(wedge_mask=np.array([{}], dtype=object)))
    with pytest.raises(ValueError, match="is no NumPy archive of plain arrays"):
        import_npz(tmp_path / "in.npz", tmp_path)


@pytest.mark.skipif(not RIBOSOMES.is_file(), reason="the shared ribosomes are not there")
def test_tilt_ranges_of_real_ribosomes_are_positive_side_heavy(tmp_path):
    imported = import_npz(RIBOSOMES, tmp_path)
    assert len(load(imported.star_path)) == 20
    # Recorded as -47..+76 and -54..+61; masks reach further by half the thickness of a slice.
    np.testing.assert_allclose(imported.tilt_ranges[:10], [[-47, 76]] * 10, atol=6)
    np.testing.assert_allclose(imported.tilt_ranges[10:], [[-54, 61]] * 10, atol=6)
    assert imported.agreements[:10].min() > 0.9  # tilts were left out there
    assert imported.agreements[10:].min() > 0.96
