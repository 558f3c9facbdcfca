"""What a compiled function costs: operations, and memory."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

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


def peak_flops() -> float | None:
    """Of one device of those at hand, bfloat16; None where it is not known."""
    kind = jax.devices()[0].device_kind
    known = (peak for name, peak in PEAKS.items() if name in kind)
    return next(known, None)


def count_flops(traced: jax.stages.Traced) -> float:
    """Floating-point operations of the convolutions and products of a call, on all devices.

    Two for each product and sum. They are those that the function asks for: where platforms
    compute a layer in different ways, the one with the fewest counts, and how the compiler goes
    about it has no influence. Of a loop of unknown length one turn counts.

    Args:
        traced: ``jax.jit(function).trace(*arguments)``.
    """
    return _count(traced.jaxpr.jaxpr)


def _count(jaxpr: Any) -> float:
    """Of a program, without what nothing comes of."""
    total, wanted = 0.0, {id(each) for each in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or wanted.intersection(map(id, equation.outvars)):
            wanted.update(map(id, equation.invars))
            total += _count_equation(equation)
    return total


def _count_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return 2.0 * _count_products(equation)
    inner = [_count(each) for each in _jaxprs(params)]
    if name == "cond":
        return min(inner)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # shapes are those of one device
        times = params["mesh"].size
    return times * sum(inner)


def _count_products(equation: Any) -> float:
    """Of a convolution: as many as there are values for, not zeros of padding and dilation."""
    params, (lhs, kernel) = equation.params, (each.aval.shape for each in equation.invars)
    spec, out = params["dimension_numbers"], equation.outvars[0].aval.shape
    total = out[spec.out_spec[0]] * out[spec.out_spec[1]] * kernel[spec.rhs_spec[1]]
    for place, (low, _) in enumerate(params["padding"]):
        values = np.zeros((lhs[spec.lhs_spec[2 + place]] - 1) * params["lhs_dilation"][place] + 1)
        values[:: params["lhs_dilation"][place]] = 1
        starts = params["window_strides"][place] * np.arange(out[spec.out_spec[2 + place]])
        taps = params["rhs_dilation"][place] * np.arange(kernel[spec.rhs_spec[2 + place]])
        seen = starts[:, None] + taps - low
        total *= values[seen[(seen >= 0) & (seen < len(values))]].sum()
    return float(total)


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs inside an operation."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns"):
                yield each
            elif hasattr(each, "jaxpr"):  # closed over constants
                yield each.jaxpr


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
