"""Normal densities against scipy, sums over rows against numpy, for each kind of covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.stats import multivariate_normal

from jimjax.ops import normal

KINDS = ["full", "tied", "diagonal"]
MEANS = np.array([[0.0, 1.0, 0.0], [3.0, -1.0, 2.0]])
MATRICES = np.stack([np.diag([0.5, 1.0, 2.0]) + 0.3, 0.5 * np.eye(3) + 0.2])


def _covariances(kind):
    """One of each kind, and the full matrices that it stands for."""
    if kind == "full":
        return MATRICES, MATRICES
    if kind == "tied":
        return MATRICES[:1], MATRICES[[0, 0]]
    variances = np.array([[[0.5, 1.0, 2.0]], [[1.5, 0.2, 0.7]]])
    return variances, variances.swapaxes(1, 2) * np.eye(3)


def _table(seed, *, num_rows=40, offset=0.0):
    generator = np.random.default_rng(seed)
    x = 2 * generator.normal(size=(num_rows, 3)) + offset
    return x, generator.uniform(size=(num_rows, 2))


def _float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def test_standard_normal_at_its_mean_and_a_deviation_away(compiled):
    arguments = jnp.array([[0.0], [1.0]]), jnp.zeros((1, 1)), jnp.ones((1, 1, 1))
    expected = -0.5 * np.log(2 * np.pi) - np.array([[0.0], [0.5]])
    np.testing.assert_allclose(compiled(normal.log_densities)(*arguments), expected, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_log_densities_agree_with_scipy(kind, offset):
    x, _ = _table(0)
    given, matrices = _covariances(kind)
    each = zip(MEANS, matrices, strict=True)
    expected = np.stack([multivariate_normal(m, c).logpdf(x) for m, c in each], axis=1)
    found = normal.log_densities(*_float32(x + offset, MEANS + offset, given))
    # Rows at 1000 are known to 3e-5, and the densities change by up to 20 for each unit.
    tolerance = 1e-5 if offset == 0 else 2e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_has_the_same_densities(kind, compiled):
    arguments = _float32(_table(1)[0], MEANS, _covariances(kind)[0])
    expected = jax.jit(normal.log_densities)(*arguments)
    found = compiled(normal.log_densities)(*arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_no_row_is_likelier_than_the_mean_of_a_narrow_diagonal(key):
    # Rounding of the expanded square is thousands of nats here, of either sign.
    means = 1e3 * jax.random.normal(key, (50, 2))
    found = normal.log_densities(means, means, jnp.full((50, 1, 2), 1e-5))
    assert jnp.all(found <= -np.log(2 * np.pi) - np.log(1e-5) + 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_agree_with_numpy(kind, compiled):
    x, responsibilities = _table(2, offset=10.0)
    counts = responsibilities.sum(axis=0)
    means = responsibilities.T @ x / counts[:, None]
    centred = x[:, None] - means
    scatter = np.einsum("nk,nki,nkj->kij", responsibilities, centred, centred)
    if kind == "tied":
        scatter = scatter.sum(axis=0, keepdims=True)
    if kind == "diagonal":
        scatter = np.einsum("kii->ki", scatter)[:, None]
    fn = compiled(lambda x, r: normal.statistics(x, r, covariance=kind))
    found = fn(*_float32(x, responsibilities))
    np.testing.assert_allclose(found.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(found.means, means, rtol=1e-5)
    np.testing.assert_allclose(found.scatter, scatter, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scatter_keeps_its_digits_far_from_the_origin(kind):
    # Multiples of 1/8 are exact in float32 even at 10000.
    x = np.round(8 * _table(3)[0]) / 8
    ones = jnp.ones((len(x), 1))
    near, far = (
        normal.statistics(jnp.asarray(x + offset, jnp.float32), ones, covariance=kind)
        for offset in (0.0, 1e4)
    )
    # The mean of numbers near 10000 is known to 1e-3: its square times 40 rows is 4e-5.
    np.testing.assert_allclose(far.scatter, near.scatter, rtol=1e-4, atol=1e-3)


def test_group_without_rows_has_zero_statistics():
    x, responsibilities = _float32(*_table(4))
    found = normal.statistics(x, responsibilities.at[:, 1].set(0))
    for field in found:
        assert jnp.all(field[1] == 0)


def test_bfloat16_rows_are_summed_in_float32():
    x, responsibilities = (array.astype(jnp.bfloat16) for array in _float32(*_table(5)))
    narrow = normal.statistics(x, responsibilities)
    wide = normal.statistics(x.astype(jnp.float32), responsibilities.astype(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, narrow, wide)
    densities = normal.log_densities(x, *_float32(MEANS, MATRICES))
    assert densities.dtype == jnp.float32


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_right(kind, x64):
    x, responsibilities = map(jnp.asarray, _table(6, num_rows=5))
    roots = jnp.asarray(np.sqrt(_covariances(kind)[0]))

    @jax.jit
    def densities(x, means, roots):  # keeps the perturbed matrices symmetric
        squares = roots**2 if kind == "diagonal" else roots @ roots.mT + jnp.eye(3)
        return normal.log_densities(x, means, squares)

    @jax.jit
    def statistics(x, responsibilities):
        return normal.statistics(x, responsibilities, covariance=kind)

    check_grads(densities, (x, jnp.asarray(MEANS), roots), order=1, modes=("fwd", "rev"))
    check_grads(statistics, (x, responsibilities), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_at_the_mean_and_without_rows(kind):
    means, covariances = _float32(MEANS, _covariances(kind)[0])

    @jax.jit
    def total(x, means, covariances, responsibilities):
        summed = normal.statistics(x, responsibilities, covariance=kind)
        densities = normal.log_densities(x, means, covariances)
        return densities.sum() + sum(field.sum() for field in summed)

    gradients = jax.grad(total, (0, 1, 2, 3))(means, means, covariances, jnp.zeros((2, 2)))
    assert all(bool(jnp.all(jnp.isfinite(gradient))) for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_told_by_the_shape(kind):
    assert normal.covariance_kind(MEANS, _covariances(kind)[0]) == kind


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2, 2, 2)])
def test_shape_of_no_kind_is_named(shape):
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) \(full\), \(2, 1, 3\) \(diagonal\), "):
        normal.covariance_kind(MEANS, np.ones(shape))


def test_of_kinds_that_share_a_shape_full_is_told():
    assert {normal.covariance_shape(kind, 1, 1) for kind in KINDS} == {(1, 1, 1)}
    assert normal.covariance_kind(MEANS[:1, :1], np.ones((1, 1, 1))) == "full"


def test_square_table_is_not_taken_for_variances():
    with pytest.raises(ValueError, match="keep three axes"):
        normal.covariance_kind(np.zeros((3, 3)), np.eye(3))


def test_bad_responsibilities_and_kinds_are_named():
    with pytest.raises(ValueError, match=r"\(n, k\) for the 5 rows of x, got shape \(4, 2\)"):
        normal.statistics(jnp.ones((5, 3)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match='"full", "diagonal", "tied", got \'round\''):
        normal.statistics(jnp.ones((5, 3)), jnp.ones((5, 2)), covariance="round")


def test_nearly_flat_covariance_keeps_its_volume():
    """Float32 knows an eigenvalue of 1e-5 to 1e-7 / 1e-5, half of that in nats."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.normal(size=(32, 32)))[0]
    eigenvalues = np.geomspace(1e-5, 1, 32)
    covariance = ((axes * eigenvalues) @ axes.T).astype(np.float32)
    found = normal.log_densities(jnp.zeros((1, 32)), jnp.zeros((1, 32)), covariance[None])
    wanted = -0.5 * (32 * np.log(2 * np.pi) + np.log(eigenvalues).sum())
    np.testing.assert_allclose(found[0, 0], wanted, atol=0.03)
