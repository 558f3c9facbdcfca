"""A Gum-Net's answers about particles that are centred first are about the particles as given."""

import dataclasses

import jax
import numpy as np
import pytest

from jimjax.align import gumnet
from jimjax.data.phantom import demo_phantoms, render
from jimjax.data.subtomograms import normalize
from jimjax.models import weights
from jimjax.models.gumnet import GumNetConfig
from jimjax.ops.rotation import Pose, from_rotation_vector, random_rotation

BOX, NUM, MAX_SHIFT = 24, 12, 5.0
# A radial network begins by answering that nothing moves.
STILL = GumNetConfig(
    box=BOX,
    widths=(2, 3),
    sizes=(8,),
    keeps=(7,),
    tower_width=2,
    dense_width=3,
    design="radial",
)
FULL = np.tile(np.float32([-90, 90]), (NUM, 1))


@pytest.fixture(scope="module")
def network():
    return weights.build(STILL, jax.random.key(0))


@pytest.fixture(scope="module")
def particles():
    """One molecule, shifted by whole voxels alone; its volumes and shifts."""
    shifts = np.random.default_rng(0).integers(-5, 6, (NUM, 3)).astype(np.float32)
    molecule = demo_phantoms(1, shape=(BOX,) * 3)[0]
    volumes = [np.asarray(render(molecule, (BOX,) * 3, Pose(np.eye(3), each))) for each in shifts]
    return normalize(np.stack(volumes)), shifts


def test_centred_particles_lie_on_each_other(particles):
    volumes, shifts = particles
    found = gumnet.centre(volumes, FULL, max_shift=MAX_SHIFT)
    difference = found.offsets - shifts
    assert np.all(np.abs(difference - difference[0]) <= 1)
    for moved, volume, (x, y, z) in zip(found.volumes, volumes, found.offsets, strict=True):
        np.testing.assert_array_equal(np.roll(moved, (z, y, x), axis=(0, 1, 2)), volume)
    correlation = np.corrcoef(found.volumes.reshape(NUM, -1))
    assert correlation.min() > 0.6 > np.corrcoef(volumes.reshape(NUM, -1)).min() + 0.5


def test_pairs_are_posed_as_they_were_given(network, particles):
    volumes, shifts = particles
    moved = gumnet.centre(volumes, FULL, max_shift=MAX_SHIFT)
    targets = gumnet.Centred(*(np.roll(field, 1, axis=0) for field in moved))
    found = gumnet.align_pairs(network, moved, targets)
    np.testing.assert_allclose(found.rotation, np.tile(np.eye(3), (NUM, 1, 1)), atol=1e-5)
    assert np.all(np.abs(found.shift - (np.roll(shifts, 1, axis=0) - shifts)) <= 2)


def test_references_are_posed_as_they_were_given(network, particles):
    volumes, shifts = particles
    found = gumnet.align_to_references(
        network, volumes[:2], volumes, FULL, max_shift=MAX_SHIFT, num_proposals=1, cutoff=0.2
    )
    assert found.correlations.shape == (NUM, 2)
    difference = found.shifts - (shifts[:, None] - shifts[None, :2])
    assert np.all(np.abs(difference) <= 2)
    assert np.all(found.correlations > 0.8)


def test_offsets_of_a_turned_source_are_turned():
    quarter = np.asarray(from_rotation_vector(np.float32([0, 0, np.pi / 2])))
    shifts = gumnet._moved_back(quarter, np.float32([0, 0, 1]), [3, 0, 0], [0, 5, 0])
    np.testing.assert_allclose(shifts, [0, 5 - 3, 1], atol=1e-6)


def test_published_network_poses_pairs_as_well(particles):
    volumes, _ = particles
    published = weights.build(dataclasses.replace(STILL, design="published"), jax.random.key(0))
    moved = gumnet.centre(volumes, FULL, max_shift=MAX_SHIFT)
    found = gumnet.align_pairs(published, moved, moved)
    np.testing.assert_allclose(np.linalg.det(found.rotation), np.ones(NUM), atol=1e-4)


def test_shipped_weights_pose_molecules_they_have_not_seen():
    """Chance is a mean of 2.40, with a standard error of 0.08 over 40 pairs."""
    num = 40
    keys = jax.random.split(jax.random.key(5), 2 * num).reshape(num, 2)
    turns = jax.vmap(jax.vmap(random_rotation))(keys)
    molecules = demo_phantoms(5, shape=(32,) * 3)
    still = np.zeros(3, np.float32)
    volumes = [
        [-np.asarray(render(molecules[pair % 5], (32,) * 3, Pose(turn, still))) for turn in both]
        for pair, both in enumerate(turns)
    ]
    there = np.zeros((num, 3))
    pairs = [
        gumnet.Centred(normalize(np.stack(each)), there) for each in zip(*volumes, strict=True)
    ]
    network = weights.load_shipped("gumnet_small").network
    found = gumnet.align_pairs(network, *pairs)
    true = np.einsum("nij,nkj->nik", turns[:, 1], turns[:, 0])
    assert np.linalg.norm(found.rotation - true, axis=(1, 2)).mean() < 1.5
