"""Fixtures shared by all tests."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(params=["eager", "jit", "vmap"])
def compiled(request: pytest.FixtureRequest) -> Callable[[Callable], Callable]:
    """Wraps a function of arrays: as it is, under jit, or as a batch of one under jit and vmap.

    Bind static options first, with ``functools.partial``.
    """
    return {"eager": lambda fn: fn, "jit": jax.jit, "vmap": _vmap_of_one}[request.param]


def _vmap_of_one(fn: Callable) -> Callable:
    batched = jax.jit(jax.vmap(fn))

    def call(*args: Any) -> Any:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], args)
        return jax.tree.map(lambda leaf: leaf[0], batched(*batch))

    return call


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for the time of one test."""
    with jax.enable_x64(True):
        yield
