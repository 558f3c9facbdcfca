"""What is known while the joint EM runs, and how it is kept on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jimjax.align.fit_data import Options
from jimjax.data.subtomograms import Subtomograms, hash_arrays
from jimjax.io.errors import InputError
from jimjax.io.files import replace_file


class State(NamedTuple):
    """All that an interrupted fit needs; arrays of particles in their order."""

    done: np.ndarray  # () int, iterations
    temperature: np.ndarray  # ()
    grids: np.ndarray
    gains: np.ndarray  # (shells,), what given references are multiplied with
    noise: np.ndarray
    centres: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    angle_deviations: np.ndarray
    shift_deviations: np.ndarray
    evidence: np.ndarray
    nearby_classes: np.ndarray  # (n, m), and so on: hypotheses
    nearby_rotations: np.ndarray
    nearby_shifts: np.ndarray
    angle_steps: np.ndarray
    shift_steps: np.ndarray


def fingerprint(
    particles: Subtomograms,
    options: Options,
    references: np.ndarray | None,
    start: Sequence[np.ndarray] | None,
    plan: Sequence[Any],
) -> str:
    """A hash of all that the outcome follows from."""
    given = [] if references is None else [references]
    arrays = particles.volumes, particles.tilt_ranges, *given, *(start or ())
    return hash_arrays(*arrays, salt=repr((options, tuple(plan))))


class Store:
    """The state in a file, with a hash of what it belongs to."""

    def __init__(self, path: Path, fingerprint: str):
        self._path, self._fingerprint = path, fingerprint

    def save(self, state: State) -> None:
        """Replaces the file."""
        with replace_file(self._path) as stream:
            np.savez(stream, fingerprint=np.array(self._fingerprint), **state._asdict())

    def load(self) -> State | None:
        """The state; None if there is none yet."""
        if not self._path.exists():
            return None
        with np.load(self._path, allow_pickle=False) as saved:
            if str(saved["fingerprint"]) != self._fingerprint:
                raise InputError(
                    f"{self._path}: was saved with other particles or options; resume with the "
                    "same ones, or start anew in another folder"
                )
            return State(*(saved[name] for name in State._fields))
