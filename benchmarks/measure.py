"""Times two ways to the same result fairly: one pinned thread, CPU time, turn about, medians.

``pin`` has to be called before jax or torch are imported.
"""

import os
import statistics
import time
from collections.abc import Callable

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def pin() -> None:
    """Keeps this process on one core, and jax on the CPU with one thread."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


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
