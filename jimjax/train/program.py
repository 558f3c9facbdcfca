"""A step as a compiled program: what it costs, and whether it fits into the memory."""

import math
import os
import time
from typing import Any, NamedTuple

import jax

from jimjax.train.costs import count_flops, peak_bytes


class Program(NamedTuple):
    """A compiled step.

    Attributes:
        run: ``(state, batch, key) -> (state, metrics)``.
        seconds: of tracing and compiling.
        num_rows: of the batch it is for.
        num_devices: that share them.
        flops: floating-point operations of a step, on all devices.
        state_bytes: of parameters, statistics and the optimiser, on each device.
        needed_bytes: of everything, on each device; None if not known.
    """

    run: jax.stages.Compiled
    seconds: float
    num_rows: int
    num_devices: int
    flops: float
    state_bytes: int
    needed_bytes: int | None


def compile_step(step: Any, state: Any, batch: Any, key: jax.Array) -> Program:
    """Compiles a step of ``make_step`` for arrays as they are, and lie; nothing is run."""
    began = time.perf_counter()
    traced = step.trace(state, batch, key)
    compiled = traced.lower().compile()
    return Program(
        compiled,
        time.perf_counter() - began,
        len(jax.tree.leaves(batch)[0]),
        key.sharding.num_devices,
        count_flops(traced),
        sum(_bytes_on_a_device(leaf) for leaf in jax.tree.leaves(state)),
        peak_bytes(compiled),
    )


def device_bytes() -> int | None:
    """Memory of each device at hand; of a CPU the machine's, shared among its devices."""
    device, *others = jax.local_devices()
    told = (device.memory_stats() or {}).get("bytes_limit")
    if told is not None:
        return int(told)
    if device.platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 + len(others))


def fitting_rows(program: Program, available: int) -> int:
    """The largest batch that should fit; what a batch needs is taken to grow with its rows.

    Args:
        program: of some batch.
        available: bytes on each device.

    Returns:
        A multiple of the number of devices; 0 if not even a row for each device fits.
    """
    each = max(1, program.needed_bytes - program.state_bytes) / program.num_rows
    rows = int(max(0, available - program.state_bytes) / each)
    return rows // program.num_devices * program.num_devices


def lack_of_memory(program: Program, available: int | None) -> str | None:
    """Says that a program does not fit, and what would; None if it does, or nobody knows.

    Args:
        program: to be run.
        available: bytes on each device.
    """
    if available is None or program.needed_bytes is None or program.needed_bytes <= available:
        return None
    rows = fitting_rows(program, available)
    remedy = f"one of {rows} should fit" if rows else "not even the smallest fits"
    return (
        f"a batch of {program.num_rows} needs {_gib(program.needed_bytes)} on each device, which "
        f"has {_gib(available)}; {remedy}, and compute.rematerialise = true takes less"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


def _bytes_on_a_device(leaf: jax.Array) -> int:
    return leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
