"""Frequency grids of the half spectrum, in cycles per voxel.

A half spectrum is what ``rfftn`` makes of ``(z, y, x)``: shape ``(z, y, x // 2 + 1)``, zero
frequency in the corner, Nyquist 0.5.
"""

import jax
import jax.numpy as jnp
import numpy as np


def half_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the half spectrum of a real array.

    Args:
        shape: of the real array.

    Returns:
        The same with the last axis ``n // 2 + 1``.
    """
    return (*shape[:-1], shape[-1] // 2 + 1)


def frequencies(shape: tuple[int, int, int]) -> jax.Array:
    """Lists the frequency of every coefficient of the half spectrum.

    Args:
        shape: ``(z, y, x)`` of the volume.

    Returns:
        ``(z, y, x // 2 + 1, 3)``, ``(kx, ky, kz)`` in cycles per voxel. The Nyquist frequency of
        an even axis is -0.5 along z and y, +0.5 along x.
    """
    kz, ky, kx = axis_frequencies(shape)
    return jnp.stack(jnp.broadcast_arrays(kx, ky, kz), axis=-1)


def axis_frequencies(shape: tuple[int, ...]) -> list[jax.Array]:
    """Lists the frequencies along each axis of the half spectrum, shaped to broadcast.

    Args:
        shape: of the real array, any rank.

    Returns:
        One array per array axis, cycles per voxel: ``rfft`` order for the last, ``fft`` order for
        the others, size 1 along all other axes.
    """
    dtype = jnp.result_type(float)
    axes = [np.fft.fftfreq(size) for size in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    return [
        jnp.asarray(axis, dtype).reshape([-1 if a == position else 1 for a in range(len(axes))])
        for position, axis in enumerate(axes)
    ]


def radial_frequency(shape: tuple[int, ...]) -> jax.Array:
    """Returns ``|k|`` of every coefficient of the half spectrum.

    Args:
        shape: of the real array, two- or three-dimensional.

    Returns:
        Half spectrum of floats, cycles per voxel, 0 at the zero frequency.
    """
    return jnp.sqrt(sum(axis * axis for axis in axis_frequencies(shape)))


def hermitian_weights(shape: tuple[int, int, int]) -> jax.Array:
    """Counts how many coefficients of the full spectrum each of the half spectrum stands for.

    Args:
        shape: ``(z, y, x)`` of the volume.

    Returns:
        ``(z, y, x // 2 + 1)``: 1 at kx = 0 and at the Nyquist of an even x, else 2. Sums to the
        number of voxels.
    """
    count = np.full(shape[-1] // 2 + 1, 2.0)
    count[0] = 1.0
    if shape[-1] % 2 == 0:
        count[-1] = 1.0
    return jnp.broadcast_to(jnp.asarray(count, jnp.result_type(float)), half_shape(shape))
