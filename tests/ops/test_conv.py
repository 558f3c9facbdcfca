"""conv3d against a loop in float64 and against XLA, in every form it can take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from jimjax.ops import conv
from jimjax.ops.conv import conv3d, conv_transpose3d

# size, in channels, out channels, stride, dilation, padding; the CPU form each one takes:
CASES = [
    pytest.param((7, 8, 9), 3, 4, 1, 1, "same", id="folded"),
    pytest.param((9, 8, 8), 3, 4, 1, (1, 2, 3), "same", id="folded, dilated"),
    pytest.param((13, 14, 14), 3, 4, 2, 1, "same", id="folded, stride 2"),
    pytest.param((4, 5, 4), 5, 6, 1, 1, "valid", id="columns"),
    pytest.param((6, 7, 8), 3, 4, (1, 2, 3), (2, 1, 1), "valid", id="columns, mixed steps"),
    pytest.param((9, 10, 11), 3, 4, 1, 1, "valid", id="planes"),
    pytest.param((9, 10, 11), 16, 17, 1, 1, "valid", id="planes, wide"),
    pytest.param((16, 17, 18), 2, 3, 2, (1, 2, 1), "valid", id="planes, stride 2, dilated"),
    pytest.param((9, 26, 28), 2, 3, (2, 1, 1), 1, "valid", id="one plane at a time, stride 2"),
    pytest.param((8, 8, 8), 1, 3, 1, 1, "same", id="one channel in"),
    pytest.param((8, 8, 8), 4, 1, 1, 1, "same", id="one channel out"),
    pytest.param((7, 8, 8), 4, 2, 2, 1, "valid", id="two channels out, stride 2"),
    pytest.param((5, 6, 5), 32, 2, 1, 1, "same", id="two of many"),
    pytest.param((9, 8, 10), 12, 3, 1, (1, 2, 3), "same", id="three of twelve, dilated"),
    pytest.param((4, 23, 24), 8, 2, 1, 1, "same", id="two of eight, one plane at a time"),
    pytest.param((9, 10, 11), 12, 3, 1, 1, "valid", id="three of twelve, unpadded"),
    pytest.param((6, 7, 9), 32, 3, (1, 2, 2), (2, 1, 1), "valid", id="three of many, mixed steps"),
]

# size, in channels, out channels, taps, stride, padding; the CPU form each one takes:
TRANSPOSED = [
    pytest.param((4, 5, 4), 3, 4, (3, 3, 3), 1, "same", id="flipped kernel"),
    pytest.param((4, 3, 4), 3, 2, (3, 2, 3), 2, "same", id="scattered"),
    pytest.param((3, 4, 2), 2, 3, (3, 3, 3), (1, 3, 2), "valid", id="scattered, mixed steps"),
    pytest.param((3, 3, 2), 2, 3, (1, 2, 3), 3, "same", id="voxels that no tap reaches"),
    pytest.param((3, 4, 3), 2, 3, (4, 4, 4), 2, "same", id="blocks"),
    pytest.param((2, 3, 2), 2, 1, (6, 6, 6), 4, "same", id="completed blocks"),
    pytest.param((2, 1, 2), 1, 2, (10, 5, 4), (8, 1, 3), "valid", id="mixed blocks"),
    pytest.param((6, 6, 7), 2, 3, (4, 4, 4), 2, "same", id="many blocks"),
    pytest.param((6, 7, 6), 3, 2, (6, 6, 6), 4, "same", id="many incomplete blocks"),
    pytest.param((6, 6, 7), 2, 1, (9, 8, 1), (4, 2, 2), "valid", id="many blocks, unequal"),
]


def _operands(key, size, num_in, num_out, *, batch=3, taps=(3, 3, 3), dtype=jnp.float32):
    x_key, kernel_key = jax.random.split(key)
    x = jax.random.normal(x_key, (batch, *size, num_in), dtype)
    return x, jax.random.normal(kernel_key, (*taps, num_in, num_out), dtype)


def _xla(x, kernel, stride, dilation, padding):
    def triple(value):
        return value if isinstance(value, tuple) else (value,) * 3

    return lax.conv_general_dilated(
        x,
        kernel,
        triple(stride),
        padding.upper(),
        rhs_dilation=triple(dilation),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def _slow_conv3d(x, kernel, stride, dilation, padding):
    """One output voxel at a time, in float64; padding by the rule of the docstring."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size, taps = np.array(x.shape[1:4]), np.array(kernel.shape[:3])
    reach = dilation * (taps - 1) + 1
    if padding == "same":
        out_size = -(-size // stride)
        total = np.maximum((out_size - 1) * stride + reach - size, 0)
    else:
        total = np.zeros(3, int)
        out_size = (size - reach) // stride + 1
    x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    out = np.zeros((x.shape[0], *out_size, kernel.shape[4]))
    for p in np.ndindex(*out_size):
        for tap in np.ndindex(*taps):
            z, y, column = np.array(p) * stride + np.array(tap) * dilation
            out[(slice(None), *p)] += x[:, z, y, column] @ kernel[tap]
    return out


def _slow_conv_transpose3d(x, kernel, stride, padding):
    """One input voxel at a time, in float64; padding by the rule of the docstring."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    size, taps = np.array(x.shape[1:4]), np.array(kernel.shape[:3])
    low = np.maximum(taps - stride, 0) // 2 if padding == "same" else np.zeros(3, int)
    out_size = size * stride if padding == "same" else (size - 1) * stride + taps
    whole = np.zeros((x.shape[0], *(size * stride + taps), kernel.shape[4]))
    for p in np.ndindex(*size):
        window = tuple(slice(s, s + k) for s, k in zip(np.array(p) * stride, taps, strict=True))
        whole[(slice(None), *window)] += np.einsum("bc,zyxco->bzyxo", x[(slice(None), *p)], kernel)
    kept = tuple(slice(lo, lo + n) for lo, n in zip(low, out_size, strict=True))
    return whole[(slice(None), *kept)]


@pytest.fixture(params=["cpu", "gpu"])
def form(request, monkeypatch):
    """What either platform runs, run here."""
    for name in ("_CONVOLVE", "_CONVOLVE_GRADIENTS", "_SPREAD", "_SPREAD_GRADIENTS"):
        own = getattr(getattr(conv, name), request.param)
        monkeypatch.setattr(conv, name, conv._Forms(own, own, own))


def test_ones_count_the_neighbours_inside_the_box(compiled):
    counts = compiled(conv3d)(jnp.ones((1, 4, 4, 4, 1)), jnp.ones((3, 3, 3, 1, 1)))[0, ..., 0]
    assert counts[0, 0, 0] == 8
    assert counts[0, 0, 1] == 12
    assert counts[0, 1, 1] == 18
    assert counts[1, 1, 1] == 27


def test_kernel_is_not_flipped():
    x = jnp.zeros((1, 5, 5, 5, 1)).at[0, 2, 2, 2, 0].set(1.0)
    kernel = jnp.zeros((3, 3, 3, 1, 1)).at[0, 1, 2, 0, 0].set(1.0)  # looks at (z - 1, y, x + 1)
    assert jnp.argwhere(conv3d(x, kernel)[0, ..., 0]).tolist() == [[3, 2, 1]]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("size", "num_in", "num_out", "stride", "dilation", "padding"), CASES)
def test_agrees_with_the_slow_twin(size, num_in, num_out, stride, dilation, padding, key):
    x, kernel = _operands(key, size, num_in, num_out)
    out = conv3d(x, kernel, stride=stride, dilation=dilation, padding=padding)
    expected = _slow_conv3d(x, kernel, np.array(stride), np.array(dilation), padding)
    # Up to 864 products of unit variance: sums of about 30, rounded to 24 bits.
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=5e-5)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("size", "num_in", "num_out", "stride", "dilation", "padding"), CASES)
def test_gradients_are_the_adjoints(size, num_in, num_out, stride, dilation, padding, key):
    # conv is linear in each operand: <conv(u, k), g> = <u, dx(g)> for a random u pins dx, and
    # so for dk; the forward pass is checked against the slow twin above.
    with jax.enable_x64(True):
        x, kernel = _operands(key, size, num_in, num_out, dtype=jnp.float64)

        @jax.jit
        def forward(x, kernel):
            return conv3d(x, kernel, stride=stride, dilation=dilation, padding=padding)

        out, pullback = jax.vjp(forward, x, kernel)
        generator = np.random.default_rng(0)
        u, v, g = (generator.normal(size=a.shape) for a in (x, kernel, out))
        x_gradient, kernel_gradient = pullback(g)
        np.testing.assert_allclose(np.vdot(x_gradient, u), np.vdot(forward(u, kernel), g))
        np.testing.assert_allclose(np.vdot(kernel_gradient, v), np.vdot(forward(x, v), g))


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), ((2, 1, 1), 1), ((3, 1, 1), 2)])
def test_kernel_gradient_of_large_planes_is_the_adjoint(stride, dilation, key):
    # Planes of 576 voxels are more than a product's rows: one slab for each of them on CPU.
    with jax.enable_x64(True):
        x, kernel = _operands(key, (9, 24, 24), 2, 3, dtype=jnp.float64)
        forward = functools.partial(conv3d, stride=stride, dilation=dilation)
        out, pullback = jax.vjp(lambda kernel: forward(x, kernel), kernel)
        generator = np.random.default_rng(0)
        v, g = (generator.normal(size=a.shape) for a in (kernel, out))
        np.testing.assert_allclose(np.vdot(pullback(g)[0], v), np.vdot(forward(x, v), g))


@pytest.mark.parametrize("taps", [(1, 1, 1), (2, 3, 1), (4, 2, 3)])
def test_even_and_unequal_kernels_agree_with_xla(taps, key):
    x, kernel = _operands(key, (7, 8, 9), 2, 3, taps=taps)
    out = conv3d(x, kernel, stride=2)
    np.testing.assert_allclose(out, _xla(x, kernel, 2, 1, "same"), atol=1e-5)


def test_jit_and_vmap_agree(compiled, key):
    x, kernel = _operands(key, (7, 8, 9), 3, 4)
    expected = _slow_conv3d(x, kernel, np.array(1), np.array(1), "same")
    np.testing.assert_allclose(compiled(conv3d)(x, kernel), expected, atol=1e-5)


def test_vmap_over_kernels_is_one_kernel_at_a_time(key):
    x, kernel = _operands(key, (7, 8, 9), 2, 6)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    together = jax.vmap(conv3d, in_axes=(None, 0))(x, kernels)
    alone = conv3d(x, kernel)
    np.testing.assert_allclose(together, jnp.stack([alone, 2 * alone, -alone]), atol=5e-5)


@pytest.mark.parametrize(
    ("num_in", "stride", "padding"),
    [(3, 1, "same"), (3, 1, "valid")],
)
def test_first_and_second_derivatives_are_right(num_in, stride, padding, key):
    with jax.enable_x64(True):
        x, kernel = _operands(key, (5, 4, 5), num_in, 3, batch=2, dtype=jnp.float64)

        def waves(x, kernel):
            # Small arguments keep the finite differences of check_grads exact enough.
            return jnp.sin(conv3d(x, 0.1 * kernel, stride=stride, padding=padding))

        check_grads(waves, (x, kernel), order=2, modes=("rev",))  # custom_vjp: no forward mode


def test_a_shift_of_the_input_is_a_shift_of_the_output(key):
    x, kernel = _operands(key, (10, 10, 10), 2, 3)
    out, moved = conv3d(x, kernel), conv3d(jnp.roll(x, (1, -2, 1), (1, 2, 3)), kernel)
    inner = np.s_[:, 3:7, 3:7, 3:7]  # away from what the roll carries round the edge
    np.testing.assert_allclose(moved[inner], jnp.roll(out, (1, -2, 1), (1, 2, 3))[inner], atol=1e-5)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("num_out", [1, 512])
def test_bfloat16_sums_in_float32(num_out):
    # bfloat16 cannot count past 256.
    x, kernel = jnp.ones((1, 7, 7, 7, 1024), jnp.bfloat16), jnp.ones((1, 1, 1, 1024, num_out))
    out = conv3d(x, kernel.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert jnp.all(out == 1024)


def test_other_platforms_get_one_convolution(key):
    operands = _operands(key, (7, 8, 9), 3, 4)
    tpu = jax.export.export(jax.jit(conv3d), platforms=["tpu"])(*operands).mlir_module()
    cuda = jax.export.export(jax.jit(conv3d), platforms=["cuda"])(*operands).mlir_module()
    cpu = jax.export.export(jax.jit(conv3d), platforms=["cpu"])(*operands).mlir_module()
    assert tpu.count("stablehlo.convolution") == cuda.count("stablehlo.convolution") == 1
    assert "[b, 0, 1, 2, f]" in tpu
    assert "[b, 0, 1, f]" in cuda
    assert "[b, 0, 1, 2, f]" not in cuda + cpu


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_bfloat16_is_float32_rounded(dilation, padding, key):
    """The result to one rounding of its size, gradients, which are summed of parts, to two."""
    operands = _operands(key, (7, 8, 9), 5, 6, dtype=jnp.bfloat16)

    def run(x, kernel):
        def convolve(x, kernel):
            return conv3d(x, kernel, dilation=dilation, padding=padding)

        out, pullback = jax.vjp(convolve, x, kernel)
        return out, *pullback(jnp.ones_like(out))

    for half, single in zip(run(*operands), run(*(o.astype(float) for o in operands)), strict=True):
        assert half.dtype == jnp.bfloat16
        error = jnp.abs(half.astype(float) - single)
        assert jnp.max(error) <= 2**-7 * jnp.max(jnp.abs(single))


def test_large_strided_kernels_agree_with_xla(key):
    x, kernel = _operands(key, (9, 8, 11), 2, 3, taps=(5, 4, 4))
    for padding in ("same", "valid"):
        for stride in ((2, 3, 2), (5, 2, 2)):  # a part of a block at each end, whole blocks
            out = conv3d(x, kernel, stride=stride, padding=padding)
            np.testing.assert_allclose(out, _xla(x, kernel, stride, 1, padding), atol=2e-5)


def test_transpose_of_a_single_voxel_draws_the_kernel(compiled):
    kernel = jnp.arange(27.0).reshape(3, 3, 3, 1, 1)
    x = jnp.zeros((1, 2, 2, 2, 1)).at[0, 1, 0, 1, 0].set(2.0)
    out = compiled(lambda x: conv_transpose3d(x, kernel, stride=2, padding="valid"))(x)
    assert out.shape == (1, 5, 5, 5, 1)
    np.testing.assert_array_equal(out[0, 2:, :3, 2:, 0], 2 * kernel[..., 0, 0])
    assert out.sum() == 2 * kernel.sum()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("size", "num_in", "num_out", "taps", "stride", "padding"), TRANSPOSED)
def test_transpose_agrees_with_the_slow_twin_and_is_the_adjoint(
    size, num_in, num_out, taps, stride, padding, key
):
    with jax.enable_x64(True):
        x, kernel = _operands(key, size, num_in, num_out, taps=taps, dtype=jnp.float64)

        @jax.jit
        def forward(x, kernel):
            return conv_transpose3d(x, kernel, stride=stride, padding=padding)

        out, pullback = jax.vjp(forward, x, kernel)
        expected = _slow_conv_transpose3d(x, kernel, np.array(stride), padding)
        np.testing.assert_allclose(out, expected, atol=1e-10)
        generator = np.random.default_rng(0)
        v, g = (generator.normal(size=a.shape) for a in (kernel, out))
        x_gradient, kernel_gradient = pullback(g)
        back = conv3d(g, kernel.swapaxes(3, 4), stride=stride, padding=padding)
        np.testing.assert_allclose(x_gradient, back, atol=1e-10)
        np.testing.assert_allclose(np.vdot(out, g), np.vdot(x, back))
        np.testing.assert_allclose(np.vdot(kernel_gradient, v), np.vdot(forward(x, v), g))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (4, 2), (6, 4), (10, 8)])
def test_transpose_is_that_of_lax(taps, stride, key):
    x, kernel = _operands(key, (2, 3, 2), 2, 3, taps=(taps,) * 3)
    out = conv_transpose3d(x, kernel, stride=stride)
    assert out.shape == (3, 2 * stride, 3 * stride, 2 * stride, 3)
    expected = lax.conv_transpose(
        x,
        kernel.swapaxes(3, 4),
        (stride,) * 3,
        "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        transpose_kernel=True,
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_transpose_of_a_constant_is_constant_where_taps_share_out_evenly():
    # 4 taps at stride 2: every inner voxel gets two along each axis.
    out = conv_transpose3d(jnp.ones((1, 4, 4, 4, 1)), jnp.ones((4, 4, 4, 1, 1)), stride=2)
    np.testing.assert_array_equal(out[0, 1:-1, 1:-1, 1:-1], 8)
    assert out[0, 0, 0, 0, 0] == 1


def test_transpose_jit_and_vmap_agree(compiled, key):
    x, kernel = _operands(key, (3, 4, 3), 2, 3, taps=(4, 4, 4))
    expected = _slow_conv_transpose3d(x, kernel, np.array(2), "same")
    out = compiled(lambda x, kernel: conv_transpose3d(x, kernel, stride=2))(x, kernel)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_transpose_derivatives_are_right(key):
    with jax.enable_x64(True):
        x, kernel = _operands(key, (2, 3, 2), 2, 2, batch=2, taps=(4, 4, 4), dtype=jnp.float64)

        def waves(x, kernel):
            return jnp.sin(conv_transpose3d(x, 0.1 * kernel, stride=2))

        check_grads(waves, (x, kernel), order=2, modes=("rev",))  # custom_vjp: no forward mode


def test_transpose_sums_bfloat16_in_float32():
    x, kernel = jnp.ones((1, 2, 2, 2, 1024), jnp.bfloat16), jnp.ones((2, 2, 2, 1024, 1))
    out = conv_transpose3d(x, kernel.astype(jnp.bfloat16), stride=2)
    assert out.dtype == jnp.bfloat16
    assert jnp.all(out == 1024)


def test_transpose_on_other_platforms_is_one_3d_convolution(key):
    operands = _operands(key, (3, 4, 3), 3, 4, taps=(4, 4, 4))
    for platform in ("cuda", "tpu"):
        export = jax.export.export(
            jax.jit(lambda x, kernel: conv_transpose3d(x, kernel, stride=2)), platforms=[platform]
        )
        assert export(*operands).mlir_module().count("stablehlo.convolution") == 1


def test_transpose_names_bad_operands(key):
    x, kernel = _operands(key, (4, 4, 4), 3, 4)
    with pytest.raises(ValueError, match="conv_transpose3d wants x"):
        conv_transpose3d(x[0], kernel)
    with pytest.raises(ValueError, match=r"must take x's 2 channels.* takes 3"):
        conv_transpose3d(x[..., :2], kernel)
    with pytest.raises(ValueError, match='padding must be "same" or "valid", got 1'):
        conv_transpose3d(x, kernel, padding=1)


def test_wrong_channels_are_named(key):
    x, kernel = _operands(key, (4, 4, 4), 3, 4)
    with pytest.raises(ValueError, match=r"must take x's 2 channels.* takes 3"):
        conv3d(x[..., :2], kernel)


def test_missing_axis_is_named(key):
    x, kernel = _operands(key, (4, 4, 4), 3, 4)
    with pytest.raises(ValueError, match=r"wants x \(batch, z, y, x, channels\)"):
        conv3d(x[0], kernel)


def test_kernel_larger_than_a_valid_volume_is_named(key):
    x, kernel = _operands(key, (4, 4, 4), 3, 4)
    with pytest.raises(ValueError, match="3 taps with dilation 2 needs 5 voxels"):
        conv3d(x, kernel, dilation=2, padding="valid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "SAME"}, 'padding must be "same" or "valid"'),
        ({"stride": 0}, "stride must be a whole number from 1 up"),
        ({"dilation": (1, 2)}, r"dilation must be .* three of them"),
    ],
)
def test_bad_options_are_named(options, message, key):
    x, kernel = _operands(key, (4, 4, 4), 3, 4)
    with pytest.raises(ValueError, match=message):
        conv3d(x, kernel, **options)
