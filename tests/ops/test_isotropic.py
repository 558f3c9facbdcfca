"""Radial convolution against the 27 taps it stands for, and the symmetry it is there for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jimjax.ops.conv import conv3d
from jimjax.ops.isotropic import NUM_RADII, SHELL_SIZES, isotropic_conv3d, isotropic_kernel

ATOL = 2e-5  # float32 sums of 27 taps over a few channels


def _operands(key, size=(5, 6, 7), num_in=2, num_out=3, dtype=jnp.float32):
    key_x, key_kernel = jax.random.split(key)
    x = jax.random.normal(key_x, (2, *size, num_in), dtype)
    return x, jax.random.normal(key_kernel, (NUM_RADII, num_in, num_out), dtype)


def _slow_isotropic_conv3d(x, kernel, dilation):
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    out = np.zeros((*x.shape[:4], kernel.shape[-1]))
    for position in np.ndindex(*x.shape[1:4]):
        for step in np.ndindex(3, 3, 3):
            offset = np.array(step) - 1
            z, y, x_index = np.array(position) + dilation * offset
            if 0 <= z < x.shape[1] and 0 <= y < x.shape[2] and 0 <= x_index < x.shape[3]:
                weights = kernel[np.sum(offset**2)]
                out[(slice(None), *position)] += x[:, z, y, x_index] @ weights
    return out


def test_one_voxel_spreads_into_shells(compiled):
    point = jnp.zeros((1, 5, 5, 5, 1)).at[0, 2, 2, 2, 0].set(1.0)
    kernel = jnp.array([1.0, 10.0, 100.0, 1000.0])[:, None, None]
    out = compiled(isotropic_conv3d)(point, kernel)[0, ..., 0]
    assert out[2, 2, 2] == 1
    assert out[2, 2, 1] == out[3, 2, 2] == 10
    assert out[1, 2, 3] == out[2, 1, 1] == 100
    assert out[1, 1, 1] == out[3, 1, 3] == 1000
    assert jnp.sum(out != 0) == 27


def test_shell_sizes_count_the_taps():
    for radius in range(NUM_RADII):
        kernel = jnp.zeros((NUM_RADII, 1, 1)).at[radius].set(1.0)
        assert jnp.sum(isotropic_kernel(kernel)) == SHELL_SIZES[radius]


@pytest.mark.parametrize("dilation", [1, 2, 8])
def test_agrees_with_loops(dilation, key):
    x, kernel = _operands(key)
    out = isotropic_conv3d(x, kernel, dilation=dilation)
    np.testing.assert_allclose(out, _slow_isotropic_conv3d(x, kernel, dilation), atol=ATOL)


def test_agrees_with_the_full_kernel_compiled_or_not(compiled, key):
    x, kernel = _operands(key)
    out = compiled(functools.partial(isotropic_conv3d, dilation=2))(x, kernel)
    expected = conv3d(x, isotropic_kernel(kernel), dilation=2)
    np.testing.assert_allclose(out, expected, atol=ATOL)


@pytest.mark.parametrize("axes", [(1, 2), (2, 3), (3, 1)])
def test_turning_the_input_turns_the_output(axes, key):
    x, kernel = _operands(key, size=(5, 5, 5))
    turned = isotropic_conv3d(jnp.rot90(x, axes=axes), kernel, dilation=2)
    out = isotropic_conv3d(x, kernel, dilation=2)
    np.testing.assert_allclose(turned, jnp.rot90(out, axes=axes), atol=ATOL)


def test_mirroring_the_input_mirrors_the_output(key):
    x, kernel = _operands(key)
    mirrored = isotropic_conv3d(x[:, :, ::-1], kernel)
    np.testing.assert_allclose(mirrored, isotropic_conv3d(x, kernel)[:, :, ::-1], atol=ATOL)


def test_gradients_are_right_in_double_precision(key, x64):
    operands = _operands(key, size=(3, 4, 3), dtype=jnp.float64)

    def waves(x, kernel):
        # Small arguments keep the finite differences of check_grads exact enough.
        return jnp.sin(isotropic_conv3d(x, 0.1 * kernel, dilation=2))

    check_grads(jax.jit(waves), operands, order=2, modes=("rev",))  # custom_vjp: no forward mode


def test_double_precision_stays_double(key, x64):
    x, kernel = _operands(key, dtype=jnp.float64)
    out = isotropic_conv3d(x, kernel)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, _slow_isotropic_conv3d(x, kernel, 1), rtol=0, atol=1e-12)


def test_bfloat16_sums_in_float32():
    # bfloat16 cannot count past 256.
    x = jnp.ones((1, 3, 3, 3, 1024), jnp.bfloat16)
    kernel = jnp.zeros((NUM_RADII, 1024, 1), jnp.bfloat16).at[0].set(1.0)
    out, pullback = jax.vjp(isotropic_conv3d, x, kernel)
    assert out.dtype == jnp.bfloat16
    assert jnp.all(out == 1024)
    x_gradient, kernel_gradient = pullback(jnp.ones_like(out))
    assert x_gradient.dtype == kernel_gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "dilation", "message"),
    [
        ((4, 4, 4, 2), (4, 2, 3), 1, r"x must be \(batch, z, y, x, channels\), got shape"),
        ((1, 4, 4, 4, 2), (3, 2, 3), 1, r"kernel must be \(4, 2, out_channels\)"),
        ((1, 4, 4, 4, 2), (4, 5, 3), 1, r"kernel must be \(4, 2, out_channels\)"),
        ((1, 4, 4, 4, 2), (4, 2, 3), 0, "dilation must be at least 1, got 0"),
    ],
)
def test_bad_operands_are_named(x_shape, kernel_shape, dilation, message):
    with pytest.raises(ValueError, match=message):
        isotropic_conv3d(jnp.zeros(x_shape), jnp.zeros(kernel_shape), dilation=dilation)


def test_kernel_without_four_radii_is_named():
    with pytest.raises(ValueError, match=r"kernel must be \(4, in, out\), got shape \(3, 2, 2\)"):
        isotropic_kernel(jnp.zeros((3, 2, 2)))
