"""A step as a compiled program: what it costs, and whether it fits into the memory."""

import math
import time
from typing import Any, NamedTuple

import jax

from jimjax.device_memory import format_bytes, machine_bytes, told_bytes
from jimjax.train.costs import count_flops, peak_bytes


class Program(NamedTuple):
    """A compiled function.

    Attributes:
        run: the function.
        seconds: of tracing and compiling.
        flops: floating-point operations of a call, on all devices.
        needed_bytes: of everything, on each device; None if not known.
    """

    run: jax.stages.Compiled
    seconds: float
    flops: float
    needed_bytes: int | None


class StepProgram(NamedTuple):
    """A compiled step of training.

    Attributes:
        program: ``(state, batch, key) -> (state, metrics)``.
        num_rows: of the batch it is for.
        num_devices: that share them.
        state_bytes: of parameters, statistics and the optimiser, on each device.
    """

    program: Program
    num_rows: int
    num_devices: int
    state_bytes: int


def compile_program(function: Any, *arguments: Any) -> Program:
    """Compiles a jitted function for arrays as they are, and lie; nothing is run."""
    began = time.perf_counter()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - began
    return Program(compiled, seconds, count_flops(traced), peak_bytes(compiled))


def compile_step(step: Any, state: Any, batch: Any, key: jax.Array) -> StepProgram:
    """Compiles a step of ``make_step``."""
    return StepProgram(
        compile_program(step, state, batch, key),
        len(jax.tree.leaves(batch)[0]),
        key.sharding.num_devices,
        sum(_bytes_on_a_device(leaf) for leaf in jax.tree.leaves(state)),
    )


def device_bytes() -> int | None:
    """Memory of each device at hand; of a CPU the machine's, shared among its devices."""
    device, *others = jax.local_devices()
    told = told_bytes(device)
    if told is not None or device.platform != "cpu":
        return told
    whole = machine_bytes()
    return None if whole is None else whole // (1 + len(others))


def fitting_rows(step: StepProgram, available: int) -> int:
    """The largest batch that should fit; what a batch needs is taken to grow with its rows.

    Args:
        step: for some batch.
        available: bytes on each device.

    Returns:
        A multiple of the number of devices; 0 if not even a row for each device fits.
    """
    each = max(1, step.program.needed_bytes - step.state_bytes) / step.num_rows
    rows = int(max(0, available - step.state_bytes) / each)
    return rows // step.num_devices * step.num_devices


def lack_of_memory(step: StepProgram, available: int | None) -> str | None:
    """Says that a step does not fit, and what would; None if it does, or nobody knows.

    Args:
        step: to be run.
        available: bytes on each device.
    """
    needed = step.program.needed_bytes
    if available is None or needed is None or needed <= available:
        return None
    rows = fitting_rows(step, available)
    remedy = f"one of {rows} should fit" if rows else "not even the smallest fits"
    return (
        f"a batch of {step.num_rows} needs {format_bytes(needed)} on each device, which has "
        f"{format_bytes(available)}; {remedy}, and compute.rematerialise = true takes less"
    )


def _bytes_on_a_device(leaf: jax.Array) -> int:
    return leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
