"""RELION particle tables whose every column, block and value survives a round trip.

`ParticleTable` is immutable: an edit gives a new table. Values stay strings as the file has
them until a column is asked for as numbers, so ``01`` stays ``01``. Comments are not kept,
except the ``# version`` line that RELION reads.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jimjax.io.errors import InputError
from jimjax.io.files import PathLike, replace_file
from jimjax.io.mrc import ImageReference, parse_image_name
from jimjax.io.places import OutsideError, locate, moved_path
from jimjax.io.star_text import (
    Block,
    Loop,
    StarFormatError,
    format_value,
    parse_star,
    plain_value,
    read_text,
    star_text,
)

IMAGE_COLUMN = "rlnImageName"
MASK_COLUMN = "rlnMaskName"  # voxels of the particle, named as images are
GROUP_COLUMN = "rlnOpticsGroup"
STAR_VERSION = "30001"  # RELION 3.1, the first with an optics block
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LARGEST_EXACT = 2**53  # integers up to here are exact in float64

__all__ = ["ParticleTable", "StarFormatError", "new_table", "read_particles"]


@dataclass(frozen=True, eq=False)
class ParticleTable:
    """The particles of a STAR file, with everything else that the file holds.

    Make one with `read_particles` or `new_table`.

    Attributes:
        path: the file it came from; None for a new table.
    """

    path: Path | None
    _version: str
    _blocks: tuple[Block, ...]  # all blocks; the particles' own loop among them is a placeholder
    _place: tuple[int, int]  # block and item of that placeholder
    _values: Mapping[str, Sequence[str]]  # column name -> values as written
    _lines: np.ndarray | None  # line of each particle in the file, for messages

    @property
    def num_particles(self) -> int:
        """Number of rows."""
        return len(next(iter(self._values.values())))

    def __len__(self) -> int:
        return self.num_particles

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the particles' columns, without the leading underscore."""
        return tuple(self._values)

    def strings(self, name: str) -> list[str]:
        """The values of one column as text, without the quotes of quoted values.

        Raises:
            StarFormatError: if there is no such column; lists those there are.
        """
        self.require(name)
        return [plain_value(value) for value in self._values[name]]

    def floats(self, name: str) -> np.ndarray:
        """The values of one column as ``(n,)`` float64.

        Raises:
            StarFormatError: if there is no such column, or a value is not a finite number;
                names line, particle, column and value.
        """
        values = self.strings(name)
        out = np.empty(len(values))
        for row, value in enumerate(values):
            out[row] = _number(value)
        if not np.all(np.isfinite(out)):
            row = int(np.argmin(np.isfinite(out)))
            raise self.error(row, f"column {name}: '{values[row]}' is not a finite number")
        return out

    def ints(self, name: str) -> np.ndarray:
        """The values of one column as ``(n,)`` int64; ``2.000`` counts as 2.

        Raises:
            StarFormatError: as `floats`, or if a value is not whole.
        """
        values = self.floats(name)
        is_whole = (values == np.round(values)) & (np.abs(values) <= _LARGEST_EXACT)
        if not np.all(is_whole):
            row = int(np.argmin(is_whole))
            value = self.strings(name)[row]
            raise self.error(row, f"column {name}: '{value}' is not a whole number")
        return values.astype(np.int64)

    def optics_floats(self, name: str) -> np.ndarray | None:
        """A column of the optics block, looked up for each particle, as ``(n,)`` float64.

        Particles without rlnOpticsGroup belong to the only group if there is just one.

        Returns:
            None if there is no optics block or it has no such column.

        Raises:
            StarFormatError: if a value is no finite number, a group is defined twice, or a
                particle's group is not defined.
        """
        optics = self._optics()
        if optics is None or name not in optics.columns:
            return None
        values = optics.floats(name)
        if GROUP_COLUMN not in self._values and len(values) == 1:
            return np.full(self.num_particles, values[0])
        groups = optics.ints(GROUP_COLUMN).tolist()
        if len(set(groups)) < len(groups):
            raise StarFormatError(f"{self.name}: two optics groups have the same {GROUP_COLUMN}")
        value_of_group = dict(zip(groups, values.tolist(), strict=True))
        mine = self.ints(GROUP_COLUMN).tolist()
        for row, group in enumerate(mine):
            if group not in value_of_group:
                raise self.error(
                    row, f"{GROUP_COLUMN} {group} is not in the optics block, which has {groups}"
                )
        return np.array([value_of_group[group] for group in mine], dtype=np.float64)

    def image_references(
        self, column: str = IMAGE_COLUMN, *, allow_outside: bool = True
    ) -> list[ImageReference]:
        """Where each particle's volume lies, paths absolute.

        A relative path is looked for in the STAR file's folder, then in the working directory.

        Args:
            column: that names the files; ``MASK_COLUMN`` for those of the masks.
            allow_outside: also files that are none of the project's, see ``io.places``.

        Raises:
            StarFormatError: if the column is missing or malformed, or a file is not there or not
                allowed.
        """
        found: dict[Path, Path] = {}
        references = []
        for row, name in enumerate(self.strings(column)):
            index, path = self._parsed(row, name, column)
            if path not in found:
                found[path] = self._located(row, path, column, allow_outside)
            references.append(ImageReference(index, found[path]))
        return references

    def require(self, *names: str) -> None:
        """Raises StarFormatError, with all columns there are, if one of ``names`` is missing."""
        missing = [name for name in names if name not in self._values]
        if missing:
            raise StarFormatError(
                f"{self.name}: the particles lack column {', '.join(missing)}"
                f" (required: {', '.join(names)}; available: {', '.join(self._values)})"
            )

    def with_columns(self, columns: Mapping[str, Sequence]) -> "ParticleTable":
        """A new table in which some columns are replaced or appended.

        Args:
            columns: name without underscore -> one value a particle. Strings are quoted if
                they need it; floats are written so that they read back the same.

        Raises:
            InputError: if a length differs, a float is not finite, or a name cannot be written.
        """
        return replace(self, _values={**self._values, **_formatted(columns, self.num_particles)})

    def select(self, indices: Sequence[int] | np.ndarray) -> "ParticleTable":
        """A new table with the particles ``indices`` (0-based, or a boolean mask), in that order.

        Raises:
            InputError: if an index is out of range.
        """
        try:
            rows = np.arange(self.num_particles)[np.asarray(indices, dtype=_index_dtype(indices))]
        except IndexError as problem:
            raise InputError(f"{self.name}: cannot select particles: {problem}") from problem
        values = {name: [column[row] for row in rows] for name, column in self._values.items()}
        lines = None if self._lines is None else self._lines[rows]
        return replace(self, _values=values, _lines=lines)

    def with_image_paths_relative_to(self, folder: PathLike) -> "ParticleTable":
        """A new table whose image and mask names are right for a STAR file in ``folder``.

        Absolute names stay. Relative names that were found in the old STAR file's folder are
        rewritten. Names found only in the working directory, as in a RELION project, stay as
        written: RELION and this package both find them there. So do names of missing files, and
        whatever names no file where a mask is meant.

        Raises:
            StarFormatError: if an image name is malformed.
        """
        folder = Path(os.path.realpath(folder))
        old_folder = None if self.path is None else Path(os.path.realpath(self.path.parent))
        if old_folder in (None, folder):
            return self
        values = dict(self._values)
        for column in (IMAGE_COLUMN, MASK_COLUMN):
            if column in values:
                values[column] = self._moved_names(column, old_folder, folder)
        return replace(self, _values=values)

    def write(self, path: PathLike) -> None:
        """Writes all blocks to ``path``, atomically.

        Relative names of images and masks are rewritten as in `with_image_paths_relative_to`.

        Raises:
            InputError: if the folder is missing or forbidden, or an image name is malformed.
        """
        table = self.with_image_paths_relative_to(Path(path).parent)
        block, item = self._place
        blocks = list(table._blocks)
        items = list(blocks[block].items)
        tags = tuple("_" + name for name in table._values)
        items[item] = Loop(tags, tuple(table._values.values()), None, False)
        blocks[block] = Block(blocks[block].name, tuple(items))
        with replace_file(path) as stream:
            stream.write(star_text(blocks, table._version).encode())

    @property
    def name(self) -> str:
        """The path, for messages."""
        return "<new table>" if self.path is None else os.fspath(self.path)

    def error(self, row: int, problem: str) -> StarFormatError:
        """An error about particle ``row`` (0-based) that names its line in the file."""
        line = "" if self._lines is None else f":{self._lines[row]}"
        return StarFormatError(f"{self.name}{line}: particle {row + 1}: {problem}")

    def _moved_names(self, column: str, old_folder: Path, folder: Path) -> list[str]:
        """The values of a column of file names as they are to be written in ``folder``."""
        moved: dict[Path, Path] = {}
        names = list(self._values[column])
        for row, name in enumerate(self.strings(column)):
            try:
                index, path = self._parsed(row, name, column)
            except StarFormatError:
                if column == IMAGE_COLUMN:
                    raise
                continue  # other programs may write what they like where they have no mask
            if path not in moved:
                moved[path] = moved_path(path, old_folder, folder)
            if moved[path] != path:
                prefix = "" if index is None else name[: name.index("@") + 1]
                names[row] = format_value(prefix + os.fspath(moved[path]))
        return names

    def _parsed(self, row: int, name: str, column: str) -> ImageReference:
        try:
            return parse_image_name(name)
        except InputError as problem:
            raise self.error(row, f"column {column}: {problem}") from problem

    def _located(self, row: int, path: Path, column: str, allow_outside: bool) -> Path:
        folder = Path() if self.path is None else self.path.parent
        try:
            found = locate(path, folder, allow_outside=allow_outside)
        except OutsideError as problem:
            places = " and ".join(map(str, problem.roots))
            told = f"'{path}' of {column} lies outside of {places}; allow it with --allow-outside"
            raise self.error(row, told) from None
        if isinstance(found, Path):
            return found
        places = " nor at ".join(map(str, found))
        raise self.error(
            row, f"image file '{path}' is not at {places}; correct {column} or the folder"
        )

    def _optics(self) -> "ParticleTable | None":
        for block, found in enumerate(self._blocks):
            if found.name == "optics":
                return _table_of(self.path, self._version, self._blocks, block)
        return None


def read_particles(path: PathLike) -> ParticleTable:
    """Reads a RELION particle STAR file.

    From 3.1 on that is a block data_optics and one data_particles; before, a single block.

    Raises:
        StarFormatError: if the file is unreadable, not STAR, cut short, has a row of the wrong
            length or a column twice; names the line. If it has no particles; lists its blocks.
    """
    text = read_text(path)
    blocks, version = parse_star(path, text)
    names = [block.name for block in blocks]
    if "particles" in names:
        place = names.index("particles")
    else:
        with_images = [n for n, block in enumerate(blocks) if f"_{IMAGE_COLUMN}" in _tags(block)]
        if len(with_images) != 1:
            found = ", ".join(f"data_{name}" for name in names)
            raise StarFormatError(
                f"{path}: expected a block data_particles, or one block with {IMAGE_COLUMN};"
                f" found {found}; is this a particle STAR file?"
            )
        place = with_images[0]
    table = _table_of(Path(path), version or STAR_VERSION, blocks, place)
    if table.num_particles == 0:
        raise StarFormatError(f"{path}: the table data_{names[place]} has no rows")
    return table


def new_table(
    columns: Mapping[str, Sequence], optics: Mapping[str, Sequence] | None = None
) -> ParticleTable:
    """Makes a table from columns; relative image names are meant from the future STAR's folder.

    Args:
        columns: name without underscore -> one value a particle.
        optics: the same for the optics groups; no optics block if None.

    Raises:
        InputError: if there is no column, lengths differ, or a value cannot be written.
    """
    blocks = []
    if optics is not None:
        values = _formatted(optics, None)
        blocks.append(Block("optics", (_loop(values),)))
    values = _formatted(columns, None)
    blocks.append(Block("particles", (_loop(values),)))
    return ParticleTable(None, STAR_VERSION, tuple(blocks), (len(blocks) - 1, 0), values, None)


def _loop(values: Mapping[str, Sequence[str]]) -> Loop:
    return Loop(tuple("_" + name for name in values), tuple(values.values()), None, False)


def _tags(block: Block) -> set[str]:
    return {tag for item in block.items for tag in item.tags}


def _table_of(
    path: Path | None, version: str, blocks: tuple[Block, ...], place: int
) -> ParticleTable:
    """The table in one block: its widest loop, or its single pairs as a table of one row."""
    items = blocks[place].items
    if not items:
        raise StarFormatError(f"{path}: the block data_{blocks[place].name} is empty")
    item = max(range(len(items)), key=lambda n: (not items[n].is_pairs, len(items[n].tags)))
    loop = items[item]
    values = {tag[1:]: column for tag, column in zip(loop.tags, loop.columns, strict=True)}
    lines = None if loop.lines is None else np.asarray(loop.lines)
    return ParticleTable(path, version, blocks, (place, item), values, lines)


def _number(value: str) -> float:
    # float() alone would accept nan, inf, 1_0 and digits of other scripts.
    return float(value) if _NUMBER.fullmatch(value) else np.nan


def _index_dtype(indices: Sequence[int] | np.ndarray) -> type:
    return bool if np.asarray(indices).dtype == bool else np.intp


def _formatted(columns: Mapping[str, Sequence], length: int | None) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, values in columns.items():
        if not re.fullmatch(r"[!-~]+", name) or name.startswith("_"):
            raise InputError(f"column name {name!r} must be printable, without space or leading _")
        try:
            out[name] = [format_value(value) for value in values]
        except InputError as problem:
            raise InputError(f"column {name}: {problem}") from problem
        length = len(out[name]) if length is None else length
        if len(out[name]) != length:
            raise InputError(f"column {name} must have {length} values, got {len(out[name])}")
    if not out:
        raise InputError("a table needs at least one column")
    return out
