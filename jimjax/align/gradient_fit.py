"""Poses of a data set against given references, from low frequencies to higher ones.

References stay as they are. How strong each shell of them is in the particles, and the noise, are
estimated in between from all particles together.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jimjax.align import bands, slices
from jimjax.align.bands import Band
from jimjax.align.fit import Found, check
from jimjax.align.fit_data import FitData, Options
from jimjax.align.gradient import Climbed, Images, Shells, Strength, climb, estimate_strength
from jimjax.align.plans import Start
from jimjax.data.subtomograms import Subtomograms
from jimjax.io.errors import InputError
from jimjax.mesh import AXIS, data_mesh
from jimjax.ops.rotation import Pose
from jimjax.progress import Progress

LIMITS = (3.0, 5.0, 7.0)  # of the bands, cycles per particle diameter
ROUNDS, STEPS = 3, 4  # in each band: estimates of the strength, and steps after each
CONTRAST_SHELLS = 2  # the lowest, whose gain tells light references from dark ones


def fit_poses(
    particles: Subtomograms,
    references: np.ndarray,
    start: Start,
    options: Options,
    *,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Found:
    """Improves poses against the references of their classes; see ``gradient``.

    Poses move to the nearest maximum of the likelihood: some ten degrees and a voxel or two are
    made up for, another maximum is not found. Classes stay as they are.

    Args:
        particles: their own poses and classes are not read.
        references: ``(num_classes, z, y, x)`` of the particles' box and contrast.
        start: classes and poses to begin with.
        options: of which the number of classes, the diameter and the block are used.
        progress: told of every round.
        mesh: devices that share the particles; all of them if None.

    Returns:
        One row per particle. Deviations are those of the posterior near its maximum, with the
        references taken as exact; no pose has a lower score than it began with.

    Raises:
        InputError: if an option is out of range, a class has no reference, or the references
            have the opposite contrast.
    """
    check(particles, options, references)
    _check_labels(start.labels, len(references))
    data = FitData(particles, options, references, mesh or data_mesh())
    begin = Pose(*(jnp.asarray(field, jnp.float32) for field in start[1:]))
    pose, done = begin, 0
    limits = list(dict.fromkeys(data.limit(limit) for limit in LIMITS))
    for limit in limits:
        fixed = _Fixed(data, start.labels, bands.Band(data.box, limit))
        strength = _first_strength(fixed, pose)
        for _ in range(ROUNDS):
            found, shells = fixed.climb(strength, pose, STEPS)
            strength, pose, done = estimate_strength(shells, is_fitted=True), found.pose, done + 1
            if progress is not None:
                shown = {"score": float(jnp.mean(found.score))}
                progress.update("gradient", done, ROUNDS * len(limits), shown)
    found, _ = fixed.climb(strength, pose, STEPS)
    return _conclude(fixed, strength, _choose(found, fixed.climb(strength, begin, 0)[0]))


class _Fixed:
    """Particles and references inside one band."""

    def __init__(self, data: FitData, labels: np.ndarray, band: Band):
        self.data, self.labels, self.band = data, np.asarray(labels, np.int32), band
        self.grids = slices.make_grids(data.references, band)
        spectra, self.masks = data.measured.take(band)
        self._missing = -data.num % data.mesh.size
        is_real = jnp.pad(jnp.ones(data.num), (0, self._missing))
        fields = self._fill((spectra, jnp.asarray(data.measured.groups), jnp.asarray(self.labels)))
        self.images = Images(*fields, is_real)

    def climb(self, strength: Strength, pose: Pose, num_steps: int) -> tuple[Climbed, Shells]:
        """Improves poses, or with 0 steps only weighs them; shared among the devices."""
        fixed = self.images, self.masks, self.grids, strength
        found, shells = self._climb(*fixed, self._fill(pose), jnp.asarray(num_steps))
        return jax.tree.map(lambda part: part[: self.data.num], found), shells

    @functools.cached_property
    def _climb(self) -> Callable[..., tuple[Climbed, Shells]]:
        def on_device(*arguments: Any) -> tuple[Climbed, Shells]:
            *others, num_steps = arguments
            found, shells = climb(*others, self.band, num_steps=num_steps)
            return found, jax.lax.psum(shells, AXIS)

        split, whole = PartitionSpec(AXIS), PartitionSpec()
        return jax.jit(
            jax.shard_map(
                on_device,
                mesh=self.data.mesh,
                in_specs=(split, whole, whole, whole, split, whole),
                out_specs=(split, whole),
                check_vma=False,  # scans in there begin with constants
            )
        )

    def _fill(self, fields: Any) -> Any:
        """Repeats the last particle, so that the devices have equally many."""
        return jax.tree.map(
            lambda field: jnp.pad(
                field, [(0, self._missing)] + [(0, 0)] * (field.ndim - 1), mode="edge"
            ),
            fields,
        )


def _first_strength(fixed: _Fixed, pose: Pose) -> Strength:
    """What the poses that a band begins with say."""
    ones = jnp.ones(fixed.band.num_shells)
    _, shells = fixed.climb(Strength(ones, ones), pose, 0)
    if not jnp.sum(shells.crossed[:CONTRAST_SHELLS]) > 0:
        raise InputError(
            "the references are light where the particles are dark, or the other way round, or "
            "the poses are not those of these references; invert the contrast of one of them"
        )
    return estimate_strength(shells, is_fitted=False)


def _choose(found: Climbed, begin: Climbed) -> Climbed:
    """Poses as they began where that scores higher under the last estimate of the strength."""
    is_better = found.score >= begin.score

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, found, begin)


def _conclude(fixed: _Fixed, strength: Strength, found: Climbed) -> Found:
    variances = jnp.diagonal(found.covariance, axis1=1, axis2=2)
    # Of the likelihood's integral over the maximum, as of a lattice in ``local_em``.
    volume = jnp.linalg.slogdet(2 * jnp.pi * found.covariance)[1] / 2
    volumes = slices.make_volumes(
        fixed.grids * strength.gain[slices.grid_shells(fixed.band)], fixed.band
    )
    num_classes = len(fixed.data.references)
    return Found(
        fixed.labels,
        np.eye(num_classes, dtype=np.float32)[fixed.labels],
        *map(np.asarray, found.pose),
        np.sqrt(np.asarray(variances[:, :3]).mean(axis=1)),
        np.sqrt(np.asarray(variances[:, 3:]).mean(axis=1)),
        np.asarray(found.score + volume),
        np.asarray(volumes),
        np.asarray(strength.noise),
    )


def _check_labels(labels: np.ndarray, num_references: int) -> None:
    highest = int(np.max(labels, initial=0)) + 1
    if highest > num_references:
        raise InputError(
            f"the particles have classes up to {highest}, but there are {num_references} "
            "references; give one map for each class"
        )
