"""Weights in files: what is written is read back, and nothing else is accepted."""

import functools
import hashlib
import json
import struct

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from jimjax.io.errors import InputError
from jimjax.models import gumnet, weights
from jimjax.models.functional import apply
from jimjax.models.weights import Description, Weights, load_shipped, load_weights, save_weights


@pytest.fixture
def saved(tiny_jimnet, tmp_path):
    config = tiny_jimnet_config(tiny_jimnet)
    path = tmp_path / "tiny.safetensors"
    save_weights(path, Weights(Description(config, "light", 12.0), tiny_jimnet))
    return path


def tiny_jimnet_config(network):
    return nnx.merge(*network).config


def rewrite(path, arrays=None, **metadata):
    """Writes the file anew with other arrays or metadata; the digest stays."""
    with safe_open(path, framework="np") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = file.metadata()
    save_file(old if arrays is None else arrays(old), path, {**kept, **metadata})


def described(path, change):
    """Writes the file anew with another description, and the digest that belongs to it."""
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = json.loads(file.metadata()["network"])
    change(values)
    text = json.dumps(values)
    rewrite(path, network=text, sha256=weights.digest_arrays(text, arrays))


def test_network_is_read_back_bit_by_bit(saved, tiny_jimnet):
    found = load_weights(saved).network
    assert found.graphdef == tiny_jimnet.graphdef
    jax.tree.map(np.testing.assert_array_equal, found[1:], tuple(tiny_jimnet)[1:])


def test_description_is_read_back(saved, tiny_jimnet):
    found = load_weights(saved).description
    assert found == Description(tiny_jimnet_config(tiny_jimnet), "light", 12.0)
    assert found.kind == "jimnet"


def test_gumnet_is_read_back(tmp_path):
    config = gumnet.GumNetConfig(
        box=13, widths=(2, 3), sizes=(8,), keeps=(7,), tower_width=2, dense_width=3
    )
    network = weights.build(config, jax.random.key(1))
    save_weights(tmp_path / "gum.safetensors", Weights(Description(config), network))
    found = load_weights(tmp_path / "gum.safetensors")
    assert found.description == Description(config)
    jax.tree.map(np.testing.assert_array_equal, found.network[1:], tuple(network)[1:])


def test_jimnet_serves_another_box(saved):
    found = load_weights(saved, box=11)
    volumes = jax.ShapeDtypeStruct((2, 11, 11, 11), np.float32)
    described = functools.partial(apply, found.network, train=False, method="describe")
    assert found.description.config.box == 11
    assert jax.eval_shape(described, volumes)[0][0].shape == (2, 8)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_flipped_bit_is_noticed(saved, place):
    data = bytearray(saved.read_bytes())
    data[int(place * len(data))] ^= 1
    saved.write_bytes(data)
    with pytest.raises(InputError, match=r"tiny\.safetensors"):
        load_weights(saved)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_file_is_an_input_error(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_weights(saved)


def test_too_large_header_is_an_input_error(tmp_path):
    path = tmp_path / "large.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 100)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_weights(path)


def test_missing_and_unexpected_arrays_are_named(saved):
    def rename(arrays):
        return {name.replace("params.head.bias", "params.tail"): a for name, a in arrays.items()}

    rewrite(saved, rename)
    with pytest.raises(InputError, match=r"head\.bias missing; params\.tail unexpected"):
        load_weights(saved)


def test_other_shapes_and_types_are_named(saved):
    def change(arrays):
        arrays["params.head.bias"] = np.zeros(4, np.float32)
        arrays["params.head.kernel"] = arrays["params.head.kernel"].astype(np.float16)
        return arrays

    rewrite(saved, change)
    with pytest.raises(InputError, match=r"head\.bias \(4,\) instead of \(3,\).*kernel \(F16\)"):
        load_weights(saved)


def test_array_that_is_not_finite_is_named(saved):
    def change(arrays):
        arrays["params.head.bias"][1] = np.nan
        return arrays

    rewrite(saved, change)
    described(saved, lambda values: None)  # with the digest that belongs to it
    with pytest.raises(InputError, match=r"head\.bias' is not finite"):
        load_weights(saved)


def test_foreign_safetensors_file_is_an_input_error(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="not weights of jimjax"):
        load_weights(tmp_path / "foreign.safetensors")


def test_later_version_is_an_input_error(saved):
    rewrite(saved, version="2")
    with pytest.raises(InputError, match="version 2, this jimjax reads 1"):
        load_weights(saved)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "vgg"),
        (("config", "box"), "9"),
        (("config", "box"), -9),
        (("config", "embedding"), 1 << 40),
        (("config", "coarse", "kernel"), "square"),
        (("config", "coarse", "widths"), [3, True]),
        (("config", "surplus"), 1),
        (("voxel_size",), float("nan")),
    ],
)
def test_broken_description_is_one_line(saved, path, value):
    def change(values):
        for name in path[:-1]:
            values = values[name]
        values[path[-1]] = value

    described(saved, change)
    with pytest.raises(InputError, match="description is broken") as problem:
        load_weights(saved)
    assert "\n" not in str(problem.value)


def test_deep_description_is_an_input_error(saved):
    rewrite(saved, network="[" * 50_000)
    with pytest.raises(InputError, match="description is broken"):
        load_weights(saved)


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(tmp_path / "none.safetensors")


def test_nonfinite_network_is_not_written(tiny_jimnet, tmp_path):
    params = jax.tree.map(lambda array: np.full_like(array, np.nan), tiny_jimnet.params)
    broken = tiny_jimnet._replace(params=params)
    weights = Weights(Description(tiny_jimnet_config(tiny_jimnet)), broken)
    with pytest.raises(ValueError, match="not finite"):
        save_weights(tmp_path / "a.safetensors", weights)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def shipped(saved, tmp_path, monkeypatch):
    """A package of weights with one file, for the time of a test."""
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    (tmp_path / "sha256.json").write_text(json.dumps({"tiny.safetensors": digest}))
    monkeypatch.setattr(weights.resources, "files", lambda package: tmp_path)
    return saved


def test_shipped_file_is_read(shipped):
    assert load_shipped("tiny").description.contrast == "light"


def test_shipped_file_that_was_replaced_is_not_read(shipped, tiny_jimnet):
    config = tiny_jimnet_config(tiny_jimnet)
    save_weights(shipped, Weights(Description(config, "dark"), tiny_jimnet))
    with pytest.raises(InputError, match="not the file that came with jimjax"):
        load_shipped("tiny")


def test_unknown_shipped_weights_name_those_that_exist(shipped):
    with pytest.raises(InputError, match="no weights 'huge' come with jimjax; there are tiny"):
        load_shipped("huge")


def test_files_of_the_package_are_those_of_its_manifest():
    folder = weights.resources.files(weights.SHIPPED)
    files = {entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors")}
    assert files == set(json.loads((folder / weights.MANIFEST).read_text(encoding="utf-8")))
    for name in files:
        load_shipped(name.removesuffix(".safetensors"))
