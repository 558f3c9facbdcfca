"""Gaussian mixtures against formulas, scipy and scikit-learn, and the cases that break EM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from jimjax.ops import mixture, normal
from jimjax.ops.mixture import Mixture

KINDS = {"full": "full", "diagonal": "diag", "tied": "tied"}  # ours and scikit-learn's


def _clouds(seed, *, num_rows=300, num_features=3, num_clouds=3, spread=5.0, offset=0.0):
    generator = np.random.default_rng(seed)
    centres = spread * generator.normal(size=(num_clouds, num_features))
    labels = generator.integers(num_clouds, size=num_rows)
    shapes = np.eye(num_features) + 0.4 * generator.normal(size=(num_clouds, num_features, 1))
    noise = generator.normal(size=(num_rows, num_features))
    rows = centres[labels] + np.einsum("nij,nj->ni", shapes[labels], noise) + offset
    return jnp.asarray(rows, jnp.float32), labels


def _some_mixture(dtype=jnp.float32):
    return Mixture(
        jnp.log(jnp.array([0.25, 0.75], dtype)),
        jnp.array([[0.0, 1.0, 0.0], [3.0, -1.0, 2.0]], dtype),
        jnp.stack([jnp.eye(3, dtype=dtype), 0.5 * jnp.eye(3, dtype=dtype) + 0.3]),
    )


def _start(x, num_components, kind):
    """A common start for us and for scikit-learn: spread-out rows, the covariance of all."""
    rows = np.asarray(x, np.float64)
    means = rows[np.linspace(0, len(rows) - 1, num_components).astype(int)]
    covariance = np.cov(rows.T) + 1e-5 * np.eye(rows.shape[1])
    log_weights = np.full(num_components, -np.log(num_components))
    if kind == "diagonal":
        covariance = np.diag(covariance)[None]
    covariances = np.stack([covariance] * (1 if kind == "tied" else num_components))
    return Mixture(*(jnp.asarray(a, jnp.float32) for a in (log_weights, means, covariances)))


def _theirs(start, kind, **options):
    """scikit-learn's model of ours, before or without fitting."""
    log_weights, means, covariances = (np.asarray(a, np.float64) for a in start)
    precisions = 1 / covariances[:, 0] if kind == "diagonal" else np.linalg.inv(covariances)
    return GaussianMixture(
        len(means),
        covariance_type=KINDS[kind],
        reg_covar=1e-5,
        weights_init=np.exp(log_weights) / np.exp(log_weights).sum(),
        means_init=means,
        precisions_init=precisions[0] if kind == "tied" else precisions,
        **options,
    )


def test_row_between_two_equal_components_is_shared(compiled):
    two = Mixture(jnp.log(jnp.array([0.5, 0.5])), jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1)))
    posterior = compiled(mixture.e_step)(jnp.zeros((1, 1)), two)
    np.testing.assert_allclose(jnp.exp(posterior.log_responsibilities), [[0.5, 0.5]], rtol=1e-6)
    # log N(0; +-1, 1)
    expected = -0.5 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(posterior.log_likelihood, [expected], rtol=1e-6)


def test_m_step_of_hard_labels_is_the_mean_and_covariance_of_each_cluster(compiled):
    x, labels = _clouds(0)
    hard = jax.nn.one_hot(labels, 3)
    fn = compiled(lambda x, r: mixture.m_step(x, r, regularization=1e-3))
    fitted = fn(x, hard)
    for k in range(3):
        rows = np.asarray(x, np.float64)[labels == k]
        covariance = np.cov(rows.T, bias=True) + 1e-3 * np.eye(3)
        np.testing.assert_allclose(jnp.exp(fitted.log_weights[k]), len(rows) / 300, rtol=1e-5)
        np.testing.assert_allclose(fitted.means[k], rows.mean(axis=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(fitted.covariances[k], covariance, rtol=1e-4, atol=1e-5)


def test_e_step_agrees_with_scipy():
    x, _ = _clouds(1)
    model = _some_mixture()
    rows = np.asarray(x, np.float64)
    joint = np.stack(
        [
            log_weight + multivariate_normal(mean, covariance).logpdf(rows)
            for log_weight, mean, covariance in zip(*map(np.asarray, model), strict=True)
        ],
        axis=1,
    )
    posterior = mixture.e_step(x, model)
    total = logsumexp(joint, axis=1)
    np.testing.assert_allclose(posterior.log_likelihood, total, rtol=1e-4)
    expected = joint - total[:, None]
    np.testing.assert_allclose(posterior.log_responsibilities, expected, rtol=1e-4, atol=1e-4)


def test_responsibilities_of_a_row_sum_to_its_weight():
    x, _ = _clouds(2)
    weights = jnp.linspace(0, 2, 300)
    plain = mixture.e_step(x, _some_mixture())
    weighted = mixture.e_step(x, _some_mixture(), weights=weights)
    sums = jnp.exp(weighted.log_responsibilities).sum(axis=1)
    np.testing.assert_allclose(sums, weights, rtol=1e-5)
    expected = weights * plain.log_likelihood
    np.testing.assert_allclose(weighted.log_likelihood, expected, rtol=1e-6)


def test_weight_zero_is_a_row_left_out():
    x, _ = _clouds(3)
    weights = (jnp.arange(300) < 200).astype(jnp.float32)

    def one_step(x, weights=None):
        posterior = mixture.e_step(x, _some_mixture(), weights=weights)
        return mixture.m_step(x, jnp.exp(posterior.log_responsibilities))

    padded, short = one_step(x, weights), one_step(x[:200])
    np.testing.assert_allclose(padded.means, short.means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded.covariances, short.covariances, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "offset"), [(0, 0.0), (1, 100.0), (2, 0.0)])
def test_em_from_the_same_start_agrees_with_scikit_learn(seed, offset, kind):
    x, _ = _clouds(seed, num_features=4, offset=offset)
    start = _start(x, 3, kind)
    ours, score = mixture.refine(x, start, max_iterations=300, tolerance=1e-6)
    rows = np.asarray(x, np.float64)
    theirs = _theirs(start, kind, tol=1e-6, max_iter=300).fit(rows)
    np.testing.assert_allclose(score, theirs.score(rows), rtol=1e-3)
    labels = jnp.argmax(mixture.e_step(x, ours).log_responsibilities, axis=1)
    # One row in 300 may sit on a border.
    assert np.mean(np.asarray(labels) == theirs.predict(rows)) >= 0.996


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_and_bic_are_those_of_scikit_learn(kind):
    x, _ = _clouds(13, num_features=3)  # as many features as components
    start = _start(x, 3, kind)
    ours, _ = mixture.refine(x, start, max_iterations=2, tolerance=0.0)
    rows = np.asarray(x, np.float64)
    theirs = _theirs(start, kind, max_iter=2)
    with pytest.warns(ConvergenceWarning):
        theirs.fit(rows)
    covariances = {"diagonal": theirs.covariances_[:, None], "tied": theirs.covariances_[None]}
    np.testing.assert_allclose(jnp.exp(ours.log_weights), theirs.weights_, rtol=1e-4)
    np.testing.assert_allclose(ours.means, theirs.means_, rtol=1e-4, atol=1e-4)
    expected = covariances.get(kind, theirs.covariances_)
    np.testing.assert_allclose(ours.covariances, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(mixture.bic(x, ours), theirs.bic(rows), rtol=1e-5)


def test_fit_finds_separate_clouds_under_jit_and_is_repeatable(key):
    x, labels = _clouds(4, num_clouds=4, spread=20.0)
    model, score = jax.jit(lambda key, x: mixture.fit(key, x, num_components=4))(key, x)
    found = np.asarray(jnp.argmax(mixture.e_step(x, model).log_responsibilities, axis=1))
    pairs = {(int(a), int(b)) for a, b in zip(found, labels, strict=True)}
    assert len(pairs) == 4  # one found label for each true one
    again, again_score = mixture.fit(key, x, num_components=4)
    np.testing.assert_allclose(again.means, model.means, rtol=1e-5)
    np.testing.assert_allclose(again_score, score, rtol=1e-5)


@pytest.mark.parametrize("kind", ["diagonal", "tied"])
def test_fit_of_each_kind_finds_separate_clouds(kind, key):
    x, labels = _clouds(4, num_clouds=4, spread=20.0)
    model, _ = mixture.fit(key, x, num_components=4, covariance=kind, num_init=2)
    assert normal.covariance_kind(model.means, model.covariances) == kind
    found = np.asarray(jnp.argmax(mixture.e_step(x, model).log_responsibilities, axis=1))
    assert len({(int(a), int(b)) for a, b in zip(found, labels, strict=True)}) == 4


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_weighted_rows_are_repeated_rows_and_the_unit_of_weights_does_not_matter(scale):
    x, _ = _clouds(14, num_rows=100)
    repeats = np.arange(100) % 4  # some rows count for nothing
    start = _start(x, 3, "full")
    weighted, score = mixture.refine(x, start, weights=scale * jnp.asarray(repeats, jnp.float32))
    repeated, expected = mixture.refine(jnp.repeat(x, repeats, axis=0), start)
    np.testing.assert_allclose(score, expected, rtol=1e-4)
    np.testing.assert_allclose(weighted.means, repeated.means, rtol=1e-3, atol=1e-3)
    weights = jnp.asarray(repeats, jnp.float32)
    bic = mixture.bic(jnp.repeat(x, repeats, axis=0), repeated)
    np.testing.assert_allclose(mixture.bic(x, repeated, weights=weights), bic, rtol=1e-5)


def test_fit_is_as_likely_as_scikit_learn_with_as_many_starts(key):
    x, _ = _clouds(5, num_rows=600, num_clouds=5, spread=2.0)
    _, score = mixture.fit(key, x, num_components=5, num_init=5)
    theirs = GaussianMixture(5, n_init=5, tol=1e-4, reg_covar=1e-5, random_state=0).fit(x)
    assert score > theirs.score(x) - 0.02  # local optima differ by a few hundredths of a nat


def test_em_never_lowers_the_likelihood():
    x, _ = _clouds(6)
    model = _some_mixture()
    scores = []
    for _ in range(10):
        posterior = mixture.e_step(x, model)
        scores.append(posterior.log_likelihood.mean())
        model = mixture.m_step(x, jnp.exp(posterior.log_responsibilities), regularization=1e-6)
    assert np.all(np.diff(scores) > -1e-4)  # float32 rounding of a score of about -10


def test_one_component_is_the_mean_and_covariance(key):
    x, _ = _clouds(7)
    model, _ = mixture.fit(key, x, num_components=1)
    np.testing.assert_allclose(model.means[0], np.mean(x, axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.covariances[0], np.cov(x.T, bias=True), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(jnp.exp(model.log_weights), [1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "num_components"),
    [
        pytest.param(np.full((20, 2), 7.0), 3, id="identical rows"),
        pytest.param(np.repeat([[0, 1], [5, 5]], 10, axis=0), 3, id="fewer places than k"),
        pytest.param(1e3 * np.outer(np.arange(20), [1, 1]), 3, id="singular covariance"),
        pytest.param(1e6 * np.eye(20, 2), 3, id="two far outliers"),
        pytest.param(np.array([[0, 1], [1, 0], [3, 3], [9, 1]]), 4, id="as many k as rows"),
        pytest.param(np.ones((1, 2)), 1, id="one row"),
    ],
)
def test_degenerate_rows_give_finite_mixtures(rows, num_components, key):
    x = jnp.asarray(rows, jnp.float32)
    model, score = mixture.fit(key, x, num_components=num_components, num_init=2)
    posterior = mixture.e_step(x, model)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in (*model, *posterior, score))
    np.testing.assert_allclose(jnp.exp(model.log_weights).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("kind", ["diagonal", "tied"])
@pytest.mark.parametrize("step", [0.0, 5.0])
def test_fewer_places_than_components_are_finite_for_each_kind(kind, step, key):
    x = jnp.full((20, 2), 7.0) + step * (jnp.arange(20.0) % 2)[:, None]
    model, score = mixture.fit(key, x, num_components=3, covariance=kind, num_init=2)
    posterior = mixture.e_step(x, model)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in (*model, *posterior, score))


def test_empty_component_of_a_tied_mixture_restarts_and_the_covariance_stays_tied():
    x, labels = _clouds(8, num_clouds=2, spread=20.0)
    centre = np.asarray(x)[labels == 0].mean(axis=0)
    start = Mixture(
        jnp.log(jnp.array([0.5, 0.5])),
        jnp.asarray(np.stack([centre, centre + 1e4]), jnp.float32),
        50 * jnp.eye(3)[None],
    )
    model, _ = mixture.refine(x, start)
    assert model.covariances.shape == (1, 3, 3)
    counts = jnp.exp(mixture.e_step(x, model).log_responsibilities).sum(axis=0)
    np.testing.assert_allclose(np.sort(counts), np.sort(np.bincount(labels)), atol=1.0)


def test_empty_component_restarts_at_the_worst_explained_row():
    x, labels = _clouds(8, num_clouds=2, spread=20.0)
    centre = np.asarray(x)[labels == 0].mean(axis=0)
    # Component 1 sits where no row is: component 0 takes all rows of both clouds.
    start = Mixture(
        jnp.log(jnp.array([0.5, 0.5])),
        jnp.asarray(np.stack([centre, centre + 1e4]), jnp.float32),
        jnp.stack([50 * jnp.eye(3), jnp.eye(3)]),
    )
    model, _ = mixture.refine(x, start)
    again, _ = mixture.refine(x, start)
    counts = jnp.exp(mixture.e_step(x, model).log_responsibilities).sum(axis=0)
    np.testing.assert_allclose(np.sort(counts), np.sort(np.bincount(labels)), atol=1.0)
    np.testing.assert_array_equal(again.means, model.means)


def test_bic_agrees_with_scikit_learn_and_finds_the_number_of_clouds(key):
    x, _ = _clouds(9, num_clouds=3, spread=10.0)
    scores = [float(mixture.bic(x, mixture.fit(key, x, num_components=k)[0])) for k in (2, 3, 4)]
    assert np.argmin(scores) == 1
    theirs = GaussianMixture(3, reg_covar=1e-5, tol=1e-4, n_init=3, random_state=0).fit(x)
    np.testing.assert_allclose(scores[1], theirs.bic(x), rtol=1e-3)


def test_gradients_of_both_steps_are_right():
    with jax.enable_x64(True):
        x = jnp.asarray(_clouds(10, num_rows=6)[0], jnp.float64) / 5

        def covariances(root):  # keeps the perturbed matrices symmetric
            return root @ root.mT + jnp.eye(3)

        model = _some_mixture(jnp.float64)

        @jax.jit
        def e_step(x, model):
            return mixture.e_step(x, model._replace(covariances=covariances(model.covariances)))

        check_grads(e_step, (x, model), order=1)
        responsibilities = jnp.exp(e_step(x, model).log_responsibilities)
        check_grads(jax.jit(mixture.m_step), (x, responsibilities), order=1)


def test_gradients_are_finite_for_far_rows_and_padding_rows():
    x = jnp.array([[1e3, 1e3, 1e3], [0.0, 1.0, 0.0]])

    def loss(x, model):
        posterior = mixture.e_step(x, model, weights=jnp.array([1.0, 0.0]))
        refitted = mixture.m_step(x, jnp.exp(posterior.log_responsibilities))
        return posterior.log_likelihood.sum() + sum(a.sum() for a in refitted)

    gradients = jax.grad(loss, argnums=(0, 1))(x, _some_mixture())
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))


def test_fit_is_a_constant_for_autodiff(key):
    x, _ = _clouds(11)
    gradient = jax.grad(lambda x: mixture.fit(key, x, num_components=2, num_init=1)[1])(x)
    assert jnp.all(gradient == 0)


def test_more_components_than_rows_is_named(key):
    with pytest.raises(ValueError, match="from 1 to the 3 rows of x, got 4"):
        mixture.fit(key, jnp.zeros((3, 2)), num_components=4)


def test_bad_shapes_and_options_are_named(key):
    x, _ = _clouds(12)
    with pytest.raises(ValueError, match=r"table .* with 3 features"):
        mixture.e_step(x[:, :2], _some_mixture())
    with pytest.raises(ValueError, match="responsibilities"):
        mixture.m_step(x, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="regularization must be above 0"):
        mixture.fit(key, x, num_components=2, regularization=0.0)
    with pytest.raises(ValueError, match="num_init"):
        mixture.fit(key, x, num_components=2, num_init=0)
    with pytest.raises(ValueError, match="covariance must be one of"):
        mixture.fit(key, x, num_components=2, covariance="spherical")
    with pytest.raises(ValueError, match="keep three axes"):
        mixture.refine(x, _some_mixture()._replace(covariances=jnp.ones((2, 3))))
