"""``jimjax pack``: particles of many files, or of tomograms, to one store."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Pack:
    """Pack particles into one compressed store that training can read in any order.

    Writes OUT/volumes.zarr and OUT/particles.star, which every command takes in place of the
    original: its image names are those in the store, all else is as it was. A small part
    of the particles is in memory at a time.

    Attributes:
        particles: STAR file.
        out: folder to write.
        precision: of voxels. In float16 each particle has its own scale, and takes half the space
            of float32, which is exact.
        box: side in voxels of boxes to cut out of the tomograms that rlnMicrographName (or
            rlnTomoName) names, MRC or OME-Zarr, around rlnCoordinateX, Y, Z (voxels of the
            tomogram, the first being 0); those that reach beyond it are left out.
        tilt_min: lowest tilt of all particles, degrees, to write into the STAR file.
        tilt_max: highest tilt of all particles, degrees, to write into the STAR file.
        voxel_size: angstrom; from the STAR file or the headers if not given.
        allow_outside: also read files that the STAR file names outside of the working directory and
            of the folder around its own.
    """

    particles: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    precision: Literal["float16", "float32"] = "float16"
    box: int | None = None
    tilt_min: float | None = None
    tilt_max: float | None = None
    voxel_size: float | None = None
    allow_outside: bool = False

    def run(self) -> None:
        """Packs, and says how much."""
        from jimjax.commands import files
        from jimjax.commands.progress import open_progress
        from jimjax.data.packing import pack

        files.check_output_folder(self.out)
        files.check_box(self.box)
        tilt_range = files.tilt_range(self.tilt_min, self.tilt_max)
        started = time.monotonic()
        with open_progress() as progress:
            packed = pack(
                self.particles,
                self.out,
                precision=self.precision,
                box=self.box,
                voxel_size=self.voxel_size,
                tilt_range=tilt_range,
                allow_outside=self.allow_outside,
                progress=progress,
            )
        print(
            f"{packed.num_particles} particles in {packed.num_bytes / 2**20:.1f} MiB,"
            f" {time.monotonic() - started:.1f} seconds: {packed.star_path}"
        )
