"""Files to numpy and back: MRC volumes, STAR particle tables, foreign conventions.

Nothing here imports jax. Every mistake in a user's file is an `InputError`: one
sentence that names the file, the place, what was expected and what to do.
"""

from jimjax.io.convert import (
    relion_from_rotation,
    relion_from_shift,
    rotation_from_relion,
    shift_from_relion,
)
from jimjax.io.errors import InputError, InputWarning
from jimjax.io.mrc import (
    ImageReference,
    MrcFormatError,
    MrcIndexError,
    Stack,
    Volume,
    VolumeReader,
    open_volume,
    parse_image_name,
    read_box,
    read_images,
    read_particle,
    read_stack_image,
    read_volume,
    read_voxel_size,
    write_slabs,
    write_stack,
    write_volume,
)
from jimjax.io.star import ParticleTable, StarFormatError, new_table, read_particles

__all__ = [
    "ImageReference",
    "InputError",
    "InputWarning",
    "MrcFormatError",
    "MrcIndexError",
    "ParticleTable",
    "Stack",
    "StarFormatError",
    "Volume",
    "VolumeReader",
    "new_table",
    "open_volume",
    "parse_image_name",
    "read_box",
    "read_images",
    "read_particle",
    "read_particles",
    "read_stack_image",
    "read_volume",
    "read_voxel_size",
    "relion_from_rotation",
    "relion_from_shift",
    "rotation_from_relion",
    "shift_from_relion",
    "write_slabs",
    "write_stack",
    "write_volume",
]
