"""Particles as the joint EM wants them: in a band, in folds, on all devices."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jimjax.align import bands, slices
from jimjax.align.bands import Band
from jimjax.align.centring import DIAMETER
from jimjax.align.joint_em import (
    Model,
    Observations,
    Posterior,
    Statistics,
    expect,
    maximize,
    rescale,
)
from jimjax.align.local_em import Weighed, expect_nearby
from jimjax.align.measured import MeasuredVolumes
from jimjax.data.subtomograms import Subtomograms, normalize
from jimjax.mesh import AXIS, replicate
from jimjax.ops import symmetry

NUM_FOLDS = 4


@dataclass(frozen=True)
class Options:
    """What to look for.

    Attributes:
        num_classes: how many classes.
        max_shift: largest displacement along each axis, voxels.
        diameter: of the particles, angstrom; two thirds of the box if None.
        symmetry: point group of all classes, such as C1 or D4; see ``ops.point_group``.
        keep_classes: whether particles stay in the classes of a start.
        seed: of the random start.
        block: particles at a time.
        dtype: in which sweeps multiply particles and templates; see ``joint_em.expect``.
    """

    num_classes: int = 1
    max_shift: float = 6.0
    diameter: float | None = None
    symmetry: str = "C1"
    keep_classes: bool = False
    seed: int = 0
    block: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"


class Banded(NamedTuple):
    """Particles inside one band, and what is computed of them there."""

    band: Band
    observations: Observations
    expect: Callable[..., tuple[Posterior, Statistics]]
    expect_nearby: Callable[..., tuple[Weighed, Statistics]]
    update: Callable[[Statistics, Model], tuple[Model, jax.Array]]


class FitData:
    """Particles dealt into folds that the devices can share."""

    def __init__(
        self,
        particles: Subtomograms,
        options: Options,
        references: np.ndarray | None,
        mesh: Mesh,
    ):
        self.options, self.mesh = options, mesh
        self.box = particles.volumes.shape[-1]
        given = options.diameter
        self.diameter = self.box * DIAMETER if given is None else given / particles.voxel_size
        self.measured = MeasuredVolumes(normalize(particles.volumes), particles.tilt_ranges)
        self.references = None
        if references is not None:
            grid = np.indices((self.box,) * 3) - self.box // 2
            ball = slices.soft_ball(np.linalg.norm(grid, axis=0), self.diameter / 2)
            self.references = normalize(references) * np.asarray(ball)
        self.random = np.random.default_rng(options.seed)
        num = len(self.measured)
        order = self.random.permutation(num)
        num_folds = min(NUM_FOLDS, num)
        size = -(-num // (num_folds * mesh.size)) * mesh.size
        self._rows = np.concatenate([order, np.full(num_folds * size - num, -1)])
        self._rows = self._rows.reshape(size, num_folds).T
        self._current: tuple[float, Banded] | None = None

    @property
    def num(self) -> int:
        """How many particles there are."""
        return len(self.measured)

    @property
    def num_folds(self) -> int:
        """Into how many folds they are dealt."""
        return len(self._rows)

    def deal(self, values: np.ndarray) -> jax.Array:
        """Puts rows of particles into folds ``(f, n, ...)``; what fills up repeats the first."""
        return jnp.asarray(np.asarray(values)[np.maximum(self._rows, 0)])

    def collect(self, folds: jax.Array) -> np.ndarray:
        """The inverse of ``deal``."""
        folds, is_real = np.asarray(folds), self._rows >= 0
        values = np.empty((self.num, *folds.shape[2:]), folds.dtype)
        values[self._rows[is_real]] = folds[is_real]
        return values

    def limit(self, cycles_per_diameter: float) -> float:
        """The same in cycles per box."""
        cycles = cycles_per_diameter * self.box / self.diameter
        return float(np.clip(cycles, 1, self.box / 2 - 1))

    def at(self, cycles_per_diameter: float) -> Banded:
        """Particles and programs of a band; the last one is kept."""
        if self._current is None or self._current[0] != cycles_per_diameter:
            self._current = None  # before the next one takes memory
            self._current = cycles_per_diameter, self._prepare(self.limit(cycles_per_diameter))
        return self._current[1]

    def _prepare(self, limit: float) -> Banded:
        band = Band(self.box, limit)
        spectra, masks = self.measured.take(band)
        is_real = jnp.asarray(self._rows >= 0, jnp.float32)
        observations = Observations(
            self.deal(spectra), self.deal(self.measured.groups), is_real, masks
        )
        options = self.options
        programs = _build_programs(
            band,
            self.mesh,
            block=options.block,
            dtype=options.dtype,
            radius=self.diameter / 2,
            symmetry_group=options.symmetry,
            with_references=self.references is not None,
        )
        return Banded(band, jax.device_put(observations, _shardings(self.mesh)), *programs)


class _Programs(NamedTuple):
    expect: Callable[..., tuple[Posterior, Statistics]]
    expect_nearby: Callable[..., tuple[Weighed, Statistics]]
    update: Callable[[Statistics, Model], tuple[Model, jax.Array]]


SPLIT, WHOLE = PartitionSpec(None, AXIS), PartitionSpec()  # folds, then particles
OBSERVATIONS = Observations(SPLIT, SPLIT, SPLIT, WHOLE)


def _shardings(mesh: Mesh) -> Observations:
    return jax.tree.map(functools.partial(NamedSharding, mesh), OBSERVATIONS)


@functools.lru_cache(maxsize=16)
def _build_programs(
    band: Band,
    mesh: Mesh,
    *,
    block: int,
    dtype: str,
    radius: float,
    symmetry_group: str,
    with_references: bool,
) -> _Programs:
    """What is compiled once, for all fits of the same kind: that of half sets, for instance."""

    def share(function: Callable, *others: PartitionSpec) -> Callable:
        def on_device(*arguments: Any) -> tuple[Any, Statistics]:
            found, statistics = function(*arguments)
            return found, jax.lax.psum(statistics, AXIS)

        specs = OBSERVATIONS, WHOLE, *others
        program = jax.jit(
            jax.shard_map(
                on_device,
                mesh=mesh,
                in_specs=specs,
                out_specs=(SPLIT, WHOLE),
                check_vma=False,  # scans in there begin with constants
            )
        )
        places = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
        # Arrays that lie elsewhere would be another program.
        return lambda *arguments: program(*jax.device_put(arguments, places))

    def sweep(*arguments: Any) -> tuple[Posterior, Statistics]:
        *others, of_class, temperature = arguments
        return expect(
            *others, band, class_log_prior=of_class, temperature=temperature, block=block,
            dtype=dtype,
        )  # fmt: skip

    group = symmetry.point_group(symmetry_group)

    @jax.jit
    def update(statistics: Statistics, model: Model) -> tuple[Model, jax.Array]:
        if with_references:
            return rescale(statistics, model, band)
        model = maximize(statistics, band, radius=radius, group=group)
        return model, jnp.ones(band.num_shells)

    return _Programs(
        share(sweep, WHOLE, WHOLE, WHOLE, SPLIT, WHOLE),
        share(functools.partial(expect_nearby, band=band), SPLIT),
        lambda statistics, model: update(*replicate((statistics, model), mesh)),
    )


def measure(banded: Banded) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each shell: variance as if all were noise, energy, and measured coefficients."""
    return _measure(banded.observations, banded.band)


@functools.partial(jax.jit, static_argnames="band")
def _measure(observations: Observations, band: Band) -> tuple[jax.Array, jax.Array, jax.Array]:
    spectra, groups, is_real, masks = observations
    energy = jnp.sum(jnp.abs(spectra) ** 2 * is_real[..., None], axis=(0, 1))
    members = jnp.zeros(len(masks)).at[groups].add(is_real)
    energy, measured = (bands.per_shell(each, band) for each in (energy, members @ masks))
    return energy / jnp.maximum(measured, 1) / 2, energy, measured
