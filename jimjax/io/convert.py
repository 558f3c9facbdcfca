"""Angles and origins of other programs, turned into ours and back.

The only module that knows foreign conventions. Ours: ``R`` is active and carries the
reference into the particle, ``particle(p) = reference(R^T (p - t))``, with ``p`` and ``t`` in
voxels, (x, y, z) columns, relative to the centre voxel ``n // 2``.

RELION's rot, tilt, psi are intrinsic ZYZ angles in degrees: ``R = Rz(rot) Ry(tilt) Rz(psi)``.
(RELION's own matrix carries the particle into the reference; it is the transpose of ``R``.)
RELION's origin is the shift that brings the particle back to the centre: ``t = -origin``.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from jimjax.io.errors import InputError


def rotation_from_relion(angles: ArrayLike) -> np.ndarray:
    """Turns RELION angles into active rotation matrices.

    Args:
        angles: ``(n, 3)`` rot, tilt, psi in degrees.

    Returns:
        ``(n, 3, 3)`` float64, reference into particle.

    Raises:
        InputError: if the shape differs or an angle is not finite.
    """
    angles = _finite(angles, (3,), "angles")
    if len(angles) == 0:
        return np.zeros((0, 3, 3))
    return Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()


def relion_from_rotation(rotations: ArrayLike) -> np.ndarray:
    """Turns active rotation matrices into RELION angles.

    At tilt 0 and 180 only rot + psi or rot - psi is determined; the whole turn is then
    put into psi. psi is read off after rot has been undone, so that the three angles
    give the matrix back however close it is to these poles.

    Args:
        rotations: ``(n, 3, 3)``, reference into particle.

    Returns:
        ``(n, 3)`` float64 rot, tilt, psi in degrees: rot and psi in [-180, 180], tilt in [0, 180].

    Raises:
        InputError: if the shape differs or a matrix is not a rotation within 1e-3.
    """
    R = _finite(rotations, (3, 3), "rotations")
    is_rotation = np.all(np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)) < 1e-3, axis=(1, 2))
    is_rotation &= np.linalg.det(R) > 0
    if not np.all(is_rotation):
        first = int(np.argmin(is_rotation))
        raise InputError(f"rotations[{first}] is no rotation matrix (not orthonormal, or mirrored)")
    sine = np.hypot(R[:, 0, 2], R[:, 1, 2])
    # Below float32 rounding the direction of the axis is noise: take rot = 0.
    is_pole = sine < 1e-6
    rot = np.where(is_pole, 0.0, np.arctan2(R[:, 1, 2], R[:, 0, 2]))
    tilt = np.arctan2(np.where(is_pole, 0.0, sine), R[:, 2, 2])
    # The second row of Rz(-rot) R is (sin psi, cos psi, 0), whatever the tilt.
    cosine, sine = np.cos(rot), np.sin(rot)
    psi = np.arctan2(
        cosine * R[:, 1, 0] - sine * R[:, 0, 0], cosine * R[:, 1, 1] - sine * R[:, 0, 1]
    )
    return np.rad2deg(np.stack([rot, tilt, psi], axis=-1))


def shift_from_relion(origins: ArrayLike, voxel_size: float) -> np.ndarray:
    """Turns RELION origins into particle displacements, ``t = -origin / voxel_size``.

    Args:
        origins: ``(n, 3)`` rlnOriginXAngst, Y, Z in angstrom.
        voxel_size: angstrom per voxel.

    Returns:
        ``(n, 3)`` float64, voxels, (x, y, z).

    Raises:
        InputError: if the shape differs, a value is not finite, or the voxel size not positive.
    """
    return 0.0 - _finite(origins, (3,), "origins") / _positive(voxel_size)


def relion_from_shift(shifts: ArrayLike, voxel_size: float) -> np.ndarray:
    """Turns particle displacements into RELION origins, ``origin = -t * voxel_size``.

    Args:
        shifts: ``(n, 3)`` voxels, (x, y, z).
        voxel_size: angstrom per voxel.

    Returns:
        ``(n, 3)`` float64, angstrom.

    Raises:
        InputError: as `shift_from_relion`.
    """
    return 0.0 - _finite(shifts, (3,), "shifts") * _positive(voxel_size)


def _finite(values: ArrayLike, item_shape: tuple[int, ...], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[1:] != item_shape:
        wanted = ", ".join(["n", *map(str, item_shape)])
        raise InputError(f"{name} must have shape ({wanted}), got {values.shape}")
    if not np.all(np.isfinite(values)):
        first = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(f"{name}[{first}] is not finite: {values[first].tolist()}")
    return values


def _positive(voxel_size: float) -> float:
    if not (np.isfinite(voxel_size) and voxel_size > 0):
        raise InputError(f"voxel_size must be positive and finite, got {voxel_size}")
    return float(voxel_size)
