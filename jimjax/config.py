"""Run configuration: frozen dataclasses, read from TOML, every default a considered value."""

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jimjax.io.errors import InputError
from jimjax.models.compute import Compute


@dataclass(frozen=True)
class NetworkSection:
    """The network.

    Attributes:
        kind: "jimnet" aligns and clusters; "umtl" segments as well, and has a section of its own;
            "gumnet" only aligns pairs, and has no use for classes, clusters and predictions of a
            run.
        preset: "small" trains on a laptop, with radial kernels and solved poses; "paper" has
            Gum-Net's widths and learned regressors, and wants an accelerator.
        num_classes: clusters to find.
    """

    kind: Literal["jimnet", "gumnet", "umtl"] = "jimnet"
    preset: Literal["small", "paper"] = "small"
    num_classes: int = 5


@dataclass(frozen=True)
class DataSection:
    """What is known of the particles.

    Attributes:
        contrast: "dark" protein as in raw tomograms, or "light". Nothing is flipped: it decides
            only which kind of molecules the network is pre-trained on.
    """

    contrast: Literal["dark", "light"] = "dark"


@dataclass(frozen=True)
class PretrainSection:
    """Self-supervised alignment of random molecules.

    Attributes:
        steps: optimiser steps; 0 leaves it out.
        batch_size: pairs per step.
        learning_rate: peak of the cosine schedule.
        snr_min: lowest signal-to-noise ratio of the molecules.
        snr_max: highest.
        max_shift: largest displacement per axis, fraction of the box.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-3
    snr_min: float = 0.03
    snr_max: float = 1.0
    max_shift: float = 0.2


@dataclass(frozen=True)
class JointSection:
    """Pair-matching training on the particles (Jim-Net, algorithm 1).

    Attributes:
        epochs: times that features are clustered and each particle then seen as a source.
        batch_size: cluster-matched pairs per step.
        learning_rate: peak of the cosine schedule.
        cluster_weight: of the cross entropy to the cluster labels.
        alignment_weight: of the constrained cross-correlation loss, gamma of both stages.
        regulariser_weight: of the fine stage's departure from identity (equation 3).
        molecule_share: random molecules added to a batch, as a share of its pairs; they keep
            the pose branch from drifting.
        cutoff: low-pass of the alignment loss, cycles per voxel (equation 6).
        loss: of a Gum-Net. "constrained" is one minus the constrained correlation of each pair;
            "imputed" is the authors' code, to compare: one minus the squared correlation over a
            whole batch, of sources filled up with their targets' coefficients.
    """

    epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 1e-3
    cluster_weight: float = 1.0
    alignment_weight: float = 1.0
    regulariser_weight: float = 0.0
    molecule_share: float = 0.5
    cutoff: float = 0.2
    loss: Literal["constrained", "imputed"] = "constrained"


@dataclass(frozen=True)
class UMTLSection:
    """What a UMTL learns, besides what the other sections say. The publication gives no numbers.

    Attributes:
        tasks: which of "align", "cluster" and "segment". Without "align" classes come from
            features alone; without "cluster" all particles are of one class.
        molecule_masks: whether random molecules, whose masks are known, teach segmentation. If
            not, it learns from pseudo-labels of the particles alone.
        segment_weight: of all that is about masks.
        smoothing: of particles before the voxel-wise mixture labels them, voxels.
        height: share of a particle's height above its surroundings at which its labels end; 0
            leaves them as wide as the mixture draws them.
        bootstrap: share of the network's own masks in the labels, at the end; it rises from 0.
        size_min: least share of the box that a particle fills.
        size_max: largest.
        size_weight: of masks outside that interval.
        smoothness_weight: of their raggedness.
        agreement_weight: of the disagreement between the source's mask, moved, and the target's.
    """

    tasks: tuple[Literal["align", "cluster", "segment"], ...] = ("align", "cluster", "segment")
    molecule_masks: bool = True
    segment_weight: float = 1.0
    smoothing: float = 1.0
    height: float = 0.5
    bootstrap: float = 0.7
    size_min: float = 0.002
    size_max: float = 0.4
    size_weight: float = 0.1
    smoothness_weight: float = 0.01
    agreement_weight: float = 0.3

    def __post_init__(self) -> None:
        """Refuses what contradicts itself."""
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"umtl.tasks names one twice: {', '.join(self.tasks)}")
        if not 0 < self.size_min <= self.size_max <= 1:
            raise ValueError(
                "umtl.size_min and size_max must be shares of the box with 0 < size_min <= "
                f"size_max <= 1, got {self.size_min:g} and {self.size_max:g}"
            )
        for name in ("bootstrap", "height"):
            if getattr(self, name) > 1:
                raise ValueError(f"umtl.{name} must be at most 1, got {getattr(self, name):g}")


@dataclass(frozen=True)
class ClusterSection:
    """Clustering between epochs.

    Attributes:
        method: "features" is the paper's: a Gaussian mixture on features F(x, x), each epoch.
            "alignment" lets it only begin, with more clusters than wanted; particles then go to
            the reference that they align to best, and references that look alike are joined.
        surplus: clusters to begin with, as a multiple of those wanted ("alignment").
        rounds: alignments and averages before clusters are joined, and after ("alignment").
        num_proposals: as at prediction, but for these rounds, whose averages forgive a pose.
        num_refinements: likewise.
        num_components: principal components that the mixture is fitted to.
        num_init: random starts of the mixture.
        regularization: added to the diagonal of covariances, in units of the first component's
            variance.
    """

    method: Literal["alignment", "features"] = "alignment"
    surplus: float = 2.0
    rounds: int = 3
    num_proposals: int = 4
    num_refinements: int = 1
    num_components: int = 8
    num_init: int = 5
    regularization: float = 1e-3


@dataclass(frozen=True)
class PredictSection:
    """Poses against the class references.

    Attributes:
        batch_size: particles at a time.
        num_proposals: orientations of the reference from which the network starts; the pose
            that correlates best is kept.
        num_refinements: times that the fine stage may improve that pose.
    """

    batch_size: int = 32
    num_proposals: int = 16
    num_refinements: int = 3


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of a training run, besides the particles.

    The section ``compute`` is a ``Compute``.
    """

    seed: int = 0
    network: NetworkSection = field(default_factory=NetworkSection)
    data: DataSection = field(default_factory=DataSection)
    pretrain: PretrainSection = field(default_factory=PretrainSection)
    joint: JointSection = field(default_factory=JointSection)
    umtl: UMTLSection = field(default_factory=UMTLSection)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    predict: PredictSection = field(default_factory=PredictSection)
    compute: Compute = field(default_factory=Compute)


def read_config(path: str | Path, kind: type = RunConfig) -> Any:
    """Reads a TOML file; what it leaves out keeps its default.

    Args:
        path: the file.
        kind: dataclass of what is in it.

    Returns:
        The configuration.

    Raises:
        InputError: if the file cannot be read or parsed, a key is unknown (the nearest known
            one is named), or a value has the wrong type or is out of range.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: not valid TOML: {problem}") from None
    return _build(kind, values, str(path), "")


def write_config(config: Any) -> str:
    """Writes a configuration as TOML that ``read_config`` reads back."""
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    sections = {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if name not in sections]
    for name, section in sections.items():
        lines += ["", f"[{name}]"]
        for entry in dataclasses.fields(section):
            lines.append(f"{entry.name} = {_toml(getattr(section, entry.name))}")
    return "\n".join(lines) + "\n"


def override_compute(
    config: RunConfig, precision: str | None, rematerialise: bool | None
) -> RunConfig:
    """The configuration with another way to compute, as far as one is given."""
    given = {"precision": precision, "rematerialise": rematerialise}
    given = {name: value for name, value in given.items() if value is not None}
    return replace(config, compute=replace(config.compute, **given))


def config_differences(kept: Any, given: Any) -> list[str]:
    """What two configurations of one kind differ in, such as "joint.epochs is 3, not 5"."""
    one, other = _flat(kept), _flat(given)
    return [f"{name} is {one[name]}, not {other[name]}" for name in one if one[name] != other[name]]


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Settings as they are written, by their full names."""
    flat: dict[str, str] = {}
    for own in dataclasses.fields(config):
        value, name = getattr(config, own.name), f"{prefix}{own.name}"
        if dataclasses.is_dataclass(value):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = "not set" if value is None else _toml(value)
    return flat


def _build(kind: type, values: dict[str, Any], path: str, prefix: str, default: Any = None) -> Any:
    """A configuration of some values; the others are those of a default, or of the kind's own."""
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise InputError(
                f"{path}: unknown key '{prefix}{key}'; did you mean '{prefix}{near[0]}'? "
                f"Known keys: {', '.join(prefix + k for k in hints)}"
            )
    arguments = {}
    for key, value in values.items():
        hint, name = hints[key], f"{prefix}{key}"
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise InputError(f"{path}: '{name}' must be a table [{name}]")
            arguments[key] = _build(hint, value, path, f"{name}.", _default_of(kind, key))
        else:
            arguments[key] = _checked(hint, value, path, name)
    try:
        return kind(**arguments) if default is None else replace(default, **arguments)
    except ValueError as problem:
        raise InputError(f"{path}: {problem}") from problem


def _default_of(kind: type, name: str) -> Any:
    (own,) = (each for each in dataclasses.fields(kind) if each.name == name)
    return own.default_factory() if own.default is dataclasses.MISSING else own.default


def _checked(hint: Any, value: Any, path: str, name: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(repr(choice) for choice in get_args(hint))
            raise InputError(f"{path}: '{name}' must be one of {choices}, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not value:
            raise InputError(f"{path}: '{name}' must be a list, got {value!r}")
        return tuple(_checked(get_args(hint)[0], each, path, name) for each in value)
    if hint is bool:
        if not isinstance(value, bool):
            raise InputError(f"{path}: '{name}' must be true or false, got {value!r}")
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (hint is int and not isinstance(value, int)):
        wanted = "a whole number" if hint is int else "a number"
        raise InputError(f"{path}: '{name}' must be {wanted}, got {value!r}")
    if not 0 <= value < float("inf"):
        raise InputError(f"{path}: '{name}' must not be negative or infinite, got {value!r}")
    if value == 0 and name.endswith(("batch_size", "num_classes", "num_proposals", "candidates")):
        raise InputError(f"{path}: '{name}' must be at least 1")
    return hint(value)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
