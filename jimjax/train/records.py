"""What a run's folder says of how it was made, and whether it may be written to or resumed."""

import hashlib
import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jimjax
from jimjax.config import read_config, write_config
from jimjax.data.subtomograms import Subtomograms, hash_arrays
from jimjax.io.errors import InputError
from jimjax.io.files import replace_file
from jimjax.train.teacher import Teacher

CONFIG, PROVENANCE = "config.toml", "provenance.json"
VERSIONED = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def check_folder(
    config: Any,
    particles: Subtomograms,
    teacher: Teacher | None,
    folder: Path,
    resume: bool,
) -> None:
    """Raises if the folder holds a run and should not, or holds another one than is resumed.

    Raises:
        InputError: see above.
    """
    has_run = (folder / CONFIG).exists()
    if has_run and not resume:
        raise InputError(f"{folder}: already holds a run; choose another --out, or --resume it")
    if resume and not has_run:
        raise InputError(f"{folder}: no run to resume")
    if resume and read_config(folder / CONFIG, type(config)) != config:
        raise InputError(
            f"{folder}: its configuration differs from the one given; resume with "
            f"{folder / CONFIG}, or start anew in another folder"
        )
    if resume:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        if record["particles_sha256"] != _fingerprint(particles):
            raise InputError(
                f"{folder}: was trained on other particles than those given; resume with the "
                "same ones, or start anew in another folder"
            )
        if record.get("teacher_sha256") != _teacher_hash(teacher):
            raise InputError(
                f"{folder}: was trained with another teacher, or with none; resume as it began, "
                "or start anew in another folder"
            )


def begin_folder(
    config: Any,
    particles: Subtomograms,
    teacher: Teacher | None,
    folder: Path,
    command: str,
) -> None:
    """Makes a folder a run: writes how it is made."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / PROVENANCE, _provenance(config, particles, teacher, command))
    _write_text(folder / CONFIG, write_config(config))  # last: it makes the folder a run


def forget_after(path: Path, step: int) -> None:
    """Drops log lines of epochs that will be run again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        _write_text(path, "".join(kept))


def _provenance(config: Any, particles: Subtomograms, teacher: Teacher | None, command: str) -> str:
    record = {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "jimjax": jimjax.__version__,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONED},
        "devices": [device.device_kind for device in jax.devices()],
        "seed": config.seed,
        "config_sha256": hashlib.sha256(write_config(config).encode()).hexdigest(),
        "particles_sha256": _fingerprint(particles),
        "teacher_sha256": _teacher_hash(teacher),
        "num_particles": len(particles),
        "box": int(particles.volumes.shape[-1]),
        "voxel_size": float(particles.voxel_size),
    }
    return json.dumps(record, indent=2) + "\n"


def _fingerprint(particles: Subtomograms) -> str:
    """A hash of all that training looks at."""
    return hash_arrays(particles.volumes, particles.tilt_ranges)


def _teacher_hash(teacher: Teacher | None) -> str | None:
    return None if teacher is None else teacher.fingerprint


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as stream:
        stream.write(text.encode("utf-8"))
