"""``jimjax compile``: what a training will need."""

import json

import pytest

from jimjax.cli import main

CONFIG = """
[network]
kind = "gumnet"

[pretrain]
steps = 0

[joint]
epochs = 1
batch_size = 4
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return str(path)


def test_stages_with_steps_are_told_of(config, tmp_path, capsys):
    out = tmp_path / "costs.json"
    options = ["--box", "16", "--num-particles", "6", "--batch-size", "2", "--json", str(out)]
    assert main(["compile", config, *options]) == 0
    (row,) = json.loads(out.read_text())["stages"]
    assert (row["stage"], row["rows"], row["fits"]) == ("pairs", 2, True)
    assert row["needed_bytes"] > row["state_bytes"] > 0
    assert row["gflops_per_step"] > 0
    assert row["largest_batch"] > 2
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].split()[:2] == ["pairs", "2"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--box", "8"], "config.toml: "),
        (["--num-particles", "1"], "--num-particles must be 2 or more"),
        (["--batch-size", "0"], "--batch-size must be 1 or more"),
        (["--fsdp", "3"], "--fsdp 3"),
    ],
)
def test_mistakes_are_told_in_a_line(options, said, config, capsys):
    assert main(["compile", config, *options]) == 2
    assert said in capsys.readouterr().err
