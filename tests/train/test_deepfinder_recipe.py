"""Random molecules as classes: which are observed, how, and that they can be told apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.config import PretrainSection, RunConfig
from jimjax.mesh import data_mesh, replicate
from jimjax.models import deepfinder as networks
from jimjax.models.deepfinder import DeepFinderConfig
from jimjax.train import deepfinder, loop
from jimjax.train.molecules import MoleculeConfig, draw_molecules, observe_molecule
from jimjax.train.state import adam, initial_state

BOX, NUM = 8, 4
SECTION = PretrainSection(steps=6, batch_size=8, snr_min=50.0, snr_max=100.0, max_shift=0.1)
CONFIG = RunConfig(pretrain=SECTION)
RANGES = np.tile(np.float32([-60, 60]), (5, 1))


@pytest.fixture(scope="module", autouse=True)
def _few_molecules_and_a_tiny_network():
    def tiny(box, num_classes):
        return DeepFinderConfig(
            box=box,
            size=box,
            widths=((4,), (6,)),
            hidden_width=8,
            dense_width=4,
            num_classes=num_classes,
            kernel="isotropic",
            pools=("max", "mean", "std"),
            has_norm=True,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepfinder, "NUM_MOLECULES", NUM)
        patch.setitem(deepfinder.PRESETS, "small", tiny)
        yield


def stage_of(config=CONFIG):
    return deepfinder.molecule_stage(config, RANGES, BOX, data_mesh())


def test_head_has_a_class_for_each_molecule():
    assert deepfinder.network_config(CONFIG, BOX).num_classes == NUM
    assert deepfinder.PRESETS["paper"] is networks.paper


def test_every_molecule_is_drawn_equally_often():
    drawn = np.concatenate([batch.labels for batch in stage_of().batches(0, None)])
    np.testing.assert_array_equal(np.bincount(drawn), [6 * 8 // NUM] * NUM)


def test_batches_are_a_function_of_seed_and_round():
    config = RunConfig(pretrain=dataclasses.replace(SECTION, steps=200))  # four rounds

    def labels(round_number, seed=0):
        stage = stage_of(dataclasses.replace(config, seed=seed))
        return np.stack([batch.labels for batch in stage.batches(round_number, None)])

    np.testing.assert_array_equal(labels(1), labels(1))
    assert np.any(labels(0) != labels(1))
    assert np.any(labels(0) != labels(0, seed=1))


def test_molecules_are_learned():
    """Four molecules; chance is an accuracy of 0.25."""
    steps = dataclasses.replace(SECTION, steps=100, batch_size=16)
    config = RunConfig(pretrain=steps)
    network, optimizer = deepfinder.build_network(config, BOX), adam(lambda step: 1e-2)
    state = replicate(initial_state(network, optimizer), data_mesh())
    told = []

    class Log:
        def write(self, **values):
            told.append(values["accuracy"])

    loop.train(
        network,
        state,
        {"none": np.zeros(1)},
        [stage_of(config)],
        key=jax.random.key(0),
        optimizer=optimizer,
        mesh=data_mesh(),
        log=Log(),
    )
    assert told[-1] > 0.7


def test_molecules_have_the_sizes_of_their_family():
    config = MoleculeConfig(size_spread=0.0)
    drawn = draw_molecules(jax.random.key(0), 200, config, box=BOX)
    shares = drawn.weights / drawn.weights.sum(axis=1, keepdims=True)
    squared = jnp.einsum("nm,nmi->n", shares, drawn.centers**2)
    sizes = np.sqrt(squared) / BOX
    assert config.size_min - 1e-5 < sizes.min() < 0.1
    assert 0.24 < sizes.max() < config.size_max + 1e-5


def test_observations_are_normalised_and_those_of_one_sign_negate_the_others(key):
    config = MoleculeConfig(snr_min=1e6, snr_max=1e6)
    molecule = jax.tree.map(lambda each: each[0], draw_molecules(key, 1, config, box=BOX))
    dark, light = (
        observe_molecule(key, molecule, jnp.array(RANGES[0]), config, box=BOX, sign=sign)
        for sign in (-1.0, 1.0)
    )
    np.testing.assert_allclose([light.mean(), light.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(dark, -light, atol=0.01)  # but for noise of a thousandth
    other = observe_molecule(
        jax.random.key(1), molecule, jnp.array(RANGES[0]), config, box=BOX, sign=1.0
    )
    assert np.abs(other - light).max() > 0.5  # in another pose
