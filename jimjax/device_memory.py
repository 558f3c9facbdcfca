"""How much memory there is, and what a device says when its own is full."""

import os
import re
from typing import Any

from jimjax.io.errors import FailureError

_NEEDED = re.compile(r"allocat\w*(?: request for| of)? ([0-9.]+) ?(bytes|[KMGT]iB)")


class OutOfMemoryError(FailureError):
    """The memory of a device is full; the message says at what, and what to do."""


def is_out_of_memory(problem: RuntimeError) -> bool:
    """Whether an error is XLA's about memory; it has no class of its own for that."""
    return "RESOURCE_EXHAUSTED" in str(problem)


def told_bytes(device: Any) -> int | None:
    """Memory of a JAX device, if it tells; a CPU does not."""
    told = (device.memory_stats() or {}).get("bytes_limit")
    return None if told is None else int(told)


def machine_bytes() -> int | None:
    """Memory of this machine, if the system tells; Windows does not."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def format_bytes(num_bytes: float) -> str:
    """Such as "1.5 GiB", or in MiB below one."""
    unit, name = (2**30, "GiB") if num_bytes >= 2**30 else (2**20, "MiB")
    return f"{num_bytes / unit:.3g} {name}"


def describe_need(problem: RuntimeError) -> str:
    """How much could not be had, as `` (12 GiB asked for)``; nothing if XLA does not tell."""
    found = _NEEDED.search(str(problem))
    if found is None:
        return ""
    number, unit = float(found[1]), found[2]
    text = format_bytes(number) if unit == "bytes" else f"{number:g} {unit}"
    return f" ({text} asked for)"
