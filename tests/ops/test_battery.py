"""What every op promises: it runs anywhere, under any transformation, and sums in float32."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax import ops
from jimjax.ops import kmeans, mixture, normal, warp2d

SHAPE = (8, 9, 10)
HALF = (8, 9, 6)
POSE = ops.Pose(ops.about_axis(0, 0.7) @ ops.about_axis(2, 0.3), jnp.array([0.6, -0.4, 0.3]))
TILTS = jnp.array([-60.0, 50.0])
KEY = jax.random.key(0)

# Numbers and shapes, not arrays: nothing to compile.
PLAIN = {
    "electron_wavelength",
    "fsc_resolution",
    "half_shape",
    "spectral_pool_matrix",
    "normal.covariance_kind",
    "normal.covariance_shape",
}


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def smooth(*shape, seed=0):
    return ops.gaussian(noise(*shape, seed=seed), 1.0)


VOLUME, OTHER = smooth(*SHAPE), smooth(*SHAPE, seed=1)
MASK = ops.bandpass_mask(SHAPE, high=0.4) * ops.wedge_mask(SHAPE, TILTS)
GROUP = ops.point_group("D2")
TABLE = noise(30, 3)
MIXTURE = mixture.m_step(
    TABLE, jnp.full((30, 2), 0.5) + 0.3 * jnp.sign(noise(30, 1)) * jnp.array([1, -1])
)
FEATURES = noise(3, 4, 5, 6), noise(3, 4, 5, 6, seed=1)
IMAGES = noise(5, 6, 4), noise(5, 6, 4, seed=1)
SCORES = noise(6, 7)
FLAT = jnp.array([[1.1, 0.1, 0.05], [-0.1, 0.9, 0.02]])
TARGETS = warp2d.control_points(9) + 0.1 * noise(9, 2)

# name -> function of arrays alone, the arrays. The numbers avoid ties and kinks, at which rounding
# in bfloat16 may choose another branch.
EXAMPLES = {
    "about_axis": (functools.partial(ops.about_axis, 1), (0.4,)),
    "compose": (ops.compose, (POSE, POSE)),
    "frobenius_distance": (ops.frobenius_distance, (POSE.rotation, jnp.eye(3))),
    "from_quaternion": (ops.from_quaternion, (noise(4),)),
    "from_rotation_vector": (ops.from_rotation_vector, (noise(3),)),
    "from_six_d": (ops.from_six_d, (noise(6),)),
    "from_zyz": (ops.from_zyz, (noise(3),)),
    "geodesic_angle": (ops.geodesic_angle, (POSE.rotation, jnp.eye(3))),
    "identity": (ops.identity, ()),
    "invert": (ops.invert, (POSE,)),
    "random_rotation": (ops.random_rotation, (KEY,)),
    "random_rotation_near": (ops.random_rotation_near, (KEY, 0.3)),
    "super_fibonacci": (functools.partial(ops.super_fibonacci, 5), ()),
    "to_quaternion": (ops.to_quaternion, (POSE.rotation,)),
    "to_rotation_vector": (ops.to_rotation_vector, (POSE.rotation,)),
    "to_six_d": (ops.to_six_d, (POSE.rotation,)),
    "to_zyz": (ops.to_zyz, (POSE.rotation,)),
    "nearest_rotation": (ops.nearest_rotation, (noise(3, 3),)),
    "paired_procrustes": (
        ops.paired_procrustes,
        (
            jnp.full(6, 1 / 6),
            noise(6, 3),
            noise(6, 3) @ POSE.rotation.T + 0.1 * noise(6, 3, seed=1),
        ),
    ),
    "rotation_matrices": (functools.partial(ops.rotation_matrices, max_degree=3), (POSE.rotation,)),
    "solid_harmonics": (functools.partial(ops.solid_harmonics, max_degree=3), (noise(4, 3),)),
    "point_group": (functools.partial(ops.point_group, "T"), ()),
    "reduce_by_symmetry": (ops.reduce_by_symmetry, (POSE.rotation, GROUP)),
    "rotation_grid": (functools.partial(ops.rotation_grid, 0.8, group="C2"), ()),
    "symmetric_angle": (ops.symmetric_angle, (POSE.rotation, jnp.eye(3), GROUP)),
    "symmetrize": (ops.symmetrize, (VOLUME, GROUP)),
    "affine": (ops.affine, (VOLUME, 1.1 * POSE.rotation, POSE.shift)),
    "fourier_shift": (ops.fourier_shift, (VOLUME, POSE.shift)),
    "rotate": (functools.partial(ops.rotate, boundary="nearest"), (VOLUME, POSE.rotation)),
    "shift": (functools.partial(ops.shift, boundary="wrap"), (VOLUME, POSE.shift)),
    "spline_prefilter": (ops.spline_prefilter, (VOLUME,)),
    "transform": (functools.partial(ops.transform, order=3), (VOLUME, POSE)),
    "bandpass": (functools.partial(ops.bandpass, low=0.05, high=0.3, soft=0.1), (VOLUME,)),
    "bandpass_mask": (lambda high: ops.bandpass_mask(SHAPE, high=high, soft=0.1), (0.3,)),
    "fourier_resize": (functools.partial(ops.fourier_resize, size=6), (VOLUME,)),
    "irfft": (lambda volume: ops.irfft(ops.rfft(volume), SHAPE), (VOLUME,)),
    "raised_cosine": (ops.raised_cosine, (noise(5), 0.7)),
    "rfft": (ops.rfft, (VOLUME,)),
    "spectral_pool": (functools.partial(ops.spectral_pool, keep=5, out=6), (VOLUME,)),
    "axis_frequencies": (functools.partial(ops.axis_frequencies, SHAPE), ()),
    "frequencies": (functools.partial(ops.frequencies, SHAPE), ()),
    "hermitian_weights": (functools.partial(ops.hermitian_weights, SHAPE), ()),
    "radial_frequency": (functools.partial(ops.radial_frequency, SHAPE), ()),
    "corrected_fsc": (
        lambda key, a, b, mask: ops.corrected_fsc(key, a, b, mask, cutoff=0.2),
        (KEY, VOLUME, VOLUME + 0.1 * OTHER, jnp.exp(-(noise(*SHAPE) ** 2))),
    ),
    "highpass": (functools.partial(ops.highpass, fraction=0.3), (VOLUME,)),
    "highpass_mask": (functools.partial(ops.highpass_mask, SHAPE, fraction=0.3, by="radius"), ()),
    "match_power": (
        ops.match_power,
        (VOLUME, ops.radial_power(VOLUME[None]), ops.radial_power(OTHER[None])),
    ),
    "radial_power": (ops.radial_power, (noise(3, *SHAPE),)),
    "phase_randomize": (functools.partial(ops.phase_randomize, cutoff=0.2), (KEY, VOLUME)),
    "swap_amplitude": (functools.partial(ops.swap_amplitude, fraction=0.5), (VOLUME, OTHER)),
    "fourier_shell_correlation": (ops.fourier_shell_correlation, (VOLUME, VOLUME + 0.3 * OTHER)),
    "shell_average": (functools.partial(ops.shell_average, shape=SHAPE), (jnp.abs(noise(*HALF)),)),
    "shell_index": (functools.partial(ops.shell_index, SHAPE), ()),
    "ctf": (
        lambda k, defocus: ops.ctf(
            k,
            voxel_size=10.0,
            defocus=defocus,
            voltage=300.0,
            spherical_aberration=2.7,
            amplitude_contrast=0.1,
        ),
        (jnp.linspace(0, 0.3, 7), 20000.0),
    ),
    "difference_of_gaussians": (ops.difference_of_gaussians, (VOLUME, 1.3)),
    "gaussian": (ops.gaussian, (VOLUME, 1.3)),
    "in_slabs": (
        functools.partial(
            ops.in_slabs,
            lambda v: ops.bilateral(v, sigma_space=2.0, sigma_range=1.0),
            halo=1,
            thickness=3,
        ),
        (VOLUME,),
    ),
    "bilateral": (functools.partial(ops.bilateral, sigma_space=2.0, sigma_range=1.0), (VOLUME,)),
    "gradient_bilateral": (ops.gradient_bilateral, (VOLUME,)),
    "draw_noise": (
        lambda key, volume, variance: [
            ops.draw_noise(key, volume, variance, kind=kind)
            for kind in ("gaussian", "poisson", "speckle")
        ],
        (KEY, VOLUME, 0.3),
    ),
    "noise_variance": (ops.noise_variance, (noise(3, *SHAPE),)),
    "apply_mask": (ops.apply_mask, (VOLUME, MASK)),
    "dual_axis_mask": (
        lambda first, second, rotation: ops.dual_axis_mask(
            SHAPE, first, second, rotation=rotation, soft=10.0
        ),
        (TILTS, TILTS + 3, POSE.rotation),
    ),
    "impute": (ops.impute, (VOLUME, MASK, OTHER, 1 - 0.5 * MASK)),
    "wedge_mask": (
        lambda tilts, rotation: ops.wedge_mask(SHAPE, tilts, rotation=rotation, soft=10.0),
        (TILTS, POSE.rotation),
    ),
    "aligned_correlation": (
        lambda a, b, pose: ops.aligned_correlation(
            a, b, pose, source_tilt_range=TILTS, target_tilt_range=TILTS, cutoff=0.4
        ),
        (VOLUME, OTHER, POSE),
    ),
    "constrained_correlation": (ops.constrained_correlation, (VOLUME, OTHER, MASK)),
    "constrained_correlation_loss": (ops.constrained_correlation_loss, (VOLUME, OTHER, MASK)),
    "correlation_peak": (
        functools.partial(ops.correlation_peak, max_shift=3),
        (VOLUME, jnp.roll(VOLUME, (1, 2), (0, 1))),
    ),
    "pearson": (ops.pearson, (VOLUME, OTHER)),
    "standardize": (ops.standardize, (VOLUME,)),
    "measured_mask": (
        lambda tilts, rotation: ops.measured_mask(SHAPE, tilts, rotation=rotation),
        (TILTS, POSE.rotation),
    ),
    "pick_distinct": (
        functools.partial(ops.pick_distinct, num=2, min_angle=0.5),
        (noise(20), ops.super_fibonacci(20)),
    ),
    "search_rotations": (
        functools.partial(ops.search_rotations, max_shift=2, template_wedge=TILTS, cutoff=0.3),
        (VOLUME, ops.rotate(VOLUME, POSE.rotation), ops.super_fibonacci(12)),
    ),
    "fast_rotational_matching": (
        functools.partial(
            ops.fast_rotational_matching, max_shift=2, max_degree=4, num_candidates=3
        ),
        (smooth(8, 8, 8), ops.rotate(smooth(8, 8, 8), POSE.rotation)),
    ),
    "matching_grid": (functools.partial(ops.matching_grid, 4), ()),
    "rotational_correlation": (
        functools.partial(ops.rotational_correlation, max_degree=4, volume_wedge=TILTS),
        (smooth(8, 8, 8), smooth(8, 8, 8, seed=1)),
    ),
    "refine_pose": (
        functools.partial(ops.refine_pose, template_wedge=TILTS, cutoff=0.3, num_steps=2),
        (VOLUME, ops.rotate(VOLUME, ops.about_axis(1, 0.1)), ops.identity()),
    ),
    "fast_accurate_matching": (
        functools.partial(
            ops.fast_accurate_matching,
            max_shift=2,
            max_degree=4,
            num_bands=1,
            num_candidates=3,
            num_kept=1,
        ),
        (smooth(8, 8, 8), ops.rotate(smooth(8, 8, 8), POSE.rotation)),
    ),
    "normalize_pose": (ops.normalize_pose, (VOLUME,)),
    "principal_pose": (ops.principal_pose, (VOLUME,)),
    "global_correlation": (ops.global_correlation, FEATURES),
    "l2_normalize": (ops.l2_normalize, FEATURES[:1]),
    "local_correlation": (functools.partial(ops.local_correlation, radius=1), FEATURES),
    "transform_regulariser": (functools.partial(ops.transform_regulariser, radius=8.0), (POSE,)),
    "global_correlation_2d": (ops.global_correlation_2d, IMAGES),
    "local_correlation_2d": (functools.partial(ops.local_correlation_2d, radius=1), IMAGES),
    "mutual_nearest": (ops.mutual_nearest, (SCORES,)),
    "soft_inlier_count": (
        ops.soft_inlier_count,
        (jnp.abs(noise(5, 6, 30)), warp2d.affine_grid(FLAT, (5, 6))),
    ),
    "soft_mutual_nearest": (ops.soft_mutual_nearest, (SCORES,)),
    "conv3d": (ops.conv3d, (noise(2, 5, 6, 7, 3), noise(3, 3, 3, 3, 4))),
    "conv_transpose3d": (
        functools.partial(ops.conv_transpose3d, stride=2),
        (noise(2, 3, 4, 5, 3), noise(4, 4, 4, 3, 2)),
    ),
    "isotropic_conv3d": (ops.isotropic_conv3d, (noise(2, 5, 6, 7, 3), noise(4, 3, 4))),
    "isotropic_kernel": (ops.isotropic_kernel, (noise(4, 3, 4),)),
    "kmeans.fit": (functools.partial(kmeans.fit, num_clusters=2), (KEY, TABLE)),
    "kmeans.seed": (functools.partial(kmeans.seed, num_clusters=2), (KEY, TABLE)),
    "kmeans.refine": (kmeans.refine, (TABLE, TABLE[:2])),
    "mixture.e_step": (mixture.e_step, (TABLE, MIXTURE)),
    "mixture.m_step": (mixture.m_step, (TABLE, jnp.abs(noise(30, 2)))),
    "mixture.from_statistics": (
        mixture.from_statistics,
        (normal.statistics(TABLE, jnp.abs(noise(30, 2))),),
    ),
    "mixture.fit": (
        functools.partial(mixture.fit, num_components=2, num_init=2, max_iterations=5),
        (KEY, TABLE),
    ),
    "mixture.refine": (functools.partial(mixture.refine, max_iterations=3), (TABLE, MIXTURE)),
    "mixture.bic": (mixture.bic, (TABLE, MIXTURE)),
    "normal.log_densities": (normal.log_densities, (TABLE, MIXTURE.means, MIXTURE.covariances)),
    "normal.statistics": (normal.statistics, (TABLE, jnp.abs(noise(30, 2)))),
    "warp2d.points_from_pixels": (
        functools.partial(warp2d.points_from_pixels, shape=(5, 6)),
        (noise(4, 2),),
    ),
    "warp2d.pixels_from_points": (
        functools.partial(warp2d.pixels_from_points, shape=(5, 6)),
        (noise(4, 2),),
    ),
    "warp2d.pixel_grid": (functools.partial(warp2d.pixel_grid, (5, 6)), ()),
    "warp2d.apply_affine": (warp2d.apply_affine, (FLAT, noise(4, 2))),
    "warp2d.affine_grid": (functools.partial(warp2d.affine_grid, shape=(5, 6)), (FLAT,)),
    "warp2d.control_points": (functools.partial(warp2d.control_points, 9), ()),
    "warp2d.apply_thin_plate_spline": (warp2d.apply_thin_plate_spline, (TARGETS, noise(4, 2))),
    "warp2d.thin_plate_spline_grid": (
        functools.partial(warp2d.thin_plate_spline_grid, shape=(5, 6)),
        (TARGETS,),
    ),
    "warp2d.composed_grid": (
        functools.partial(warp2d.composed_grid, shape=(5, 6)),
        (FLAT, TARGETS),
    ),
    "warp2d.sample": (warp2d.sample, (IMAGES[0], warp2d.affine_grid(FLAT, (5, 6)))),
}
WITH_ARRAYS = [name for name, (_, arrays) in EXAMPLES.items() if arrays]
# Those whose arrays are data, which may come in half precision, and not poses or parameters.
ON_DATA = [
    "symmetrize",
    "fourier_shift",
    "rotate",
    "transform",
    "bandpass",
    "fourier_resize",
    "rfft",
    "spectral_pool",
    "swap_amplitude",
    "highpass",
    "fourier_shell_correlation",
    "gaussian",
    "bilateral",
    "gradient_bilateral",
    "noise_variance",
    "apply_mask",
    "impute",
    "constrained_correlation",
    "correlation_peak",
    "pearson",
    "standardize",
    "global_correlation",
    "l2_normalize",
    "local_correlation",
    "global_correlation_2d",
    "local_correlation_2d",
    "soft_mutual_nearest",
    "soft_inlier_count",
    "conv3d",
    "conv_transpose3d",
    "isotropic_conv3d",
    "kmeans.refine",
    "mixture.m_step",
    "normal.log_densities",
    "warp2d.sample",
]


# Each step solves equations whose terms are rounded, and the next begins from there.
ITERATIVE = {"refine_pose", "fast_accurate_matching", "mixture.fit", "mixture.refine"}


def _leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _assert_close(found, wanted, tolerance):
    for a, b in zip(_leaves(found), _leaves(wanted), strict=True):
        scale = max(1e-3, np.max(np.abs(b[np.isfinite(b)]), initial=0))
        np.testing.assert_allclose(a, b, atol=tolerance * scale)


def test_every_op_has_an_example():
    functions = {name for name in ops.__all__ if inspect.isroutine(getattr(ops, name))}
    functions |= {name for name in ops.__all__ if hasattr(getattr(ops, name), "lower")}
    for module in (kmeans, mixture, normal, warp2d):
        short = module.__name__.rpartition(".")[2]
        functions |= {
            f"{short}.{name}"
            for name, value in vars(module).items()
            if callable(value)
            and not inspect.isclass(value)
            and getattr(value, "__module__", None) == module.__name__
            and not name.startswith("_")
        }
    assert functions == set(EXAMPLES) | PLAIN


@pytest.mark.parametrize("name", EXAMPLES)
def test_lowers_for_every_platform(name):
    function, arrays = EXAMPLES[name]
    exported = jax.export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(*arrays)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_eager_jit_and_vmap_agree(name):
    function, arrays = EXAMPLES[name]
    alone = jax.jit(function)(*arrays)
    # Fused sums and products may be rounded otherwise, batched ones summed in another order.
    tolerance = 1e-4 if name in ITERATIVE else 2e-5
    _assert_close(function(*arrays), alone, tolerance)
    batch = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), arrays)
    together = jax.jit(jax.vmap(function))(*batch)
    for row in range(2):
        _assert_close(jax.tree.map(lambda leaf, row=row: leaf[row], together), alone, tolerance)


@pytest.mark.parametrize("name", ON_DATA)
def test_bfloat16_in_sums_in_float32(name):
    function, arrays = EXAMPLES[name]

    def cast(dtype):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), arrays)

    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), cast(jnp.bfloat16))
    found = jax.jit(function)(*cast(jnp.bfloat16))
    exact = jax.jit(function)(*rounded)
    # One rounding of the result to 8 bits; summing in bfloat16 would cost several.
    _assert_close(jax.tree.map(lambda leaf: leaf.astype(_wide(leaf)), found), exact, 2**-8)


def _wide(leaf):
    return jnp.promote_types(leaf.dtype, jnp.float32)
