"""Which particles are seen when."""

import numpy as np
import pytest

from jimjax.data.batches import draw_partners, index_batches, num_batches, padded_chunks

LABELS = np.array([0, 1, 0, 2, 1, 0, 1, 0])


def _order(num, size, **names):
    return np.stack(list(index_batches(num, size, **names)))


@pytest.mark.parametrize(("num", "size", "wanted"), [(8, 4, 2), (9, 4, 3), (3, 4, 1)])
def test_number_of_batches_is_that_of_the_batches(num, size, wanted):
    assert num_batches(num, size) == wanted
    assert _order(num, size, seed=0, epoch=0).shape == (wanted, size)


@pytest.mark.parametrize(("num", "size"), [(8, 4), (9, 4), (3, 8)])
def test_an_epoch_shows_every_example(num, size):
    assert set(_order(num, size, seed=1, epoch=2).ravel()) == set(range(num))


def test_no_example_is_seen_twice_before_all_were_seen_once():
    seen = _order(9, 4, seed=1, epoch=2).ravel()
    assert len(set(seen[:9])) == 9


def test_order_is_a_function_of_seed_and_epoch():
    first = _order(32, 4, seed=1, epoch=2)
    assert np.array_equal(first, _order(32, 4, seed=1, epoch=2))
    assert not np.array_equal(first, _order(32, 4, seed=1, epoch=3))
    assert not np.array_equal(first, _order(32, 4, seed=2, epoch=2))


@pytest.mark.parametrize(("num", "size"), [(0, 4), (4, 0)])
def test_nothing_to_cut_is_an_error(num, size):
    with pytest.raises(ValueError, match=f"got {num} and {size}"):
        list(index_batches(num, size, seed=0, epoch=0))


@pytest.mark.parametrize("epoch", range(3))
def test_partners_share_the_cluster_and_are_somebody_else(epoch):
    partners = draw_partners(LABELS, seed=0, epoch=epoch)
    is_alone = LABELS == 2
    assert np.array_equal(LABELS[partners], LABELS)
    assert np.array_equal(partners == np.arange(len(LABELS)), is_alone)


def test_everyone_is_somebodys_partner():
    partners = draw_partners(LABELS, seed=0, epoch=0)
    assert sorted(partners) == list(range(len(LABELS)))


def test_partners_are_a_function_of_seed_and_epoch():
    labels = np.zeros(32, int)
    first = draw_partners(labels, seed=1, epoch=2)
    assert np.array_equal(first, draw_partners(labels, seed=1, epoch=2))
    assert not np.array_equal(first, draw_partners(labels, seed=1, epoch=3))
    assert not np.array_equal(first, draw_partners(labels, seed=2, epoch=2))


def test_last_chunk_is_filled_with_the_last_index():
    chunks = [list(chunk) for chunk in padded_chunks(5, 3)]
    assert chunks == [[0, 1, 2], [3, 4, 4]]
