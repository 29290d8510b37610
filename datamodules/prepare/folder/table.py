"""Tables of pairs (CSV, Parquet, JSON lines) as rows; errors of a row become its faults."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from datamodules.prepare.cells import Broken, CellError, paths_of, shown, text_of
from datamodules.prepare.folder.columns import FLAT, GUIDE, LABELS, NEGATIVE, NESTED, Columns
from datamodules.prepare.folder.sample_keys import sample_key
from datamodules.prepare.row_files import (
    Cells,
    check_heading,
    csv_rows,
    json_row,
    parquet_faults,
    parquet_rows,
)
from mmemb.records.counted_nouns import counted
from mmemb.records.pairs import SPLITS
from mmemb.records.text import printable

COLUMNS = (*LABELS, *FLAT)

DEFAULT_TASK = "pairs"
"""Task of all rows of a table without a column for it."""

_NEEDED = ("id", "task", "split")
_SIDE = ("text", "media", "instruction")

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
        media_columns: the table's name for the media of each of `sides`.
        lacks: which of id, task and split the row does not give.
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
    media_columns: tuple[str, ...] = ("query_media", "target_media", "negative_media")
    lacks: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of its sample: the id, or what stands for it."""
        return sample_key(self.id)

    @property
    def sides(self) -> tuple[OwnSide, ...]:
        """All of them, the query first."""
        return (self.query, *self.positives, *self.negatives)

    @property
    def topic(self) -> str:
        """Subject of the row: its concept, or the name of its first target."""
        return self.concept or self.positives[0].name


def read_table(path: Path, columns: Columns | None = None) -> Iterator[OwnRow]:
    """Yields the rows of a table; a row that cannot be read has its fault, and reading goes on.

    Args:
        path: of the table.
        columns: what its columns stand for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the three kinds, has no query or target, or is broken as a whole.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "not found"
        raise FileNotFoundError(f"{path} {what}: the table of pairs (.csv, .parquet, .jsonl).")

    readers = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}
    if (kind := path.suffix.lower()) not in readers:
        raise ValueError(
            f"{path}: expected a table that ends in {', '.join(sorted(readers))} ({GUIDE} has the "
            "other sources)."
        )

    columns = columns or Columns()
    try:
        yield from own_rows(readers[kind](path, columns), columns)
    except PermissionError:
        raise ValueError(f"{path} cannot be read: there is no permission.") from None


def own_rows(cells: Iterable[Cells | Broken | None], columns: Columns) -> Iterator[OwnRow]:
    """Yields rows of cells; None stands for an empty line, which has a number and is no row."""
    # Empty lines keep their number, so that messages match what an editor shows.
    for number, data in enumerate(cells, 1):
        match data:
            case None:
                continue
            case Broken(reason):
                yield OwnRow(number, "", "", "", OwnSide(), (), faults=(reason,), lacks=_NEEDED)
            case _:
                yield _RowReader(columns.rename(data), columns.theirs).row(number)


def with_defaults(rows: Sequence[OwnRow]) -> tuple[list[OwnRow], list[str]]:
    """Fills the id and the task of a table without these columns.

    In a table that has a column, a row without a value there has a fault. The split stays empty if
    no row has one.

    Returns:
        The rows, and a sentence for each column that was filled.
    """
    filled, notes = list(rows), []
    for name in _NEEDED:
        has_column = any(name not in row.lacks for row in rows)
        lacking = [place for place, row in enumerate(rows) if name in row.lacks]
        if rows and not has_column and name != "split":
            value = "the number of the row" if name == "id" else f"`{DEFAULT_TASK}` in every row"
            notes.append(f"no column {name}: it is {value}.")

        for place in lacking:
            row = filled[place]
            # A row that could not be read at all has its one fault.
            if has_column and (row.positives or row.query.name):
                fault = f"no {name}" + f": expected one of {list(SPLITS)}" * (name == "split")
                filled[place] = replace(row, faults=(*row.faults, fault))
            elif not has_column and name == "id":
                filled[place] = replace(row, id=str(row.number))
            elif not has_column and name == "task":
                filled[place] = replace(row, task=DEFAULT_TASK)

    return filled, notes


def _csv(path: Path, columns: Columns) -> Iterator[Cells | Broken | None]:
    return csv_rows(path, partial(columns.match, str(path)))


def _parquet(path: Path, columns: Columns) -> Iterator[Cells | Broken]:
    from pyarrow import parquet

    num_read = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_heading(path, names)
            columns.match(str(path), names)
            # Row by row, so that `num_read` is right when a later part of the file is broken.
            for row in parquet_rows(file, names):
                yield row
                num_read += 1
    # It is an OSError as well, but `read_table` has a message of its own for it.
    except PermissionError:
        raise
    except parquet_faults() as error:
        raise ValueError(
            f"{path} is no whole Parquet file; {counted(num_read, 'row')} could be read "
            f"({error!s:.200})."
        ) from None


def _json_lines(path: Path, columns: Columns) -> Iterator[Cells | Broken | None]:
    """Yields the rows; an empty line is None."""
    with open(path, "rb") as file:  # a line that is no UTF-8 is that line's fault
        yield from columns.matched(str(path), map(_json_line, enumerate(file)))


def _json_line(numbered: tuple[int, bytes]) -> Cells | Broken | None:
    number, line = numbered
    # Editors on Windows put a byte order mark in front of the first line only.
    text = line.removeprefix(BOM_UTF8) if number == 0 else line
    try:
        return json_row(text) if text.strip() else None
    except CellError as error:
        return Broken(str(error))


Sides = tuple[OwnSide, tuple[OwnSide, ...], tuple[OwnSide, ...]]


@final
class _RowReader:
    """Reads the cells of one row and remembers what is wrong with them.

    Args:
        data: cells under our names, none of them missing.
        theirs: our names -> those of the table, which messages name.
    """

    def __init__(self, data: Cells, theirs: Mapping[str, str]) -> None:
        self._data, self._theirs = data, theirs
        # One object for a side is enough: flat columns beside it are then faults.
        self._is_nested = any(name in self._data for name in NESTED)
        self._faults: list[str] = []

    def row(self, number: int) -> OwnRow:
        if self._is_nested and (flat := sorted(set(self._data) - {*LABELS, *NESTED})):
            self._faults.append(f"columns beside a query or positives of objects: {shown(flat)}")

        key, task, split, concept = (
            self._text(name, self._data.get(name), "") for name in (*_NEEDED, "concept")
        )
        # An unreadable cell of the split has its fault already.
        if split and split not in SPLITS:
            self._faults.append(f"split {shown(split)}: expected one of {list(SPLITS)}")

        (query, positives, negatives), media = self._nested() if self._is_nested else self._flat()
        if not positives:
            self._faults.append("no target")

        sides = (query, *positives, *negatives)
        empty = "an empty side (neither text nor media)"
        self._faults += [empty for side in sides if not side.name]

        lacks = tuple(name for name in _NEEDED if name not in self._data)
        return OwnRow(
            number, key, task, split, query, positives, negatives, concept,
            tuple(self._faults), media, lacks,
        )  # fmt: skip

    def _flat(self) -> tuple[Sides, tuple[str, ...]]:
        def side(kind: str, number: str = "", instruction: str = "") -> OwnSide:
            text, media = f"{kind}_text{number}", f"{kind}_media{number}"
            return OwnSide(
                self._text(text, self._data.get(text)),
                self._paths(media, self._data.get(media), "|"),
                instruction,
            )

        # `negative_text`, or `negative_text_1`, `negative_text_2`, ..., by number.
        found = [match for name in self._data if (match := NEGATIVE.fullmatch(name))]
        numbers = sorted({match[2] or "" for match in found}, key=lambda n: (int(n or 0), n))
        ends = [f"_{number}" if number else "" for number in numbers]

        # An instruction belongs to the query; targets of flat tables have none.
        instruction = self._text("instruction", self._data.get("instruction"))
        query, target = side("query", "", instruction), side("target")

        # An empty list of paths is no negative.
        negatives = {end: each for end in ends if (each := side("negative", end)).name}
        media = ("query_media", "target_media", *(f"negative_media{end}" for end in negatives))
        return (query, (target,), tuple(negatives.values())), tuple(map(self._shown, media))

    def _nested(self) -> tuple[Sides, tuple[str, ...]]:
        several = {
            name: tuple(
                self._side(f"{name}[{n}]", value) for n, value in enumerate(self._list(name))
            )
            for name in NESTED[1:]
        }
        media = [f"{name}[{n}].media" for name, sides in several.items() for n in range(len(sides))]
        query = self._side("query", self._data.get("query"))
        return (query, *several.values()), ("query.media", *media)  # type: ignore[return-value]

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
            self._faults.append(f"{self._shown(column)} {error}")
            return unread

    def _paths(self, column: str, value: Any, separator: str = "") -> tuple[str, ...]:
        try:
            return paths_of(value, separator)
        except CellError as error:
            self._faults.append(f"{self._shown(column)} {error}")
            return (_UNREAD,)

    def _shown(self, column: str) -> str:
        """The table's own name of a column, which may be a line's end or the like."""
        return printable(self._theirs.get(column, column))
