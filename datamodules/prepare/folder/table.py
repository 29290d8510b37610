"""Tables of pairs (CSV, Parquet, JSON lines) as rows; errors of a row become its faults."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from datamodules.prepare.cells import Broken, CellError, is_missing, paths_of, shown, text_of
from datamodules.prepare.row_files import (
    Cells,
    check_heading,
    csv_rows,
    json_row,
    parquet_faults,
    parquet_rows,
)
from mmemb.records.pairs import SPLITS

COLUMNS = (
    "id", "task", "split", "query_text", "query_media", "target_text", "target_media",
    "negative_text", "negative_media", "instruction", "concept",
)  # fmt: skip

_NEEDED = ("id", "task", "split")
_SIDES = ("query", "positives", "negatives")
_NESTED = {*_NEEDED, *_SIDES, "concept"}
_SIDE = ("text", "media", "instruction")

_NAMELESS = re.compile(r"Unnamed: \d+|__index_level_\d+__|")
"""Names that pandas gives to columns without one, such as that of its row numbers."""

_UNREAD = "?"
"""Text of a side whose cell has a fault, so that the side does not count as empty, too."""


@final
@dataclass(frozen=True, slots=True)
class OwnSide:
    """A side as the table names it; media are paths below the media folder."""

    text: str = ""
    media: tuple[str, ...] = ()
    instruction: str = ""

    @property
    def name(self) -> str:
        """Its identity among candidates: what it shows, then what it says."""
        return ":".join(part for part in ("|".join(self.media), self.text) if part)


@final
@dataclass(frozen=True, slots=True)
class OwnRow:
    """One pair, or one query with its right answers.

    Attributes:
        number: of the row in the table, counted from 1 (without a CSV's heading).
        faults: what is wrong with its cells, each with its column.
        nested: whether it names its sides in objects of their own.
    """

    number: int
    id: str
    task: str
    split: str
    query: OwnSide
    positives: tuple[OwnSide, ...]
    negatives: tuple[OwnSide, ...] = ()
    concept: str = ""
    faults: tuple[str, ...] = field(default=())
    nested: bool = False

    @property
    def media_columns(self) -> tuple[str, ...]:
        """The table's name for the media of each of `sides`."""
        if not self.nested:
            return ("query_media", "target_media", "negative_media")
        several = (("positives", self.positives), ("negatives", self.negatives))
        names = [f"{name}[{n}].media" for name, sides in several for n in range(len(sides))]
        return ("query.media", *names)

    @property
    def sides(self) -> tuple[OwnSide, ...]:
        """All of them, the query first."""
        return (self.query, *self.positives, *self.negatives)

    @property
    def topic(self) -> str:
        """Subject of the row: its concept, or the name of its first target."""
        return self.concept or self.positives[0].name


def read_table(path: Path) -> Iterator[OwnRow]:
    """Yields the rows of a table; a row that cannot be read has its fault, and reading goes on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the three kinds, lacks a column that every row needs, or is broken
            as a whole.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "not found"
        raise FileNotFoundError(f"{path} {what}: the table of pairs (.csv, .parquet, .jsonl).")

    readers = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}
    if (kind := path.suffix.lower()) not in readers:
        raise ValueError(f"{path}: expected a table that ends in {', '.join(sorted(readers))}.")

    try:
        # Empty lines keep their number, so that messages match what an editor shows.
        for number, data in enumerate(readers[kind](path), 1):
            if data is not None:
                yield _row(number, data)
    except PermissionError:
        raise ValueError(f"{path} cannot be read: there is no permission.") from None


def _csv(path: Path) -> Iterator[Cells | Broken | None]:
    return csv_rows(path, _NEEDED)


def _parquet(path: Path) -> Iterator[Cells | Broken]:
    from pyarrow import parquet

    num_read = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_heading(path, names, _NEEDED)
            # Row by row, so that `num_read` is right when a later part of the file is broken.
            for row in parquet_rows(file, names):
                yield row
                num_read += 1
    # It is an OSError as well, but `read_table` has a message of its own for it.
    except PermissionError:
        raise
    except parquet_faults() as error:
        raise ValueError(
            f"{path} is no whole Parquet file; {num_read} rows could be read ({error!s:.200})."
        ) from None


def _json_lines(path: Path) -> Iterator[Cells | Broken | None]:
    """Yields the rows; an empty line is None."""
    with open(path, "rb") as file:  # a line that is no UTF-8 is that line's fault
        for number, line in enumerate(file):
            # Editors on Windows put a byte order mark in front of the first line only.
            text = line.removeprefix(BOM_UTF8) if number == 0 else line
            try:
                yield json_row(text) if text.strip() else None
            except CellError as error:
                yield Broken(str(error))


def _row(number: int, data: Cells | Broken) -> OwnRow:
    match data:
        case Broken(reason):
            return OwnRow(number, "", "", "", OwnSide(), (), faults=(reason,))
        case _:
            return _RowReader(data).row(number)


Sides = tuple[OwnSide, tuple[OwnSide, ...], tuple[OwnSide, ...]]


@final
class _RowReader:
    """Reads the cells of one row and remembers what is wrong with them."""

    def __init__(self, data: Cells) -> None:
        # Excel and pandas add empty cells and row numbers, which must not count as unknown
        # columns.
        self._data = {
            name: value
            for name, value in data.items()
            if not is_missing(value) and not _is_row_number(name, value)
        }
        # One object for a side is enough: flat columns beside it are then faults.
        self._is_nested = any(name in self._data for name in _SIDES)
        self._faults: list[str] = []

    def row(self, number: int) -> OwnRow:
        # A misspelt column would silently leave its data out.
        columns = _NESTED if self._is_nested else COLUMNS
        if unknown := sorted(set(self._data) - set(columns)):
            self._faults.append(f"unknown column(s) {shown(unknown)}")
        # A bad split has a message of its own below.
        self._faults += [f"no {name}" for name in ("id", "task") if name not in self._data]

        key, task, split, concept = (
            self._text(name, self._data.get(name), "") for name in (*_NEEDED, "concept")
        )
        # An unreadable cell of the split has its fault already.
        if split not in SPLITS and (split or "split" not in self._data):
            self._faults.append(f"split {shown(split)}: expected one of {list(SPLITS)}")

        query, positives, negatives = self._nested() if self._is_nested else self._flat()
        if not positives:
            self._faults.append("no target")

        sides = (query, *positives, *negatives)
        empty = "an empty side (neither text nor media)"
        self._faults += [empty for side in sides if not side.name]

        return OwnRow(
            number, key, task, split, query, positives, negatives, concept,
            tuple(self._faults), self._is_nested,
        )  # fmt: skip

    def _flat(self) -> Sides:
        def side(kind: str, instruction: str = "") -> OwnSide:
            text, media = f"{kind}_text", f"{kind}_media"
            return OwnSide(
                self._text(text, self._data.get(text)),
                self._paths(media, self._data.get(media), "|"),
                instruction,
            )

        target, negative = side("target"), side("negative")
        # An instruction belongs to the query; targets of flat tables have none.
        instruction = self._text("instruction", self._data.get("instruction"))
        return side("query", instruction), (target,), (negative,) if negative.name else ()

    def _nested(self) -> Sides:
        several = (
            tuple(self._side(f"{name}[{n}]", value) for n, value in enumerate(self._list(name)))
            for name in _SIDES[1:]
        )
        return self._side("query", self._data.get("query")), *several

    def _list(self, name: str) -> list[Any]:
        match self._data.get(name):
            case None:
                return []
            case list() as value:
                return value
            case Broken(reason):
                self._faults.append(f"{name} {reason}")
            case value:
                self._faults.append(f"{name} {shown(value)}: expected a list")
        # A fault is on record, so the empty list only keeps the reading going.
        return []

    def _side(self, name: str, value: Any) -> OwnSide:
        match value:
            case Broken(reason):
                self._faults.append(f"{name} {reason}")
            case dict() if not set(value) - set(_SIDE):
                text, media, instruction = (value.get(key) for key in _SIDE)
                return OwnSide(
                    self._text(f"{name}.text", text),
                    self._paths(f"{name}.media", media),
                    self._text(f"{name}.instruction", instruction),
                )
            case _:
                # An unknown key may be a misspelt one, so the side is refused whole.
                expected = f"expected an object with some of {list(_SIDE)}"
                self._faults.append(f"{name} {shown(value)}: {expected}")
        return OwnSide(_UNREAD)

    def _text(self, column: str, value: Any, unread: str = _UNREAD) -> str:
        try:
            return text_of(value)
        except CellError as error:
            self._faults.append(f"{column} {error}")
            return unread

    def _paths(self, column: str, value: Any, separator: str = "") -> tuple[str, ...]:
        try:
            return paths_of(value, separator)
        except CellError as error:
            self._faults.append(f"{column} {error}")
            return (_UNREAD,)


def _is_row_number(column: str, value: Any) -> bool:
    """Tells whether a cell holds the row number that pandas adds."""
    is_whole = type(value) is int or (isinstance(value, str) and value.isdecimal())
    return is_whole and _NAMELESS.fullmatch(column) is not None
