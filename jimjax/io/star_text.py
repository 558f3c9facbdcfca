"""STAR text to blocks and back: gemmi's CIF parser, and RELION's one row a line on top.

gemmi checks the syntax and keeps values as written. It counts values, not rows, so two rows
of the wrong length can cancel; `_row_lines` checks each line and tells its number. CIF forbids
characters outside ASCII and some that RELION uses; they are spelled ``~hex~`` for gemmi.
"""

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from gemmi import cif

from jimjax.io.errors import InputError
from jimjax.io.files import PathLike, open_input

_FOREIGN = re.compile(r"[^\x00-\x7f]|~|(?<!\S)[\[\]$]")
_SPELLED = re.compile(r"~([0-9a-f]+)~")
_TOKEN = re.compile(r"""'[^\n]*?'(?=\s|$)|"[^\n]*?"(?=\s|$)|(?:\#.*)|\S+""")
_VERSION = re.compile(r"^# version ([0-9]+)[ \t]*$", re.MULTILINE)
_NEEDS_QUOTES = re.compile(r"^['\"#_;$]|\s|^(?:data_|loop_|save_|global_|stop_)|^$", re.IGNORECASE)
_GEMMI_PLACE = re.compile(r"^string:?([0-9]*)[:0-9()]*:?\s*(.*)$", re.DOTALL)
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_SNIFFED_BYTES = 2**16


class StarFormatError(InputError):
    """A STAR file that cannot be read as what it should be."""


class Loop(NamedTuple):
    """A table.

    Attributes:
        tags: with the leading underscore.
        columns: one sequence of values, as written, for each tag.
        lines: line of each row, from 1; None if rows are not one a line.
        is_pairs: written as tags with one value each instead of as a loop.
    """

    tags: tuple[str, ...]
    columns: tuple[Sequence[str], ...]
    lines: Sequence[int] | None
    is_pairs: bool


class Block(NamedTuple):
    """One ``data_`` block."""

    name: str
    items: tuple[Loop, ...]


def read_text(path: PathLike) -> str:
    """Reads a STAR file's text, with line ends as LF.

    Raises:
        StarFormatError: if the file is unreadable, empty, binary or not UTF-8.
    """
    with open_input(path, StarFormatError) as stream:
        head = stream.read(_SNIFFED_BYTES)
        if b"\0" in head:
            raise StarFormatError(f"{path}: is binary, expected STAR text; is it an image file?")
        raw = head + stream.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise StarFormatError(
            f"{path}:{line}: byte 0x{raw[problem.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from problem
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise StarFormatError(f"{path}: is empty, expected a STAR file with a data_ block")
    return text


def parse_star(path: PathLike, text: str) -> tuple[tuple[Block, ...], str | None]:
    """Parses STAR text.

    Args:
        path: for messages.
        text: line ends LF.

    Returns:
        The blocks, and the number of the first ``# version`` comment or None.

    Raises:
        StarFormatError: ``file:line: ...`` if the text is not STAR.
    """
    path = os.fspath(path)
    spelled = _FOREIGN.sub(lambda match: f"~{ord(match[0]):x}~", text)
    row_lines = _row_lines(path, spelled)
    try:
        document = cif.read_string(spelled)
    except (ValueError, RuntimeError) as problem:
        raise StarFormatError(_placed(path, str(problem))) from problem
    is_spelled = len(spelled) != len(text)
    blocks = tuple(_block(path, block, row_lines, is_spelled) for block in document)
    if not blocks:
        raise StarFormatError(f"{path}: has no data_ block, expected a STAR file")
    version = _VERSION.search(text)
    return blocks, version[1] if version else None


def star_text(blocks: Iterable[Block], version: str) -> str:
    """Writes blocks as RELION does, with values as they are."""
    lines = []
    for block in blocks:
        lines += ["", f"# version {version}", "", f"data_{block.name}", ""]
        for item in block.items:
            if item.is_pairs:
                pairs = zip(item.tags, item.columns, strict=True)
                lines += [*(_joined([tag, column[0]]) for tag, column in pairs), ""]
                continue
            lines.append("loop_")
            lines += [f"{tag} #{n}" for n, tag in enumerate(item.tags, 1)]
            lines += [_joined(row) for row in zip(*item.columns, strict=True)]
            lines.append("")
    return "\n".join(lines[1:])


def format_value(value: object) -> str:
    """Writes one value so that it reads back the same.

    Raises:
        InputError: if it is not finite, or text with control characters, or with spaces and both
            kinds of quotes.
    """
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            raise InputError(f"{value} is not finite and cannot be written")
        # A float32 is written as short as a float32 needs.
        return str(value) if isinstance(value, np.floating) else repr(value)
    text = str(value)
    if _FORBIDDEN.search(text):
        raise InputError(f"{text!r} has control characters and cannot be written")
    if not _NEEDS_QUOTES.search(text):
        return text
    for quote in "'\"":
        if quote not in text:
            return quote + text + quote
    raise InputError(f"{text!r} cannot be written as one STAR value")


def plain_value(value: str) -> str:
    """The text of a value as written: without its quotes."""
    if value[:1] in ("'", '"') and len(value) >= 2:
        return value[1:-1]
    if value.startswith(";") and "\n" in value:
        return value[1:].rsplit("\n", 1)[0]
    return value


def _joined(values: Sequence[str]) -> str:
    # Text fields start on a line of their own. The leading space keeps ';' off a line's start.
    parts = [f"\n{v}\n" if v.startswith(";") and "\n" in v else f" {v}" for v in values]
    text = "".join(parts)
    return text.rstrip("\n") if text.startswith("\n") or values[0].startswith(";") else text[1:]


def _block(path: str, block: cif.Block, row_lines: dict[int, list[int]], is_spelled: bool) -> Block:
    def original(texts: Iterable[str]) -> list[str]:
        if not is_spelled:
            return list(texts)
        return [_SPELLED.sub(lambda match: chr(int(match[1], 16)), text) for text in texts]

    items: list[Loop] = []
    for item in block:
        if item.loop is not None:
            tags = tuple(original(item.loop.tags))
            values = original(item.loop.values)
            columns = tuple(values[n :: len(tags)] for n in range(len(tags)))
            items.append(Loop(tags, columns, row_lines.get(item.line_number), False))
        elif item.pair is not None:
            tag, value = original(item.pair)
            if items and items[-1].is_pairs:
                last = items.pop()
                items.append(Loop((*last.tags, tag), (*last.columns, [value]), last.lines, True))
            else:
                items.append(Loop((tag,), ([value],), [item.line_number], True))
        else:
            raise StarFormatError(f"{path}:{item.line_number}: save_ frames are not supported")
    return Block(*original([block.name.strip()]), tuple(items))


def _placed(path: str, message: str) -> str:
    """Gives gemmi's message the file's name in place of its own."""
    line, problem = _GEMMI_PLACE.match(message).groups()
    remedy = "; remove or rename one" if "duplicate" in problem else "; is this a STAR file?"
    return f"{path}{':' + line if line else ''}: {problem}{remedy}"


def _row_lines(path: str, text: str) -> dict[int, list[int]]:
    """Finds the line of every row of every loop: ``{line of loop_: lines of its rows}``.

    Loops that hold text fields, whose rows are no lines, are left out.

    Raises:
        StarFormatError: if a row has not as many values as the loop has columns, or column names
            share a line.
    """
    found: dict[int, list[int]] = {}
    faults: dict[int, StarFormatError] = {}  # the first of each loop, raised once it is over
    lines: list[int] | None = None  # of the loop being read
    start, width, in_text_field = 0, 0, False
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith(";"):
            in_text_field = not in_text_field
            if lines is not None:
                del found[start]
                faults.pop(start, None)
                lines = None
            continue
        word = line.lstrip()
        if in_text_field or not word or word[0] == "#":
            continue
        keyword = word[:5].lower()
        if keyword == "loop_":
            start, width, lines = number, 0, []
            found[start] = lines
            _check_alone(path, number, line)
        elif keyword in ("data_", "save_"):
            lines = None
            _check_block_name(path, number, word)
        elif word[0] == "_" and not lines:
            if lines is not None:
                width += 1
                _check_alone(path, number, line)
        elif word[0] == "_":
            lines = None
        elif lines is not None:
            lines.append(number)
            if start not in faults and _num_values(line) != width:
                faults[start] = _wrong_length(path, number, line, width)
    for fault in faults.values():
        raise fault
    return found


def _wrong_length(path: str, number: int, line: str, width: int) -> StarFormatError:
    return StarFormatError(
        f"{path}:{number}: expected {width} values, one for each column, found"
        f" {_num_values(line)}; is the file cut short, or a value with a space not quoted?"
    )


def _check_alone(path: str, number: int, line: str) -> None:
    if _num_values(line) != 1:
        raise StarFormatError(
            f"{path}:{number}: expected one column name on a line; put the others on their own"
        )


def _check_block_name(path: str, number: int, word: str) -> None:
    # CIF would quietly take this row for the start of a block, and the rest of the loop with it.
    if "/" in word.split(None, 1)[0]:
        raise StarFormatError(
            f"{path}:{number}: '{word.split(None, 1)[0]}' would start a block; quote this value"
        )


def _num_values(line: str) -> int:
    if not any(mark in line for mark in "'\"#"):
        return len(line.split())
    tokens = _TOKEN.findall(line)
    return next((n for n, token in enumerate(tokens) if token[0] == "#"), len(tokens))
