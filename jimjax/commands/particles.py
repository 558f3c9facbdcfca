"""The options that say how particles are read: the same ones for all commands."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ParticleOptions:
    """How particles are read where tilts do not matter.

    Attributes:
        voxel_size: angstrom; from the STAR file or the headers if not given.
        nonfinite: particles of which voxels are NaN or infinite: "error" refuses them, "drop"
            leaves them out and names them on stderr, "zero" and "mean" fill those voxels with 0 or
            the mean of the particle's others.
        allow_outside: also read images that the STAR file names outside of the working directory
            and of the folder around its own.
    """

    voxel_size: float | None = None
    nonfinite: Literal["error", "drop", "zero", "mean"] = "error"
    allow_outside: bool = False

    @property
    def reading(self) -> dict[str, Any]:
        """These options as those of ``data.subtomograms.load``."""
        return {
            "voxel_size": self.voxel_size,
            "nonfinite": self.nonfinite,
            "allow_outside": self.allow_outside,
        }


@dataclass(frozen=True, kw_only=True)
class TiltedParticleOptions(ParticleOptions):
    """How particles are read.

    Attributes:
        tilt_min: lowest tilt of all particles, degrees; from the STAR file if not given.
        tilt_max: highest tilt of all particles, degrees; from the STAR file if not given.
    """

    tilt_min: float | None = None
    tilt_max: float | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """These options as those of ``data.subtomograms.load``."""
        from jimjax.commands import files

        return {**super().reading, "tilt_range": files.tilt_range(self.tilt_min, self.tilt_max)}
