"""``jimjax compile``: what a training will need, before there are particles for it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jimjax.config import RunConfig
    from jimjax.train.rehearsal import Rehearsed


@dataclass(frozen=True)
class Compile:
    """Compile the steps of a training, and say what memory and arithmetic they need.

    Nothing is trained. What is compiled is kept where jimjax train finds it again, if it has as
    many particles of the same box.

    Attributes:
        config: TOML file of jimjax train.
        box: side of the particles in voxels.
        num_particles: how many there will be.
        batch_size: overrides that of pretrain and joint in the configuration.
        precision: overrides compute.precision of the configuration.
        rematerialise: overrides compute.rematerialise of the configuration.
        fsdp: as of jimjax train.
        json: file to write the numbers to as well.
    """

    config: tyro.conf.Positional[Path]
    box: int = 32
    num_particles: int = 1000
    batch_size: int | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    rematerialise: bool | None = None
    fsdp: int = 1
    json: Path | None = None

    def run(self) -> None:
        """Compiles and tells."""
        from jimjax.commands import files
        from jimjax.commands.train import make_mesh
        from jimjax.io.errors import InputError
        from jimjax.train.rehearsal import rehearse

        files.check_box(self.box)
        if self.num_particles < 2:
            raise InputError(f"--num-particles must be 2 or more, got {self.num_particles}")
        config, mesh = self._config(), make_mesh(self.fsdp)
        try:
            found = rehearse(config, box=self.box, num_particles=self.num_particles, mesh=mesh)
        except ValueError as problem:
            raise InputError(f"{self.config}: {problem}") from problem
        record = {"devices": _devices(mesh), "stages": [_row(each) for each in found]}
        print(_table(record))
        if self.json is not None:
            from jimjax.io.files import replace_file

            with replace_file(self.json) as stream:
                stream.write(json.dumps(record, indent=1).encode() + b"\n")

    def _config(self) -> "RunConfig":
        from jimjax.config import override_compute, read_config
        from jimjax.io.errors import InputError

        config = override_compute(read_config(self.config), self.precision, self.rematerialise)
        if self.batch_size is None:
            return config
        if self.batch_size < 1:
            raise InputError(f"--batch-size must be 1 or more, got {self.batch_size}")
        pretrain = replace(config.pretrain, batch_size=self.batch_size)
        return replace(
            config, pretrain=pretrain, joint=replace(config.joint, batch_size=self.batch_size)
        )


def _devices(mesh: "Mesh") -> dict[str, Any]:
    from jimjax.train.program import device_bytes

    device = mesh.devices.flat[0]
    return {"num": mesh.size, "kind": device.device_kind, "bytes": device_bytes()}


def _row(found: "Rehearsed") -> dict[str, Any]:
    from jimjax.train.program import device_bytes, fitting_rows

    step, available = found.step, device_bytes()
    program = step.program
    is_known = available is not None and program.needed_bytes is not None
    return {
        "stage": found.stage,
        "rows": step.num_rows,
        "gflops_per_step": program.flops / 1e9,
        "state_bytes": step.state_bytes,
        "needed_bytes": program.needed_bytes,
        "fits": program.needed_bytes <= available if is_known else None,
        "largest_batch": fitting_rows(step, available) if is_known else None,
        "compile_seconds": round(program.seconds, 1),
    }


def _table(record: dict[str, Any]) -> str:
    devices = record["devices"]
    lines = [
        f"{devices['num']} x {devices['kind']}, memory of each: {_size(devices['bytes'])}",
        f"{'stage':<11}{'batch':>6}{'GFLOP a step':>14}{'state':>10}{'memory':>10}"
        f"{'largest batch':>15}{'compiled in':>13}",
    ]
    for row in record["stages"]:
        largest = "?" if row["largest_batch"] is None else row["largest_batch"]
        lines.append(
            f"{row['stage']:<11}{row['rows']:>6}{row['gflops_per_step']:>14,.0f}"
            f"{_size(row['state_bytes']):>10}{_size(row['needed_bytes']):>10}{largest:>15}"
            f"{row['compile_seconds']:>11.0f} s"
        )
    return "\n".join(lines)


def _size(num_bytes: int | None) -> str:
    from jimjax.device_memory import format_bytes

    return "?" if num_bytes is None else format_bytes(num_bytes)
