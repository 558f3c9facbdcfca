"""Folders are held by one process at a time."""

import os
import subprocess
import sys

import pytest

from jimjax.io import files
from jimjax.io.errors import InputError
from jimjax.io.files import LOCK, hold_folder

HOLD = """
import sys
from jimjax.io.files import hold_folder
with hold_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_held_folder_is_refused_until_its_holder_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=f"process {holder.pid} on .* is writing to it"),
            hold_folder(tmp_path),
        ):
            pass
        holder.kill()
    with hold_folder(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()


def test_folder_can_be_held_again_once_let_go_of(tmp_path):
    for _ in range(2):
        with hold_folder(tmp_path):
            pass


def test_systems_without_locks_keep_nobody_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with hold_folder(tmp_path), hold_folder(tmp_path):
        pass


def test_folder_that_is_missing_cannot_be_held(tmp_path):
    with (
        pytest.raises(InputError, match=r"none.lock: cannot be written"),
        hold_folder(tmp_path / "none"),
    ):
        pass
