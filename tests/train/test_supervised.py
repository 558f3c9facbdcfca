"""Training on known classes: balanced draws, moves that keep the wedge, and what is learned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_blobs import BOX, LABELS, StopAfter, two_sizes

from jimjax.cluster.features import describe
from jimjax.data.subtomograms import normalize
from jimjax.io.errors import InputError
from jimjax.models import weights
from jimjax.models.deepfinder import DeepFinderConfig
from jimjax.models.weights import Description, Weights
from jimjax.ops import resample, wedge
from jimjax.ops.rotation import about_axis
from jimjax.progress import Interrupted
from jimjax.train import supervised
from jimjax.train.supervised import SupervisedConfig, draw_balanced, train_classifier

SIZES = functools.partial(
    DeepFinderConfig,
    size=8,
    widths=((4,), (6,)),
    hidden_width=8,
    dense_width=4,
    kernel="isotropic",
    pools=("max", "mean", "std"),
    has_norm=True,
)
CONFIG = SupervisedConfig(preset="small", epochs=20, batch_size=8, learning_rate=1e-2)
SHORT = dataclasses.replace(CONFIG, epochs=2)


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(supervised.PRESETS, "small", lambda box, num: SIZES(box=box, num_classes=num))
        yield


@pytest.fixture(scope="module")
def particles():
    """Twice as many large blobs as small ones; their classes are numbers 7 and 3."""
    found = dataclasses.replace(two_sizes(), labels=np.where(LABELS, 7, 3))
    return found.select((LABELS == 1) | (np.arange(len(found)) % 4 == 0))


@pytest.fixture(scope="module")
def trained(particles, tmp_path_factory):
    return train_classifier(SHORT, particles, folder=tmp_path_factory.mktemp("runs") / "run")


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.network.params, other.network.params)
    jax.tree.map(np.testing.assert_array_equal, one.network.stats, other.network.stats)


def test_classes_of_blobs_are_learned(particles):
    found = train_classifier(CONFIG, particles)
    said = describe(found.network, normalize(particles.volumes)).logits.argmax(axis=1)
    np.testing.assert_array_equal(said, (particles.labels == 7).astype(int))
    assert found.description.voxel_size == 10.0
    assert found.description.config.num_classes == 2


@pytest.mark.parametrize("step", [2, 3])  # within an epoch, at its end
def test_interrupted_and_resumed_training_is_the_uninterrupted_one(
    step, trained, particles, tmp_path
):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 6"):
        train_classifier(SHORT, particles, folder=folder, progress=StopAfter(step))
    assert_same(train_classifier(SHORT, particles, folder=folder, resume=True), trained)
    with pytest.raises(InputError, match="already holds a run"):
        train_classifier(SHORT, particles, folder=folder)


@pytest.fixture(scope="module")
def donor():
    sizes = SIZES(box=BOX, num_classes=5)
    return Weights(Description(sizes, "dark"), weights.build(sizes, jax.random.key(9)))


def test_encoder_is_begun_with_and_dense_layers_are_new(particles, donor):
    still = dataclasses.replace(SHORT, epochs=1, learning_rate=0.0)
    params = train_classifier(still, particles, weights=donor).network.params
    given = donor.network.params
    jax.tree.map(np.testing.assert_array_equal, params["convs"], given["convs"])
    for name in ("hidden", "dense"):
        assert np.any(params[name]["kernel"][...] != given[name]["kernel"][...])


def test_weights_of_dark_protein_are_given_light_negated(particles, donor):
    negated = dataclasses.replace(particles, volumes=-particles.volumes)
    light = dataclasses.replace(SHORT, epochs=1, contrast="light")
    dark = dataclasses.replace(SHORT, epochs=1)
    found = train_classifier(light, negated, weights=donor)
    assert found.description.contrast == "dark"
    assert_same(found, train_classifier(dark, particles, weights=donor))


def test_learning_rate_stays_as_published_or_falls():
    """18 particles in batches of 8, twice: 6 steps."""
    published, falling = (
        supervised.build_optimizer(dataclasses.replace(SHORT, final_share=share), 18).schedule
        for share in (1.0, 0.01)
    )
    rates = [[float(schedule(step)) for step in (0, 3, 6)] for schedule in (published, falling)]
    np.testing.assert_allclose(rates, [[1e-2] * 3, [1e-2, 0.505e-2, 1e-4]], rtol=1e-5)


def test_classes_are_drawn_equally_often_and_members_in_turn():
    labels = np.repeat([0, 1, 2], [1, 4, 16])
    drawn = draw_balanced(labels, 48, seed=0, epoch=0)
    for first in range(0, 48, 3):
        assert sorted(labels[drawn[first : first + 3]]) == [0, 1, 2]
    assert sorted(drawn[labels[drawn] == 2]) == list(range(5, 21))
    np.testing.assert_array_equal(np.bincount(drawn[labels[drawn] == 1])[1:], [4] * 4)


def test_draws_are_a_function_of_seed_and_epoch():
    labels = np.arange(10) % 2
    drawn = draw_balanced(labels, 32, seed=0, epoch=0)
    np.testing.assert_array_equal(draw_balanced(labels, 32, seed=0, epoch=0), drawn)
    assert np.any(draw_balanced(labels, 32, seed=1, epoch=0) != drawn)
    assert np.any(draw_balanced(labels, 32, seed=0, epoch=1) != drawn)


@pytest.mark.parametrize("box", [8, 9])
def test_half_turn_is_the_rotation_by_180_degrees_about_y(box, smooth_volumes):
    volume = smooth_volumes(1, box)[0]
    wanted = resample.rotate(volume, about_axis(1, jnp.pi))
    inside = slice(1, None)  # the first plane of an even box has no partner
    np.testing.assert_allclose(
        supervised.half_turn(volume)[inside, :, inside], wanted[inside, :, inside], atol=1e-4
    )


@pytest.mark.parametrize("tilt_range", [(-60.0, 60.0), (-35.0, 65.0)])
def test_moves_keep_the_wedge_of_any_tilt_range(tilt_range, key):
    """What was not measured stays empty, and is not the whole spectrum."""
    shape = (BOX,) * 3
    mask = wedge.wedge_mask(shape, jnp.array(tilt_range))
    volume = wedge.apply_mask(jax.random.normal(key, shape), mask)
    moved = supervised.augment(key, volume, max_shift=0.3, turn_share=1.0)
    assert np.abs(moved - volume).max() > 0.1
    outside = jnp.where(mask > 0, 0, jnp.abs(jnp.fft.rfftn(moved)))
    assert outside.max() < 1e-4 * jnp.abs(jnp.fft.rfftn(moved)).max()
    assert np.mean(mask) < 0.95


def test_shifts_are_whole_voxels_up_to_the_limit(key):
    point = jnp.zeros((BOX,) * 3).at[4, 4, 4].set(1)

    def place(key):
        moved = supervised.augment(key, point, max_shift=2.4 / BOX, turn_share=0.0)
        return jnp.array(jnp.unravel_index(jnp.argmax(moved), moved.shape)) - 4

    shifts = np.asarray(jax.vmap(place)(jax.random.split(key, 200)))
    for axis in range(3):
        assert set(shifts[:, axis]) == {-2, -1, 0, 1, 2}


def test_particles_without_classes_or_of_one_are_errors(particles):
    with pytest.raises(InputError, match="no classes to learn"):
        train_classifier(CONFIG, dataclasses.replace(particles, labels=None))
    with pytest.raises(InputError, match="all particles are of one class"):
        train_classifier(CONFIG, particles.select(particles.labels == 7))


def test_box_that_cannot_be_pooled_is_an_error(particles):
    small = dataclasses.replace(particles, volumes=particles.volumes[:, 5:, 5:, 5:])
    with pytest.raises(InputError, match="particles of 7 voxels: size 8 must not exceed"):
        train_classifier(CONFIG, small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "1 or more"),
        ({"max_shift": 0.6}, "max_shift must be from 0 to 0.5"),
        ({"turn_share": 1.5}, "turn_share from 0 to 1"),
        ({"final_share": 1.5}, "final_share from 0 to 1"),
    ],
)
def test_impossible_settings_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
