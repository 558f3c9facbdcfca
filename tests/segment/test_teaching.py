"""EDSS3D taught by clusters, tiny: what is labelled, what is learned, what is refused."""

import dataclasses
import functools
import signal

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jimjax.cluster.assignment import Linear
from jimjax.cluster.model import Model
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.evaluate.segmentation import dice
from jimjax.io.errors import InputError
from jimjax.models import functional, weights
from jimjax.models.autoencoder import Autoencoder3DConfig, Reconstructed
from jimjax.models.edss3d import Edss3dConfig
from jimjax.models.weights import Description, Weights
from jimjax.models.yopo import YopoConfig
from jimjax.progress import Interrupted
from jimjax.segment import edss3d
from jimjax.segment.edss3d import Segmenter, prepare_lesson, teach
from jimjax.segment.edss3d_config import Edss3dTraining

BOX, SIZE, NUM = 12, 8, 15
DRAWN = np.zeros((SIZE,) * 3, bool)
DRAWN[2:5, 3:6, 2:6] = True  # what the autoencoder below draws of any particle
TRAINING = Edss3dTraining(
    clusters=(3, 1), preset="small", epochs=6, batch_size=4, learning_rate=3e-3, patience=6
)


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    sizes = functools.partial(Edss3dConfig, size=SIZE, width=8, kernel="isotropic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(edss3d.PRESETS, "small", lambda box, classes: sizes(box, classes=classes))
        yield


@pytest.fixture(scope="module")
def particles():
    """Three kinds: bright at one place, bright at another, and noise; dark protein."""
    volumes = np.random.default_rng(0).normal(size=(NUM, BOX, BOX, BOX))
    volumes[0::3, 3:8, 4:9, 3:9] -= 3
    volumes[1::3, 6:10, 6:10, 6:10] -= 3
    return Subtomograms(
        volumes=volumes.astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=10.0,
        names=("",) * NUM,
        halves=np.arange(NUM) % 2 + 1,
    )


@pytest.fixture(scope="module")
def trained(particles):
    """An autoencoder, untrained, with k-means that knows its three classes."""
    config = Autoencoder3DConfig(box=BOX, size=SIZE, width=4, code_length=32)
    network = weights.build(config, jax.random.key(0))
    kept = Weights(Description(config, "light", 10.0), network)
    empty = Linear(np.zeros((32, 3), np.float32), np.zeros(3, np.float32))
    features = Model(kept, empty, "dark").transform(particles)
    return Model(kept, Linear.from_centres(features, np.arange(NUM) % 3), "dark")


@pytest.fixture
def draws_a_box(monkeypatch):
    """Every particle is drawn as one box."""

    def draw(autoencoder, volumes, size):
        return np.tile(DRAWN * 3.0 - 1.0, (len(volumes), 1, 1, 1))

    monkeypatch.setattr(edss3d, "draw", draw)


def test_all_members_are_labelled_and_as_many_others_are_background(draws_a_box):
    labels = np.array([2, 0, 1, 1, 2, 1, 1, 1, 0])  # clusters 3, 1, 2, ... as users count
    lesson = prepare_lesson(None, np.zeros((9, *DRAWN.shape)), labels, TRAINING, SIZE)
    np.testing.assert_array_equal(lesson.rows[:4], [0, 1, 4, 8])
    assert set(lesson.rows[4:]) < {2, 3, 5, 6, 7}
    assert len(set(lesson.rows)) == 8
    for volume, channel in zip(lesson.channels, [1, 2, 1, 2, 0, 0, 0, 0], strict=True):
        np.testing.assert_array_equal(volume, channel * DRAWN)


def test_fewer_others_than_members_are_all_background(draws_a_box):
    labels = np.array([0, 0, 2, 1])
    lesson = prepare_lesson(None, np.zeros((4, *DRAWN.shape)), labels, TRAINING, SIZE)
    np.testing.assert_array_equal(lesson.rows, [0, 1, 2, 3])
    assert not lesson.channels[3].any()
    every = dataclasses.replace(TRAINING, clusters=(1, 2, 3))
    lesson = prepare_lesson(None, np.zeros((4, *DRAWN.shape)), labels, every, SIZE)
    np.testing.assert_array_equal(lesson.rows, [0, 1, 2, 3])
    assert lesson.channels.any(axis=(1, 2, 3)).all()


def test_threshold_that_nothing_reaches_is_an_error(draws_a_box):
    high = dataclasses.replace(TRAINING, threshold=9.0)
    with pytest.raises(InputError, match=r"nothing that the autoencoder draws .* reaches 9"):
        prepare_lesson(None, np.zeros((3, *DRAWN.shape)), np.arange(3), high, SIZE)


def test_particles_are_drawn_where_they_are(particles, monkeypatch):
    """An autoencoder that draws what it is shown, in the particle's own frame or not."""
    given = functional.apply

    def apply(network, *inputs, train, method="__call__"):
        if method == "reconstruct":
            return Reconstructed(None, inputs[0]), None
        return given(network, *inputs, train=train, method=method)

    monkeypatch.setattr(functional, "apply", apply)
    jax.clear_caches()
    volumes = -normalize(particles.volumes[:3])
    for is_moved in (False, True):
        config = Autoencoder3DConfig(
            box=BOX, size=BOX, width=2, code_length=2, is_pose_normalized=is_moved
        )
        kept = Weights(Description(config, "light", 10.0), weights.build(config, jax.random.key(0)))
        drawn = edss3d.draw(kept, volumes, BOX)
        likeness = np.corrcoef(np.reshape(drawn, (3, -1)), np.reshape(volumes, (3, -1)))
        diagonal = likeness[np.arange(3), np.arange(3) + 3]
        assert np.all(diagonal[:2] > (0.6 if is_moved else 0.999))
    jax.clear_caches()


def test_taught_network_finds_what_it_was_shown(particles, trained, monkeypatch):
    """Drawn are the particles without their noise; the network sees them with it."""

    def draw(autoencoder, volumes, size):
        smooth = gaussian_filter(volumes, (0, 1, 1, 1))
        pooled = np.asarray(jax.image.resize(smooth, (len(smooth), *[size] * 3), "linear"))
        return pooled / pooled.std(axis=(1, 2, 3), keepdims=True)

    monkeypatch.setattr(edss3d, "draw", draw)
    long = dataclasses.replace(TRAINING, clusters=(1,), epochs=60, patience=60, threshold=1.5)
    np.testing.assert_array_equal(trained.predict(particles), np.arange(NUM) % 3)
    found = teach(trained, particles, long)
    masks = found.predict(particles)
    assert masks.dtype == np.int8
    assert masks.shape == particles.volumes.shape
    assert set(np.unique(masks)) == {0, 1}
    truth = np.zeros(masks[0::3].shape, bool)
    truth[:, 3:8, 4:9, 3:9] = True
    assert dice(masks[0::3] == 1, truth).mean() > 0.7
    assert masks[2::3].mean() < 0.02  # noise
    np.testing.assert_allclose(found.predict_proba(particles).sum(axis=-1), 1, rtol=1e-5)


def test_balanced_voxels_weigh_alike():
    channels = np.zeros((2, 4, 4, 4), np.int8)
    channels[0, 0] = 1
    channels[1, 0, 0] = 2
    balanced = edss3d._weights_of(channels, dataclasses.replace(TRAINING, balance_voxels=True))
    counts = np.bincount(channels.ravel())
    np.testing.assert_allclose(balanced * counts, channels.size / 3, rtol=1e-6)
    np.testing.assert_array_equal(edss3d._weights_of(channels, TRAINING), 1)


def test_weights_of_voxels_change_what_is_learned(particles, trained, draws_a_box):
    plain = teach(trained, particles, TRAINING)
    balanced = teach(trained, particles, dataclasses.replace(TRAINING, balance_voxels=True))
    # Rare voxels count more: more of them are found.
    background = plain.predict_proba(particles)[..., 0].mean()
    assert balanced.predict_proba(particles)[..., 0].mean() < background - 0.05


class _StopAfter:
    def __init__(self, step):
        self.step = step

    def update(self, stage, step, num_steps, metrics):
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


def test_interrupted_and_resumed_is_uninterrupted(particles, trained, draws_a_box, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped at step 5 of"):
        teach(trained, particles, TRAINING, folder=folder, progress=_StopAfter(5))
    resumed = teach(trained, particles, TRAINING, folder=folder, resume=True)
    whole = teach(trained, particles, TRAINING)
    np.testing.assert_array_equal(resumed.predict_proba(particles), whole.predict_proba(particles))
    other = Linear.from_centres(np.eye(3, 32), np.arange(3))
    with pytest.raises(InputError, match=r"with another teacher|no particle is in cluster"):
        teach(trained._replace(assignment=other), particles, TRAINING, folder=folder, resume=True)


def test_numbers_of_clusters_are_those_of_the_labels(particles, trained):
    config = Edss3dConfig(box=BOX, size=SIZE, classes=(7, 4), width=2)
    network = weights.build(config, jax.random.key(0))
    found = Segmenter(Weights(Description(config, "light", 10.0), network), "dark")
    best = found.predict_proba(particles).argmax(axis=-1)
    np.testing.assert_array_equal(found.predict(particles), np.array([0, 7, 4])[best])


@pytest.mark.parametrize(
    ("clusters", "message"),
    [((4,), "there is no cluster 4; choose from 1 to 3"), ((2, 5), "there is no cluster 5")],
)
def test_cluster_that_does_not_exist_is_an_error(clusters, message, particles, trained):
    with pytest.raises(InputError, match=message):
        teach(trained, particles, dataclasses.replace(TRAINING, clusters=clusters))


def test_cluster_without_particles_is_an_error(particles, trained):
    with pytest.raises(InputError, match="no particle is in cluster 3"):
        teach(trained, particles.select(trained.predict(particles) != 2), TRAINING)


@pytest.mark.parametrize("clusters", [(), (1, 1), (0,), (128,)])
def test_meaningless_clusters_are_an_error(clusters):
    with pytest.raises(InputError, match="clusters must be"):
        dataclasses.replace(TRAINING, clusters=clusters)


def test_clusters_of_another_method_are_an_error(particles, trained):
    config = YopoConfig(box=BOX, size=SIZE, widths=(2,), dense_width=32, num_classes=3)
    other = Weights(Description(config), weights.build(config, jax.random.key(0)))
    with pytest.raises(InputError, match="needs clusters of an autoencoder, these are of a yopo"):
        teach(trained._replace(weights=other), particles, TRAINING)


def test_particles_of_another_box_or_voxel_size_are_errors(particles):
    config = Edss3dConfig(box=BOX, size=SIZE, classes=(1,), width=2)
    network = weights.build(config, jax.random.key(0))
    found = Segmenter(Weights(Description(config, "light", 10.0), network), "dark")
    with pytest.raises(InputError, match="for 10 A per voxel, these particles are at 12 A"):
        found.predict(dataclasses.replace(particles, voxel_size=12.0))
    small = dataclasses.replace(particles, volumes=particles.volumes[:, 1:-1, 1:-1, 1:-1])
    with pytest.raises(InputError, match="for boxes of 12 voxels, these have 10"):
        found.predict(small)


def test_box_that_does_not_suit_the_network_is_an_error(particles, trained):
    odd = dataclasses.replace(particles, volumes=particles.volumes[:, 1:, 1:, 1:])
    config = dataclasses.replace(trained.weights.description.config, box=11)
    kept = Weights(Description(config, "light", 10.0), trained.weights.network)
    network = weights.build(config, jax.random.key(0))
    model = trained._replace(weights=kept._replace(network=network))
    labels = model.predict(odd)
    paper = dataclasses.replace(TRAINING, clusters=(int(labels[0]) + 1,), preset="paper")
    with pytest.raises(InputError, match="particles of 11 voxels: two halvings need a multiple"):
        teach(model, odd, paper)
