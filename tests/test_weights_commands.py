"""``jimjax export``, and what ``align`` and ``train`` make of the file."""

import dataclasses
import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from small_networks import STAGE, steerable

from jimjax import cli
from jimjax.cli import main
from jimjax.commands import align as command
from jimjax.commands.align_network import ask_jimnet
from jimjax.config import NetworkSection, RunConfig, read_config
from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.io import mrc
from jimjax.io.errors import InputError
from jimjax.models import gumnet, weights
from jimjax.models.weights import Description, Weights, load_weights, save_weights
from jimjax.train import jimnet as training
from jimjax.train import pretrained, run

BOX, NUM = 16, 8
# No more classes than the particles have kinds, and none of align's business.
TINY = steerable(
    BOX, 7, stage=dataclasses.replace(STAGE, pools=("mean",)), degree=1, num_rotations=16
)
TINY_GUM = gumnet.GumNetConfig(
    box=BOX, widths=(2, 3), sizes=(8,), keeps=(7,), tower_width=2, dense_width=3
)


def tiny_of(box, num_classes):
    return replace(TINY, box=box, num_classes=num_classes)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setitem(training.PRESETS, "small", tiny_of)
    monkeypatch.setattr(pretrained, "ROUNDS", 1)
    monkeypatch.setattr(pretrained, "NUM_PROPOSALS", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory, smooth_volumes):
    folder = tmp_path_factory.mktemp("data")
    particles = Subtomograms(
        volumes=smooth_volumes(2 * NUM, BOX),
        tilt_ranges=np.tile(np.float32([-60, 60]), (2 * NUM, 1)),
        voxel_size=24.0,
        names=tuple(f"{row + 1}@/data/stack.mrcs" for row in range(2 * NUM)),
        halves=np.arange(2 * NUM) % 2 + 1,
    )
    to_star(particles, folder / "particles.star", stack_path=folder / "particles.mrcs")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    network = weights.build(TINY, jax.random.key(0))
    save_weights(path, Weights(Description(TINY), network))
    return path


def test_align_with_weights_finds_as_many_classes_as_asked_for(data, tiny, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(command, "finish", lambda particles, result, *_, **__: found.append(result))
    arguments = ["align", str(data / "particles.star"), "--method", "jimnet"]
    arguments += ["--weights", str(tiny), "--num-classes", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert found[0].volumes.shape == (2, BOX, BOX, BOX)
    assert set(found[0].labels) <= {0, 1}
    np.testing.assert_array_equal(found[0].probabilities.argmax(axis=1), found[0].labels)


def test_em_goes_on_from_what_the_weights_say(data, tiny, tmp_path, monkeypatch):
    begun = []

    def run_fit(particles, options, folder, *, start, **_):
        begun.append((options.num_classes, start))
        raise InputError("that was all")

    monkeypatch.setattr(command, "run_fit", run_fit)
    arguments = ["align", str(data / "particles.star"), "--method", "jimnet+em"]
    arguments += ["--weights", str(tiny), "--num-classes", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    ((num_classes, start),) = begun
    assert num_classes == 2
    assert start.rotations.shape == (2 * NUM, 3, 3)


def test_light_particles_are_seen_as_dark_ones(data, tiny):
    """A network for dark protein gives light particles what it gives their negatives."""
    particles = load(data / "particles.star")
    ask = functools.partial(ask_jimnet, run_folder=None, weights=str(tiny), num_classes=2, seed=0)
    _, dark = ask(particles, contrast="dark")
    _, light = ask(replace(particles, volumes=-particles.volumes), contrast="light")
    np.testing.assert_array_equal(dark.labels, light.labels)
    np.testing.assert_array_equal(dark.rotations, light.rotations)


def test_export_writes_the_network_of_the_run(tmp_path, monkeypatch):
    config = RunConfig(network=NetworkSection(num_classes=2))
    network = training.build_network(config, BOX)
    references = np.zeros((2, BOX, BOX, BOX), np.float32)
    trained = run.Run(None, config, network, references, 10.0)
    monkeypatch.setattr(run, "load_run", lambda folder: trained)
    out = tmp_path / "a.safetensors"
    assert main(["export", "--run", "run", "--out", str(out)]) == 0
    found = load_weights(out)
    assert found.description == Description(tiny_of(BOX, 2), "dark", 10.0)
    jax.tree.map(np.testing.assert_array_equal, found.network[1:], tuple(network)[1:])


def test_train_begins_with_weights_and_leaves_out_pretraining(data, tmp_path, monkeypatch):
    taken = {}
    monkeypatch.setattr(run, "train_run", lambda config, *_, **how: taken.update(how, c=config))
    config = tiny_of(BOX, 3)
    path = tmp_path / "small.safetensors"
    save_weights(path, Weights(Description(config), weights.build(config, jax.random.key(5))))
    (tmp_path / "run.toml").write_text("[network]\nnum_classes = 2\n")
    arguments = ["train", str(tmp_path / "run.toml"), "--data", str(data / "particles.star")]
    arguments += ["--weights", str(path), "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert taken["c"].pretrain.steps == 0
    own = training.build_network(read_config(tmp_path / "run.toml"), BOX)
    begun = weights.transplant(taken["weights"], own)
    assert begun.graphdef == own.graphdef
    np.testing.assert_array_equal(begun.params["head"]["bias"][...], np.zeros(2))
    wanted = taken["weights"].network.params["coarse"]["closing"]["kernel"][...]
    np.testing.assert_array_equal(begun.params["coarse"]["closing"]["kernel"][...], wanted)


def test_weights_of_other_sizes_are_not_put_in(tiny):
    other = replace(TINY, embedding=5)
    own = weights.build(other, jax.random.key(0))
    with pytest.raises(InputError, match="of other sizes"):
        weights.transplant(load_weights(tiny), own)


def test_weights_of_the_other_contrast_are_refused(data, tmp_path):
    config = tiny_of(BOX, 2)
    light = Weights(Description(config, "light"), weights.build(config, jax.random.key(5)))
    particles = load(data / "particles.star")
    with pytest.raises(InputError, match=r"for light protein, data\.contrast is dark"):
        run.train_run(RunConfig(), particles, tmp_path / "run", weights=light)
    assert not (tmp_path / "run").exists()


def test_gumnet_poses_against_the_references_given(data, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(command, "finish", lambda particles, result, *_, **__: found.append(result))
    monkeypatch.setattr("jimjax.commands.align_network.NUM_PROPOSALS", 2)
    network = weights.build(TINY_GUM, jax.random.key(0))
    save_weights(tmp_path / "gum", Weights(Description(TINY_GUM, "light"), network))
    volumes = load(data / "particles.star").volumes
    for number in range(2):
        mrc.write_volume(tmp_path / f"{number}.mrc", volumes[number], voxel_size=24.0)
    maps = [str(tmp_path / f"{number}.mrc") for number in range(2)]
    arguments = ["align", str(data / "particles.star"), "--method", "gumnet"]
    arguments += ["--weights", str(tmp_path / "gum"), "--reference", *maps]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert found[0].volumes.shape == (2, BOX, BOX, BOX)
    assert set(found[0].labels) == {0, 1}
    assert np.all(np.abs(found[0].evidence) <= 1)
    np.testing.assert_allclose(np.linalg.det(found[0].rotations), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "gumnet"], "--method gumnet needs --reference"),
        (["--method", "em", "--weights", "small"], "--weights is of no use to --method em"),
        (["--method", "em", "--contrast", "dark"], "--contrast is of no use to --method em"),
        (
            ["--method", "jimnet", "--run", "x", "--weights", "small"],
            "--run and --weights exclude each other",
        ),
        (["--method", "jimnet", "--weights", "gum.safetensors"], "weights of gumnet, jimnet is"),
        (["--method", "jimnet", "--weights", "none"], "none: cannot be read"),
        (["--method", "jimnet", "--weights", "tiny", "--num-classes", "9"], "too few for 9"),
    ],
)
def test_mistakes_are_one_line(data, tiny, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(tiny.read_bytes())
    network = weights.build(TINY_GUM, jax.random.key(0))
    save_weights("gum.safetensors", Weights(Description(TINY_GUM), network))
    code = main(["align", str(data / "particles.star"), "--out", "out", *options])
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
