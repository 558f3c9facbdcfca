"""Episodes of random molecules: what is drawn, and what is learned from it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_protonet import SIZES

from jimjax.config import PretrainSection, RunConfig
from jimjax.fewshot import pretraining
from jimjax.mesh import data_mesh
from jimjax.models import functional, weights
from jimjax.ops.correlation import standardize
from jimjax.train.molecules import MoleculeConfig, observe_views

BOX = 16
FULL = (-90.0, 90.0)
STILL = MoleculeConfig(blob_min=0.08, size_max=0.15, max_shift=0.0, snr_min=1e8, snr_max=1e8)


@functools.partial(jax.jit, static_argnames=("config", "num"))
def views_of(key, tilt, *, config=STILL, num=3):
    ranges = jnp.tile(jnp.asarray(tilt), (num, 2, 1))
    return observe_views(key, ranges, config, box=BOX, sign=-1.0, mesh=data_mesh(1))


def spectrum(volumes):
    """Power in shells, which does not depend on how a molecule is turned or where it is."""
    power = np.abs(np.fft.fftn(volumes, axes=(-3, -2, -1))) ** 2
    radius = np.linalg.norm(np.meshgrid(*[np.fft.fftfreq(BOX)] * 3), axis=0)
    shells = [power[..., (radius >= r) & (radius < r + 0.05)].mean(-1) for r in (0.05, 0.1, 0.15)]
    shells = np.stack(shells, axis=-1)
    return shells / shells.sum(axis=-1, keepdims=True)


def test_views_are_of_one_molecule_each_and_differ_in_pose(key):
    views = views_of(key, FULL)
    assert views.shape == (3, 2, BOX, BOX, BOX)
    shells = spectrum(views)
    np.testing.assert_allclose(shells[:, 0], shells[:, 1], rtol=0.1)
    assert np.abs(shells[0, 0] / shells[1, 0] - 1).max() > 0.2
    flat = np.reshape(views, (3, 2, -1))
    assert all(np.corrcoef(each)[0, 1] < 0.99 for each in flat)  # turned otherwise


def test_views_are_normalised_and_dark(key):
    views = np.asarray(views_of(key, FULL))
    np.testing.assert_allclose(views.mean(axis=(2, 3, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(views.std(axis=(2, 3, 4)), 1, rtol=1e-5)
    assert np.all(-views.min(axis=(2, 3, 4)) > 2 * views.max(axis=(2, 3, 4)))


def test_noise_of_views_is_independent(key):
    pure = dataclasses.replace(STILL, snr_min=1e-6, snr_max=1e-6)
    flat = np.reshape(views_of(key, FULL, config=pure), (6, -1))
    apart = np.corrcoef(flat)[~np.eye(6, dtype=bool)]
    assert np.abs(apart).max() < 5 * BOX**-1.5  # five deviations of chance


def test_nothing_is_seen_in_the_missing_wedge(key):
    views = views_of(key, (-60.0, 60.0))
    power = np.abs(np.fft.fftn(views, axes=(2, 3, 4))) ** 2
    along_beam = power[:, :, 1 : BOX // 2, 0, 0].sum(axis=2)
    assert np.all(along_beam < 1e-6 * power.sum(axis=(2, 3, 4)))


def test_views_are_a_function_of_the_key(key):
    np.testing.assert_array_equal(views_of(key, FULL), views_of(key, FULL))
    assert np.any(views_of(key, FULL) != views_of(jax.random.key(1), FULL))


@pytest.fixture
def network():
    return weights.build(SIZES(box=BOX), jax.random.key(0))


def test_both_methods_learn_from_molecules(network, key):
    """Every kernel has a gradient, the encoder's and the attention's."""
    views = standardize(jax.random.normal(key, (8, 4, BOX, BOX, BOX)))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def differentiate(params):
        value, result = pretraining.molecule_loss(network._replace(params=params), views)
        return value, result.metrics

    gradient, metrics = differentiate(network.params)
    assert {"plain_accuracy", "accuracy_of_2", "divergence_of_8"} <= set(metrics)
    named = functional.name_arrays(gradient)
    kernels = {name: np.abs(leaf).max() for name, leaf in named.items() if "kernel" in name}
    assert len(kernels) == 2 + 1 + 4  # convolutions, dense, attention
    assert all(size > 1e-6 for size in kernels.values())


def test_stage_draws_the_same_tilt_ranges_each_time():
    config = RunConfig(pretrain=PretrainSection(steps=4, batch_size=8))
    ranges = np.float32([[-60, 60], [-50, 55], [-45, 65]])
    stage = pretraining.molecule_stage(config, ranges, BOX, data_mesh(1))
    first, again = (list(stage.batches(0, None)) for _ in range(2))
    assert first[0].shape == (8, 4, 2)
    np.testing.assert_array_equal(first, again)
    assert len(first) * stage.num_epochs == 4


def test_batch_that_cannot_be_grouped_is_an_error():
    config = RunConfig(pretrain=PretrainSection(batch_size=12))
    with pytest.raises(ValueError, match="a multiple of 8 molecules, got 12"):
        pretraining.molecule_stage(config, np.zeros((1, 2)), BOX, data_mesh(1))
