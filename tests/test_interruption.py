"""Commands that are asked to stop end in one line and exit code 75, wherever they are."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jimjax import cli, distributed
from jimjax.commands.align import Align
from jimjax.commands.average import Average
from jimjax.commands.benchmark import Benchmark
from jimjax.data.batches import map_chunks
from jimjax.io.files import replace_file
from jimjax.progress import Interrupted, check_stop, interruptible, let_stop, stop_request


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.chdir(tmp_path)


def ask(number=signal.SIGTERM):
    signal.raise_signal(number)


def ask_twice():
    ask()
    ask()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_what_is_interruptible_at_once(number):
    with pytest.raises(Interrupted, match=r"^stopped$"), interruptible():
        ask(number)


@pytest.mark.parametrize("name", ["jax._src.api", "jaxlib.mlir", "importlib._bootstrap"])
def test_jax_is_let_finish_what_it_was_called_for(name):
    done = []
    source = "def called(ask, done):\n    ask()\n    done.append('called')\n"
    scope = {"__name__": name}
    exec(source, scope)

    def call():
        scope["called"](ask, done)
        done.append("the line after it")

    tracer = sys.gettrace()
    with pytest.raises(Interrupted), interruptible():
        call()
    assert done == ["called"]
    assert sys.gettrace() is tracer


def test_what_jax_has_delayed_is_held_back_too():
    scope = {"__name__": "jax"}
    exec("def called(ask):\n    ask()\n", scope)
    tracer = sys.gettrace()
    with interruptible():
        with stop_request() as is_asked_to_stop, contextlib.suppress(Interrupted), let_stop():
            scope["called"](ask)
        assert is_asked_to_stop()
    assert sys.gettrace() is tracer


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), interruptible():
        ask()
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_handler_of_exceptions_keeps_a_command_from_stopping():
    def careless():
        try:
            ask()
        except Exception:
            return

    with pytest.raises(Interrupted), interruptible():
        careless()


def test_signal_is_held_back_where_something_has_to_be_completed():
    with interruptible(), stop_request() as is_asked_to_stop:
        assert not is_asked_to_stop()
        ask()
        assert is_asked_to_stop()


def test_what_was_held_back_is_not_forgotten():
    with interruptible():
        with stop_request():
            ask()
        with pytest.raises(Interrupted):
            check_stop()


def test_blocks_that_hold_back_may_lie_in_each_other():
    with interruptible(), stop_request() as outer:
        with stop_request():
            pass
        ask()
        assert outer()
    check_stop()  # nobody listens any more


@pytest.mark.parametrize("is_early", [True, False])
def test_work_that_need_not_be_completed_lets_signals_through(is_early):
    with interruptible(), stop_request() as is_asked_to_stop:
        if is_early:
            ask()
        with pytest.raises(Interrupted), let_stop():
            ask()
        assert is_asked_to_stop()


def test_second_signal_is_not_held_back():
    with interruptible(), stop_request(), pytest.raises(KeyboardInterrupt):
        ask_twice()


def test_file_that_is_being_written_is_not_left_behind(tmp_path):
    (tmp_path / "out").write_text("before")

    def write():
        with replace_file(tmp_path / "out") as stream:
            stream.write(b"half")
            ask()

    with pytest.raises(Interrupted), interruptible():
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "before"


def test_chunks_stop_before_the_next_one():
    seen = []

    def look(rows):
        seen.append(rows)
        ask()
        return rows

    with interruptible(), stop_request(), pytest.raises(Interrupted):
        map_chunks(look, 9, 3)
    assert len(seen) == 1


def test_processes_stop_at_the_same_chunk(monkeypatch):
    """Each votes before each chunk, as often as the others, whoever was asked."""
    votes = []

    class Vote:
        def __init__(self, asked):
            pass

        def __call__(self):
            votes.append(True)
            return len(votes) == 3

    monkeypatch.setattr(distributed, "Vote", Vote)
    seen = []
    with pytest.raises(Interrupted):
        map_chunks(lambda rows: seen.append(rows) or rows, 12, 3)
    assert len(seen) == 2


# Commands


def run(monkeypatch, capsys, kind, do, *arguments):
    """Exit code and last line of a command whose work is ``do``."""
    monkeypatch.setattr(kind, "run", do)
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.err.splitlines()


def test_command_without_anything_to_save_says_so(monkeypatch, capsys):
    ended = run(monkeypatch, capsys, Average, lambda _: ask(), "average", "a.star", "--out", "o")
    assert ended == (75, ["jimjax: stopped; nothing was saved, run it again"])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (None, "nothing was saved, run it again"),
        ("o/em_state.npz", "saved in o, go on with --resume"),
        ("o/search/em_state.npz", "saved in o, go on with --resume"),
        ("o/config.toml", "saved in o, go on with --resume"),
    ],
)
def test_command_that_can_be_resumed_tells_how(place, words, monkeypatch, capsys, tmp_path):
    def do(command):
        if place is not None:
            (tmp_path / place).parent.mkdir(parents=True)
            (tmp_path / place).touch()
        ask(signal.SIGINT)

    ended = run(monkeypatch, capsys, Align, do, "align", "a.star", "--out", "o")
    assert ended == (75, [f"jimjax: stopped; {words}"])


def test_benchmark_goes_on_with_the_same_command(monkeypatch, capsys, tmp_path):
    def do(command):
        (tmp_path / "o").mkdir()
        (tmp_path / "o" / "settings.json").touch()
        ask()

    ended = run(monkeypatch, capsys, Benchmark, do, "benchmark", "alignment", "--out", "o")
    assert ended == (75, ["jimjax: stopped; saved in o, go on with the same command"])


def test_asked_twice_is_130(monkeypatch, capsys):
    def do(command):
        with stop_request():
            ask_twice()

    ended = run(monkeypatch, capsys, Average, do, "average", "a.star", "--out", "o")
    assert ended == (130, ["jimjax: stopped"])


SIMULATE = ["simulate", "--structures", "a.mrc", "--out", "sim", "--num-per-class", "20000"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("seconds", [1.5, 4.0, 8.0])
def test_process_that_is_asked_at_any_moment_leaves_nothing(number, seconds, tmp_path):
    from jimjax.io import write_volume

    volume = np.zeros((16, 16, 16), np.float32)
    volume[8, 8, 8] = 1
    write_volume("a.mrc", volume, voxel_size=12.0)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import sys; from jimjax.cli import main; sys.exit(main())"]
    process = subprocess.Popen([*command, *SIMULATE], stderr=subprocess.PIPE, env=environment)
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err.decode()[-2000:]
    assert err.decode().splitlines() == ["jimjax: stopped; nothing was saved, run it again"]
    assert not (tmp_path / "sim").exists()
