"""The electron microscope's optics: wavelength and contrast transfer function."""

import math

import jax
import jax.numpy as jnp

from jimjax.ops.frequency import radial_frequency

PLANCK = 6.62607015e-34  # J s, CODATA 2018, exact
ELECTRON_MASS = 9.1093837015e-31  # kg, CODATA 2018
ELEMENTARY_CHARGE = 1.602176634e-19  # C, CODATA 2018, exact
LIGHT_SPEED = 299792458.0  # m/s, exact
ANGSTROMS_PER_METRE = 1e10
ANGSTROMS_PER_MILLIMETRE = 1e7
VOLTS_PER_KILOVOLT = 1e3


def ctf(
    shape_or_frequency: tuple[int, ...] | jax.Array,
    *,
    voxel_size: jax.Array | float,
    defocus: jax.Array | float,
    voltage: float,
    spherical_aberration: float,
    amplitude_contrast: float,
    phase_shift: jax.Array | float = 0.0,
    b_factor: jax.Array | float = 0.0,
) -> jax.Array:
    """Evaluates the contrast transfer function without astigmatism.

        CTF(k) = -sin(chi) exp(-B k^2 / 4)
        chi = pi lambda k^2 (defocus - lambda^2 k^2 Cs / 2) + phase_shift + arcsin(amplitude)

    Negative at low frequency under focus: multiplied with a density it gives dark protein.

    Args:
        shape_or_frequency: shape of a real array, as a tuple, for its half spectrum; or ``|k|`` in
            cycles per voxel, any shape.
        voxel_size: angstrom.
        defocus: angstrom, positive for underfocus.
        voltage: kV.
        spherical_aberration: Cs in mm.
        amplitude_contrast: fraction in [0, 1].
        phase_shift: radians, of a phase plate.
        b_factor: B in square angstrom.

    Returns:
        Real, in [-1, 1], shape of the half spectrum or of the frequencies.

    Raises:
        ValueError: if the voltage is not positive or the amplitude contrast not in [0, 1].

    Reference: Rohou & Grigorieff 2015, CTFFIND4: fast and accurate defocus estimation.
    """
    if not voltage > 0:
        raise ValueError(f"voltage must be positive, in kV, got {voltage}")
    if not 0 <= amplitude_contrast <= 1:
        raise ValueError(f"amplitude_contrast must be in [0, 1], got {amplitude_contrast}")
    if isinstance(shape_or_frequency, tuple):
        magnitude = radial_frequency(shape_or_frequency)
    else:
        magnitude = jnp.asarray(shape_or_frequency)
    wavelength = electron_wavelength(voltage)
    aberration = spherical_aberration * ANGSTROMS_PER_MILLIMETRE
    square = (magnitude / voxel_size) ** 2  # 1 / angstrom^2
    chi = jnp.pi * wavelength * square * (defocus - 0.5 * wavelength**2 * square * aberration)
    return -jnp.sin(chi + phase_shift + math.asin(amplitude_contrast)) * jnp.exp(
        -0.25 * b_factor * square
    )


def electron_wavelength(voltage: float) -> float:
    """Returns the relativistic wavelength of an electron.

        lambda = h / sqrt(2 m e V (1 + e V / (2 m c^2)))

    Args:
        voltage: kV.

    Returns:
        Angstrom; 0.0197 at 300 kV.
    """
    energy = ELEMENTARY_CHARGE * voltage * VOLTS_PER_KILOVOLT
    rest = ELECTRON_MASS * LIGHT_SPEED**2
    momentum = math.sqrt(2 * ELECTRON_MASS * energy * (1 + energy / (2 * rest)))
    return PLANCK / momentum * ANGSTROMS_PER_METRE
