"""Bilateral filters against a loop over voxels in float64, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jimjax.ops import bilateral_filters, filters

SHAPE = (5, 6, 7)


def noise(shape=SHAPE, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def slow_filter(volume, guide, sigma_space, sigma_range, radius):
    """One voxel at a time; ``guide`` is ``(components, z, y, x)``."""
    volume, guide = np.asarray(volume, np.float64), np.asarray(guide, np.float64)
    out = np.empty_like(volume)
    for p in np.ndindex(*volume.shape):
        total = norm = 0.0
        for step in np.ndindex(*[2 * radius + 1] * 3):
            q = tuple(np.add(p, step) - radius)
            if min(q) < 0 or any(a >= n for a, n in zip(q, volume.shape, strict=True)):
                continue
            distance = sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / sigma_space**2
            unlike = np.sum((guide[(slice(None), *p)] - guide[(slice(None), *q)]) ** 2)
            weight = np.exp(-(distance + unlike / sigma_range**2) / 2)
            total += weight * volume[q]
            norm += weight
        out[p] = total / norm
    return out


def slow_laplacian_gradient(volume):
    """Eqs. 10 to 12 on a volume that goes on beyond its faces."""
    padded = np.pad(np.asarray(volume, np.float64), 1, mode="edge")
    inner = padded[1:-1, 1:-1, 1:-1]
    laplacian = sum(
        np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] - inner
        for axis in range(3)
        for step in (1, -1)
    )
    padded = np.pad(laplacian, 1, mode="edge")
    return np.stack(
        [
            (np.roll(padded, -1, axis) - np.roll(padded, 1, axis))[1:-1, 1:-1, 1:-1]
            for axis in range(3)
        ]
    )


def slow_sobel(volume):
    padded = np.pad(np.asarray(volume, np.float64), 1, mode="edge")
    kernels = np.array([-1, 0, 1]), np.array([1, 2, 1])
    out = np.zeros((3, *volume.shape))
    for axis in range(3):
        z, y, x = (kernels[0] if a == axis else kernels[1] for a in range(3))
        kernel = np.einsum("z,y,x->zyx", z, y, x)
        for step in np.ndindex(3, 3, 3):
            window = tuple(slice(s, s + n) for s, n in zip(step, volume.shape, strict=True))
            out[axis] += kernel[step] * padded[window]
    return out


def test_two_voxels_by_hand():
    volume = jnp.array([0.0, 1.0]).reshape(1, 1, 2)
    weight = np.exp(-1 / (2 * 2.0**2)) * np.exp(-1 / (2 * 0.5**2))
    out = bilateral_filters.bilateral(volume, sigma_space=2.0, sigma_range=0.5)
    np.testing.assert_allclose(out.ravel(), np.array([weight, 1.0]) / (1 + weight), rtol=1e-5)


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("sigma_range", [0.3, 2.0])
def test_bilateral_agrees_with_the_slow_twin(radius, sigma_range, compiled):
    volume = noise()
    fn = functools.partial(
        bilateral_filters.bilateral, sigma_space=1.5, sigma_range=sigma_range, radius=radius
    )
    expected = slow_filter(volume, np.asarray(volume)[None], 1.5, sigma_range, radius)
    np.testing.assert_allclose(compiled(fn)(volume), expected, atol=2e-6)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize(
    ("gradient", "slow_gradient"), [("laplacian", slow_laplacian_gradient), ("sobel", slow_sobel)]
)
def test_gradient_bilateral_agrees_with_the_slow_twin(gradient, slow_gradient, radius, compiled):
    volume = noise()
    fn = functools.partial(
        bilateral_filters.gradient_bilateral,
        sigma_space=1.5,
        sigma_range=4.0,
        radius=radius,
        gradient=gradient,
    )
    expected = slow_filter(volume, slow_gradient(np.asarray(volume)), 1.5, 4.0, radius)
    np.testing.assert_allclose(compiled(fn)(volume), expected, atol=1e-5)  # gradients of about 10


def test_defaults_are_the_published_ones():
    volume = noise()
    expected = slow_filter(volume, slow_laplacian_gradient(np.asarray(volume)), 120.0, 1.2, 1)
    np.testing.assert_allclose(bilateral_filters.gradient_bilateral(volume), expected, atol=1e-5)


def test_large_sigmas_make_it_a_mean_over_the_window():
    volume = noise()
    out = bilateral_filters.bilateral(volume, sigma_space=1e4, sigma_range=1e4)
    window = np.asarray(volume)[1:4, 2:5, 2:5]
    np.testing.assert_allclose(out[2, 3, 3], window.mean(), atol=1e-6)


def test_a_small_sigma_range_changes_nothing():
    volume = noise()
    out = bilateral_filters.bilateral(volume, sigma_space=5.0, sigma_range=1e-6)
    np.testing.assert_array_equal(out, volume)


def test_an_edge_stays_where_a_gaussian_blurs_it():
    step = jnp.where(jnp.arange(12) < 6, 0.0, 10.0) * jnp.ones((8, 8, 1))
    noisy = step + 0.3 * noise((8, 8, 12))
    filtered = bilateral_filters.bilateral(noisy, sigma_space=2.0, sigma_range=1.0)
    blurred = filters.gaussian(noisy, 1.0)
    error = [float(jnp.std(out - step)) for out in (noisy, filtered, blurred)]
    assert error[1] < 0.5 * error[0]
    assert error[2] > 2 * error[0]


def test_a_shift_of_grey_values_shifts_the_result():
    volume = noise()
    for fn in (
        functools.partial(bilateral_filters.bilateral, sigma_space=2.0, sigma_range=1.0),
        bilateral_filters.gradient_bilateral,
    ):
        np.testing.assert_allclose(fn(volume + 5.0), fn(volume) + 5.0, atol=2e-5)


def test_bilateral_gradients_agree_with_finite_differences(x64):
    def fn(volume, sigma):
        return bilateral_filters.bilateral(volume, sigma_space=1.5, sigma_range=sigma)

    arguments = (noise((3, 4, 5), dtype=jnp.float64), 0.8)
    check_grads(jax.jit(fn), arguments, order=1, modes=("fwd", "rev"))


def test_gradient_bilateral_gradients_agree_with_finite_differences(x64):
    def fn(volume, sigma):
        return bilateral_filters.gradient_bilateral(volume, sigma_space=1.5, sigma_range=sigma)

    arguments = (noise((3, 4, 5), dtype=jnp.float64), 4.0)
    check_grads(jax.jit(fn), arguments, order=1, modes=("fwd", "rev"))


@pytest.mark.slow
def test_second_derivatives_agree_with_finite_differences(x64):
    def energy(volume):
        return jnp.sum(bilateral_filters.bilateral(volume, sigma_space=1.5, sigma_range=0.8) ** 2)

    check_grads(jax.jit(energy), (noise((2, 3, 3), dtype=jnp.float64),), order=2, modes=("rev",))


def test_a_constant_volume_stays_and_its_gradient_is_finite():
    volume = jnp.full(SHAPE, 1e4)
    for fn in (
        functools.partial(bilateral_filters.bilateral, sigma_space=2.0, sigma_range=1.0),
        bilateral_filters.gradient_bilateral,
    ):
        np.testing.assert_allclose(fn(volume), volume, rtol=1e-6)
        assert np.all(np.isfinite(jax.jit(jax.grad(lambda v, fn=fn: jnp.sum(fn(v) ** 2)))(volume)))


def test_batches_have_the_gradients_of_single_volumes():
    volumes = noise((3, *SHAPE))

    def loss(volume):
        return jnp.sum(jnp.sin(bilateral_filters.gradient_bilateral(volume)))

    together = jax.jit(jax.vmap(jax.grad(loss)))(volumes)
    gradient = jax.jit(jax.grad(loss))
    alone = jnp.stack([gradient(volume) for volume in volumes])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("gradient", ["laplacian", "sobel"])
def test_slabs_give_what_the_whole_gives(gradient):
    volume = noise((23, 5, 6))
    fn = functools.partial(bilateral_filters.gradient_bilateral, gradient=gradient)
    slabs = filters.in_slabs(fn, volume, halo=3, thickness=4)
    np.testing.assert_allclose(slabs, fn(volume), atol=1e-6)


def test_a_tomogram_of_512_takes_the_stated_memory():
    tomogram = jax.ShapeDtypeStruct((512, 512, 512), jnp.float32)
    compiled = (
        jax.jit(lambda v: filters.in_slabs(bilateral_filters.gradient_bilateral, v, halo=3))
        .lower(tomogram)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * 2**30


def test_bfloat16_weighs_in_float32():
    volume = noise(dtype=jnp.bfloat16)
    out = bilateral_filters.gradient_bilateral(volume)
    assert out.dtype == jnp.bfloat16
    exact = bilateral_filters.gradient_bilateral(volume.astype(jnp.float32))
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1}, "radius must be 0 or more voxels and sigma_space above 0, got -1"),
        ({"sigma_space": 0.0}, "sigma_space above 0"),
        ({"gradient": "scharr"}, 'gradient must be "laplacian" or "sobel", got \'scharr\''),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bilateral_filters.gradient_bilateral(noise(), **options)


def test_batch_without_vmap_is_refused():
    with pytest.raises(ValueError, match=r"volume must be \(z, y, x\)"):
        bilateral_filters.bilateral(noise((2, *SHAPE)), sigma_space=1.0, sigma_range=1.0)
