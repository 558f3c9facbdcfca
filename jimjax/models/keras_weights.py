"""The published weights of DeepFinder, a Keras file in HDF5, as an encoder of ours.

Of such a file only the encoder's convolutions are of use: in a segmentation network the decoder
comes after them. The file may come from anywhere, so that nothing in it is followed to another
file, and nothing is read that has not the one shape and type that is wanted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jimjax.io.errors import InputError
from jimjax.io.files import open_input
from jimjax.models import functional
from jimjax.models.deepfinder import PAPER_WIDTHS, paper
from jimjax.models.weights import Contrast, Description, Weights, build

if TYPE_CHECKING:
    import h5py

MAX_NAMES = 1000  # layers of a network, or arrays of a layer
MAX_NAME = 1000  # characters
KERNEL_SIDE = 3
SHREC_VOXEL_SIZE = 10.0  # angstrom, of the tomograms that the published weights were trained on


def load_keras_encoder(
    path: str | Path,
    *,
    box: int,
    num_classes: int,
    contrast: Contrast = "dark",
    voxel_size: float = SHREC_VOXEL_SIZE,
    seed: int = 0,
) -> Weights:
    """Reads the encoder of a DeepFinder that Keras has saved.

    Kernels stay as they are: Keras' ``(3, 3, 3, in, out)`` runs over the axes of the array in their
    order, which are z, y and x, and neither library flips it.

    Args:
        path: HDF5 file of ``save_weights`` or of ``save``, of Keras 2.
        box: side of the particles in voxels.
        num_classes: of the head. Head and dense layers are random: they are not in the file, and
            have to be trained.
        contrast: of the protein in the particles that it was trained for.
        voxel_size: angstrom, of the particles that it was trained for.
        seed: of the random layers.

    Returns:
        An encoder of the published sizes.

    Raises:
        InputError: if h5py is missing, the file is damaged or holds no such encoder, the box does
            not suit it, or something in the file points out of it.
    """
    try:
        import h5py
    except ImportError as problem:
        raise InputError(
            "reading Keras files needs h5py; install it with: pip install 'jimjax[keras]'"
        ) from problem
    try:
        config = paper(box, num_classes)
    except ValueError as problem:
        raise InputError(f"particles of {box} voxels: {problem}") from problem
    with open_input(path) as stream:
        try:
            with h5py.File(stream, "r") as file:
                arrays = _read_encoder(path, file)
        except InputError:
            raise
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as problem:
            reason = " ".join(str(problem).split())[:200]
            raise InputError(f"{path}: cannot be read as HDF5: {reason}") from problem
    network = build(config, jax.random.key(seed))
    network = network._replace(params=functional.replace_arrays(network.params, arrays))
    return Weights(Description(config, contrast, voxel_size), network)


def _read_encoder(path: str | Path, file: "h5py.File") -> dict[str, jax.Array]:
    """The convolutions under their names in our network."""
    widths = [width for stage in PAPER_WIDTHS for width in stage]
    root = file
    if "layer_names" not in file.attrs and file.id.links.exists(b"model_weights"):
        root = _follow(path, file, "model_weights")
    layers = _convolutions(path, root)
    arrays = {}
    for place, (before, after) in enumerate(zip((1, *widths), widths, strict=False)):
        layer = next(layers, None)
        if layer is None:
            raise InputError(
                f"{path}: has {place} convolutions, a DeepFinder encoder has {len(widths)}"
            )
        name, kernel, bias = layer
        wanted = (KERNEL_SIDE,) * 3 + (before, after)
        arrays[f"convs.{place}.kernel"] = _read(path, f"{name} (kernel)", kernel, wanted)
        arrays[f"convs.{place}.bias"] = _read(path, f"{name} (bias)", bias, (after,))
    return arrays


def _convolutions(path: str | Path, root: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, kernel and bias of each 3-D convolution, in the order of the layers."""
    for name in _names(path, root, "layer_names"):
        group = _follow(path, root, name)
        names = _names(path, group, "weight_names")
        members = [_follow(path, group, each) for each in names]
        if not members or len(getattr(members[0], "shape", ())) != KERNEL_SIDE + 2:
            continue
        if len(members) != 2:
            raise InputError(
                f"{path}: layer '{name}' has {len(members)} arrays, a convolution has a kernel and "
                "a bias"
            )
        yield name, *members


def _names(path: str | Path, group: Any, attribute: str) -> list[str]:
    """The strings of an attribute."""
    import h5py

    if attribute not in group.attrs:
        raise InputError(
            f"{path}: has no '{attribute}', so is no weights file of Keras 2; save it with "
            "save_weights('file.h5')"
        )
    stored = group.attrs.get_id(attribute)
    is_text = h5py.check_string_dtype(stored.dtype) is not None
    if stored.shape == (0,):  # of a layer without arrays, whatever their type
        return []
    if len(stored.shape) != 1 or stored.shape[0] > MAX_NAMES or not is_text:
        raise InputError(f"{path}: '{attribute}' must be a list of at most {MAX_NAMES} names")
    names = [
        each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each)
        for each in group.attrs[attribute]
    ]
    if longest := [name for name in names if len(name) > MAX_NAME]:
        raise InputError(f"{path}: '{attribute}' has a name of {len(longest[0])} characters")
    return names


def _follow(path: str | Path, group: Any, name: str) -> Any:
    """What lies under a name in a group of this file; links to elsewhere are refused."""
    import h5py

    found = group
    for part in name.split("/"):
        # The link itself is looked at: asking h5py whether the group has it would follow it.
        links = found.id.links if isinstance(found, h5py.Group) else None
        if links is None or part in ("", ".") or not links.exists(part.encode()):
            raise InputError(f"{path}: '{name}' is listed but missing")
        if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise InputError(
                f"{path}: '{name}' is a link to elsewhere, which is not followed; ask for a file "
                "that holds its own arrays"
            )
        found = found[part]
    return found


def _read(path: str | Path, name: str, stored: Any, shape: tuple[int, ...]) -> jax.Array:
    import h5py

    if not isinstance(stored, h5py.Dataset) or stored.dtype.kind != "f":
        kind = stored.dtype if isinstance(stored, h5py.Dataset) else "a group"
        raise InputError(f"{path}: {name} must be floating-point numbers, got {kind}")
    if stored.shape != shape:
        raise InputError(
            f"{path}: {name} has shape {stored.shape}, DeepFinder's encoder has {shape} there"
        )
    layout = stored.id.get_create_plist()
    if layout.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise InputError(f"{path}: {name} is virtual or in chunks, which Keras never writes")
    if layout.get_external_count():
        raise InputError(f"{path}: {name} lies in another file, which is not opened")
    array = stored[()].astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name} is not finite")
    return jnp.asarray(array)
