"""Checks made at the door, before hours are spent on what cannot be written."""

import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jimjax
from jimjax.device_memory import machine_bytes
from jimjax.io.errors import InputError
from jimjax.io.files import replace_file

MEMORY_SHARE = 0.25  # training keeps particles as they are, normalised, and maybe on the devices


def check_output_file(path: Path, inputs: Iterable[Path]) -> None:
    """Raises unless a file can be made at ``path`` that is none of the inputs.

    Raises:
        InputError: if its folder is missing, it is a folder itself, or an input.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file to write")
    for other in inputs:
        if path.exists() and other.exists() and os.path.samefile(path, other):
            raise InputError(f"{path}: is read as an input; give --out another name")


def check_output_folder(path: Path) -> None:
    """Raises unless ``path`` is a folder or can become one.

    Raises:
        InputError: if it is a file.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; give the name of a folder")


def tilt_range(tilt_min: float | None, tilt_max: float | None) -> tuple[float, float] | None:
    """Joins two options that only make sense together; None if neither was given.

    Raises:
        InputError: if one was given alone.
    """
    if tilt_min is None and tilt_max is None:
        return None
    if tilt_min is None or tilt_max is None:
        missing = "--tilt-min" if tilt_min is None else "--tilt-max"
        raise InputError(f"{missing} is missing; give both limits of the tilt range, or none")
    return tilt_min, tilt_max


def check_box(box: int | None) -> None:
    """Raises unless the side of boxes to cut out makes sense, if it was given.

    Raises:
        InputError: if it does not.
    """
    if box is not None and box < 2:
        raise InputError(f"--box must be 2 voxels or more, got {box}")


def memory_bytes(gib: float | None) -> float:
    """Bytes that particles may take in memory; a quarter of what the machine has if not given.

    Raises:
        InputError: if it is negative.
    """
    if gib is None:
        return MEMORY_SHARE * (machine_bytes() or math.inf)
    if not gib >= 0:
        raise InputError(f"--memory must be 0 GiB or more, got {gib:g}")
    return gib * 2**30


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["jimjax", *sys.argv[1:]])


def provenance(seed: int, **more: object) -> dict[str, object]:
    """Records what made a result: command, date, versions, seed and ``more``."""
    return {
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "jimjax": jimjax.__version__,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("jax", "numpy")},
        "seed": seed,
        **more,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Reads what ``write_json`` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Writes an object as indented JSON, all at once."""
    with replace_file(path) as stream:
        stream.write((json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
