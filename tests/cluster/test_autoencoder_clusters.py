"""Clustering by an autoencoder, tiny: what a fit finds, keeps and resumes."""

import dataclasses
import functools
import signal

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jimjax.cluster import autoencoder
from jimjax.cluster.autoencoder import Autoencoder
from jimjax.cluster.autoencoder_config import AutoencoderConfig
from jimjax.cluster.model import load_model, save_model
from jimjax.config import read_config, write_config
from jimjax.data.subtomograms import Subtomograms
from jimjax.evaluate.clustering import clustering_accuracy
from jimjax.io.errors import InputError
from jimjax.models import weights
from jimjax.models.autoencoder import Autoencoder3DConfig
from jimjax.models.weights import Description, Weights
from jimjax.progress import Interrupted
from jimjax.train.loop import TrainingError

BOX, NUM = 12, 24
SIZES = functools.partial(Autoencoder3DConfig, size=8, width=4, code_length=8)
CONFIG = AutoencoderConfig(
    preset="small",
    candidates=(2,),
    normalize_pose=True,
    epochs=8,
    batch_size=8,
    learning_rate=3e-3,
    patience=8,
    num_starts=3,
)


@pytest.fixture(scope="module", autouse=True)
def _tiny_network():
    def sizes(box, *, is_pose_normalized):
        return SIZES(box=box, is_pose_normalized=is_pose_normalized)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(autoencoder.PRESETS, "small", sizes)
        yield


@pytest.fixture(scope="module")
def particles():
    """Two kinds of particle, a small blob and a large one, at different places."""
    generator = np.random.default_rng(0)
    points = np.zeros((NUM, BOX, BOX, BOX))
    points[(np.arange(NUM), *generator.integers(4, 8, (3, NUM)))] = 1
    sizes = np.arange(NUM) % 2 + 1.0
    blurred = np.stack([gaussian_filter(p, s) / s**-3 for p, s in zip(points, sizes, strict=True)])
    volumes = -blurred + 0.1 * blurred.std() * generator.normal(size=blurred.shape)
    return Subtomograms(
        volumes=volumes.astype(np.float32),
        tilt_ranges=np.tile(np.float32([-90, 90]), (NUM, 1)),
        voxel_size=10.0,
        names=tuple(f"{row + 1}@stack.mrcs" for row in range(NUM)),
        halves=np.arange(NUM) % 2 + 1,
    )


@pytest.fixture(scope="module")
def fitted(particles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return Autoencoder(CONFIG, command="typed").fit(particles, folder=folder), folder


def test_blobs_of_two_sizes_are_two_classes(fitted):
    found, _ = fitted
    assert found.model_.num_classes == 2
    assert clustering_accuracy(found.labels_, np.arange(NUM) % 2) == 1.0
    np.testing.assert_allclose(found.probabilities_.sum(axis=1), 1, rtol=1e-5)


def test_other_particles_are_told_apart_as_well(fitted, particles):
    found, _ = fitted
    moved = dataclasses.replace(particles, volumes=np.roll(particles.volumes, 1, axis=2))
    assert np.mean(found.predict(moved) == found.labels_) > 0.9


def test_fit_is_a_function_of_the_seed(fitted, particles):
    found, _ = fitted
    again = Autoencoder(CONFIG).fit(particles)
    np.testing.assert_array_equal(again.probabilities_, found.probabilities_)
    other = Autoencoder(dataclasses.replace(CONFIG, seed=1)).fit(particles)
    assert np.any(other.features_ != found.features_)


class _StopAfter:
    def __init__(self, step):
        self.step = step

    def update(self, stage, step, num_steps, metrics):
        if step == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("step", [4, 6])  # within an epoch, at its end
def test_interrupted_and_resumed_fit_is_the_uninterrupted_one(step, fitted, particles, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 24"):
        Autoencoder(CONFIG).fit(particles, folder=folder, progress=_StopAfter(step))
    resumed = Autoencoder(CONFIG).fit(particles, folder=folder, resume=True)
    np.testing.assert_array_equal(resumed.probabilities_, fitted[0].probabilities_)


def test_folder_of_another_fit_is_an_error(fitted, particles):
    _, folder = fitted
    with pytest.raises(InputError, match="already holds a run"):
        Autoencoder(CONFIG).fit(particles, folder=folder)
    other = dataclasses.replace(CONFIG, normalize_pose=False)
    with pytest.raises(InputError, match="its configuration differs"):
        Autoencoder(other).fit(particles, folder=folder, resume=True)


def test_model_is_read_back(fitted, particles, tmp_path):
    save_model(tmp_path, fitted[0].model_)
    kept = load_model(tmp_path)
    assert kept.weights.description.config.is_pose_normalized
    np.testing.assert_array_equal(kept.predict_proba(particles), fitted[0].probabilities_)


def test_light_protein_is_dark_protein_turned_over(fitted, particles):
    negated = dataclasses.replace(particles, volumes=-particles.volumes)
    light = Autoencoder(dataclasses.replace(CONFIG, contrast="light")).fit(negated)
    np.testing.assert_array_equal(light.features_, fitted[0].features_)


def test_weights_are_begun_with(fitted, particles):
    donor = fitted[0].model_.weights
    idle = dataclasses.replace(CONFIG, epochs=1, learning_rate=0.0)
    found = Autoencoder(idle, weights=donor).fit(particles)
    np.testing.assert_array_equal(found.features_, fitted[0].features_)


def test_weights_of_dark_protein_are_an_error(particles):
    sizes = SIZES(box=BOX)
    dark = Weights(Description(sizes, "dark"), weights.build(sizes, jax.random.key(0)))
    with pytest.raises(InputError, match="must be of light protein"):
        Autoencoder(CONFIG, weights=dark).fit(particles)


def test_more_classes_than_particles_are_an_error(particles):
    with pytest.raises(InputError, match="2 particles cannot be in 3 classes"):
        Autoencoder(dataclasses.replace(CONFIG, candidates=(2, 3))).fit(particles.select(range(2)))


def test_box_too_small_for_the_network_is_an_error(particles):
    small = dataclasses.replace(particles, volumes=particles.volumes[:, 3:-3, 3:-3, 3:-3])
    with pytest.raises(InputError, match="particles of 6 voxels: size 8 must not exceed"):
        Autoencoder(CONFIG).fit(small)


@pytest.mark.parametrize("candidates", [(3,), (2, 3)])
def test_identical_particles_are_one_class(candidates, particles):
    same = dataclasses.replace(particles, volumes=np.tile(particles.volumes[:1], (NUM, 1, 1, 1)))
    quick = dataclasses.replace(CONFIG, candidates=candidates, epochs=1)
    found = Autoencoder(quick).fit(same)
    assert set(found.labels_) == {0}
    np.testing.assert_array_equal(found.probabilities_, 1)


def test_codes_that_are_all_alike_are_an_error(particles):
    """Sparsity that costs more than any drawing is worth."""
    sparse = dataclasses.replace(CONFIG, sparsity=100.0, learning_rate=3e-2)
    with pytest.raises(TrainingError, match="describe all particles alike; lower learning_rate"):
        Autoencoder(sparse).fit(particles)


def test_as_many_classes_as_particles_are_possible(particles):
    few = dataclasses.replace(CONFIG, candidates=(3,), epochs=1)
    found = Autoencoder(few).fit(particles.select([0, 1, 4]))
    assert np.isfinite(found.probabilities_).all()
    one = Autoencoder(dataclasses.replace(few, candidates=(1,))).fit(particles.select([0]))
    np.testing.assert_array_equal(one.labels_, [0])


def test_configuration_is_read_back(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(write_config(CONFIG))
    assert read_config(path, AutoencoderConfig) == CONFIG


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("normalize_pose = 1", "'normalize_pose' must be true or false, got 1"),
        ("num_starts = 0", "config.toml: num_starts and candidates must be 1 or more"),
    ],
)
def test_mistake_in_a_configuration_is_an_error(line, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        read_config(path, AutoencoderConfig)
