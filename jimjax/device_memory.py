"""What a device says when its memory is full, in the words of this package."""

import re

from jimjax.io.errors import FailureError

_NEEDED = re.compile(r"allocat\w*(?: request for| of)? ([0-9.]+) ?(bytes|[KMGT]iB)")


class OutOfMemoryError(FailureError):
    """The memory of a device is full; the message says at what, and what to do."""


def is_out_of_memory(problem: RuntimeError) -> bool:
    """Whether an error is XLA's about memory; it has no class of its own for that."""
    return "RESOURCE_EXHAUSTED" in str(problem)


def describe_need(problem: RuntimeError) -> str:
    """How much could not be had, as `` (12 GiB asked for)``; nothing if XLA does not tell."""
    found = _NEEDED.search(str(problem))
    if found is None:
        return ""
    number, unit = float(found[1]), found[2]
    text = f"{number / 2**30:.3g} GiB" if unit == "bytes" else f"{number:g} {unit}"
    return f" ({text} asked for)"
