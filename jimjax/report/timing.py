"""Seconds of benchmark results, which may come from several devices."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def median_seconds(own: Sequence[dict[str, Any]]) -> str:
    """The median on the device that did most of them, and its name."""
    devices = [r.get("device", "") for r in own]
    device = max(sorted(set(devices)), key=devices.count)
    seconds = np.median([r["seconds"] for r in own if r.get("device", "") == device])
    return f"{seconds:.0f} {device}".strip()
