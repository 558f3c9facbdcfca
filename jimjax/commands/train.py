"""``jimjax train``: particles to a run folder."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from jimjax.commands.particles import TiltedParticleOptions

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jimjax.config import RunConfig
    from jimjax.train.profile import Profile


@dataclass(frozen=True)
class Train(TiltedParticleOptions):
    """Train a network on particles, without labels or poses, or with those that align found.

    Writes OUT/config.toml, provenance.json, metrics.jsonl, checkpoints/ and references.mrcs.
    Without --teacher, poses and classes that the STAR file may hold are not read. SIGTERM or
    Ctrl-C saves the state and ends with exit code 75; go on with --resume.

    Attributes:
        config: TOML file; what it leaves out keeps its default.
        data: particle STAR file.
        out: run folder to make.
        weights: file of jimjax export, or "small" for the weights that come with jimjax, to begin
            with; pre-training is left out.
        teacher: take classes and poses of the STAR file, such as jimjax align writes, as labels,
            weighted by jimClassProbability and jimAngleDeviation; nothing is clustered, and the
            references of a Jim-Net are the averages in those poses.
        resume: go on with the run in OUT where it was interrupted.
        profile: trace steps into OUT/profile, for XProf, TensorBoard or Perfetto: FIRST:COUNT,
            such as 10:5.
        tensorboard: write what is logged as events into OUT/tensorboard as well; needs the package
            tensorboardX.
        distributed: run as one of several processes, all started with the same command, that share
            each step and OUT; found in the environment of SLURM, Open MPI, TPU or GKE, if they are
            not given:
        coordinator: HOST:PORT of the first process.
        num_processes: how many there are.
        process_id: which this is, from 0.
        fsdp: devices that share the memory for large parameters and what the optimiser keeps of
            them; has no influence on the outcome.
        precision: overrides compute.precision of the configuration.
        rematerialise: overrides compute.rematerialise of the configuration.
        box: side in voxels of boxes to cut out of tomograms, MRC or OME-Zarr, as they are needed;
            where particles are is told by rlnCoordinateX, Y, Z (see jimjax pack) and their
            tomograms by rlnMicrographName or rlnTomoName.
        memory: GiB; particles that take more stay in their files and are read as they are needed,
            ahead of the steps; a quarter of this machine's memory if not given. Has no influence
            on the outcome.
        seed: overrides the configuration's seed.
        num_classes: overrides network.num_classes of the configuration.
    """

    config: tyro.conf.Positional[Path]
    data: Path
    out: Path
    weights: str | None = None
    teacher: bool = False
    resume: bool = False
    profile: str | None = None
    tensorboard: bool = False
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    fsdp: int = 1
    precision: Literal["float32", "bfloat16"] | None = None
    rematerialise: bool | None = None
    box: int | None = None
    memory: float | None = None
    seed: int | None = None
    num_classes: int | None = None

    def run(self) -> None:
        """Checks the input, then trains."""
        from jimjax.progress import stop_request

        self._join()
        # Of several processes none may leave alone: they ask each other.
        with stop_request() if self.distributed else nullcontext():
            self._train()

    def _train(self) -> None:
        from jimjax.commands import files
        from jimjax.commands.progress import open_progress
        from jimjax.data.subtomograms import load

        mesh = make_mesh(self.fsdp)
        config, profile = self._config(), self._profile()
        files.check_output_folder(self.out)
        self._check_box()
        particles = load(
            self.data,
            with_poses=self.teacher,
            box=self.box,
            max_bytes=files.memory_bytes(self.memory),
            **self.reading,
        )

        from jimjax import distributed
        from jimjax.commands.align_network import open_weights
        from jimjax.train.run import train_run
        from jimjax.train.teacher import read_teacher

        teacher = None
        if self.teacher:
            teacher = read_teacher(self.data, particles)
            self._check_classes(teacher.num_classes)
            network = replace(config.network, num_classes=teacher.num_classes)
            config = replace(config, network=network)
        weights = None
        if self.weights is not None:
            weights = open_weights(self.weights, config.network.kind, particles.volumes.shape[-1])
        with open_progress() as progress:
            train_run(
                config,
                particles,
                self.out,
                weights=weights,
                teacher=teacher,
                resume=self.resume,
                progress=progress,
                profile=profile,
                tensorboard=self.tensorboard,
                command=files.command_line(),
                mesh=mesh,
            )
        if distributed.is_first():
            print(f"trained on {len(particles)} particles: {self.out}")

    def _join(self) -> None:
        from jimjax.io.errors import InputError

        where = self.coordinator, self.num_processes, self.process_id
        if self.distributed:
            from jimjax import distributed

            distributed.join(*where)
        elif where != (None, None, None):
            raise InputError("--coordinator, --num-processes and --process-id need --distributed")

    def _check_box(self) -> None:
        from jimjax.commands import files
        from jimjax.io.errors import InputError

        files.check_box(self.box)
        if self.teacher and self.box is not None:
            raise InputError("--teacher needs particles with images; cut them out by jimjax pack")

    def _check_classes(self, num_taught: int) -> None:
        from jimjax.io.errors import InputError

        if self.num_classes not in (None, num_taught):
            raise InputError(
                f"--num-classes {self.num_classes} does not fit {self.data}, whose teacher knows "
                f"{num_taught}; leave it out"
            )

    def _profile(self) -> "Profile | None":
        from jimjax.io.errors import InputError
        from jimjax.train.profile import Profile

        if self.profile is None:
            return None
        first, _, count = self.profile.partition(":")
        if not (first.isdecimal() and count.isdecimal() and int(first) and int(count)):
            raise InputError(f"--profile {self.profile}: give FIRST:COUNT, such as 10:5")
        return Profile(self.out / "profile", int(first), int(count))

    def _config(self) -> "RunConfig":
        from jimjax.config import override_compute, read_config
        from jimjax.io.errors import InputError

        config = read_config(self.config)
        if self.seed is not None:
            if self.seed < 0:
                raise InputError(f"--seed must be 0 or more, got {self.seed}")
            config = replace(config, seed=self.seed)
        if self.num_classes is not None:
            if self.num_classes < 1:
                raise InputError(f"--num-classes must be 1 or more, got {self.num_classes}")
            network = replace(config.network, num_classes=self.num_classes)
            config = replace(config, network=network)
        if self.weights is not None:
            config = replace(config, pretrain=replace(config.pretrain, steps=0))
        return override_compute(config, self.precision, self.rematerialise)


def make_mesh(fsdp: int) -> "Mesh":
    """All devices, ``fsdp`` of which at a time share large parameters.

    Raises:
        InputError: if they do not divide by that.
    """
    from jimjax.io.errors import InputError
    from jimjax.mesh import data_mesh

    try:
        return data_mesh(fsdp=fsdp)
    except ValueError as problem:
        raise InputError(f"--fsdp {fsdp}: {problem}") from problem
