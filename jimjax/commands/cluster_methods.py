"""The methods of ``jimjax cluster``: what each is configured by and begins with."""

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jimjax.cluster.estimator import Clusterer
    from jimjax.models.weights import Contrast, Weights


class Method(NamedTuple):
    """Where a method lives, and what comes along with it.

    Attributes:
        module: of ``jimjax.cluster``; its configuration is in ``MODULE_config``.
        name: of its class; that of the configuration is ``NAMEConfig``.
        network: kind of network, by its name in ``models.weights.MODULES``.
        ships: whether small weights come with jimjax.
        begins: whether the small preset begins with them unless told otherwise.
    """

    module: str
    name: str
    network: str
    ships: bool
    begins: bool


METHODS = {
    "jimnet": Method("jimnet", "JimNet", "jimnet", True, True),
    "jimnet-cluster": Method("jimnet_cluster", "JimNetCluster", "jimnet", True, True),
    "disca": Method("disca", "Disca", "yopo", True, True),
    "autoencoder": Method("autoencoder", "Autoencoder", "autoencoder", False, False),
    "transfer": Method("transfer", "Transfer", "deepfinder", True, True),
    "deepcluster": Method("deepcluster", "DeepCluster", "yopo", True, True),
    "pica": Method("pica", "Pica", "yopo", True, True),
}
NONE = "none"  # names random weights
KERAS_SUFFIXES = (".h5", ".hdf5")


def configure(
    name: str,
    preset: str,
    path: Path | None,
    *,
    candidates: tuple[int, ...],
    contrast: "Contrast",
    seed: int,
) -> Any:
    """Makes the configuration of a method.

    Args:
        name: of the method.
        preset: "small" or "paper".
        path: TOML file with other settings than those of the preset; the preset's if None.
        candidates: numbers of classes to choose from.
        contrast: of the protein.
        seed: of all that is random.

    Raises:
        InputError: if the file does not fit the method.
    """
    from jimjax.config import read_config

    method = METHODS[name]
    module = import_module(f"jimjax.cluster.{method.module}_config")
    kind = getattr(module, f"{method.name}Config")
    if path is not None:
        config = read_config(path, kind)
    else:
        config = module.small() if preset == "small" else kind()
    given = {"candidates": candidates, "contrast": contrast, "seed": seed, "preset": preset}
    known = {field.name for field in dataclasses.fields(kind)}
    return dataclasses.replace(config, **{k: v for k, v in given.items() if k in known})


def begin_with(
    name: str, preset: str, given: str | None, box: int, *, is_taught: bool = False
) -> "Weights | None":
    """Opens the weights that a method begins with.

    Args:
        name: of the method.
        preset: "small" or "paper".
        given: file, "small", "none", or None for what the preset begins with; for "transfer" also
            an HDF5 file of a DeepFinder that Keras has saved, whose dense layers have to be taught.
        box: of the particles, voxels.
        is_taught: whether labelled particles will teach it before it is used.

    Returns:
        The weights; None for random ones.

    Raises:
        InputError: if there are none, or the method cannot do without.
    """
    from jimjax.commands.align_network import SMALL, open_weights
    from jimjax.io.errors import InputError

    method = METHODS[name]
    chosen = given or (SMALL if method.begins and preset == SMALL else NONE)
    if chosen == SMALL and not method.ships:
        raise InputError(f"no weights of {name} come with jimjax; leave out --weights {SMALL}")
    if chosen == NONE and name in ("jimnet", "transfer") and not is_taught:
        raise InputError(
            f"--method {name} needs weights that have learned something; give --weights FILE"
        )
    if name == "transfer" and chosen.endswith(KERAS_SUFFIXES):
        from jimjax.models.keras_weights import load_keras_encoder

        if not is_taught:
            raise InputError(
                f"{chosen}: knows how to see, not how to describe; give --train as well"
            )
        return load_keras_encoder(chosen, box=box, num_classes=1)
    return None if chosen == NONE else open_weights(chosen, method.network, box)


def build(name: str, config: Any, weights: "Weights | None", command: str) -> "Clusterer":
    """Makes the method, ready to fit."""
    method = METHODS[name]
    module = import_module(f"jimjax.cluster.{method.module}")
    return getattr(module, method.name)(config, weights=weights, command=command)
