"""``jimjax simulate``: structures to particles with known class and pose."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jimjax.data.simulate import CtfParameters
    from jimjax.data.subtomograms import Subtomograms

PARTICLES, STACK, MASKS = "particles.star", "particles.mrcs", "masks.mrcs"
PROVENANCE, THRESHOLD = "provenance.json", "mask_threshold"
MASK_THRESHOLD = 0.5  # encloses about the volume of the molecule, see ``jimjax.data.simulate``
VOXELS_OF_RESOLUTION = 2.0  # default resolution: the finest that the grid can carry


@dataclass(frozen=True)
class Simulate:
    """Simulate subtomograms of known structures, with the truth in the STAR file.

    Writes OUT/particles.star, OUT/particles.mrcs, with --masks OUT/masks.mrcs, and
    OUT/provenance.json. The order of the structures is that of the class numbers.

    Attributes:
        structures: one per class: .pdb .ent .cif .mmcif (atoms) or .mrc .map .ccp4 .rec (map),
            also with .gz.
        out: folder to write.
        num_per_class: particles of each class.
        snr: variance of signal over variance of noise, after the wedge; inf for no noise.
        box: side of a particle, voxels.
        voxel_size: angstrom.
        resolution: of the densities, angstrom; two voxels if not given.
        max_shift: largest displacement along each axis, voxels.
        tilt_min: lowest tilt, degrees.
        tilt_max: highest tilt, degrees.
        ctf: multiply by a contrast transfer function (options below).
        defocus: underfocus, angstrom; two values are a range to draw from.
        voltage: kilovolt.
        spherical_aberration: millimetre.
        amplitude_contrast: fraction.
        b_factor: envelope, square angstrom.
        mtf: of the detector: where its envelope falls to 1 / e, in Nyquist frequencies; inf: none.
        noise_corner: frequency at which the noise has half its power, cycles per voxel; inf: white.
        contrast: dark protein as in raw tomograms, or light.
        masks: also write which voxels are the particle, in its pose.
        mask_threshold: of --masks: fraction of the highest density of a class above which a voxel
            is the particle; one half encloses about the volume of the molecule.
        seed: of all that is random.
    """

    structures: tuple[Path, ...]
    out: Path
    num_per_class: int = 100
    snr: float = 0.1
    box: int = 32
    voxel_size: float = 12.0
    resolution: float | None = None
    max_shift: float = 6.0
    tilt_min: float = -60.0
    tilt_max: float = 60.0
    ctf: bool = False
    defocus: tuple[float, ...] = (20000.0,)
    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.07
    b_factor: float = 0.0
    mtf: float = float("inf")
    noise_corner: float = float("inf")
    contrast: Literal["dark", "light"] = "dark"
    masks: bool = False
    mask_threshold: float = MASK_THRESHOLD
    seed: int = 0

    def run(self) -> None:
        """Reads the structures and writes the particles."""
        from jimjax.commands import files
        from jimjax.io.errors import InputError

        if not self.structures:
            raise InputError("--structures is empty; give one file per class")
        _check_free(self.out, with_masks=self.masks)
        resolution = self.resolution
        if resolution is None:
            resolution = VOXELS_OF_RESOLUTION * self.voxel_size
        particles = self._particles(resolution)
        options = {
            "structure_names": [path.name for path in self.structures],
            "resolution_angstrom": resolution,
            "snr": self.snr if self.snr < float("inf") else "inf",
        }
        if self.masks:
            options[THRESHOLD] = self.mask_threshold
        write_particles(particles, self.out, files.provenance(self.seed, **options))
        print(f"{len(particles)} particles of {len(self.structures)} classes: {self.out}")

    def _particles(self, resolution: float) -> "Subtomograms":
        import jax

        from jimjax.data.simulate import simulate
        from jimjax.data.structures import density_from_file

        grid = {"voxel_size": self.voxel_size, "resolution": resolution, "box": self.box}
        return simulate(
            jax.random.key(self.seed),
            [density_from_file(path, **grid) for path in self.structures],
            num_per_class=self.num_per_class,
            snr=self.snr,
            voxel_size=self.voxel_size,
            tilt_range=(self.tilt_min, self.tilt_max),
            max_shift=self.max_shift,
            ctf=self._ctf(),
            contrast=self.contrast,
            mask_threshold=self.mask_threshold if self.masks else None,
            noise_corner=self.noise_corner,
        )

    def _ctf(self) -> "CtfParameters | None":
        from jimjax.data.simulate import CtfParameters
        from jimjax.io.errors import InputError

        if not self.ctf:
            return None
        if len(self.defocus) not in (1, 2):
            raise InputError(f"--defocus takes one value or two, got {len(self.defocus)}")
        return CtfParameters(
            defocus=self.defocus[0] if len(self.defocus) == 1 else self.defocus,
            voltage=self.voltage,
            spherical_aberration=self.spherical_aberration,
            amplitude_contrast=self.amplitude_contrast,
            b_factor=self.b_factor,
            mtf=self.mtf,
        )


def write_particles(particles: "Subtomograms", folder: Path, provenance: dict[str, object]) -> Path:
    """Writes a simulated data set in place of an earlier one and returns its STAR file."""
    from jimjax.commands import files
    from jimjax.data.subtomograms import to_star
    from jimjax.progress import stop_request

    star_path = folder / PARTICLES
    with stop_request():  # all of them or none
        folder.mkdir(parents=True, exist_ok=True)
        if particles.masks is None and _has_simulated_masks(folder):
            (folder / MASKS).unlink(missing_ok=True)  # they are of the particles that are replaced
        files.write_json(folder / PROVENANCE, provenance)
        to_star(particles, star_path, stack_path=folder / STACK, mask_path=folder / MASKS)
    return star_path


def _check_free(folder: Path, *, with_masks: bool) -> None:
    """Raises if files lie there that no simulation wrote: they are not to be replaced."""
    from jimjax.commands import files
    from jimjax.io.errors import InputError

    files.check_output_folder(folder)
    is_simulated = (folder / PROVENANCE).exists()
    is_ours = {PARTICLES: is_simulated, STACK: is_simulated}
    if with_masks:
        is_ours[MASKS] = _has_simulated_masks(folder)
    for name in is_ours:
        if (folder / name).exists() and not is_ours[name]:
            raise InputError(f"{folder / name}: is not from a simulation; give another --out")


def _has_simulated_masks(folder: Path) -> bool:
    from jimjax.commands import files

    path = folder / PROVENANCE
    try:
        return path.exists() and THRESHOLD in files.read_json(path)
    except ValueError:  # a file of that name which is not JSON
        return False
