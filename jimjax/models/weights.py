"""Network weights as files: safetensors, whose reader runs no code, with what built the network.

A file holds every array of a network in float32 under its name (``params.coarse.closing.bias``),
and a description in JSON: which network, its configuration, what it was trained on. A digest of
both tells a damaged file from a whole one.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jimjax.io.errors import InputError
from jimjax.io.files import open_input, replace_file
from jimjax.models import functional
from jimjax.models.autoencoder import Autoencoder3D, Autoencoder3DConfig
from jimjax.models.compute import Compute
from jimjax.models.deepfinder import DeepFinder, DeepFinderConfig
from jimjax.models.edss3d import Edss3d, Edss3dConfig
from jimjax.models.functional import Network
from jimjax.models.gumnet import GumNet, GumNetConfig
from jimjax.models.jimnet import JimNet, JimNetConfig
from jimjax.models.protonet import ProtoNet, ProtoNetConfig
from jimjax.models.umtl import UMTL, UMTLConfig
from jimjax.models.voxresnet import VoxResNet, VoxResNetConfig
from jimjax.models.yopo import Yopo, YopoConfig

FORMAT, VERSION = "jimjax-weights", "1"
MODULES = {
    "jimnet": (JimNet, JimNetConfig),
    "gumnet": (GumNet, GumNetConfig),
    "yopo": (Yopo, YopoConfig),
    "protonet": (ProtoNet, ProtoNetConfig),
    "deepfinder": (DeepFinder, DeepFinderConfig),
    "autoencoder": (Autoencoder3D, Autoencoder3DConfig),
    "edss3d": (Edss3d, Edss3dConfig),
    "voxresnet": (VoxResNet, VoxResNetConfig),
    "umtl": (UMTL, UMTLConfig),
}
SHIPPED = "jimjax.weights"  # package that holds the files that come along
MANIFEST = "sha256.json"
MAX_DESCRIPTION = 100_000  # characters
MAX_NUMBER = 1 << 20  # of a configuration; more is no network that this machine can hold
HEAD = "params.head."  # of a Jim-Net or UMTL; depends on the number of classes
NUM_SHOWN = 3  # names in a message

Contrast = Literal["dark", "light"]
NetworkConfig = (
    JimNetConfig
    | GumNetConfig
    | YopoConfig
    | ProtoNetConfig
    | DeepFinderConfig
    | Autoencoder3DConfig
    | Edss3dConfig
    | VoxResNetConfig
    | UMTLConfig
)


@dataclass(frozen=True)
class Description:
    """What a network is, without its arrays.

    Attributes:
        config: sizes; its type says which network.
        contrast: of the protein in the particles that it was trained for.
        voxel_size: angstrom, of the particles it was trained on; 0 if on random molecules alone.
    """

    config: NetworkConfig
    contrast: Contrast = "dark"
    voxel_size: float = 0.0

    @property
    def kind(self) -> str:
        """Which network, by its name in ``MODULES``."""
        return next(name for name, (_, config) in MODULES.items() if type(self.config) is config)


class Weights(NamedTuple):
    """A trained network and what it is."""

    description: Description
    network: Network

    @property
    def fingerprint(self) -> str:
        """A hash that tells one from another."""
        arrays = {name: np.asarray(leaf) for name, leaf in _named(self.network).items()}
        return digest_arrays(repr(self.description), arrays)


def build(config: NetworkConfig, key: jax.Array, compute: Compute | None = None) -> Network:
    """Builds an untrained network of a configuration, which computes in float32 unless told."""
    network = functional.create(_builder(config), key)
    return network if compute is None else functional.computing(network, compute)


def save_weights(path: str | Path, weights: Weights) -> None:
    """Writes a network to a safetensors file, all at once.

    Args:
        path: file to write.
        weights: network and description.

    Raises:
        InputError: if the folder does not exist or may not be written.
        ValueError: if an array is not finite.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _named(weights.network).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite; train with a lower learning rate")
    text = json.dumps({"kind": weights.description.kind, **dataclasses.asdict(weights.description)})
    metadata = {"format": FORMAT, "version": VERSION, "network": text}
    metadata["sha256"] = digest_arrays(text, arrays)
    with replace_file(path) as stream:
        stream.write(save(arrays, metadata))


def load_weights(path: str | Path, *, box: int | None = None) -> Weights:
    """Reads a network from a safetensors file; nothing in the file is executed.

    Args:
        path: of ``save_weights``.
        box: side of the particles in voxels that the network is for; that of the file if None. A
            Jim-Net pools its input to a size of its own, so that the same weights serve any box.

    Returns:
        The network and its description.

    Raises:
        InputError: if the file cannot be read, is none of ours, is damaged, or its arrays are not
            exactly those of the network that it describes.
    """
    with _open_safetensors(path) as file:
        metadata = file.metadata() or {}
        description = _read_description(path, metadata, box)
        try:
            outline = functional.outline(_builder(description.config))
        except (ValueError, TypeError, OverflowError) as problem:
            raise InputError(f"{path}: describes no network: {problem}") from problem
        _check_arrays(path, file, _named(outline))
        arrays = _arrays_of(file)
    if metadata.get("sha256") != digest_arrays(metadata["network"], arrays):
        raise InputError(f"{path}: damaged, its digest is another; copy or export it again")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{path}: '{name}' is not finite")
    return Weights(description, _filled(outline, arrays))


def read_arrays(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Reads a safetensors file; nothing in it is executed.

    Returns:
        Its metadata, perhaps none, and its arrays by name.

    Raises:
        InputError: if it cannot be read, or is no whole safetensors file.
    """
    with _open_safetensors(path) as file:
        return file.metadata() or {}, _arrays_of(file)


@contextlib.contextmanager
def _open_safetensors(path: str | Path) -> Iterator[Any]:
    """Opens a safetensors file; what is broken in it is a mistake in the input."""
    with open_input(path):  # a regular file that may be read
        pass
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as problem:
        reason = str(problem).splitlines()[0]
        raise InputError(f"{path}: not a whole safetensors file ({reason})") from problem


def _arrays_of(file: Any) -> dict[str, np.ndarray]:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_shipped(name: str, *, box: int | None = None) -> Weights:
    """Reads weights that come with the package, and checks that they are those that were shipped.

    Args:
        name: such as "jimnet_small".
        box: as of ``load_weights``.

    Returns:
        The network and its description.

    Raises:
        InputError: if there are none of that name, or the file is not the one in the manifest.
    """
    folder = resources.files(SHIPPED)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    file = f"{name}.safetensors"
    if file not in manifest:
        known = ", ".join(sorted(key.removesuffix(".safetensors") for key in manifest))
        raise InputError(f"no weights '{name}' come with jimjax; there are {known or 'none'}")
    with resources.as_file(folder / file) as path:
        with open_input(path) as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != manifest[file]:
            raise InputError(f"{path}: is not the file that came with jimjax; install it again")
        return load_weights(path, box=box)


def transplant(weights: Weights, network: Network) -> Network:
    """Puts weights into a network of the same sizes; its cluster head stays as it is.

    Args:
        weights: what is put.
        network: of another number of classes, perhaps.

    Returns:
        The network with all arrays of the weights but those of the head.

    Raises:
        InputError: if an array is missing or of another shape.
    """
    donors, own = _named(weights.network), dict(_named(network))
    for name, array in own.items():
        if name.startswith(HEAD):
            continue
        if name not in donors or donors[name].shape != array.shape:
            raise InputError(
                f"the weights are of a network of other sizes: {name} does not fit; choose the "
                "network.preset that they were trained with"
            )
        own[name] = donors[name]
    return _filled(network, own)


def digest_arrays(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of a text and of named arrays, their types and their shapes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array)
    return digest.hexdigest()


def _builder(config: NetworkConfig) -> Any:
    module = next(module for module, kind in MODULES.values() if type(config) is kind)
    return functools.partial(module, config)


def _named(network: Network) -> dict[str, Any]:
    """The arrays of a network under their names."""
    return {
        f"{part}.{name}": leaf
        for part in ("params", "stats")
        for name, leaf in functional.name_arrays(getattr(network, part)).items()
    }


def _filled(outline: Network, arrays: Mapping[str, np.ndarray]) -> Network:
    def fill(part: str) -> Any:
        state = getattr(outline, part)
        names = functional.name_arrays(state)
        own = {name: jax.numpy.asarray(arrays[f"{part}.{name}"]) for name in names}
        return functional.replace_arrays(state, own)

    return outline._replace(params=fill("params"), stats=fill("stats"))


def _check_arrays(path: str | Path, file: Any, wanted: Mapping[str, Any]) -> None:
    names = set(file.keys())
    problems = {
        "missing": sorted(set(wanted) - names),
        "unexpected": sorted(names - set(wanted)),
        "of another shape": [],
        "not float32": [],
    }
    for name in sorted(names & set(wanted)):
        stored = file.get_slice(name)
        if tuple(stored.get_shape()) != wanted[name].shape:
            problems["of another shape"].append(
                f"{name} {tuple(stored.get_shape())} instead of {wanted[name].shape}"
            )
        if stored.get_dtype() != "F32":
            problems["not float32"].append(f"{name} ({stored.get_dtype()})")
    found = [f"{_some(names)} {what}" for what, names in problems.items() if names]
    if found:
        raise InputError(f"{path}: its arrays are not those of its network: {'; '.join(found)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def _read_description(
    path: str | Path, metadata: Mapping[str, str], box: int | None
) -> Description:
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not weights of jimjax; make some with jimjax export")
    if metadata.get("version") != VERSION:
        raise InputError(
            f"{path}: weights of version {metadata.get('version')}, this jimjax reads {VERSION}"
        )
    text = metadata.get("network", "")
    try:
        if len(text) > MAX_DESCRIPTION:
            raise ValueError(f"{len(text)} characters long")
        values = json.loads(text)
        _, kind = MODULES[values.pop("kind")]
        if box is not None:
            values["config"]["box"] = box
        values["config"] = _built(kind, values["config"])
        return _built(Description, values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise InputError(f"{path}: its description is broken: {reason}") from problem


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON, with exactly its fields and their types."""
    hints = get_type_hints(kind)
    if set(values) != set(hints):
        odd = sorted(set(values) ^ set(hints))
        raise ValueError(f"{kind.__name__} has {', '.join(sorted(hints))}; look at {odd[0]!r}")
    return kind(**{name: _typed(hints[name], values[name], name) for name in hints})


def _typed(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(value):
        return value
    if dataclasses.is_dataclass(hint):
        return _built(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(hint)[0], each, name) for each in value)
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if hint is float and type(value) in (int, float) and 0 <= value <= MAX_NUMBER:
        return float(value)
    if hint is int and type(value) is int and 1 <= value <= MAX_NUMBER:
        return value
    if hint in (bool, str) and type(value) is hint:
        return value
    raise ValueError(f"'{name}' is {json.dumps(value)[:50]}")
