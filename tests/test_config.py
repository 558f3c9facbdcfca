from dataclasses import replace
from pathlib import Path

import pytest

from jimjax.cluster.disca_config import DiscaConfig
from jimjax.config import RunConfig, read_config, write_config
from jimjax.io.errors import InputError
from jimjax.models.compute import Compute

ROOT = Path(__file__).parents[1]
SHIPPED = sorted([*ROOT.glob("configs/*.toml"), *ROOT.glob("jimjax/presets/*.toml")])


@pytest.fixture
def read(tmp_path):
    def from_text(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return read_config(path)

    return from_text


def test_empty_file_gives_the_defaults(read):
    assert read("") == RunConfig()


def test_written_configuration_reads_back(read):
    config = RunConfig(seed=7)
    config = replace(config, network=replace(config.network, preset="paper", num_classes=3))
    config = replace(config, pretrain=replace(config.pretrain, learning_rate=1.5e-7))
    assert read(write_config(config)) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configuration_is_valid_and_explained(path):
    read_config(path)
    header = path.read_text().partition("\n\n")[0]
    assert all(word in header for word in ("Purpose:", "Command:", "Time:"))


def test_demo_preset_finds_four_classes():
    assert read_config(ROOT / "jimjax" / "presets" / "demo.toml").network.num_classes == 4


def test_whole_number_will_do_for_a_float_and_becomes_one(read):
    rate = read("[joint]\nlearning_rate = 1").joint.learning_rate
    assert isinstance(rate, float)
    assert rate == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "unknown key 'sed'; did you mean 'seed'"),
        (
            "[joint]\nlearning_rte = 1",
            "unknown key 'joint.learning_rte'; did you mean 'joint.learning_rate'",
        ),
        ("[netwrk]\npreset = 'small'", "did you mean 'network'"),
        ("network = 3", "'network' must be a table"),
        ("[network]\npreset = 'huge'", "'network.preset' must be one of 'small', 'paper'"),
        ("[joint]\nepochs = 2.5", "'joint.epochs' must be a whole number, got 2.5"),
        ("[joint]\nepochs = true", "'joint.epochs' must be a whole number, got True"),
        ("[joint]\nlearning_rate = 'fast'", "'joint.learning_rate' must be a number, got 'fast'"),
        ("[joint]\nlearning_rate = -1.0", "must not be negative"),
        ("[joint]\nlearning_rate = nan", "must not be negative or infinite"),
        ("[joint]\nlearning_rate = inf", "must not be negative or infinite"),
        ("[joint]\nbatch_size = 0", "'joint.batch_size' must be at least 1"),
        ("[network]\nnum_classes = 0", "'network.num_classes' must be at least 1"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_mistake_is_named_with_file_and_key(read, text, message):
    with pytest.raises(InputError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "run.toml" in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.toml: cannot be read"):
        read_config(tmp_path / "absent.toml")


def test_section_that_is_left_out_in_part_keeps_what_the_method_has_otherwise(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[compute]\nprecision = "bfloat16"\n')
    assert read_config(path, DiscaConfig).compute == Compute("bfloat16", rematerialise=True)
    assert read_config(path).compute == Compute("bfloat16")
