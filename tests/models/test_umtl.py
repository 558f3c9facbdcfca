"""UMTL: the topology of the figure, sizes, and what each branch depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_networks import umtl as tiny

from jimjax.models import functional, umtl
from jimjax.models.umtl import UMTL, SiameseMatching, SkipCorrelationAttention
from jimjax.ops import matching, resample, rotation
from jimjax.ops.rotation import Pose

BOX = 9
STEERABLE = tiny(BOX, 3)
DENSE = tiny(BOX, 3, regressor="dense")


@functools.cache
def _network(config):
    return functional.create(functools.partial(UMTL, config), jax.random.key(0))


@functools.cache
def _compiled(config, **options):
    return jax.jit(lambda network, *inputs: functional.apply(network, *inputs, **options)[0])


def _ask(config, *inputs, network=None, **options):
    network = _network(config) if network is None else network
    return _compiled(config, train=options.pop("train", False), **options)(network, *inputs)


def _volumes(num):
    return jax.random.normal(jax.random.key(7), (num, BOX, BOX, BOX))


def _pairs():
    return jnp.split(_volumes(4), 2)


def _changed(config, prefixes):
    """The network with other values in the arrays whose names begin so."""
    network = _network(config)
    arrays = {
        name: leaf + jax.random.normal(jax.random.key(3), leaf.shape)
        for name, leaf in functional.name_arrays(network.params).items()
        if name.startswith(prefixes)
    }
    assert arrays
    return network._replace(params=functional.replace_arrays(network.params, arrays))


def test_paper_preset_has_the_figures_blocks(outline):
    config = umtl.paper(32, 5)
    found = outline(functools.partial(UMTL, config), *[(2, 32, 32, 32)] * 2)
    assert config.regressor == "dense"
    assert found.shapes.fine == ((2, 3, 3), (2, 3))
    assert found.shapes.features == (2, 512)
    assert found.shapes.logits == (2, 5)
    assert found.shapes.rotation_logits is None
    assert found.shapes.source_masks == found.shapes.target_masks == ((2, 32, 32, 32),) * 2
    names = functional.name_arrays(functional.outline(functools.partial(UMTL, config)).params)
    for stage in ("match_globally", "match_locally"):
        # Both correlations go into both towers: 2 x 216 channels each.
        for tower in range(2):
            assert names[f"{stage}.towers.{tower}.convs.0.kernel"].shape[3] == 2 * 6**3
        assert names[f"{stage}.attention.squeeze.kernel"].shape[3] == 2 * 6**3
        # One gate for each channel of the joined towers.
        assert names[f"{stage}.attention.out.kernel"].shape[1] == 2 * config.regressor_width
        assert names[f"{stage}.hidden.kernel"].shape[0] == 2 * config.regressor_width * 2**3


@pytest.mark.parametrize("box", [15, 32])
def test_small_preset(box, outline):
    found = outline(functools.partial(UMTL, umtl.small(box, 3)), *[(2, box, box, box)] * 2)
    assert found.shapes.source_masks.fine == (2, box, box, box)
    assert found.shapes.rotation_logits == (2, 2304)


def test_paper_preset_is_for_its_box_alone():
    with pytest.raises(ValueError, match="box of 32 voxels, got 40"):
        umtl.paper(40, 5)


@pytest.mark.parametrize("config", [STEERABLE, DENSE], ids=["steerable", "dense"])
def test_answer_is_the_residual_after_the_coarse_pose(config):
    found = _ask(config, *_pairs(), train=True)
    for row in range(2):
        coarse, residual = (
            Pose(*(field[row] for field in pose)) for pose in (found.coarse, found.residual)
        )
        expected = rotation.compose(residual, coarse)
        np.testing.assert_allclose(found.fine.rotation[row], expected.rotation, atol=1e-5)
        np.testing.assert_allclose(found.fine.shift[row], expected.shift, atol=1e-4)


@pytest.mark.parametrize("config", [STEERABLE, DENSE], ids=["steerable", "dense"])
def test_second_stage_looks_at_the_coarsely_aligned_source(config):
    source, target = _pairs()
    found = _ask(config, source, target)
    moved = jax.vmap(resample.transform)(source, found.coarse)
    masks = _ask(config, moved, method="segment")
    np.testing.assert_allclose(found.source_masks.fine, masks.fine, atol=1e-4)
    at_rest = _ask(config, source, method="segment")
    np.testing.assert_allclose(found.source_masks.coarse, at_rest.coarse, atol=1e-4)
    assert np.abs(np.subtract(found.source_masks.fine, at_rest.fine)).max() > 1e-3


def test_refining_the_coarse_pose_once_gives_the_answer():
    source, target = _pairs()
    found = _ask(DENSE, source, target)
    codes = (_ask(DENSE, each, method="encode") for each in (source, target))
    coarse = _ask(DENSE, *codes, method="match")
    np.testing.assert_allclose(coarse.rotation, found.coarse.rotation, atol=1e-5)
    refined = _ask(DENSE, source, target, coarse, method="refine")
    np.testing.assert_allclose(refined.rotation, found.fine.rotation, atol=1e-5)


def test_dense_second_stage_starts_as_the_identity():
    residual = _ask(DENSE, *_pairs(), train=True).residual
    np.testing.assert_allclose(residual.rotation, np.tile(np.eye(3), (2, 1, 1)), atol=1e-6)
    np.testing.assert_array_equal(residual.shift, np.zeros((2, 3)))


def test_without_alignment_poses_are_the_identity_and_nothing_moves():
    config = tiny(BOX, 3, ("cluster", "segment"))
    source, target = _pairs()
    found = _ask(config, source, target)
    np.testing.assert_array_equal(found.fine.rotation, np.tile(np.eye(3), (2, 1, 1)))
    masks = _ask(config, source, method="segment")
    np.testing.assert_allclose(found.source_masks.fine, masks.fine, atol=1e-4)
    assert _ask(config, source, method="encode") == ()


def test_extractors_and_decoders_are_shared_by_source_and_target():
    source, target = _pairs()
    there, back = (_ask(STEERABLE, *pair) for pair in ((source, target), (target, source)))
    np.testing.assert_allclose(there.source_masks.coarse, back.target_masks.coarse, atol=1e-4)


def test_clusters_depend_on_the_source_of_both_stages_and_on_their_own_branch():
    source, target = _pairs()
    tasks = ("cluster", "segment")
    described = _ask(tiny(BOX, 3, tasks), source, method="describe")
    found = _ask(tiny(BOX, 3, tasks), source, target)
    np.testing.assert_allclose(found.features, described.features, atol=1e-4)
    config = tiny(BOX, 3, tasks)
    for prefix in ("coarse.", "fine.", "cluster_coarse.", "cluster_fine."):
        other = _ask(config, source, method="describe", network=_changed(config, prefix))
        assert np.abs(np.subtract(other.features, described.features)).max() > 1e-3


def test_decoders_of_the_stages_share_nothing_but_the_volume():
    source, _ = _pairs()
    before = _ask(STEERABLE, source, method="segment")
    network = _changed(STEERABLE, ("segment_coarse.", "coarse."))
    after = _ask(STEERABLE, source, method="segment", network=network)
    np.testing.assert_array_equal(after.fine, before.fine)
    assert np.abs(np.subtract(after.coarse, before.coarse)).max() > 1e-3


def _matching(is_residual=False):
    build = functools.partial(SiameseMatching, 5, 3, 0.9, is_residual=is_residual)
    return functional.create(lambda rngs: build(rngs=rngs), jax.random.key(1))


def test_towers_see_both_correlations_and_are_multiplied_by_the_gates():
    """The block, written out with numpy from its parts' arrays."""
    network = _matching()
    features = jax.random.normal(jax.random.key(2), (2, 3, 5, 5, 5, 4))
    found, _ = functional.apply(network, *features, 9, train=False)
    arrays = functional.name_arrays(network.params)
    part = {name: np.asarray(leaf, np.float64) for name, leaf in arrays.items()}
    unit = lambda maps: np.asarray(matching.l2_normalize(maps))  # noqa: E731
    first, second = (unit(each) for each in features)
    flat = [each.reshape(3, 125, 4) for each in (first, second)]
    forward = np.einsum("bpc,bqc->bpq", flat[1], flat[0]).reshape(3, 5, 5, 5, 125)
    backward = np.einsum("bpc,bqc->bpq", flat[0], flat[1]).reshape(3, 5, 5, 5, 125)
    crossed = np.concatenate([unit(forward), unit(backward)], axis=-1)
    squeezed = np.maximum(
        crossed @ part["attention.squeeze.kernel"][0, 0, 0] + part["attention.squeeze.bias"], 0
    )
    pooled = np.concatenate([squeezed.mean((1, 2, 3)), squeezed.max((1, 2, 3))], axis=1)
    hidden = np.maximum(pooled @ part["attention.hidden.kernel"] + part["attention.hidden.bias"], 0)
    gates = 1 / (1 + np.exp(-hidden @ part["attention.out.kernel"] - part["attention.out.bias"]))
    joined = []
    for tower in range(2):
        maps = unit(crossed)
        for depth in range(2):
            kernel = part[f"towers.{tower}.convs.{depth}.kernel"]
            size = maps.shape[1] - 2
            windows = np.lib.stride_tricks.sliding_window_view(maps, (3, 3, 3), axis=(1, 2, 3))
            maps = np.einsum("bzyxcijk,ijkcd->bzyxd", windows, kernel)
            # Running statistics of an untrained network are 0 and 1.
            maps = np.maximum(maps / np.sqrt(1 + 1e-3), 0)
            assert maps.shape[1] == size
        joined.append(maps.reshape(3, -1) * gates[:, 3 * tower : 3 * tower + 3])
    hidden = np.maximum(np.concatenate(joined, 1) @ part["hidden.kernel"] + part["hidden.bias"], 0)
    out = hidden @ part["out.kernel"] + part["out.bias"]
    np.testing.assert_allclose(found.shift, np.tanh(out[:, 6:]) * 4.5, atol=1e-4)
    expected = jax.vmap(rotation.from_six_d)(jnp.asarray(out[:, :6] + [1, 0, 0, 0, 1, 0]))
    np.testing.assert_allclose(found.rotation, expected, atol=1e-4)


def test_attention_has_no_notion_of_place():
    build = functools.partial(SkipCorrelationAttention, 8, 3, 5)
    network = functional.create(lambda rngs: build(rngs=rngs), jax.random.key(1))
    maps = jax.random.normal(jax.random.key(2), (2, 3, 3, 3, 8))
    gates = _gates(network, maps)
    assert gates.shape == (2, 5)
    assert np.all((gates > 0) & (gates < 1))
    shuffled = maps.reshape(2, 27, 8)[:, ::-1].reshape(maps.shape)
    np.testing.assert_allclose(_gates(network, shuffled), gates, atol=1e-6)


def _gates(network, maps):
    module = nnx.merge(network.graphdef, network.params, network.stats)
    return np.asarray(module(maps))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(STEERABLE, id="steerable"),
        pytest.param(DENSE, id="dense", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_constant_volumes_are_finite(config, has_finite_gradients):
    pairs = [[np.full((2, BOX, BOX, BOX), value, np.float32)] * 2 for value in (0.0, 1.0)]
    assert has_finite_gradients(_network(config), *pairs)
