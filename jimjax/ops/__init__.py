"""Pure, differentiable operations on one volume, pose or feature map; ``jax.vmap`` does many.

Importing this imports jax and numpy only. Every name below is here and in its own module, except
those of ``mixture``, which mean something only behind its name: ``mixture.fit``.
"""

from jimjax.ops import mixture
from jimjax.ops.conv import conv3d
from jimjax.ops.correlation import (
    Peak,
    aligned_correlation,
    constrained_correlation,
    constrained_correlation_loss,
    correlation_peak,
    pearson,
    standardize,
)
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
from jimjax.ops.optics import ctf, electron_wavelength
from jimjax.ops.procrustes import nearest_rotation, paired_procrustes
from jimjax.ops.resample import (
    affine,
    fourier_shift,
    rotate,
    shift,
    spline_prefilter,
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
from jimjax.ops.shells import (
    FSC_GOLD_STANDARD,
    Resolution,
    fourier_shell_correlation,
    fsc_resolution,
    shell_average,
    shell_index,
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
    # Moving volumes: resample
    "affine",
    "fourier_shift",
    "rotate",
    "shift",
    "spline_prefilter",
    "transform",
    # Fourier space: fourier, frequency, shells, optics
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
    "FSC_GOLD_STANDARD",
    "Resolution",
    "fourier_shell_correlation",
    "fsc_resolution",
    "shell_average",
    "shell_index",
    "ctf",
    "electron_wavelength",
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
    # Feature maps: matching, conv, isotropic
    "global_correlation",
    "l2_normalize",
    "local_correlation",
    "transform_regulariser",
    "conv3d",
    "isotropic_conv3d",
    "isotropic_kernel",
    # Clustering: a module
    "mixture",
]
