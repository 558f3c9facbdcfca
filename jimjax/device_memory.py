"""What a device says when its memory is full, in the words of this package."""

import re

from jimjax.io.errors import FailureError

_NEEDED = re.compile(r"allocat\w* (?:of )?([0-9.]+ ?(?:bytes|[KMGT]i?B))")


class OutOfMemoryError(FailureError):
    """The memory of a device is full; the message says at what, and what to do."""


def is_out_of_memory(problem: RuntimeError) -> bool:
    """Whether an error is XLA's about memory; it has no class of its own for that."""
    return "RESOURCE_EXHAUSTED" in str(problem)


def describe_need(problem: RuntimeError) -> str:
    """How much could not be had, as `` (12 GiB asked for)``; nothing if XLA does not tell."""
    found = _NEEDED.search(str(problem))
    return f" ({found[1]} asked for)" if found else ""
