"""Fast rotational matching: all rotations at once by spherical harmonics, then translations.

The magnitude of a spectrum does not know where the particle is, so that rotations can be found
before shifts. Expanded in spherical harmonics, its correlation over all of SO(3) is one
three-dimensional Fourier transform. Magnitudes are centrosymmetric: odd degrees vanish.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.ndimage import map_coordinates

from jimjax.ops import correlation, fourier, rotation, search
from jimjax.ops.search import Matches

MIN_OVERLAP = 0.05  # of a volume's energy; what two volumes share less of says nothing of a pose
OVERSAMPLING = 2  # of a spectrum whose magnitude is interpolated: its box, padded with the mean
SEPARATION = 2  # grid spacings between two candidates; closer ones belong to one peak


def fast_rotational_matching(
    template: jax.Array,
    volume: jax.Array,
    *,
    max_shift: float,
    template_wedge: jax.Array | None = None,
    volume_wedge: jax.Array | None = None,
    cutoff: float = 0.5,
    max_degree: int = 24,
    num_candidates: int = 32,
    num_best: int = 1,
    order: int = 1,
) -> Matches:
    """Finds the poses that carry a template into a volume best, rotations before shifts.

    The highest local maxima of ``rotational_correlation`` are the candidates;
    ``search_rotations`` finds the shift of each and ranks them by constrained correlation. The
    rotation is one of ``matching_grid``, 180 / (max_degree + 1) degrees apart, and a constant for
    autodiff; scores and shifts are differentiable as those of ``search_rotations``.

    Args:
        template: ``(z, y, x)``.
        volume: same shape.
        max_shift: largest shift along any axis, voxels. May be traced.
        template_wedge: as in ``search_rotations``.
        volume_wedge: as in ``search_rotations``.
        cutoff: radius of the band, cycles per voxel, at most 0.5.
        max_degree: highest degree of the harmonics, even.
        num_candidates: how many rotations are tried with all translations.
        num_best: how many of them to return.
        order: of the interpolation that turns the template, 1 or 3.

    Returns:
        ``Matches``, best first, two grid spacings apart or more.

    Raises:
        ValueError: if shapes do not fit or an option is out of range.
    """
    if num_candidates < num_best:
        raise ValueError(
            f"num_candidates must be at least num_best = {num_best}, got {num_candidates}"
        )
    scores = rotational_correlation(
        template,
        volume,
        max_degree=max_degree,
        template_wedge=template_wedge,
        volume_wedge=volume_wedge,
        cutoff=cutoff,
    )
    return search.search_rotations(
        template,
        volume,
        _candidates(scores, num_candidates),
        max_shift=max_shift,
        template_wedge=template_wedge,
        volume_wedge=volume_wedge,
        cutoff=cutoff,
        num_best=num_best,
        min_angle=_separation(max_degree),
        order=order,
    )


def _separation(max_degree: int) -> float:
    return SEPARATION * math.pi / (max_degree + 1)


@functools.partial(jax.jit, static_argnames="num")
def _candidates(scores: jax.Array, num: int) -> jax.Array:
    """The rotations of the highest local maxima on the grid, ``(num, 3, 3)``."""
    size = scores.shape[0]
    highest = scores
    for axis in (0, 2):
        highest = functools.reduce(jnp.maximum, [jnp.roll(highest, s, axis) for s in (-1, 0, 1)])
    # Beyond a pole the tilt comes back at rot + 180 and psi + 180 degrees.
    across = jnp.roll(highest, (size // 2, size // 2), (0, 2))
    extended = jnp.concatenate([across[:, 1:2], highest, across[:, -2:-1]], axis=1)
    around = jnp.maximum(jnp.maximum(extended[:, :-2], extended[:, 2:]), highest)
    peaks = jnp.where(scores >= around, scores, -jnp.inf).reshape(-1)
    max_degree = size // 2 - 1
    grid = matching_grid(max_degree).reshape(-1, 3, 3).astype(scores.dtype)
    return grid[search.pick_distinct(peaks, grid, num=num, min_angle=_separation(max_degree))]


def matching_grid(max_degree: int) -> jax.Array:
    """Lists the rotations that ``rotational_correlation`` scores.

    Args:
        max_degree: highest degree of the harmonics.

    Returns:
        ``(n, n // 2 + 1, n, 3, 3)`` with n = 2 (max_degree + 1): ``Rz(rot) Ry(tilt) Rz(psi)`` in
        steps of 360 / n degrees, rot and psi all round, tilt from 0 to 180.
    """
    size = 2 * (max_degree + 1)
    angle = 2 * jnp.pi / size * jnp.arange(size)
    axes = jnp.meshgrid(angle, angle[: size // 2 + 1], angle, indexing="ij")
    angles = jnp.stack(axes, axis=-1)
    return jax.vmap(rotation.from_zyz)(angles.reshape(-1, 3)).reshape(*angles.shape, 3)


def rotational_correlation(
    template: jax.Array,
    volume: jax.Array,
    *,
    max_degree: int,
    template_wedge: jax.Array | None = None,
    volume_wedge: jax.Array | None = None,
    cutoff: float = 0.5,
) -> jax.Array:
    """Correlates the Fourier magnitudes of two volumes over all rotations of one of them.

    With A the magnitudes, M what has been measured and (f * g)(R) the sum of f(k) g(R^T k) over
    the spheres |k| = r / n, r = 1, 2, ..., weighted by r^2, the score is

        (A_v M_v^2 * A_t M_t^2) / sqrt((A_v^2 M_v^2 * M_t^2) (M_v^2 * A_t^2 M_t^2))

    Every * is truncated at ``max_degree``, so that scores may exceed 1 a little. Magnitudes are
    interpolated between the coefficients of a box padded to twice its size.

    Args:
        template: ``(z, y, x)``, the one that turns.
        volume: same shape.
        max_degree: highest degree of the harmonics, even.
        template_wedge: as in ``search_rotations``.
        volume_wedge: as in ``search_rotations``.
        cutoff: radius of the outermost sphere, cycles per voxel, at most 0.5.

    Returns:
        ``(n, n // 2 + 1, n)``, n = 2 (max_degree + 1): scores at the rotations of
        ``matching_grid``; 0 where the volumes share next to nothing, or if either is constant.

    Raises:
        ValueError: if shapes do not fit or an option is out of range.
    """
    _check(template, volume, max_degree, cutoff)
    return _correlate(
        template, volume, template_wedge, volume_wedge, max_degree=max_degree, cutoff=float(cutoff)
    )


@functools.partial(jax.jit, static_argnames=("max_degree", "cutoff"))
def _correlate(
    template: jax.Array,
    volume: jax.Array,
    template_wedge: jax.Array | None,
    volume_wedge: jax.Array | None,
    *,
    max_degree: int,
    cutoff: float,
) -> jax.Array:
    dtype = jnp.promote_types(jnp.result_type(template, volume), jnp.float32)
    side = min(volume.shape)
    highest = math.floor((cutoff + fourier.FREQUENCY_TOLERANCE) * side)
    radii = np.arange(1, highest + 1)
    expand = functools.partial(_coefficients, radii=radii / side, max_degree=max_degree)
    own = expand(volume.astype(dtype), volume_wedge)
    turned = expand(template.astype(dtype), template_wedge)
    weights = jnp.asarray(radii**2, dtype)
    # In the order of the formula: one numerator, two squared norms.
    pairs = own, turned[jnp.array([0, 2, 1])]
    overlap, own_energy, turned_energy = _correlate_coefficients(*pairs, weights)

    total = [_integral(coefficients[1], weights) for coefficients in (own, turned)]
    shares = (own_energy > MIN_OVERLAP * total[0]) & (turned_energy > MIN_OVERLAP * total[1])
    power = jnp.where(shares, own_energy, 1) * jnp.where(shares, turned_energy, 1)
    return jnp.where(shares, overlap * lax.rsqrt(power), 0)


def _coefficients(
    volume: jax.Array, measured: jax.Array | None, *, radii: np.ndarray, max_degree: int
) -> jax.Array:
    """Expands A M^2, A^2 M^2 and M^2 in harmonics on shells: ``(3, shell, l / 2, m)``."""
    cosines, quadrature = np.polynomial.legendre.leggauss(2 * (max_degree + 1))
    # The other half of the sphere is the mirror image.
    cosines, quadrature = cosines[max_degree + 1 :], 2 * quadrature[max_degree + 1 :]
    # Twice as many as the degrees need: what lies beyond them folds back less.
    num_azimuths = 4 * (max_degree + 1)
    points = radii[:, None, None, None] * _directions(cosines, num_azimuths)

    padded = tuple(OVERSAMPLING * size for size in volume.shape)
    magnitude = _sample(jnp.abs(jnp.fft.rfftn(_centred(volume), s=padded)), padded, points)
    is_tilt_range = measured is not None and measured.shape == (2,)
    grid = padded if is_tilt_range else volume.shape
    mask = _sample(search.measured_mask(grid, measured).astype(volume.dtype), grid, points) ** 2
    functions = jnp.stack([magnitude * mask, magnitude**2 * mask, mask])

    orders = np.arange(-max_degree, max_degree + 1)
    waves = jnp.fft.fft(functions)[..., orders] * (2 * np.pi / num_azimuths)
    table = quadrature * _legendre(cosines, max_degree)
    return _einsum("frtm,lmt->frlm", waves, jnp.asarray(table, volume.dtype))


def _centred(volume: jax.Array) -> jax.Array:
    """Takes the mean away; what is only the rounding error of a constant becomes 0."""
    centred = volume - volume.mean()
    floor = correlation.FLAT_CONTRAST * jnp.finfo(volume.dtype).eps
    has_contrast = jnp.sum(centred**2) > floor**2 * jnp.sum(volume**2)
    return jnp.where(has_contrast, centred, 0)


def _directions(cosines: np.ndarray, num_azimuths: int) -> np.ndarray:
    """Unit vectors ``(polar, azimuth, 3)``, ``(x, y, z)``."""
    azimuths = 2 * np.pi * np.arange(num_azimuths) / num_azimuths
    sines = np.sqrt(1 - cosines**2)[:, None]
    return np.stack(
        np.broadcast_arrays(sines * np.cos(azimuths), sines * np.sin(azimuths), cosines[:, None]),
        axis=-1,
    )


def _sample(half: jax.Array, shape: tuple[int, ...], points: np.ndarray) -> jax.Array:
    """Interpolates a real centrosymmetric half spectrum at frequencies ``(..., 3)``."""
    points = np.where(points[..., :1] < 0, -points, points)
    z, y, x = (points[..., 2 - axis] * size for axis, size in enumerate(shape))
    # An odd box has no coefficient at Nyquist; wrapping would take the one at 0.
    positions = z, y, np.minimum(x, shape[2] // 2)
    return map_coordinates(
        half, [jnp.asarray(p, half.dtype) for p in positions], order=1, mode="wrap"
    )


def _legendre(cosines: np.ndarray, max_degree: int) -> np.ndarray:
    """Y_lm at azimuth 0, ``(l / 2, m, polar)``; with Condon-Shortley phase."""
    factors = _wigner_factors(max_degree)
    orders = np.arange(-max_degree, max_degree + 1)
    waves = np.exp(-1j * orders[:, None] * np.arccos(cosines))
    wigner = np.einsum("lmk,lk,kt->lmt", factors, factors[:, max_degree].conj(), waves).real
    degrees = np.arange(0, max_degree + 1, 2)
    return np.sqrt((2 * degrees + 1) / (4 * np.pi))[:, None, None] * wigner


@functools.cache
def _wigner_factors(max_degree: int) -> np.ndarray:
    """Eigenvectors v of J_y for even degrees, ``(l / 2, m, k)``, 0 where |m| or |k| exceeds l.

    They are what makes a Wigner matrix a Fourier series in the tilt,

        d^l_mn(tilt) = sum_k v_mk conj(v_nk) exp(-i k tilt),

    the factorisation by d^l(90 degrees) up to phases that cancel.
    """
    size = 2 * max_degree + 1
    factors = np.zeros((max_degree // 2 + 1, size, size), complex)
    for degree in range(0, max_degree + 1, 2):
        order = np.arange(-degree, degree)
        raising = np.diag(np.sqrt((degree - order) * (degree + order + 1.0)), -1)
        inside = slice(max_degree - degree, max_degree + degree + 1)
        # Eigenvalues are -l .. l, in ascending order.
        factors[degree // 2, inside, inside] = np.linalg.eigh((raising - raising.T) / 2j)[1]
    return factors


def _correlate_coefficients(own: jax.Array, turned: jax.Array, weights: jax.Array) -> jax.Array:
    """Correlates pairs of expansions over the rotation grid, ``(pair, n, n // 2 + 1, n)``.

    sum over l, m, n of  conj(f_lm) D^l_mn(R) g_ln,
    D^l_mn = exp(-i m rot) d^l_mn(tilt) exp(-i n psi)
    """
    max_degree = own.shape[-1] // 2
    products = _einsum("frlm,frln,r->lfmn", own.conj(), turned, weights.astype(own.dtype))
    factors = jnp.asarray(_wigner_factors(max_degree), own.dtype)

    # One degree at a time: all at once would hold a cube of coefficients for each.
    def add(total: jax.Array, degree: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        product, factor = degree
        wigner = factor[:, :, None] * factor.conj().T[None]
        return total + product[:, :, None, :] * wigner, None

    num_pairs, size = own.shape[0], 2 * (max_degree + 1)
    series = jnp.zeros((num_pairs, *[size - 1] * 3), own.dtype)
    series, _ = lax.scan(add, series, (products, factors))
    series = jnp.pad(series, [(0, 0), *[(0, 1)] * 3])
    series = jnp.roll(series, (-max_degree,) * 3, (1, 2, 3))
    return jnp.fft.fftn(series, axes=(1, 2, 3)).real[:, :, : size // 2 + 1]


def _integral(coefficients: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum over shells of the integral over the sphere; of ``(shell, l / 2, m)``."""
    constant = coefficients[:, 0, coefficients.shape[-1] // 2].real
    return jnp.sum(weights * constant) * math.sqrt(4 * math.pi)


def _einsum(subscripts: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


def _check(template: jax.Array, volume: jax.Array, max_degree: int, cutoff: float) -> None:
    if jnp.ndim(volume) != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {jnp.shape(volume)}; vmap a batch")
    if jnp.shape(template) != jnp.shape(volume):
        raise ValueError(
            f"template must have the volume's shape {jnp.shape(volume)}, got "
            f"{jnp.shape(template)}; crop or pad it first"
        )
    if max_degree < 2 or max_degree % 2:
        raise ValueError(
            f"max_degree must be an even number above 0, got {max_degree}; odd degrees of a "
            "magnitude vanish"
        )
    if not 1 / min(volume.shape) <= cutoff <= 0.5:
        raise ValueError(
            f"cutoff must be in [{1 / min(volume.shape):.3g}, 0.5] cycles per voxel, got {cutoff}"
        )
