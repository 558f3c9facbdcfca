"""Clustering between epochs."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax.align.inference import Alignments, Description, describe
from jimjax.align.references import Assignment, Particles, _centre, first_references, merge
from jimjax.config import ClusterSection, NetworkSection, PredictSection, RunConfig
from jimjax.data.subtomograms import normalize
from jimjax.evaluate.clustering import clustering_accuracy
from jimjax.train import em

BOX = 9
CONFIG = RunConfig(
    network=NetworkSection(num_classes=3),
    cluster=ClusterSection(method="features", num_components=4, num_proposals=2),
    predict=PredictSection(batch_size=5),
)


def _blobs(num_each=20):
    """Three clusters ten deviations apart."""
    truth = np.repeat(np.arange(3), num_each)
    generator = np.random.default_rng(0)
    middles = 10 * np.eye(3, 6)
    return generator.normal(size=(len(truth), 6)) + middles[truth], truth


def _described(volumes, features):
    no_maps = np.zeros((len(volumes), 1))
    centres = np.zeros((len(volumes), 3))
    return Particles(volumes, None, centres, Description(features, None, no_maps))


def _in_the_middle(volumes):
    num = len(volumes)
    return Particles(volumes, np.tile(np.float32([-60, 60]), (num, 1)), np.zeros((num, 3)))


def test_blobs_far_apart_are_told_apart(key):
    features, truth = _blobs()
    labels = em.cluster_features(key, features, 3, CONFIG)
    assert labels.dtype == np.int32
    assert clustering_accuracy(labels, truth) == 1.0


def test_clusters_do_not_depend_on_the_unit_of_features(key):
    features, _ = _blobs()
    first, second = (em.cluster_features(key, f, 3, CONFIG) for f in (features, 1e-4 * features))
    np.testing.assert_array_equal(first, second)


def test_fewer_features_than_clusters_are_an_error(key):
    with pytest.raises(ValueError, match="3"):
        em.cluster_features(key, _blobs()[0][:2], 3, CONFIG)


@pytest.mark.parametrize("method", ["features", "alignment"])
def test_fewer_particles_than_clusters_are_an_error(method, key, tiny_jimnet, smooth_volumes):
    config = dataclasses.replace(CONFIG, cluster=ClusterSection(method=method))
    memory = em.initial_memory(2, 3, BOX)
    volumes = smooth_volumes(2, BOX)
    with pytest.raises(ValueError, match="3"):
        em.recluster(key, tiny_jimnet, _in_the_middle(volumes), memory, config)


def test_nothing_is_known_before_the_first_clustering():
    memory = em.initial_memory(4, 3, BOX)
    assert np.all(memory.labels == -1)
    assert memory.references.shape == (3, BOX, BOX, BOX)


def test_labels_of_the_next_epoch_keep_their_names(key, tiny_jimnet, smooth_volumes):
    particles = _in_the_middle(smooth_volumes(12, BOX))
    memory = em.initial_memory(12, 3, BOX)
    first, numbers = em.recluster(key, tiny_jimnet, particles, memory, CONFIG)
    assert numbers["share_kept"] == 0.0
    renamed = first._replace(labels=(first.labels + 1) % 3)
    second, numbers = em.recluster(key, tiny_jimnet, particles, renamed, CONFIG)
    np.testing.assert_array_equal(second.labels, renamed.labels)
    assert numbers["share_kept"] == 1.0


def test_first_reference_is_the_particle_in_the_middle_of_its_cluster(smooth_volumes):
    volumes = smooth_volumes(5, BOX)
    features = np.array([[0.0], [1.0], [2.0], [7.0], [9.0]])
    found = first_references(
        _described(volumes, features), np.array([0, 0, 0, 1, 1]), 2, cutoff=0.5
    )
    own = [np.corrcoef(found[0].ravel(), volume.ravel())[0, 1] for volume in volumes]
    assert np.argmax(own) == 1


def test_empty_clusters_take_different_particles_even_when_the_largest_is_used_up(smooth_volumes):
    particles = _described(smooth_volumes(4, BOX), np.arange(4.0)[:, None])
    found = first_references(particles, np.array([0, 0, 2, 2]), 4, cutoff=0.5)
    assert len(np.unique(found.reshape(4, -1), axis=0)) == 4


def _assignment(references, labels):
    num = len(labels)
    alignments = Alignments(np.zeros((num, 3, 3)), np.zeros((num, 3)), np.zeros(num))
    return Assignment(np.array(labels, np.int32), references, alignments)


def _merged(network, references, labels, num_clusters):
    assignment = _assignment(references, labels)
    return merge(network, assignment, num_clusters, cutoff=0.25, config=CONFIG.predict)


def test_two_copies_of_a_reference_are_joined(tiny_jimnet, smooth_volumes):
    first, second = smooth_volumes(2, BOX)
    copy = first + 0.05 * second
    left = _merged(tiny_jimnet, np.stack([first, second, copy]), [0, 0, 1, 1, 2, 2, 2], 2)
    # The larger of the two copies stands for both.
    assert sorted(map(np.sum, left)) == sorted(map(np.sum, (second, copy)))


def test_cluster_of_few_particles_is_dropped_and_not_joined(tiny_jimnet, smooth_volumes):
    first, second, third = smooth_volumes(3, BOX)
    copy = first + 0.05 * second
    labels = np.repeat([0, 1, 2, 3], [20, 20, 20, 2])
    left = _merged(tiny_jimnet, np.stack([first, second, copy, third]), labels, 2)
    assert sorted(map(np.sum, left)) == sorted(map(np.sum, (first, second)))


def test_as_many_references_as_wanted_are_left_alone(tiny_jimnet, smooth_volumes):
    references = smooth_volumes(2, BOX)
    left = _merged(tiny_jimnet, references, [0, 0, 1], 2)
    np.testing.assert_array_equal(left, references)


def test_references_that_are_all_the_same_still_leave_as_many_as_wanted(
    tiny_jimnet, smooth_volumes
):
    references = np.repeat(smooth_volumes(1, BOX), 3, axis=0)
    assert len(_merged(tiny_jimnet, references, [0, 1, 2], 2)) == 2


def test_cluster_without_particles_gets_half_of_the_largest(tiny_jimnet, smooth_volumes):
    kinds = smooth_volumes(3, BOX)
    truth = np.repeat([0, 1, 2], 10)
    noise = np.random.default_rng(0).normal(size=(30, BOX, BOX, BOX))
    volumes = normalize((kinds[truth] + 0.2 * noise).astype(np.float32))
    described = describe(tiny_jimnet, volumes, batch_size=30)
    particles = _in_the_middle(volumes)._replace(description=described)
    mixed = _assignment(kinds[[0, 1, 0]], np.minimum(truth, 1))
    cluster = dataclasses.replace(CONFIG.cluster, rounds=1)
    config = dataclasses.replace(CONFIG, cluster=cluster)
    revived = em._revive(jax.random.key(0), tiny_jimnet, particles, mixed, config)
    assert clustering_accuracy(revived.labels, truth) == 1.0


def test_particles_are_averaged_about_their_centres():
    """Poses against references off the middle become poses against centred ones."""
    generator = np.random.default_rng(0)
    rotations = Rotation.random(30, random_state=1).as_matrix()
    centres = generator.uniform(-4, 4, (30, 3))
    labels = np.arange(30) % 2
    offsets = np.array([[3.0, -2.0, 1.0], [0.0, 4.0, -1.0]])[labels]
    shifts = centres - np.einsum("nij,nj->ni", rotations, offsets)
    found = Alignments(rotations, shifts, np.zeros(30))
    seen = centres + generator.normal(scale=0.1, size=(30, 3))
    centred = _centre(found, labels, seen, 3)
    np.testing.assert_allclose(centred.shifts, centres, atol=0.15)
    np.testing.assert_array_equal(centred.rotations, rotations)


def test_centres_are_found_on_the_way_in(smooth_volumes):
    volumes = np.asarray(smooth_volumes(6, 16))
    axis = np.arange(16) - 8
    blob = np.exp(-0.5 * sum(np.square(g) for g in np.meshgrid(axis, axis, axis)) / 2.5**2)
    moves = np.random.default_rng(0).integers(-2, 3, (6, 3))
    moved = np.stack([np.roll(blob, move[::-1], (0, 1, 2)) for move in moves])
    noise = 0.05 * (volumes - volumes.mean()) / volumes.std()
    particles = SimpleNamespace(
        volumes=-(moved + noise).astype(np.float32), tilt_ranges=np.tile([-60.0, 60.0], (6, 1))
    )
    found = em.prepare(particles, CONFIG)
    assert np.abs(found.centres - moves).max() < 0.8
