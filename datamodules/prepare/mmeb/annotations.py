"""Reads annotations: finds the files of a repository's config and split, checks every row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Annotated, Any, final

import msgspec
import yaml

from datamodules.prepare.cells import Broken, CellError, checked_text, shown
from datamodules.prepare.row_files import Cells, json_rows, parquet_faults, parquet_rows
from mmemb.benchmarks.mmeb_v2 import Task
from mmemb.records.schema import SchemaError, convert

FOLDER = "annotations"
"""Below the source: `OWNER/REPOSITORY`, as `hf download` fills it."""

_Pattern = Annotated[str, msgspec.Meta(min_length=1)]

_SUFFIXES = (".parquet", ".jsonl", ".json")


@final
class RowError(ValueError):
    """An annotation that is none: names its file and row."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One annotation; what it lacks or has of another kind is an error that names file and row."""

    where: str
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Returns a text; what is missing is the empty one."""
        match self.values[name]:
            case None:
                return ""
            case float() as number if isnan(number):
                return ""
            case value:
                return self._text(name, value, "a text")

    def texts(self, name: str) -> list[str]:
        """A list of texts, not empty."""
        items = self.of_type(name, self.values[name], list, "a list of texts")
        if not items:
            raise self.error(f"a list of texts in {name!r}", "an empty one")
        return [self._text(name, item, "a list of texts") for item in items]

    def name(self, name: str) -> str:
        """An id in text form."""
        value = self.values[name]
        text = str(value) if type(value) is int else value
        if not self._text(name, text, "an id"):
            raise self.error(f"an id in {name!r}", "an empty text")
        return text

    def index(self, name: str, length: int) -> int:
        """A whole number from 0 to `length` - 1, which may be written as text."""
        text = str(self.values[name])
        # The length is bounded first, as `int` raises for thousands of digits.
        if not (text.isdecimal() and len(text) < 10) or int(text) >= length:
            raise self.error(f"a whole number below {length} in {name!r}", shown(text))
        return int(text)

    def error(self, expected: str, actual: str) -> RowError:
        """Returns the error of the row, which names the file and the row."""
        return RowError(
            f"{self.where}: expected {expected:.300}; found {actual:.100}. Fetch the file again; "
            "if it stays, the published data has changed."
        )

    def of_type(self, name: str, value: Any, kind: type, expected: str) -> Any:
        """A value of a column, which must be of a type."""
        match value:
            case Broken(reason):
                raise self.error(f"{expected} in {name!r}", reason)
            case _ if not isinstance(value, kind):
                actual = f"{type(value).__name__} {shown(value)}"
                raise self.error(f"{expected} in {name!r}", actual)
        return value

    def _text(self, name: str, value: Any, expected: str) -> str:
        try:
            return checked_text(self.of_type(name, value, str, expected))
        except CellError as error:
            raise self.error(f"{expected} in {name!r}", str(error)) from None


def repository(task: Task, source: Path) -> Path:
    """The folder of a task's annotations.

    Raises:
        FileNotFoundError: it is not there.
    """
    folder = source / FOLDER / task.source
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{task.name}: {folder} is missing: expected the data-set repository {task.source}. "
            f"`hf download --repo-type dataset {task.source} --local-dir {folder}` brings it; "
            "docs/mmeb_v2.md lists all of them."
        )
    return folder


def find_files(task: Task, source: Path, config: str = "") -> tuple[Path, ...]:
    """The files of a config's split: as the repository's README states, else by their names.

    Raises:
        FileNotFoundError: there are none.
    """
    folder = repository(task, source)
    # The README wins: repositories hold files of other configs with similar names.
    if files := _stated(folder, config, task.split) or _named(folder, config, task.split):
        return files

    what = f"config {config!r}, split {task.split!r}" if config else f"split {task.split!r}"
    raise FileNotFoundError(
        f"{task.name}: {folder} holds no data of {what}: expected files like "
        f"{config or 'data'}/{task.split}-00000-of-00001.parquet (or .jsonl, .json), or a "
        "README.md that says which. Was the download complete?"
    )


def read_rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Row]:
    """Rows of parquet or JSON files, in order.

    Raises:
        RowError: a row is none.
        ValueError: a file of another kind, or one without these columns.
    """
    for row in each_row(files, columns):
        match row:
            case RowError():
                raise row
            case Row():
                yield row


def each_row(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Row | RowError]:
    """Yields rows as `read_rows` does, with the error in place of a broken row."""
    for path in files:
        rows = _parquet_rows if path.suffix == ".parquet" else _json_rows
        # One broken row is yielded as an error, so that callers may skip it.
        for number, values in enumerate(rows(path, columns)):
            row = Row(f"{path}, row {number}", {})
            match values:
                case Broken(reason):
                    yield row.error("a JSON object", reason)
                case _ if missing := [name for name in columns if name not in values]:
                    yield RowError(_lacking(row.where, missing, values))
                case _:
                    yield replace(row, values=values)


def open_parquet(path: Path, columns: Sequence[str]) -> Any:
    """A `pyarrow.parquet.ParquetFile` that has these columns."""
    try:
        from pyarrow.parquet import ParquetFile  # it is needed by this command alone
    except ImportError:
        raise ValueError(
            f"{path}: reading parquet needs pyarrow; run `pip install -e '.[data]'`."
        ) from None

    try:
        table = ParquetFile(path)
    except parquet_faults() as error:
        raise _cut_parquet(path, error) from None

    names = table.schema_arrow.names
    if missing := [name for name in columns if name not in names]:
        raise ValueError(_lacking(str(path), missing, names))
    return table


def _cut_parquet(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no whole parquet file: {error!s:.200}. Fetch it again.")


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Cells | Broken]:
    with open_parquet(path, columns) as table:
        # Damage inside a row group shows only when it is read.
        try:
            yield from parquet_rows(table, columns, size=128)
        except parquet_faults() as error:
            raise _cut_parquet(path, error) from None


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[Cells | Broken]:
    try:
        yield from json_rows(path.read_bytes())
    except CellError as error:
        raise ValueError(
            f"{path} is broken: expected a JSON list of objects, or one object a line; {error}. "
            "Fetch it again."
        ) from None


def _lacking(where: str, missing: Sequence[str], columns: Iterable[str]) -> str:
    return (
        f"{where} lacks columns: {list(missing)}; it has {sorted(columns)!s:.200}. Is it the "
        "repository, config and split that docs/mmeb_v2.md names?"
    )


def _stated(folder: Path, config: str, split: str) -> tuple[Path, ...]:
    """Reads the front matter of README.md: `configs`, each with `data_files`."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    if not text.startswith("---"):
        return ()

    try:
        configs = yaml.safe_load(text.split("---", 2)[1])["configs"]
        # Without a name the config `default` counts, or else the first one.
        wanted = [c for c in configs if c["config_name"] == (config or "default")]
        wanted = wanted or ([] if config else configs[:1])
        patterns = [p for c in wanted for p in _patterns(c["data_files"], split)]
        patterns = convert(patterns, list[_Pattern], str(readme))
    except (yaml.YAMLError, KeyError, TypeError, IndexError, SchemaError, RecursionError):
        return ()  # most repositories state nothing, or not this

    # The README comes from elsewhere: a pattern must not reach out of the repository.
    if any(Path(pattern).is_absolute() or ".." in Path(pattern).parts for pattern in patterns):
        raise ValueError(f"{readme} names files outside its repository: {patterns}.")

    return tuple(path for pattern in patterns for path in sorted(folder.glob(pattern)))


def _patterns(data_files: Any, split: str) -> list[str]:
    if isinstance(data_files, str):
        return [data_files]
    paths = [entry["path"] for entry in data_files if entry["split"] == split]
    return [p for path in paths for p in ([path] if isinstance(path, str) else path)]


def _named(folder: Path, config: str, split: str) -> tuple[Path, ...]:
    """Finds files by name: `CONFIG/SPLIT-*`, `CONFIG.*`, `data/SPLIT-*`, or the only file."""
    if config:
        patterns = [f"{config}/{split}*", f"data/{config}/{split}*", f"{config}/*{split}*"]
        patterns += [f"{config}.*", f"*/{config}.*", f"{config}[-_]{split}*"]
    else:
        patterns = [f"data/{split}*", f"{split}*", f"*{split}*", f"data/*{split}*"]

    # Patterns go from narrow to wide, so that the split's own file is found before others.
    for pattern in patterns:
        for suffix in _SUFFIXES:
            if files := tuple(sorted(p for p in folder.glob(pattern) if p.suffix == suffix)):
                return files

    # A single file holds everything only if no config was asked for.
    single = [p for p in folder.rglob("*") if p.suffix in _SUFFIXES]
    return tuple(single) if len(single) == 1 and not config else ()
