"""Times two ways to the same result fairly: one pinned thread, CPU time, turn about, medians.

``pin`` has to be called before jax or torch are imported.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def pin() -> None:
    """Keeps this process on one core, and jax on the CPU with one thread."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def share() -> None:
    """Lets jax and torch use one accelerator together."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def interleaved_medians(
    functions: list[Callable[[], object]], *, rounds: int, clock: Callable[[], float]
) -> list[float]:
    """Seconds of each function: the median over rounds in which each runs once.

    Each runs once before, so that compilation is not counted. A function must return only when
    its work is done.
    """
    for function in functions:
        function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, own in zip(functions, seconds, strict=True):
            start = clock()
            function()
            own.append(clock() - start)
    return [statistics.median(own) for own in seconds]


cpu_clock = time.process_time
wall_clock = time.perf_counter


class Roof(NamedTuple):
    """What the device was seen to do at best."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, num_bytes: int, flops: int) -> float:
        """The least time for moving these bytes and doing these operations, at once."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second)


def find_roof(clock: Callable[[], float], *, array_bytes: int = 2**28, order: int = 2048) -> Roof:
    """Measures the roof of jax's device: a copy of an array, a product of float32 matrices."""
    import jax  # not before pin() or share()
    import jax.numpy as jnp

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        return 2 * x

    @jax.jit
    def product(a: jax.Array) -> jax.Array:
        return jnp.matmul(a, a, precision="highest")

    long, square = jnp.ones(array_bytes // 4), jnp.ones((order, order))
    moved, multiplied = interleaved_medians(
        [
            lambda: jax.block_until_ready(double(long)),
            lambda: jax.block_until_ready(product(square)),
        ],
        rounds=9,
        clock=clock,
    )
    return Roof(2 * array_bytes / moved, 2 * order**3 / multiplied)
