"""What a run's folder says of how it was made, and whether it may be written to or resumed."""

import hashlib
import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import jax
import numpy as np

import jimjax
from jimjax import distributed
from jimjax.config import config_differences, read_config, write_config
from jimjax.data.subtomograms import Subtomograms, hash_arrays
from jimjax.io.errors import InputError
from jimjax.io.files import replace_file
from jimjax.models.weights import Weights

CONFIG, PROVENANCE = "config.toml", "provenance.json"
VERSIONED = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


class Teacher(Protocol):
    """What a run learns from besides particles."""

    @property
    def fingerprint(self) -> str:
        """A hash that tells one from another."""


class Known(NamedTuple):
    """A teacher of which the record keeps no more than its hash."""

    fingerprint: str

    @classmethod
    def of(cls, *arrays: np.ndarray) -> Self:
        """That says these arrays."""
        return cls(hash_arrays(*arrays))


class Origin(NamedTuple):
    """What decides the outcome of a run.

    Attributes:
        config: dataclass of all settings.
        particles: of which training looks at volumes and tilt ranges.
        teacher: what is learned besides, such as labels, if anything.
        weights: of the network that is begun with; None for random ones.
    """

    config: Any
    particles: Subtomograms
    teacher: Teacher | None = None
    weights: Weights | None = None


class Record(NamedTuple):
    """What a folder keeps of a run.

    Attributes:
        folder: where checkpoints and a log are kept.
        origin: what the run is made of.
        command: as typed.
        resume: go on with what the folder holds.
    """

    folder: Path
    origin: Origin
    command: str = ""
    resume: bool = False

    def open(self) -> None:
        """Makes the folder this run's, or sees that it is.

        Raises:
            InputError: as ``check_folder``.
        """
        check_folder(self.origin, self.folder, self.resume)
        if not self.resume:
            begin_folder(self.origin, self.folder, self.command)


def check_folder(origin: Origin, folder: Path, resume: bool) -> None:
    """Raises if the folder holds a run and should not, or holds another one than is resumed.

    Raises:
        InputError: see above.
    """
    if jax.process_count() > 1:
        distributed.check_alike("data, settings or versions", json.dumps(_identity(origin)))
    config = origin.config
    has_run = (folder / CONFIG).exists()
    if has_run and not resume:
        raise InputError(f"{folder}: already holds a run; choose another --out, or --resume it")
    if resume and not has_run:
        raise InputError(f"{folder}: no run to resume")
    if resume:
        changed = config_differences(read_config(folder / CONFIG, type(config)), config)
        if changed:
            raise InputError(
                f"{folder}: its configuration differs from the one given ({'; '.join(changed)}); "
                f"resume with {folder / CONFIG}, or start anew in another folder"
            )
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        if record["particles_sha256"] != _hash_particles(origin.particles):
            raise InputError(
                f"{folder}: was trained on other particles than those given; resume with the "
                "same ones, or start anew in another folder"
            )
        if record.get("teacher_sha256") != _hash(origin.teacher):
            raise InputError(
                f"{folder}: was trained with another teacher, or with none; resume as it began, "
                "or start anew in another folder"
            )
        if record.get("weights_sha256") != _hash(origin.weights):
            raise InputError(
                f"{folder}: was begun with other weights, or with random ones; resume with the "
                "same ones, or start anew in another folder"
            )
    distributed.wait("folder checked")  # before the first process begins it


def begin_folder(origin: Origin, folder: Path, command: str) -> None:
    """Makes a folder a run: writes how it is made. Of several processes the first one does."""
    if not distributed.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / PROVENANCE, _provenance(origin, command))
    _write_text(folder / CONFIG, write_config(origin.config))  # last: it makes the folder a run


def forget_after(path: Path, step: int) -> None:
    """Drops log lines of epochs that will be run again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        _write_text(path, "".join(kept))


def _provenance(origin: Origin, command: str) -> str:
    record = {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        "devices": [device.device_kind for device in jax.devices()],
        **_identity(origin),
    }
    return json.dumps(record, indent=2) + "\n"


def _identity(origin: Origin) -> dict[str, Any]:
    """What all processes of a run have to have in common."""
    config, particles = origin.config, origin.particles
    return {
        "jimjax": jimjax.__version__,
        "versions": {name: metadata.version(name) for name in VERSIONED},
        "seed": config.seed,
        "config_sha256": hashlib.sha256(write_config(config).encode()).hexdigest(),
        "particles_sha256": _hash_particles(particles),
        "teacher_sha256": _hash(origin.teacher),
        "weights_sha256": _hash(origin.weights),
        "num_particles": len(particles),
        "box": int(particles.volumes.shape[-1]),
        "voxel_size": float(particles.voxel_size),
    }


def _hash_particles(particles: Subtomograms) -> str:
    """A hash of all that training looks at."""
    return hash_arrays(particles.volumes, particles.tilt_ranges)


def _hash(what: Teacher | Weights | None) -> str | None:
    return None if what is None else what.fingerprint


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as stream:
        stream.write(text.encode("utf-8"))
