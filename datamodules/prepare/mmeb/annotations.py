"""Reads annotations: finds the files of a repository's config and split, checks every row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmemb.benchmarks.mmeb_v2 import Task
from mmemb.lines import split_lines

FOLDER = "annotations"
"""Below the source: `OWNER/REPOSITORY`, as `hf download` fills it."""

_SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Row:
    """One annotation; what it lacks or has of another kind is an error that names file and row."""

    where: str
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A text; null is the empty one."""
        value = self.values[name]
        return "" if value is None else self._of_type(name, value, str, "a text")

    def texts(self, name: str) -> list[str]:
        """A list of texts, not empty."""
        found = self._of_type(name, self.values[name], list, "a list of texts")
        if not found:
            raise self.error(f"a list of texts in {name!r}", "an empty one")
        return [self._of_type(name, item, str, "a list of texts") for item in found]

    def name(self, name: str) -> str:
        """An id in text form."""
        value = self.values[name]
        text = str(value) if type(value) is int else value
        if not self._of_type(name, text, str, "an id"):
            raise self.error(f"an id in {name!r}", "an empty text")
        return text

    def index(self, name: str, length: int) -> int:
        """A whole number from 0 to `length` - 1, which may be written as text."""
        text = str(self.values[name])
        if not text.isdecimal() or int(text) >= length:
            raise self.error(f"a whole number below {length} in {name!r}", repr(text))
        return int(text)

    def error(self, expected: str, found: str) -> ValueError:
        """Says what is wrong with the row."""
        return ValueError(
            f"{self.where}: expected {expected}; found {found:.100}. Fetch the file again; if it "
            "stays, the published data has changed."
        )

    def _of_type(self, name: str, value: Any, kind: type, expected: str) -> Any:
        if not isinstance(value, kind):
            raise self.error(f"{expected} in {name!r}", f"{type(value).__name__} {value!r:.60}")
        return value


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
    if found := _stated(folder, config, task.split) or _named(folder, config, task.split):
        return found
    what = f"config {config!r}, split {task.split!r}" if config else f"split {task.split!r}"
    raise FileNotFoundError(
        f"{task.name}: {folder} holds no data of {what}: expected files like "
        f"{config or 'data'}/{task.split}-00000-of-00001.parquet (or .jsonl, .json), or a "
        "README.md that says which. Was the download complete?"
    )


def read_rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Row]:
    """Rows of parquet or JSON files, in order.

    Raises:
        ValueError: a file of another kind, or one without these columns.
    """
    for path in files:
        rows = _parquet_rows if path.suffix == ".parquet" else _json_rows
        for number, values in enumerate(rows(path, columns)):
            yield Row(f"{path}, row {number}", values)


def open_parquet(path: Path, columns: Sequence[str]) -> Any:
    """A `pyarrow.parquet.ParquetFile` that has these columns."""
    try:
        from pyarrow import ArrowInvalid  # it is needed by this command alone
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(
            f"{path}: reading parquet needs pyarrow; run `pip install -e '.[data]'`."
        ) from None
    try:
        table = ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"{path} is no whole parquet file: {error}. Fetch it again.") from None
    _check_columns(str(path), columns, table.schema_arrow.names)
    return table


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with open_parquet(path, columns) as table:
        for batch in table.iter_batches(batch_size=128, columns=list(columns)):
            yield from batch.to_pylist()


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    data = path.read_bytes()
    is_list = data.lstrip()[:1] == b"["
    try:
        lines = [line for line in split_lines(data) if line.strip()]
        rows = json.loads(data) if is_list else [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is broken: expected a JSON list of objects, or one object a line; {error}. "
            "Fetch it again."
        ) from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: expected a JSON object; found {row!r:.60}.")
        _check_columns(f"{path}, row {number}", columns, row)
        yield row


def _check_columns(where: str, wanted: Sequence[str], found: Sequence[str] | Mapping) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{where} has no column(s) {missing}; it has {sorted(found)}. Is it the repository, "
            "config and split that docs/mmeb_v2.md names?"
        )


def _stated(folder: Path, config: str, split: str) -> tuple[Path, ...]:
    """What the front matter of README.md says: `configs`, each with `data_files`."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if not text.startswith("---"):
        return ()
    try:
        configs = yaml.safe_load(text.split("---", 2)[1])["configs"]
        wanted = [c for c in configs if c["config_name"] == (config or "default")]
        wanted = wanted or ([] if config else configs[:1])
        patterns = [p for c in wanted for p in _patterns(c["data_files"], split)]
    except (yaml.YAMLError, KeyError, TypeError, IndexError):
        return ()  # most repositories state nothing, or not this
    if any(Path(pattern).is_absolute() or ".." in Path(pattern).parts for pattern in patterns):
        raise ValueError(f"{readme} names files outside its repository: {patterns}.")
    return tuple(path for pattern in patterns for path in sorted(folder.glob(pattern)))


def _patterns(data_files: Any, split: str) -> list[str]:
    if isinstance(data_files, str):
        return [data_files]
    paths = [entry["path"] for entry in data_files if entry["split"] == split]
    return [p for path in paths for p in ([path] if isinstance(path, str) else path)]


def _named(folder: Path, config: str, split: str) -> tuple[Path, ...]:
    """By the usual names: `CONFIG/SPLIT-*`, `CONFIG.*`, `data/SPLIT-*`, and the only file."""
    if config:
        patterns = [f"{config}/{split}*", f"data/{config}/{split}*", f"{config}/*{split}*"]
        patterns += [f"{config}.*", f"*/{config}.*", f"{config}[-_]{split}*"]
    else:
        patterns = [f"data/{split}*", f"{split}*", f"*{split}*", f"data/*{split}*"]
    for pattern in patterns:
        for suffix in _SUFFIXES:
            if found := tuple(sorted(p for p in folder.glob(pattern) if p.suffix == suffix)):
                return found
    single = [p for p in folder.rglob("*") if p.suffix in _SUFFIXES]
    return tuple(single) if len(single) == 1 and not config else ()
