"""A device whose memory is full: smaller batches where that changes nothing, else one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jimjax import cli
from jimjax.commands.average import Average
from jimjax.data.batches import map_chunks
from jimjax.device_memory import OutOfMemoryError, describe_need, is_out_of_memory

TERABYTES = 10**13  # float32 numbers that no machine has room for


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Out of memory allocating 12884901888 bytes.", " (12 GiB asked for)"),
        ("Out of memory while trying to allocate 3221225472 bytes.", " (3 GiB asked for)"),
        ("Failed to allocate request for 1.50GiB (1610612736B) on device", " (1.5 GiB asked for)"),
        ("Attempting to reserve 17.3G at the bottom of memory.", ""),
    ],
)
def test_what_xla_says_is_read(said, told):
    problem = RuntimeError(f"RESOURCE_EXHAUSTED: {said}")
    assert is_out_of_memory(problem)
    assert describe_need(problem) == told


def test_real_device_says_so():
    with pytest.raises(RuntimeError) as caught:
        jnp.zeros(TERABYTES).block_until_ready()
    assert is_out_of_memory(caught.value)
    assert "GiB asked for" in describe_need(caught.value)


def limited(most, asked):
    """Answers about ``most`` examples at a time; more do not fit into the device."""

    def ask(rows):
        asked.append(len(rows))
        if len(rows) > most:
            jnp.zeros(TERABYTES).block_until_ready()
        return {"square": jnp.asarray(rows) ** 2, "pair": np.stack([rows, -rows], axis=1)}

    return ask


@pytest.mark.parametrize("chunk", [1, 4, 7, 20])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_chunks_that_do_not_fit_are_halved_and_the_answer_is_the_same(most, chunk):
    asked = []
    found = map_chunks(limited(most, asked), 17, chunk)
    np.testing.assert_array_equal(found["square"], np.arange(17) ** 2)
    np.testing.assert_array_equal(found["pair"][:, 1], -np.arange(17))
    # What fits is found once, not for each chunk again.
    assert sum(size > most for size in asked) <= (np.log2(chunk) + 1 if chunk > most else 0)


def test_single_example_that_does_not_fit_is_told():
    with pytest.raises(OutOfMemoryError, match="not enough memory for a single example"):
        map_chunks(limited(0, []), 8, 4)


def test_other_errors_are_not_taken_for_it():
    asked = []

    def ask(rows):
        asked.append(len(rows))
        raise RuntimeError("INVALID_ARGUMENT: a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        map_chunks(ask, 8, 4)
    assert asked == [4]


def test_batch_size_does_not_change_what_a_network_says(tiny_jimnet, smooth_volumes):
    from jimjax.align import inference

    volumes = smooth_volumes(5, 9)
    told = [inference.describe(tiny_jimnet, volumes, batch_size=size) for size in (5, 2, 1)]
    for other in told[1:]:
        for one, same in zip(jax.tree.leaves(told[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2147483648 bytes."),
            "the device has not enough memory (2 GiB asked for); use smaller boxes",
        ),
        (OutOfMemoryError("not enough for a single example"), "not enough for a single example"),
    ],
)
def test_command_ends_in_one_line(problem, words, monkeypatch, capsys, tmp_path):
    def run(command):
        raise problem

    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setattr(Average, "run", run)
    assert cli.main(["average", "a.star", "--out", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err.startswith(f"jimjax: {words}")


def test_other_faults_keep_their_traceback(monkeypatch, tmp_path):
    def run(command):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.setattr(Average, "run", run)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        cli.main(["average", "a.star", "--out", str(tmp_path / "o")])
