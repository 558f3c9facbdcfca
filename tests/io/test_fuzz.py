"""Whatever the bytes: a file is read, or refused in one line that names it, at little cost.

Many cases with ``-m slow``, some always.
"""

import bz2
import gzip
import re
import struct
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jimjax.io import InputWarning, MrcFormatError, StarFormatError, mrc, read_particles

MANY, SOME = 5000, 150
MAX_SECONDS, MAX_BYTES = 1.0, 200 * 2**20
HEADER, NUM_WORDS = 1024, 256
SPECIAL = [0, 1, -1, 2**31 - 1, -(2**31), 101, 0x4D415020, 0x20504D, 0x7FC00000, 1069547520]
STAR_WORDS = [
    *("data_particles", "data_optics", "data_", "loop_", "save_", "stop_", "global_"),
    *("_rlnImageName", "_rlnImageName #1", "_rlnAngleRot", "_rlnOpticsGroup", "_a", "_"),
    *("1", "01", "-1e400", "nan", "<NA>", "None", "000001@a.mrcs", "0@a.mrcs", "9" * 400),
    *("é", "[1]", "~", "$", "?", "#c", "'", '"', "'x y'", "\n", "\n", "\n;", "\t", "\r\n"),
    *("\x00", "\x0b", "\x1c", "\xa0", "\ufeff"),
]
PACKERS = [bytes, gzip.compress, bz2.compress]


def read_or_refuse(read, path, error):
    """Reads a file within the limits; only ``error`` may be raised."""
    complaint = f"{path}: none"
    tracemalloc.start()
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            read(path)
    except error as problem:
        complaint = str(problem)
    finally:
        seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert re.match(rf"{re.escape(str(path))}:[^\n]+$", complaint)
    assert seconds < MAX_SECONDS
    assert peak < MAX_BYTES


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Bytes of a sound MRC file."""
    path = tmp_path_factory.mktemp("sound") / "volume.mrc"
    mrc.write_volume(path, np.ones((4, 5, 6)), voxel_size=2.0)
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def check_mrc(place, raw):
    path = place / "volume.mrc"
    path.write_bytes(raw)
    read_or_refuse(mrc.read_volume, path, MrcFormatError)
    read_or_refuse(mrc.read_images, path, MrcFormatError)


def check_star(place, raw):
    path = place / "particles.star"
    path.write_bytes(raw)
    read_or_refuse(read_particles, path, StarFormatError)


def random_bytes(place, volume, raw):
    check_mrc(place, raw)


def header_words(place, volume, words, pack, end):
    """A sound file, some words of whose header are others, packed and cut."""
    patched = bytearray(volume)
    for word, value in words:
        struct.pack_into("<i", patched, 4 * word, value)
    packed = pack(bytes(patched))
    check_mrc(place, packed[: len(packed) - end])


def star_bytes(place, volume, raw):
    check_star(place, raw)


def star_words(place, volume, words):
    text = " ".join(words)
    for end in ("\n", "\r\n"):
        text = text.replace(f" {end} ", end).replace(f"{end} ", end)
    check_star(place, text.encode("utf-8"))


WORD = st.integers(0, 55) | st.integers(0, NUM_WORDS - 1)
VALUE = st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 2000) | st.sampled_from(SPECIAL)
CASES = {
    random_bytes: {"raw": st.binary(max_size=1100)},
    header_words: {
        "words": st.lists(st.tuples(WORD, VALUE), min_size=1, max_size=4),
        "pack": st.sampled_from(PACKERS),
        "end": st.just(0) | st.integers(0, 300),
    },
    star_bytes: {
        "raw": st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode())
    },
    star_words: {"words": st.lists(st.sampled_from(STAR_WORDS), max_size=25)},
}


@pytest.mark.parametrize("num", [SOME, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("check", CASES)
def test_files_are_read_or_refused_in_one_line(check, num, place, volume):
    @given(**CASES[check])
    @settings(max_examples=num, deadline=None, database=None)
    def run(**drawn):
        check(place, volume, **drawn)

    run()
