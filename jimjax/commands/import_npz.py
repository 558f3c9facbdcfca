"""``jimjax import``: an archive of arrays to STAR and MRC."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Import:
    """Convert subtomograms in one .npz to a STAR file and an MRC stack.

    The archive holds arrays subtomograms (n, z, y, x), wedge_mask (n, z, y, x),
    rot_ref_to_tomo_xyz (n, 3, 3), warp_reference (z, y, x) and voxel_size_A (angstrom). A tilt
    range (degrees) is fitted to each mask, and how well it fits is printed.
    Writes OUT/particles.star, OUT/particles.mrcs and OUT/reference.mrc.

    Attributes:
        archive: the .npz file.
        out: folder to write.
    """

    archive: tyro.conf.Positional[Path]
    out: Path

    def run(self) -> None:
        """Converts and prints what was fitted."""
        from jimjax.commands import files
        from jimjax.data.npz_import import import_npz
        from jimjax.io.errors import InputError

        files.check_output_folder(self.out)
        for name in ("particles.star", "particles.mrcs", "reference.mrc"):
            if (self.out / name).exists():
                raise InputError(f"{self.out / name}: exists; give another --out")
        imported = import_npz(self.archive, self.out)
        low, high = imported.tilt_ranges.mean(axis=0)
        print(
            f"{len(imported.tilt_ranges)} particles: {imported.star_path}; mean tilt range "
            f"{low:.1f} to {high:.1f} degrees, which agrees with the masks on "
            f"{imported.agreements.min():.1%} of frequencies or more"
        )
