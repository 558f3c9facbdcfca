"""What a compiled function costs: operations, and memory."""

import jax

# Floating-point operations per second of one device, dense bfloat16; vendors' data sheets.
PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
COUNTED = "tpu"  # the platform for which a convolution is one operation, of 3 dimensions


def peak_flops() -> float | None:
    """Of one device of those at hand, bfloat16; None where it is not known."""
    kind = jax.devices()[0].device_kind
    known = (peak for name, peak in PEAKS.items() if name in kind)
    return next(known, None)


def count_flops(traced: jax.stages.Traced) -> float:
    """Floating-point operations of a call, on all devices together.

    Counted before compilation and with plain convolutions, so that it does not depend on how the
    device at hand computes them: on GPUs they become calls of a library whose operations XLA does
    not see.

    Args:
        traced: ``jax.jit(function).trace(*arguments)``.
    """
    lowered = traced.lower(lowering_platforms=(COUNTED,))
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """What a call needs on each device: arguments, results and all in between; None if not known.

    Results that take the place of arguments count once.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
