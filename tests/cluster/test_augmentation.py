"""Particles seen once more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.cluster.augmentation import perturb, perturb_all
from jimjax.mesh import data_mesh
from jimjax.train.supervised import half_turn


@pytest.fixture
def volume(key):
    return jax.random.normal(key, (8, 8, 8))


def test_without_shift_and_noise_a_particle_is_itself_or_half_a_turn_away(volume):
    seen = [
        perturb(jax.random.key(number), volume, max_shift=0.0, noise=0.0) for number in range(8)
    ]
    is_same = [bool(jnp.all(each == volume)) for each in seen]
    is_turned = [bool(jnp.all(each == half_turn(volume))) for each in seen]
    np.testing.assert_array_equal(is_same, np.logical_not(is_turned))
    assert 0 < sum(is_same) < len(seen)


def test_noise_leaves_unit_deviation(volume):
    noisy = perturb(jax.random.key(1), volume, max_shift=0.1, noise=1.0)
    np.testing.assert_allclose(jnp.std(noisy), 1, atol=0.1)  # 512 voxels
    assert jnp.std(noisy - volume) > 0.5


def test_every_particle_of_a_batch_is_changed_in_its_own_way(volume, key):
    change = perturb_all(data_mesh(1), max_shift=0.2, noise=0.0)
    seen = change(key, jnp.stack([volume] * 6))
    assert len({each.tobytes() for each in np.asarray(seen)}) > 1
    np.testing.assert_allclose(np.sort(seen.reshape(6, -1), axis=1)[0], jnp.sort(volume.ravel()))
