"""The MRC header, judged before anything is read on its word."""

import bz2
import contextlib
import gzip
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from jimjax.io.errors import InputError, InputWarning
from jimjax.io.files import PathLike, open_input

HEADER_BYTES = 1024
MAX_COMPRESSED_VOXELS = 1024**3  # a small compressed file must not fill the memory
MAX_SIDE = 2**20  # voxels; beyond any tomogram, and a sign of the wrong byte order
MAX_EXTENDED_BYTES = 2**30
ANISOTROPY_WARNING = 1e-3  # relative; programs differ in the 4th digit of the cell
ANISOTROPY_ERROR = 1e-2
IMOD_STAMP = 1146047817
IMOD_SIGNED_BYTES = 1  # bit of imodFlags; with the stamp and without this bit, bytes are unsigned
IMOD_PACKED_NIBBLES = 16

_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED = {
    3: "complex 16-bit integers (mode 3)",
    4: "a complex Fourier transform (mode 4)",
    101: "packed 4-bit integers (mode 101)",
}
_CHUNK_BYTES = 2**20
_SLAB_VOXELS = 2**22


class MrcFormatError(InputError):
    """An MRC file that cannot be read as what it should be."""


class MrcIndexError(MrcFormatError):
    """A number beyond the volumes of a stack.

    Attributes:
        index: the 1-based number that was asked for.
    """

    def __init__(self, message: str, index: int):
        super().__init__(message)
        self.index = index


class MrcHeader(NamedTuple):
    """What a valid header says.

    Attributes:
        path: the file, for messages.
        dtype: of one stored voxel, with byte order.
        shape: (sections, rows, columns) of the whole file.
        num_volumes: how many volumes are stacked along the sections.
        order: transposition that turns (section, row, column) into (z, y, x).
        extended_bytes: length of the extended header.
        cell: (x, y, z) edges in angstrom.
        intervals: (x, y, z) number of voxels along these edges.
    """

    path: str
    dtype: np.dtype
    shape: tuple[int, int, int]
    num_volumes: int
    order: tuple[int, int, int]
    extended_bytes: int
    cell: tuple[float, float, float]
    intervals: tuple[int, int, int]

    @property
    def box(self) -> tuple[int, int, int]:
        """(z, y, x) size of one volume."""
        stored = (self.shape[0] // self.num_volumes, *self.shape[1:])
        return stored[self.order[0]], stored[self.order[1]], stored[self.order[2]]

    @property
    def data_bytes(self) -> int:
        """Length of all voxels in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def voxel_size(self) -> float | None:
        """Angstrom per voxel, or None if a cell edge or interval is zero, negative or not finite.

        Warns if the edges differ by more than 0.1 %, or if the size is exactly 1, which many
        programs write when they do not know it.

        Raises:
            MrcFormatError: if the voxel edges differ by more than 1 %.
        """
        if not all(math.isfinite(c) and c > 0 for c in self.cell):
            return None
        if not all(m > 0 for m in self.intervals):
            return None
        sizes = [c / m for c, m in zip(self.cell, self.intervals, strict=True)]
        mean = sum(sizes) / 3
        spread = (max(sizes) - min(sizes)) / mean
        text = " x ".join(f"{size:.5g}" for size in sizes)
        if spread > ANISOTROPY_ERROR:
            raise MrcFormatError(
                f"{self.path}: expected cubic voxels, the header says {text} A;"
                " give the voxel size explicitly, or correct the header"
            )
        if spread > ANISOTROPY_WARNING:
            _warn(f"{self.path}: voxels of {text} A are taken as cubic, {mean:.5g} A")
        if all(size == 1.0 for size in sizes):
            _warn(
                f"{self.path}: the header's voxel size is exactly 1 A, which often stands for"
                " unknown; give the voxel size explicitly if it is"
            )
        return mean


class OpenMrc:
    """An MRC file whose header is valid and whose size fits it."""

    def __init__(
        self, header: MrcHeader, stream: BinaryIO, data_start: int, body: bytearray | None
    ):
        self.header = header
        self._stream = stream
        self._data_start = data_start
        self._body = body
        self._turned: np.ndarray | None = None

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Reads volumes by 0-based index as ``(n, z, y, x)`` float32."""
        header = self.header
        shape = (header.shape[0] // header.num_volumes, *header.shape[1:])
        count = math.prod(shape)
        stored_axes = np.argsort(header.order)  # undoes the transposition
        try:
            out = np.empty((len(indices), *header.box), np.float32)
            for volume, index in zip(out, indices, strict=True):
                self._fill(volume.transpose(stored_axes), index * count)
        except MemoryError as problem:
            need = len(indices) * count * 4 / 2**30
            raise MrcFormatError(
                f"{header.path}: needs {need:.3g} GiB of memory; read fewer volumes or bin them"
            ) from problem
        return out

    def read_sections(self, first: int, last: int) -> np.ndarray:
        """Reads sections ``first`` to ``last - 1`` along z as ``(last - first, y, x)`` float32.

        Of a file that holds one volume. Only these sections' bytes are read; but where the file's
        sections lie along another axis, the whole volume is, once, and kept.
        """
        header = self.header
        if header.order[0] != 0:
            if self._turned is None:
                self._turned = self.read(range(1))[0]
            return self._turned[first:last].copy()
        out = np.empty((last - first, *header.box[1:]), np.float32)
        self._fill(out.transpose(np.argsort(header.order)), first * out[:1].size)
        return out

    def read_part(self, first: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
        """Reads a part of a file that holds one volume, both (z, y, x), as ``size`` float32."""
        header = self.header
        if self._body is not None or header.order != (0, 1, 2):
            raise MrcFormatError(
                f"{header.path}: parts cannot be read of a compressed file, or of one whose axes"
                " are not in order x, y, z; write it again as it should be"
            )
        _, num_rows, num_columns = header.shape
        out = np.empty(size, np.float32)
        for place, section in enumerate(out, first[0]):
            start = (place * num_rows + first[1]) * num_columns
            raw = self._read_raw(start, size[1] * num_columns).reshape(size[1], num_columns)
            with np.errstate(invalid="ignore"):  # as in _fill
                section[...] = raw[:, first[2] : first[2] + size[2]]
        return out

    def _fill(self, sections: np.ndarray, first_voxel: int) -> None:
        """Reads slab by slab, so that the file's own type takes little memory beside float32."""
        num_section = sections[0].size
        step = max(1, _SLAB_VOXELS // num_section)
        for start in range(0, len(sections), step):
            slab = sections[start : start + step]
            raw = self._read_raw(first_voxel + start * num_section, slab.size)
            with np.errstate(invalid="ignore"):  # signalling NaNs; the loader counts them
                slab[...] = raw.reshape(slab.shape)

    def _read_raw(self, first_voxel: int, count: int) -> np.ndarray:
        dtype = self.header.dtype
        start = self._data_start + first_voxel * dtype.itemsize
        if self._body is not None:
            return np.frombuffer(self._body, dtype, count, start)
        try:
            self._stream.seek(start)
            raw = self._stream.read(count * dtype.itemsize)
        except OSError as problem:
            reason = problem.strerror or problem
            raise MrcFormatError(f"{self.header.path}: cannot be read: {reason}") from problem
        if len(raw) != count * dtype.itemsize:
            raise MrcFormatError(
                f"{self.header.path}: expected {count * dtype.itemsize} bytes at {start},"
                f" got {len(raw)}; the file was cut while it was read"
            )
        return np.frombuffer(raw, dtype)


@contextlib.contextmanager
def open_mrc(path: PathLike) -> Iterator[OpenMrc]:
    """Opens an MRC file, plain or compressed (told by its first bytes), after checking it.

    Raises:
        MrcFormatError: if the file is unreadable, its header makes no sense, or its size does
            not fit the header.
    """
    with open_input(path, MrcFormatError) as stream:
        magic = stream.read(3)
        stream.seek(0)
        if magic[:2] == b"\x1f\x8b":
            yield _open_compressed(path, gzip.GzipFile(fileobj=stream, mode="rb"))
        elif magic == b"BZh":
            yield _open_compressed(path, bz2.BZ2File(stream, "rb"))
        else:
            header = parse_header(path, stream.read(HEADER_BYTES))
            num_bytes = os.fstat(stream.fileno()).st_size
            start = _data_start(header, num_bytes)
            yield OpenMrc(header, stream, start, None)


def parse_header(path: PathLike, raw: bytes) -> MrcHeader:
    """Turns the first 1024 bytes into a header, or says what is wrong with them.

    A wrong map identifier or machine stamp is one warning if the rest makes sense; the byte
    order is then the one in which it does.

    Raises:
        MrcFormatError: if a field cannot be.
    """
    path = os.fspath(path)
    if len(raw) < HEADER_BYTES:
        raise MrcFormatError(
            f"{path}: expected an MRC header of {HEADER_BYTES} bytes, the file has {len(raw)};"
            " it is empty, cut short, or no MRC file"
        )
    little = np.frombuffer(raw, HEADER_DTYPE, 1)[0]
    big = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(">"), 1)[0]
    stamp = raw[212:216]
    says_big = stamp[:2] == b"\x11\x11"
    fields, other = (big, little) if says_big else (little, big)
    doubts = []
    if raw[208:212] != b"MAP ":
        doubts.append(f"map identifier {raw[208:212]!r} instead of b'MAP '")
    if stamp[:2] not in (b"\x44\x44", b"\x44\x41", b"\x11\x11"):
        doubts.append(f"machine stamp {stamp!r}")
    fault = _fault(fields)
    if fault and not _fault(other):
        doubts.append("byte order not that of its machine stamp")
        fields, fault, says_big = other, None, not says_big
    if fault:
        hint = f" ({'; '.join(doubts)})" if doubts else ""
        raise MrcFormatError(f"{path}: {fault}{hint}; check that this is an intact MRC file")
    header = _interpret(path, fields, ">" if says_big else "<")
    if doubts:
        _warn(f"{path}: accepted in spite of its {' and '.join(doubts)}")
    return header


def _fault(fields: np.void) -> str | None:
    """Says which field cannot be, or None."""
    mode = int(fields["mode"])
    if mode not in _DTYPES and mode not in _REFUSED:
        return f"expected mode 0, 1, 2, 6 or 12, the header says {mode}"
    for name in ("nx", "ny", "nz"):
        if not 1 <= int(fields[name]) <= MAX_SIDE:
            return f"expected {name} between 1 and {MAX_SIDE}, the header says {int(fields[name])}"
    if not 0 <= int(fields["nsymbt"]) <= MAX_EXTENDED_BYTES:
        return f"an extended header (nsymbt) of {int(fields['nsymbt'])} bytes cannot be"
    axes = [int(fields[name]) for name in ("mapc", "mapr", "maps")]
    if axes != [0, 0, 0] and sorted(axes) != [1, 2, 3]:
        return f"expected mapc, mapr, maps to be 1, 2, 3 in some order, the header says {axes}"
    return None


def _interpret(path: str, fields: np.void, byte_order: str) -> MrcHeader:
    mode = int(fields["mode"])
    stamp, flags = np.frombuffer(fields["extra2"].tobytes(), byte_order + "i4", 2, 40)
    is_imod = int(stamp) == IMOD_STAMP
    code = _DTYPES.get(mode)
    if mode == 0 and is_imod and int(flags) & IMOD_PACKED_NIBBLES:
        mode, code = 101, None
    if code is None:
        raise MrcFormatError(
            f"{path}: holds {_REFUSED[mode]}, expected real voxels of mode 0, 1, 2, 6 or 12;"
            " convert it to mode 2 first"
        )
    if mode == 0 and is_imod and not int(flags) & IMOD_SIGNED_BYTES:
        code = "u1"
    shape = (int(fields["nz"]), int(fields["ny"]), int(fields["nx"]))
    axes = [int(fields[name]) for name in ("maps", "mapr", "mapc")]
    axes = [3, 2, 1] if axes == [0, 0, 0] else axes
    order = (axes.index(3), axes.index(2), axes.index(1))
    intervals = (int(fields["mx"]), int(fields["my"]), int(fields["mz"]))
    num_volumes = 1
    if 401 <= int(fields["ispg"]) <= 630:
        if intervals[2] < 1 or shape[0] % intervals[2]:
            raise MrcFormatError(
                f"{path}: a stack of volumes of mz = {intervals[2]} sections cannot have"
                f" nz = {shape[0]} sections in all; correct mz in the header"
            )
        num_volumes = shape[0] // intervals[2]
        if order != (0, 1, 2) and num_volumes > 1:
            raise MrcFormatError(
                f"{path}: a stack of volumes must have axis order x, y, z (mapc, mapr, maps ="
                f" 1, 2, 3), the header says {axes[::-1]}; rewrite the stack"
            )
    cell = tuple(float(fields["cella"][axis]) for axis in "xyz")
    dtype = np.dtype(byte_order + code)
    extended = int(fields["nsymbt"])
    return MrcHeader(path, dtype, shape, num_volumes, order, extended, cell, intervals)


def _data_start(header: MrcHeader, num_bytes: int) -> int:
    """Compares the header's promise with the size of the (unpacked) file."""
    expected = HEADER_BYTES + header.extended_bytes + header.data_bytes
    if num_bytes == HEADER_BYTES + header.data_bytes and header.extended_bytes:
        _warn(
            f"{header.path}: the header announces an extended header of"
            f" {header.extended_bytes} bytes which the file does not have; ignored"
        )
        return HEADER_BYTES
    if num_bytes < expected:
        raise MrcFormatError(
            f"{header.path}: expected {expected} bytes for {header.shape[2]} x"
            f" {header.shape[1]} x {header.shape[0]} voxels of {header.dtype.itemsize} bytes,"
            f" the file has {num_bytes}; it is cut short, copy or make it again"
        )
    if num_bytes > expected:
        _warn(f"{header.path}: expected {expected} bytes, the file has more; the rest is ignored")
    return HEADER_BYTES + header.extended_bytes


def _open_compressed(path: PathLike, stream: BinaryIO) -> OpenMrc:
    try:
        header = parse_header(path, stream.read(HEADER_BYTES))
        limit = MAX_COMPRESSED_VOXELS
        if math.prod(header.shape) > limit:
            raise MrcFormatError(
                f"{path}: announces {math.prod(header.shape)} voxels, more than the {limit}"
                " allowed in a compressed file; unpack it first"
            )
        promised = header.extended_bytes + header.data_bytes
        body = _read_at_most(stream, promised)
        num_bytes = HEADER_BYTES + len(body) + len(stream.read(1))  # the last read checks the sum
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as problem:
        raise MrcFormatError(
            f"{path}: cannot be unpacked: {problem}; copy or make it again"
        ) from problem
    return OpenMrc(header, stream, _data_start(header, num_bytes) - HEADER_BYTES, body)


def _read_at_most(stream: BinaryIO, num_bytes: int) -> bytearray:
    chunks = bytearray()
    while len(chunks) < num_bytes:
        chunk = stream.read(min(_CHUNK_BYTES, num_bytes - len(chunks)))
        if not chunk:
            break
        chunks += chunk
    return chunks


def _warn(text: str) -> None:
    warnings.warn(text, InputWarning, stacklevel=2)
