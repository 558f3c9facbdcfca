"""Operations counted by hand, and by XLA on a CPU where it sees them all."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jimjax.models import functional, voxresnet, weights
from jimjax.ops.conv import conv3d
from jimjax.train.costs import count_flops, peak_bytes

A, B = jnp.ones((4, 3)), jnp.ones((3, 5))


def _count(function, *arguments):
    return count_flops(jax.jit(function).trace(*arguments))


def test_products_count_twice():
    assert _count(jnp.matmul, A, B) == 2 * 4 * 3 * 5


def test_batches_and_loops_count_as_often_as_they_run():
    def repeat(a, b):
        return jax.lax.fori_loop(0, 7, lambda _, total: total + a @ b, jnp.zeros((4, 5)))

    assert _count(repeat, A, B) == 7 * _count(jnp.matmul, A, B)
    assert _count(jax.vmap(repeat), A[None].repeat(3, 0), B[None].repeat(3, 0)) == 21 * 120


def test_what_nothing_comes_of_does_not_count():
    assert _count(lambda a, b: (a @ b, a + 1)[1], A, B) == 0
    assert _count(jax.grad(lambda a: jnp.sum(a @ B)), A) == 120  # one product, for the gradient


def test_shares_of_devices_are_added_up():
    split = PartitionSpec("data")
    mesh = AbstractMesh((2,), ("data",))
    share = jax.shard_map(lambda a: a @ B, mesh=mesh, in_specs=split, out_specs=split)
    assert _count(share, A) == 120


@pytest.mark.parametrize("dilation", [1, 2])
def test_convolution_counts_the_taps_inside_the_box(dilation):
    """Along an axis of 5, 3 taps of a dilation reach 15 places, of which 2 per unit are outside."""
    inside = 15 - 2 * dilation
    x, kernel = jnp.ones((2, 5, 5, 5, 3)), jnp.ones((3, 3, 3, 3, 4))
    counted = _count(lambda x, k: conv3d(x, k, dilation=dilation), x, kernel)
    assert counted == 2 * 2 * 3 * 4 * inside**3


def test_training_step_costs_what_xla_counts_of_plain_convolutions():
    network = weights.build(voxresnet.small(8), jax.random.key(0))

    def loss(params, volumes):
        found, _ = functional.apply(network._replace(params=params), volumes, train=True)
        return jnp.mean(found.logits**2)

    traced = jax.jit(jax.grad(loss)).trace(network.params, jnp.ones((2, 8, 8, 8)))
    counted = traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
    assert count_flops(traced) == pytest.approx(counted, rel=0.05)  # the rest is no product


def test_results_in_place_of_arguments_need_no_memory_of_their_own():
    def add(a):
        return a + 1

    array = jnp.ones(1000)
    plain = jax.jit(add).lower(array).compile()
    donated = jax.jit(add, donate_argnums=0).lower(array).compile()
    assert peak_bytes(plain) - peak_bytes(donated) == pytest.approx(4000, abs=64)
