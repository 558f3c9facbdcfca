"""Pure, differentiable operations on one volume, pose or feature map; ``jax.vmap`` does many.

Importing this imports jax and numpy only. Every name below is here and in its own module, except
those of ``kmeans``, ``mixture``, ``normal`` and ``warp2d``, which mean something only
behind their module's name: ``mixture.fit``, ``warp2d.sample``.
"""

from jimjax.ops import kmeans, mixture, normal, warp2d
from jimjax.ops.bilateral_filters import bilateral, gradient_bilateral
from jimjax.ops.conv import conv3d, conv_transpose3d
from jimjax.ops.correlation import (
    Peak,
    aligned_correlation,
    constrained_correlation,
    constrained_correlation_loss,
    correlation_peak,
    pearson,
    standardize,
)
from jimjax.ops.fast_accurate import fast_accurate_matching
from jimjax.ops.filters import difference_of_gaussians, gaussian, in_slabs
from jimjax.ops.fourier import (
    bandpass,
    bandpass_mask,
    fourier_resize,
    irfft,
    raised_cosine,
    rfft,
    spectral_pool,
    spectral_pool_matrix,
)
from jimjax.ops.frequency import (
    axis_frequencies,
    frequencies,
    half_shape,
    hermitian_weights,
    radial_frequency,
)
from jimjax.ops.harmonics import rotation_matrices, solid_harmonics
from jimjax.ops.isotropic import isotropic_conv3d, isotropic_kernel
from jimjax.ops.matching import (
    global_correlation,
    l2_normalize,
    local_correlation,
    transform_regulariser,
)
from jimjax.ops.matching2d import (
    global_correlation_2d,
    local_correlation_2d,
    mutual_nearest,
    soft_inlier_count,
    soft_mutual_nearest,
)
from jimjax.ops.noise import draw_noise, noise_variance
from jimjax.ops.optics import ctf, electron_wavelength
from jimjax.ops.principal_axes import normalize_pose, principal_pose
from jimjax.ops.procrustes import nearest_rotation, paired_procrustes
from jimjax.ops.refinement import RefinedPose, refine_pose
from jimjax.ops.resample import (
    affine,
    fourier_shift,
    rotate,
    shift,
    transform,
)
from jimjax.ops.rotation import (
    Pose,
    about_axis,
    compose,
    frobenius_distance,
    from_quaternion,
    from_rotation_vector,
    from_six_d,
    from_zyz,
    geodesic_angle,
    identity,
    invert,
    random_rotation,
    random_rotation_near,
    super_fibonacci,
    to_quaternion,
    to_rotation_vector,
    to_six_d,
    to_zyz,
)
from jimjax.ops.rotational_matching import (
    fast_rotational_matching,
    matching_grid,
    rotational_correlation,
)
from jimjax.ops.search import Matches, measured_mask, pick_distinct, search_rotations
from jimjax.ops.shells import (
    FSC_GOLD_STANDARD,
    Resolution,
    fourier_shell_correlation,
    fsc_resolution,
    shell_average,
    shell_index,
)
from jimjax.ops.spectrum import (
    CorrectedFsc,
    corrected_fsc,
    highpass,
    highpass_mask,
    match_power,
    phase_randomize,
    radial_power,
    swap_amplitude,
)
from jimjax.ops.spline import spline_prefilter
from jimjax.ops.symmetry import (
    point_group,
    reduce_by_symmetry,
    rotation_grid,
    symmetric_angle,
    symmetrize,
)
from jimjax.ops.wedge import apply_mask, dual_axis_mask, impute, wedge_mask

__all__ = [  # noqa: RUF022 a table of contents: by subject, then module
    # Rotations and poses: rotation, procrustes, harmonics
    "Pose",
    "about_axis",
    "compose",
    "frobenius_distance",
    "from_quaternion",
    "from_rotation_vector",
    "from_six_d",
    "from_zyz",
    "geodesic_angle",
    "identity",
    "invert",
    "random_rotation",
    "random_rotation_near",
    "super_fibonacci",
    "to_quaternion",
    "to_rotation_vector",
    "to_six_d",
    "to_zyz",
    "nearest_rotation",
    "paired_procrustes",
    "rotation_matrices",
    "solid_harmonics",
    # Point groups: symmetry
    "point_group",
    "reduce_by_symmetry",
    "rotation_grid",
    "symmetric_angle",
    "symmetrize",
    # Moving volumes: resample, spline
    "affine",
    "fourier_shift",
    "rotate",
    "shift",
    "spline_prefilter",
    "transform",
    # Fourier space: fourier, frequency, spectrum, shells, optics
    "bandpass",
    "bandpass_mask",
    "fourier_resize",
    "irfft",
    "raised_cosine",
    "rfft",
    "spectral_pool",
    "spectral_pool_matrix",
    "axis_frequencies",
    "frequencies",
    "half_shape",
    "hermitian_weights",
    "radial_frequency",
    "CorrectedFsc",
    "corrected_fsc",
    "highpass",
    "highpass_mask",
    "phase_randomize",
    "match_power",
    "radial_power",
    "swap_amplitude",
    "FSC_GOLD_STANDARD",
    "Resolution",
    "fourier_shell_correlation",
    "fsc_resolution",
    "shell_average",
    "shell_index",
    "ctf",
    "electron_wavelength",
    # Real space: filters, bilateral_filters, noise
    "difference_of_gaussians",
    "gaussian",
    "in_slabs",
    "bilateral",
    "gradient_bilateral",
    "draw_noise",
    "noise_variance",
    # The missing wedge: wedge
    "apply_mask",
    "dual_axis_mask",
    "impute",
    "wedge_mask",
    # Comparing volumes: correlation
    "Peak",
    "aligned_correlation",
    "constrained_correlation",
    "constrained_correlation_loss",
    "correlation_peak",
    "pearson",
    "standardize",
    # Finding poses: search, rotational_matching, refinement, fast_accurate, principal_axes
    "Matches",
    "measured_mask",
    "pick_distinct",
    "search_rotations",
    "fast_rotational_matching",
    "matching_grid",
    "rotational_correlation",
    "RefinedPose",
    "refine_pose",
    "fast_accurate_matching",
    "normalize_pose",
    "principal_pose",
    # Feature maps: matching, matching2d, conv, isotropic
    "global_correlation",
    "l2_normalize",
    "local_correlation",
    "transform_regulariser",
    "global_correlation_2d",
    "local_correlation_2d",
    "mutual_nearest",
    "soft_inlier_count",
    "soft_mutual_nearest",
    "conv3d",
    "conv_transpose3d",
    "isotropic_conv3d",
    "isotropic_kernel",
    # Clustering and images: modules
    "kmeans",
    "mixture",
    "normal",
    "warp2d",
]
