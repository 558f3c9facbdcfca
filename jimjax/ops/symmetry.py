"""Point groups: their rotations, poses and grids modulo them, and symmetric averages.

A group is a stack of rotations ``(order, 3, 3)``, identity first, that leave the reference as it
is. ``R`` carries the reference into the particle, so ``R`` and ``R @ g`` are the same pose for
every ``g`` of the group. The settings (which axis lies where) are RELION's.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jimjax.ops import resample
from jimjax.ops._precision import narrow, widen
from jimjax.ops.rotation import geodesic_angle, super_fibonacci

GOLDEN_RATIO = (1 + np.sqrt(5)) / 2
X, Z = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
# Fold and direction of two axes that generate the group, RELION documentation, "Conventions".
POLYHEDRAL_AXES = {
    "T": ((3, Z), (2, (0.0, np.sqrt(2), 1.0))),
    "O": ((4, Z), (3, (1.0, 1.0, 1.0))),
    "I1": ((2, Z), (5, (0.0, 1.0, GOLDEN_RATIO))),
    "I2": ((2, Z), (5, (1.0, 0.0, GOLDEN_RATIO))),
    "I3": ((5, Z), (5, (-2.0, 0.0, 1.0))),
    "I4": ((5, Z), (5, (2.0, 0.0, 1.0))),
}
SAME_ELEMENT = 1e-6  # largest difference of two matrices that are one element of a group
EXACT_DIGITS = 15  # decimals; turns the 6e-17 that float64 has for cos(pi / 2) into 0
TIE_ROUNDINGS = 32  # angles that differ by fewer float roundings are equal
# Roots of primes: hardly any two rotations that are equally far away weigh the same.
TIE_WEIGHTS = np.sqrt([[2.0, 3.0, 5.0], [7.0, 11.0, 13.0], [17.0, 19.0, 23.0]])
SO3_VOLUME = 8 * np.pi**2  # rad^3, where the distance of two rotations is their angle


def point_group(name: str) -> jax.Array:
    """Lists the rotations of a point group in RELION's setting.

    ====== ======== ===================================================================
    name   order    axes
    ====== ======== ===================================================================
    ``Cn`` n        n-fold on z
    ``Dn`` 2 n      n-fold on z, 2-fold on x
    ``T``  12       3-fold on z, a 2-fold at (0, sqrt 2, 1): not Heymann's setting
    ``O``  24       4-fold on x, y and z
    ``I1`` 60       2-fold on x, y and z; 5-fold nearest z in the yz plane (Heymann's I)
    ``I2`` 60       2-fold on x, y and z; 5-fold nearest z in the xz plane (Crowther's)
    ``I3`` 60       5-fold on z, 2-fold on y, next 5-fold at (-2, 0, 1)
    ``I4`` 60       5-fold on z, 2-fold on y, next 5-fold at (2, 0, 1)
    ``I``  60       ``I2``, as RELION reads it
    ====== ======== ===================================================================

    Args:
        name: as in the table, upper or lower case; ``C1`` is no symmetry.

    Returns:
        ``(order, 3, 3)`` rotations on ``(x, y, z)`` columns, identity first, always in the same
        order.

    Raises:
        ValueError: if there is no such group.

    Reference: RELION documentation, "Conventions", which adopts all but T from the 3DEM image
    conventions (EBI).
    """
    return jnp.asarray(_elements(name), jnp.result_type(float))


def _elements(name: str) -> np.ndarray:
    """The group in float64: products of its generators until nothing new appears."""
    generators = [_turn(fold, axis) for fold, axis in _axes(name)]
    elements = [np.eye(3)]
    for element in elements:  # grows while it is read
        for generator in generators:
            product = element @ generator
            if np.abs(np.stack(elements) - product).max(axis=(1, 2)).min() > SAME_ELEMENT:
                elements.append(product)
    return np.round(np.stack(elements), EXACT_DIGITS) + 0.0  # + 0.0 makes -0 a 0


def _axes(name: str) -> tuple[tuple[int, tuple[float, ...]], ...]:
    label = "I2" if name.upper() == "I" else name.upper()
    if label in POLYHEDRAL_AXES:
        return POLYHEDRAL_AXES[label]
    cyclic = re.fullmatch("([CD])([1-9][0-9]*)", label)
    if cyclic is None:
        raise ValueError(
            f"group must be C1, Cn, Dn, T, O, I or I1 to I4, got {name!r}; "
            "write the fold as a number, C4 or D7"
        )
    principal = (int(cyclic[2]), Z)
    return (principal,) if cyclic[1] == "C" else (principal, (2, X))


def _turn(fold: int, axis: tuple[float, ...]) -> np.ndarray:
    """Rotation by a full turn over ``fold`` about an axis of any length (Rodrigues)."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = 2 * np.pi / fold
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def reduce_by_symmetry(rotation: jax.Array, group: jax.Array) -> jax.Array:
    """Picks the equivalent of a rotation that is nearest the identity.

        R g*,   g* = argmin_g angle(R g)

    Every equivalent gives the same result. Where several are equally near (to rounding), a fixed
    weighting of their entries decides. The gradient is that of the chosen product, ``g*`` held.

    Args:
        rotation: ``(3, 3)``, carries the reference into the particle.
        group: ``(order, 3, 3)`` from ``point_group``.

    Returns:
        ``(3, 3)`` rotation.

    Raises:
        ValueError: if a shape is wrong.
    """
    candidates = _equivalents(rotation, group)
    identity = jnp.eye(3, dtype=candidates.dtype)
    angles = jax.vmap(geodesic_angle, in_axes=(0, None))(candidates, identity)
    slack = TIE_ROUNDINGS * jnp.finfo(angles.dtype).eps
    is_nearest = angles <= angles.min() + slack
    weights = jnp.sum(candidates * jnp.asarray(TIE_WEIGHTS, candidates.dtype), axis=(1, 2))
    return candidates[jnp.argmax(jnp.where(is_nearest, weights, -jnp.inf))]


def symmetric_angle(a: jax.Array, b: jax.Array, group: jax.Array) -> jax.Array:
    """Measures the angle between two rotations of a symmetric reference.

        min_g angle(a g, b)

    The gradient is zero at equal poses and the mean over the ``g`` that tie.

    Args:
        a: ``(3, 3)``, carries the reference into a particle.
        b: ``(3, 3)``, as ``a``.
        group: ``(order, 3, 3)`` from ``point_group``.

    Returns:
        Scalar in [0, pi], radians.

    Raises:
        ValueError: if a shape is wrong.
    """
    return jnp.min(jax.vmap(geodesic_angle, in_axes=(0, None))(_equivalents(a, group), b))


def _equivalents(rotation: jax.Array, group: jax.Array) -> jax.Array:
    _check_group(group)
    if jnp.shape(rotation) != (3, 3):
        raise ValueError(
            f"rotation must have shape (3, 3), got {jnp.shape(rotation)}; vmap a batch"
        )
    return jnp.matmul(rotation, group, precision=lax.Precision.HIGHEST)


def rotation_grid(spacing: float, *, group: str = "C1") -> jax.Array:
    """Spreads rotations evenly over those that a symmetric reference can tell apart.

    Of a ``super_fibonacci`` spiral of ``8 pi^2 / spacing^3`` rotations those stay that have no
    equivalent nearer the identity (``reduce_by_symmetry`` leaves them as they are): about one in
    ``order``, and their equivalents fill the rest.

    The spacing is the side of the cube that holds one rotation, near RELION's angular step:
    7.5 degrees are 35203 rotations for C1, its HEALPix grid has 36864. Measured with random
    rotations, spacings from 6 to 60 degrees and 14 groups: the farthest is 0.85 to 0.96 spacings
    from the grid for C1 and 0.73 to 1.16 for the others, where the spirals do not match at the
    border of the unit; the mean is 0.5.

    Args:
        spacing: radians, from more than 0 to pi. Static: it decides how many there are.
        group: name of a point group, as for ``point_group``.

    Returns:
        ``(num, 3, 3)`` rotations, always the same; the identity if the spacing is too wide for
        any other.

    Raises:
        ValueError: if the spacing is out of range or there is no such group.
    """
    if not 0 < spacing <= np.pi:
        raise ValueError(
            f"spacing must be more than 0 and at most pi radians, got {spacing}; "
            "convert degrees with numpy.deg2rad"
        )
    identity, *others = _elements(group)
    with jax.ensure_compile_time_eval():  # plain numbers, also while the caller is traced
        grid = np.asarray(super_fibonacci(int(np.ceil(SO3_VOLUME / spacing**3))))
    for element in others:
        # The larger trace is the smaller angle.
        grid = grid[np.einsum("nij,ji->n", grid, identity - element) >= 0]
    return jnp.asarray(grid if len(grid) else identity[None], jnp.result_type(float))


def symmetrize(volume: jax.Array, group: jax.Array, *, order: int = 1) -> jax.Array:
    """Averages a volume over the rotations of a group.

        out(p) = 1 / |G| sum_g volume(g^T p)

    One copy is held at a time, in the gradient as well. A copy counts as 0 where it comes from
    outside the box: keep the particle inside the sphere that touches the faces.

    Args:
        volume: ``(z, y, x)``, the symmetry axes through voxel ``n // 2``.
        group: ``(order, 3, 3)`` from ``point_group``.
        order: 0 nearest, 1 trilinear, 3 interpolating cubic B-spline.

    Returns:
        ``(z, y, x)``.

    Raises:
        ValueError: if the volume is not three-dimensional, ``group`` is no stack of rotations or
            ``order`` is not 0, 1 or 3.
    """
    _check_group(group)
    wide = widen(volume)

    # The checkpoint keeps autodiff from saving the positions of every copy.
    @jax.checkpoint
    def turn(element: jax.Array) -> jax.Array:
        return resample.rotate(wide, element, order=order)

    def add(total: jax.Array, element: jax.Array) -> tuple[jax.Array, None]:
        return total + turn(element), None

    copy = jax.eval_shape(turn, group[0])
    total, _ = lax.scan(add, jnp.zeros(copy.shape, copy.dtype), group)
    return narrow(total / len(group), volume)


def _check_group(group: jax.Array) -> None:
    if jnp.ndim(group) != 3 or jnp.shape(group)[0] < 1 or jnp.shape(group)[1:] != (3, 3):
        raise ValueError(
            f"group must be rotations (order, 3, 3), got shape {jnp.shape(group)}; "
            "make them with point_group"
        )
