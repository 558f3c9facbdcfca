"""What a run's folder remembers, and when it refuses to be resumed."""

import dataclasses

import jax
import numpy as np
import pytest

from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.models import yopo
from jimjax.models.weights import Description, Weights, build
from jimjax.train.records import Known, Origin, begin_folder, check_folder
from jimjax.train.supervised import SupervisedConfig

NUM, BOX = 4, 16


def make_weights(seed: int, **described) -> Weights:
    config = yopo.small(BOX, 2)
    return Weights(Description(config, **described), build(config, jax.random.key(seed)))


@pytest.fixture
def particles():
    generator = np.random.default_rng(0)
    return Subtomograms(
        volumes=generator.normal(size=(NUM, *[BOX] * 3)).astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (NUM, 1)),
        voxel_size=12.0,
        names=("",) * NUM,
        halves=np.arange(NUM) % 2 + 1,
    )


@pytest.fixture
def origin(particles):
    labels = Known.of(np.arange(NUM) % 2)
    return Origin(SupervisedConfig(), particles, labels, make_weights(0))


def test_what_a_run_was_begun_with_may_be_resumed(origin, tmp_path):
    begin_folder(origin, tmp_path, "jimjax cluster")
    check_folder(origin._replace(weights=make_weights(0)), tmp_path, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": SupervisedConfig(seed=1)}, r"configuration differs .* \(seed is 0, not 1\)"),
        ({"teacher": Known.of(np.arange(NUM))}, "with another teacher, or with none"),
        ({"teacher": None}, "with another teacher, or with none"),
        ({"weights": make_weights(1)}, "with other weights, or with random ones"),
        ({"weights": make_weights(0, voxel_size=10.0)}, "with other weights"),
        ({"weights": None}, "with other weights"),
    ],
)
def test_resuming_with_anything_else_is_an_error(change, message, origin, tmp_path):
    begin_folder(origin, tmp_path, "")
    with pytest.raises(InputError, match=message):
        check_folder(origin._replace(**change), tmp_path, True)


def test_resuming_with_other_particles_is_an_error(origin, particles, tmp_path):
    begin_folder(origin, tmp_path, "")
    others = dataclasses.replace(particles, tilt_ranges=particles.tilt_ranges + 1)
    with pytest.raises(InputError, match="on other particles"):
        check_folder(origin._replace(particles=others), tmp_path, True)


def test_folder_that_is_none_or_taken_is_an_error(origin, tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        check_folder(origin, tmp_path, True)
    begin_folder(origin, tmp_path, "")
    with pytest.raises(InputError, match="already holds a run"):
        check_folder(origin, tmp_path, False)
