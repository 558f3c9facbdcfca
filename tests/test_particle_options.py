"""Options of all commands that read particles: what is not finite, and what lies outside."""

import dataclasses

import numpy as np
import pytest
from small_particles import noise_particles

from jimjax import cli
from jimjax.commands.particles import ParticleOptions, TiltedParticleOptions
from jimjax.data.subtomograms import to_star
from jimjax.io import read_particles

NUM, BOX = 8, 8


@pytest.fixture
def star(tmp_path, monkeypatch):
    """Particles in tmp_path/data, worked on in tmp_path/elsewhere/work."""
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    for name in ("data", "elsewhere/work", "results/deep"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere" / "work")
    particles = noise_particles(NUM, BOX)
    path = tmp_path / "data" / "p.star"
    to_star(particles, path, stack_path=path.with_suffix(".mrcs"))
    return path


@pytest.fixture
def jimjax(capsys):
    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err.splitlines()

    return run


def test_every_command_that_loads_particles_has_the_options():
    names = {"predict", "average", "align", "refine", "cluster", "train", "fewshot", "edss3d"}
    for name in names | {"doctor"}:
        assert issubclass(cli.COMMANDS[name], TiltedParticleOptions)
    from jimjax.commands.segment import SegmentPredict, SegmentTrain

    assert issubclass(SegmentTrain, TiltedParticleOptions)
    assert issubclass(SegmentPredict, ParticleOptions)
    for name in ("evaluate", "report"):
        assert "allow_outside" in {field.name for field in dataclasses.fields(cli.COMMANDS[name])}


def commands(star, folder):
    """Those that need nothing but a table."""
    return [
        ("doctor", "--data", star),
        ("average", star, "--out", folder / "averages"),
        ("evaluate", star, "--truth", star),
        ("align", star, "--out", folder / "aligned", "--method", "search", "--reference", "x.mrc"),
    ]


@pytest.mark.parametrize("number", range(4))
def test_table_that_leads_outside_is_refused(number, star, tmp_path, jimjax):
    table = tmp_path / "results" / "deep" / "p.star"
    read_particles(star).write(table)
    name = "../../data/p.mrcs"
    assert read_particles(table).strings("rlnImageName")[0] == f"000001@{name}"
    command = commands(table, tmp_path)[number]
    code, err = jimjax(*command)
    assert (code, len(err)) == (2, 1)
    assert f"particle 1: '{name}' of rlnImageName lies outside of" in err[0]
    assert err[0].endswith("allow it with --allow-outside")
    code, err = jimjax(*command, "--allow-outside")
    assert code == 0 or "x.mrc" in err[-1]  # the map that is not there


def test_results_beside_the_particles_are_read_back(star, tmp_path, jimjax):
    table = tmp_path / "results" / "p.star"
    read_particles(star).write(table)
    for command in commands(table, tmp_path)[:3]:
        assert jimjax(*command)[0] == 0


def test_results_below_the_working_directory_are_read_back(star, tmp_path, jimjax, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read_particles(star).write(tmp_path / "results" / "deep" / "p.star")
    for command in commands("results/deep/p.star", tmp_path)[:3]:
        assert jimjax(*command)[0] == 0


@pytest.mark.filterwarnings("default")
def test_dropped_particles_are_named_on_stderr(star, tmp_path, jimjax):
    stack = star.with_suffix(".mrcs")
    raw = bytearray(stack.read_bytes())
    place = 1024 + 4 * 2 * BOX**3
    raw[place : place + 4] = np.float32(np.nan).tobytes()
    stack.write_bytes(raw)
    command = ("average", star, "--out", tmp_path / "averages")
    code, (line,) = jimjax(*command)
    assert code == 2
    assert "1 voxels that are NaN or infinite, the first at [z, y, x] = [0, 0, 0]" in line
    code, (line,) = jimjax(*command, "--nonfinite", "drop")
    assert code == 0
    assert line.endswith(f"1 of 8 particles with voxels that are NaN or infinite are left out: "
                         f"3@{stack}")  # fmt: skip
