"""Keras weights: the encoder is found in what Keras writes, and nothing else is accepted."""

import sys

import jax
import numpy as np
import pytest

from jimjax.io.errors import InputError
from jimjax.models import functional, keras_weights
from jimjax.models.keras_weights import load_keras_encoder

h5py = pytest.importorskip("h5py")

WIDTHS = (32, 32, 48, 48, 64, 64, 64, 64)
BOX = 8


def convolutions():
    """Kernel and bias of each layer of the encoder, then of a decoder."""
    generator = np.random.default_rng(0)
    shapes = [(3, 3, 3, before, after) for before, after in zip((1, *WIDTHS), WIDTHS, strict=False)]
    shapes += [(2, 2, 2, 64, 64), (3, 3, 3, 112, 48), (1, 1, 1, 48, 16)]
    return [
        [generator.normal(size=s).astype(np.float32), generator.normal(size=s[-1:])] for s in shapes
    ]


def write(path, layers=None, *, inside="", names=bytes):
    """A file as Keras 2 writes it, with an input and a pooling layer, which have no arrays."""
    layers = convolutions() if layers is None else layers
    with h5py.File(path, "w") as file:
        root = file.create_group(inside) if inside else file
        titles = ["input_1", *[f"conv3d_{n + 1}" for n in range(len(layers))], "max_pooling3d_1"]
        root.attrs["layer_names"] = [names(title, "utf-8") for title in titles]
        for title in (titles[0], titles[-1]):
            root.create_group(title).attrs["weight_names"] = []
        for title, arrays in zip(titles[1:-1], layers, strict=True):
            group = root.create_group(title)
            parts = [f"{title}/{part}:0" for part in ("kernel", "bias")][: len(arrays)]
            group.attrs["weight_names"] = [names(part, "utf-8") for part in parts]
            for part, array in zip(parts, arrays, strict=True):
                group[part] = array
    return path


def test_encoder_is_taken_and_the_decoder_left(tmp_path):
    found = load_keras_encoder(write(tmp_path / "net.h5"), box=BOX, num_classes=4)
    arrays = functional.name_arrays(found.network.params)
    for place, (kernel, bias) in enumerate(convolutions()[: len(WIDTHS)]):
        np.testing.assert_array_equal(arrays[f"convs.{place}.kernel"], kernel)
        np.testing.assert_array_equal(arrays[f"convs.{place}.bias"], bias.astype(np.float32))
    assert arrays["head.kernel"].shape == (32, 4)
    assert found.description.voxel_size == 10.0
    volumes = np.random.default_rng(1).normal(size=(2, BOX, BOX, BOX)).astype(np.float32)
    assert np.isfinite(functional.apply(found.network, volumes, train=False)[0].features).all()


def test_a_whole_model_and_text_names_are_read_as_well(tmp_path):
    plain = load_keras_encoder(write(tmp_path / "a.h5"), box=BOX, num_classes=2)
    path = write(tmp_path / "b.h5", inside="model_weights", names=lambda text, _: text)
    whole = load_keras_encoder(path, box=BOX, num_classes=2)
    jax.tree.map(np.testing.assert_array_equal, plain.network.params, whole.network.params)


def test_dense_layers_are_a_function_of_the_seed(tmp_path):
    path = write(tmp_path / "net.h5")
    kernels = [
        load_keras_encoder(path, box=BOX, num_classes=2, seed=seed).network.params["dense"][
            "kernel"
        ]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0][...], kernels[1][...])
    assert np.any(kernels[0][...] != kernels[2][...])


def hostile(path, change):
    """A whole file, then ``change(group of the first convolution)``, whose kernel is taken out."""
    write(path)
    with h5py.File(path, "r+") as file:
        group = file["conv3d_1/conv3d_1"]
        kernel = group["kernel:0"][()]
        del group["kernel:0"]
        change(group, kernel)
    return path


def external_link(group, kernel):
    group["kernel:0"] = h5py.ExternalLink("/etc/passwd", "/kernel")


def soft_link(group, kernel):
    group["other"] = kernel
    group["kernel:0"] = h5py.SoftLink("/conv3d_1/conv3d_1/other")


def virtual(group, kernel):
    layout = h5py.VirtualLayout(kernel.shape, kernel.dtype)
    layout[...] = h5py.VirtualSource("other.h5", "data", kernel.shape)
    group.create_virtual_dataset("kernel:0", layout)


def external_storage(group, kernel):
    where = [("/etc/passwd", 0, kernel.nbytes)]
    group.create_dataset("kernel:0", kernel.shape, kernel.dtype, external=where)


def chunks(group, kernel):
    group.create_dataset("kernel:0", data=kernel, chunks=True, compression="gzip")


def objects(group, kernel):
    kind = h5py.vlen_dtype(np.float32)
    group.create_dataset("kernel:0", kernel.shape, kind)


def text(group, kernel):
    group["kernel:0"] = np.full(kernel.shape, b"1.0")


def large(group, kernel):
    group.create_dataset("kernel:0", (3, 3, 3, 1, 10**9), np.float32)


def infinite(group, kernel):
    group["kernel:0"] = np.full_like(kernel, np.inf)


def a_group(group, kernel):
    group.create_group("kernel:0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "conv3d_1/kernel:0' is a link to elsewhere, which is not followed"),
        (soft_link, "is a link to elsewhere"),
        (virtual, "is virtual or in chunks"),
        (external_storage, "lies in another file, which is not opened"),
        (chunks, "is virtual or in chunks"),
        (objects, "must be floating-point numbers, got object"),
        (text, "must be floating-point numbers, got |S3"),
        (large, "has shape .*1000000000.*, DeepFinder's encoder has .*1, 32"),
        (infinite, "is not finite"),
        (lambda group, kernel: None, "'conv3d_1/kernel:0' is listed but missing"),
    ],
)
def test_hostile_kernels_are_errors(change, message, tmp_path):
    path = hostile(tmp_path / "net.h5", change)
    with pytest.raises(InputError, match=message):
        load_keras_encoder(path, box=BOX, num_classes=2)


def test_group_in_the_place_of_a_kernel_is_no_convolution(tmp_path):
    """The next one, with another number of channels, then is where the first should be."""
    path = hostile(tmp_path / "net.h5", a_group)
    with pytest.raises(
        InputError, match=r"has shape \(3, 3, 3, 32, 32\), .* has \(3, 3, 3, 1, 32\)"
    ):
        load_keras_encoder(path, box=BOX, num_classes=2)


def test_other_networks_are_errors(tmp_path):
    layers = convolutions()
    with pytest.raises(InputError, match="has 3 convolutions, a DeepFinder encoder has 8"):
        load_keras_encoder(write(tmp_path / "a.h5", layers[:3]), box=BOX, num_classes=2)
    swapped = [*layers[:2], layers[3], layers[2], *layers[4:]]
    with pytest.raises(InputError, match=r"conv3d_3 \(kernel\) has shape \(3, 3, 3, 48, 48\)"):
        load_keras_encoder(write(tmp_path / "b.h5", swapped), box=BOX, num_classes=2)
    no_bias = [layers[0][:1], *layers[1:]]
    with pytest.raises(InputError, match="layer 'conv3d_1' has 1 arrays"):
        load_keras_encoder(write(tmp_path / "c.h5", no_bias), box=BOX, num_classes=2)


def listed(path, names):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = names
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([b"x"] * 1001, "must be a list of at most 1000 names"),
        (np.arange(3), "must be a list of at most 1000 names"),
        ([b"x" * 1001], "has a name of 1001 characters"),
        ([b"/conv3d_1"], "'/conv3d_1' is listed but missing"),
        ([b"."], "'.' is listed but missing"),
    ],
)
def test_names_that_cannot_be_followed_are_errors(names, message, tmp_path):
    path = listed(tmp_path / "net.h5", names)
    with pytest.raises(InputError, match=message):
        load_keras_encoder(path, box=BOX, num_classes=2)


def test_link_in_the_place_of_all_weights_is_an_error(tmp_path):
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(write(tmp_path / "whole.h5")), "/")
    with pytest.raises(InputError, match="'model_weights' is a link to elsewhere"):
        load_keras_encoder(path, box=BOX, num_classes=2)


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_damaged_files_are_errors(content, tmp_path):
    path = tmp_path / "net.h5"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        load_keras_encoder(path, box=BOX, num_classes=2)


def test_file_cut_short_is_an_error(tmp_path):
    path = write(tmp_path / "net.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        load_keras_encoder(path, box=BOX, num_classes=2)


def test_file_without_names_is_an_error(tmp_path):
    path = tmp_path / "net.h5"
    h5py.File(path, "w").close()
    with pytest.raises(InputError, match="has no 'layer_names'"):
        load_keras_encoder(path, box=BOX, num_classes=2)


def test_box_that_cannot_be_pooled_twice_is_an_error(tmp_path):
    with pytest.raises(InputError, match="particles of 30 voxels: 3 stages need a multiple of 4"):
        load_keras_encoder(tmp_path / "net.h5", box=30, num_classes=2)


def test_missing_h5py_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'jimjax\[keras\]'"):
        keras_weights.load_keras_encoder(tmp_path / "net.h5", box=BOX, num_classes=2)
