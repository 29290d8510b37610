"""Rows of CSV, Parquet and JSON files; a broken row is named, and reading goes on behind it."""

from __future__ import annotations

import csv
import json
from codecs import BOM_UTF8
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, final

import numpy as np

from datamodules.lines import split_lines
from datamodules.prepare.cells import MAX_LETTERS, Broken, CellError, shown
from mmemb.records.counted_nouns import counted, with_article
from mmemb.records.schema import SchemaError, parse_json

_BATCH = 1024

_GIVEN_BACK = 10_000_000
"""Letters that may be read again because of open quotes, beside four times those of the table."""

_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\0")

Cells = dict[str, Any]
"""A row: column -> value; a value that cannot be read is `Broken`."""


def csv_rows(path: Path, see: Callable[[list[str]], None]) -> Iterator[Cells | Broken | None]:
    """Rows of a CSV file with a heading; empty lines are no rows.

    A row of empty cells, as Excel writes behind the last one, is None. A column without a name gets
    the one that pandas gives it, `Unnamed: 0` and so on.

    Args:
        path: of a file of comma-separated UTF-8.
        see: is given the heading before the first row.

    Raises:
        ValueError: there is no heading, or `see` refuses it; or quotes are broken throughout.
    """
    # Excel also saves UTF-16, for which the readers below have no clear message.
    with open(path, "rb") as start:
        if start.read(2).startswith(_OTHER_ENCODINGS):
            raise ValueError(f"{path} is no UTF-8, perhaps UTF-16: save it as UTF-8.")

    # A byte that is no UTF-8 is a fault of its cell alone.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = _Lines(file, path)
        rows = _csv_records(lines)
        heading = next(rows, Broken("there is none"))
        if isinstance(heading, Broken):
            raise ValueError(f"{path}: the heading cannot be read: {heading.reason}.")

        names = [name.strip() for name in heading]
        places = range(len(names))
        names = [name or _unnamed(place, names) for place, name in zip(places, names, strict=True)]
        check_heading(path, names)
        see(names)

        for row in rows:
            if isinstance(row, Broken):
                yield row
            elif not any(row):
                yield None
            elif len(row) == len(names):
                yield dict(zip(names, row, strict=True))
            else:
                # Of two quotes that are not closed the second one seems to close the first.
                if any(_is_record(line, len(names)) for line in lines.taken[1:]):
                    lines.give_back()
                yield Broken(
                    f"{counted(len(row), 'cell')}, but the heading has {len(names)}: expected a "
                    "text with a comma to stand in quotes"
                )


def check_heading(path: Path, names: list[str]) -> None:
    """Refuses a table with a column twice.

    Raises:
        ValueError: names the columns.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: columns occur twice in the heading: {shown(twice)}.")


def _csv_records(lines: _Lines) -> Iterator[list[str] | Broken]:
    """Records that are not empty; behind a broken one reading goes on at its second line, so that
    a quote that is never closed takes one row, and not the rest of the file."""
    reader = csv.reader(lines, strict=True)
    while True:
        # A blank line is an empty list; only None tells the end of the file.
        row = _csv_record(reader, lines)
        if row is None:
            return
        if row:
            yield row


def _csv_record(reader: Iterator[list[str]], lines: _Lines) -> list[str] | Broken | None:
    """Returns the next record; None behind the last one."""
    lines.taken.clear()
    # The default limit of the csv module, 131,072 letters, is below what a cell may hold.
    limit = csv.field_size_limit(MAX_LETTERS + 1)  # of the process: it is put back at once
    try:
        return next(reader, None)
    except csv.Error as error:
        lines.give_back()
        return Broken(f"no comma-separated values ({error}): is a quote not closed?")
    finally:
        csv.field_size_limit(limit)


def _unnamed(place: int, names: Collection[str]) -> str:
    """The name of a column without one, which pandas may have named already."""
    name = f"Unnamed: {place}"
    return name if name not in names else f"__index_level_{place}__"


def _is_record(line: str, num_cells: int) -> bool:
    """Tells whether a line by itself is a row of so many cells."""
    try:
        return [len(row) for row in csv.reader([line], strict=True)] == [num_cells]
    except csv.Error:
        return False


@final
class _Lines:
    """Lines of a file; the lines of the last record can be read again.

    All together at most four times the letters of the file are given back: each line might open a
    quote that the last line closes.
    """

    def __init__(self, lines: Iterable[str], path: Path) -> None:
        self._lines, self._path, self._again = iter(lines), path, deque[str]()
        self._may_give_back = _GIVEN_BACK
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._again:
            line = self._again.popleft()
        else:
            line = next(self._lines)
            self._may_give_back += 4 * len(line)

        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """Puts all lines of the record but its first back in front of the file.

        Raises:
            ValueError: that were too many.
        """
        self._may_give_back -= sum(map(len, self.taken))
        if self._may_give_back < 0:
            raise ValueError(
                f"{self._path}: quotes are not closed at too many places: save it again as CSV."
            )

        # The first line is not given back: it is the broken row, and would be read again for ever.
        self._again.extendleft(reversed(self.taken[1:]))


def parquet_rows(file: Any, columns: Collection[str], size: int = _BATCH) -> Iterator[Cells]:
    """Rows of a Parquet file.

    Args:
        file: a `pyarrow.parquet.ParquetFile`.
        columns: that are read.
        size: rows that are read at once.
    """
    for batch in file.iter_batches(batch_size=size, columns=list(columns)):
        names, values = batch.schema.names, [column_values(column) for column in batch.columns]
        for cells in zip(*values, strict=True):
            yield dict(zip(names, cells, strict=True))


def parquet_faults() -> tuple[type[Exception], ...]:
    """Exceptions of pyarrow for a broken file; UnicodeDecodeError comes from a column's name."""
    from pyarrow import ArrowException

    return ArrowException, OSError, UnicodeDecodeError


def column_values(column: Any) -> list[Any]:
    """The values of a column of Arrow; what Python cannot hold, as a text that is no UTF-8 or a
    date of the year 300,000, is broken by itself."""
    try:
        values = column.to_pylist()
    except Exception:  # Arrow's readers raise whatever the bytes make them raise
        # One broken cell fails the whole column, so the cells are tried one by one.
        values = [_value(cell) for cell in column]

    if str(column.type) in ("float", "halffloat"):
        # The shortest decimal number that is this float: 0.1, and not 0.10000000149011612.
        short = np.float32 if str(column.type) == "float" else np.float16
        values = [None if value is None else float(str(short(value))) for value in values]

    return values


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        fault = f"is no UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})"

        return Broken(f"{shown(error.object)} {fault}")
    except Exception as error:  # as above
        kind = with_article(str(cell.type))
        return Broken(f"is {kind} that cannot be read ({type(error).__name__})")


def json_rows(data: bytes) -> Iterator[Cells | Broken]:
    """Rows of a JSON list of objects, or of one object a line; empty lines are no rows.

    Raises:
        CellError: it begins as a list and is none.
    """
    data = data.removeprefix(BOM_UTF8)
    if data.lstrip()[:1] == b"[":
        yield from map(_checked_row, _json_list(data))
        return

    for line in split_lines(data):
        if line.strip():
            # Each line is tried by itself, so a broken one costs one row.
            try:
                yield json_row(line)
            except CellError as error:
                yield Broken(str(error))


def _json_list(data: bytes) -> list[Any]:
    try:
        # A byte that is no UTF-8 and a key that occurs twice are faults of their rows alone.
        text = data.decode(errors="surrogateescape")
        return json.loads(text, object_pairs_hook=_unique_or_broken)
    except (ValueError, RecursionError) as error:
        raise CellError(f"no JSON list ({error!s:.200})") from None


def _unique_or_broken(pairs: list[tuple[str, Any]]) -> Cells | Broken:
    try:
        return _unique(pairs)
    except CellError as error:
        return Broken(str(error))


def _checked_row(row: Any) -> Cells | Broken:
    """An object of a list that was read without any check of its texts and numbers."""
    match row:
        case dict():
            try:
                json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
            except UnicodeEncodeError:
                return Broken("a text holds half of a surrogate pair, or a byte that is no UTF-8")
            except (ValueError, TypeError):
                return Broken("it holds NaN, or an object with a key that occurs twice")
            return row
        case Broken():
            return row
    return Broken(f"{shown(row)}: expected a JSON object")


def json_row(data: bytes) -> Cells:
    """Returns one JSON object, which holds each key once.

    Raises:
        CellError: it is none.
    """
    try:
        row = parse_json(data, dict[str, Any], "")
        json.loads(data, object_pairs_hook=_unique)
    except SchemaError as error:
        raise CellError(error.problem.removeprefix(": ").removesuffix(".")) from None
    except RecursionError:
        raise CellError("the JSON is nested too deeply") from None
    return row


def _unique(pairs: list[tuple[str, Any]]) -> Cells:
    row = dict(pairs)
    if len(row) < len(pairs):
        # One key is enough for the message.
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise CellError(f"the key {shown(twice)} occurs twice in one object")
    return row
