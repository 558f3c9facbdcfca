"""Checkpoints: what is saved comes back."""

import gc
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax.io.errors import InputError, InputWarning
from jimjax.train.checkpoint import CHECKSUMS, NUM_KEPT, open_checkpoints


def _tree(value):
    return {
        "state": (jnp.full((2, 3), value), jnp.array(7, jnp.int32)),
        "memory": np.arange(4, dtype=np.int32) + int(value),
    }


def _assert_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_restored_tree_is_the_saved_one(tmp_path):
    with open_checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(3, _tree(1.5))
    with open_checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step == 3
        _assert_equal(checkpoints.restore(_tree(0.0)), _tree(1.5))


def test_newest_of_several_is_restored_and_few_are_kept(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, _tree(float(step)))
        _assert_equal(checkpoints.restore(_tree(0.0)), _tree(4.0))
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == NUM_KEPT


def test_step_already_saved_is_left_as_it_is(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _tree(1.0))
        checkpoints.save(1, _tree(2.0))
        _assert_equal(checkpoints.restore(_tree(0.0)), _tree(1.0))


def test_empty_folder_has_no_step_and_says_to_train(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        with pytest.raises(InputError, match="no checkpoint yet; train it first"):
            checkpoints.restore(_tree(0.0))


def _spoil(path, how):
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:  # one bit, which a reader of numbers does not notice
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])


@pytest.mark.parametrize("how", ["gone", "cut", "bit"])
def test_damaged_newest_checkpoint_is_left_for_the_one_before_it(how, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _tree(float(step)))
    numbers = max((tmp_path / "2").glob("*/*/d/*"), key=lambda path: path.stat().st_size)
    _spoil(numbers, how)
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.warns(InputWarning, match=r"checkpoint 2 is damaged, .*; going on from 1"):
            _assert_equal(checkpoints.restore(_tree(0.0)), _tree(1.0))
        assert (tmp_path / "2").exists()
        checkpoints.save(2, _tree(2.0))  # a run that goes on comes by it again
        _assert_equal(checkpoints.restore(_tree(0.0)), _tree(2.0))


def test_checkpoint_whose_checksums_were_not_written_any_more_is_restored(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _tree(1.0))
    (tmp_path / "1" / CHECKSUMS).unlink()
    with open_checkpoints(tmp_path) as checkpoints:
        _assert_equal(checkpoints.restore(_tree(0.0)), _tree(1.0))


FULL_DISK = """
import resource, signal, sys
import numpy as np
from jimjax.train.checkpoint import open_checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0).normal(size=(300, 300))
with open_checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"noise": noise})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))  # no file may be larger
    try:
        checkpoints.save(2, {"noise": noise + 1})
    except OSError as problem:
        print(problem)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
with open_checkpoints(sys.argv[1]) as checkpoints:
    assert np.array_equal(checkpoints.restore({"noise": noise})["noise"], noise)
    checkpoints.save(2, {"noise": noise + 1})
    assert np.array_equal(checkpoints.restore({"noise": noise})["noise"], noise + 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of a process")
def test_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    why = (
        r"checkpoint .*/run/2 could not be written: file too large \(1 MB are needed, \d+ MB free\)"
    )
    assert re.match(why, ended.stdout)
    assert ended.stderr == ""


def test_links_in_a_checkpoint_are_not_followed(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "secret"
    with open_checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _tree(float(step)))
    numbers = max((folder / "2").glob("*/*/d/*"), key=lambda path: path.stat().st_size)
    numbers.rename(elsewhere)
    numbers.symlink_to(elsewhere)  # the same bytes: no hash tells
    with (
        open_checkpoints(folder) as checkpoints,
        pytest.warns(InputWarning, match=r"checkpoint 2 holds a symbolic link, .* going on from 1"),
    ):
        _assert_equal(checkpoints.restore(_tree(0.0)), _tree(1.0))


def test_only_checkpoint_damaged_is_an_error(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _tree(1.0))
    _spoil(tmp_path / "1" / CHECKSUMS, "cut")
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"checkpoint 1 is damaged, first in checksums\.json"),
    ):
        checkpoints.restore(_tree(0.0))


def _with_other_memory():
    return {**_tree(0.0), "memory": np.zeros(5, np.int32)}


def _with_other_weights():
    return {**_tree(0.0), "state": (jnp.zeros((2, 4)), jnp.array(0, jnp.int32))}


def _with_more():
    return {**_tree(0.0), "more": jnp.zeros(2)}


# Orbax leaves coroutines behind when it fails; they are collected here, and not in another test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("other", [_with_other_memory, _with_other_weights, _with_more])
def test_checkpoint_of_another_configuration_is_an_error(other, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _tree(1.0))
        with pytest.raises(InputError, match="checkpoint 1 does not fit this configuration"):
            checkpoints.restore(other())
    gc.collect()
