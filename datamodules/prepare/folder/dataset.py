"""A local Hugging Face data set as cells: Parquet files, or what `datasets` saved to disk.

Read by pyarrow alone, batch by batch. A cell of a column of pictures names the picture inside of
its file; its bytes are not read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, final

import msgspec

from datamodules.prepare.cells import Broken, shown
from datamodules.prepare.folder.columns import GUIDE, Columns
from datamodules.prepare.folder.containers import check_inside, open_arrow
from datamodules.prepare.row_files import Cells, check_heading, column_values, parquet_faults
from mmemb.records.schema import Excerpt, parse_json, read_json

_STATE, _DICT = "state.json", "dataset_dict.json"

_SPLIT = re.compile(r"(train|val|validation|valid|dev|gate|calibration|test)(?=[-_.]|$)", re.I)
_OURS = {"validation": "val", "valid": "val", "dev": "val"}

_BATCH = 1024
_SMALL_BATCH = 16
"""Rows that are read at once where pictures must be read, too, to see whether there is one."""


@final
class _FileJson(Excerpt):
    filename: str


@final
class _StateJson(Excerpt):
    """The fields of `state.json` that say where rows are."""

    data_files: list[_FileJson] = msgspec.field(name="_data_files")
    indices: list[_FileJson] | None = msgspec.field(name="_indices_data_files", default=None)


@final
class _DictJson(Excerpt):
    """The content of `dataset_dict.json`: names of folders."""

    splits: list[str]


@final
class _InfoJson(Excerpt):
    features: dict[str, Any] = {}


@final
class _FeaturesJson(Excerpt):
    """The metadata that `datasets` writes into a schema."""

    info: _InfoJson = _InfoJson()


def find_files(place: Path) -> tuple[Path, list[Path]]:
    """Returns the files of a data set in the order of their rows, and a folder above all.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was saved in a form that is not read.
    """
    if place.is_file() and place.suffix.lower() in (".parquet", ".arrow"):
        return place.parent, [place]

    files = _saved(place) or [
        path
        for path in sorted(place.rglob("*.parquet"))
        if not any(part.startswith(".") for part in path.relative_to(place).parts)
    ]
    if not files:
        raise FileNotFoundError(
            f"--dataset {place} holds no data set: expected Parquet files, or a folder that "
            f"`datasets` wrote by save_to_disk ({GUIDE})."
        )
    check_inside(place, files)
    return place, files


def dataset_cells(
    folder: Path, files: Sequence[Path], columns: Columns, remarks: list[str], with_splits: bool
) -> Iterator[Cells | Broken]:
    """Yields the rows of all files.

    Args:
        folder: that names of pictures start from.
        files: below it.
        columns: learn the columns of the first file.
        remarks: gets a sentence about splits that files are named by.
        with_splits: gives rows the split that their file or a folder is named by, unless there is a
            column split.

    Raises:
        ValueError: a file is damaged or has other columns than the first one, or the mapping does
            not fit.
    """
    names: list[str] = []
    for number, path in enumerate(files):
        reader = _Reader(folder, path)
        if not number:
            names = reader.names
            splits = {_split_of(file.relative_to(folder)) for file in files} - {""}
            is_split = with_splits and bool(splits) and not columns.takes("split", names)
            columns.match(str(path), [*names, "split"] if is_split else names, reader.pictures)
            used = columns.used(names)
            if is_split:
                listed = ", ".join(sorted(splits))
                remarks.append(f"splits by the names of files and folders: {listed}.")

        if sorted(reader.names) != sorted(names):
            differ = sorted({*reader.names} ^ {*names})
            raise ValueError(
                f"{path} has other columns than {files[0]} ({', '.join(map(shown, differ))}): "
                "prepare one data set at a time."
            )

        split = {"split": _split_of(path.relative_to(folder))} if is_split else {}
        for row in reader.rows(used):
            yield split | row


@final
class _Reader:
    """Rows of one file.

    Attributes:
        names: of its columns.
        pictures: columns that hold bytes, or structs with bytes and a path.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self._path, self._below = path, path.relative_to(folder).as_posix()
        self._is_arrow = path.suffix.lower() == ".arrow"

        try:
            schema = self._schema()
            self.names: list[str] = schema.names
            self.pictures = [field.name for field in schema if _holds_bytes(field.type)]
        except parquet_faults() as error:  # names may be no UTF-8, too
            raise self._damaged(error) from None

        check_heading(path, self.names)
        self._labels = _labels(path, schema.metadata or {})

    def rows(self, used: Sequence[str]) -> Iterator[Cells]:
        """Yields the used cells of each row."""
        start = 0
        for batch in self._batches(used):
            columns = {
                name: self._cells(name, batch.column(batch.schema.get_field_index(name)), start)
                for name in used
            }
            for cells in zip(*columns.values(), strict=True):
                yield dict(zip(columns, cells, strict=True))
            start += batch.num_rows

    def _cells(self, name: str, column: Any, start: int) -> Sequence[Any]:
        if name in self.pictures:
            present = column.is_valid().to_pylist()
            return [
                [f"{self._below}/{name}/{row}"] if is_there else None
                for row, is_there in enumerate(present, start)
            ]

        values = column_values(column)
        if (labels := self._labels.get(name)) is not None:
            return [_label(labels, value) for value in values]
        return values

    def _schema(self) -> Any:
        from pyarrow import ipc, parquet

        if self._is_arrow:
            with ipc.open_stream(str(self._path)) as reader:
                return reader.schema
        with parquet.ParquetFile(self._path) as file:
            return file.schema_arrow

    def _batches(self, used: Sequence[str]) -> Iterator[Any]:
        if self._is_arrow:
            yield from open_arrow(self._path)
            return

        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self._path) as file:
                leaves = self._leaves(file.schema_arrow, used)
                size = _SMALL_BATCH if {*self.pictures} & {*leaves} else _BATCH
                yield from file.iter_batches(batch_size=size, columns=leaves)
        except parquet_faults() as error:
            raise self._damaged(error) from None

    def _leaves(self, schema: Any, used: Sequence[str]) -> list[str]:
        """Columns to read: of a picture its path alone, which tells whether there is one."""
        leaves = []
        for name in used:
            kind = schema.field(name).type
            fields = kind if name in self.pictures and not _is_binary(kind) else ()
            light = [field.name for field in fields if not _is_binary(field.type)]
            leaves.append(f"{name}.{light[0]}" if light else name)
        return leaves

    def _damaged(self, error: Exception) -> ValueError:
        kind = "Arrow stream" if self._is_arrow else "Parquet file"
        return ValueError(f"{self._path} is no whole {kind} ({error!s:.200}).")


def _saved(place: Path) -> list[Path]:
    """The data files of a folder that `save_to_disk` wrote, in order; none if it did not."""
    folders = [place]
    if (place / _DICT).is_file():
        names = read_json(place / _DICT, _DictJson).splits
        folders = [place / _plain(name, place / _DICT) for name in names]
    elif not (place / _STATE).is_file():
        return []

    files = []
    for folder in folders:
        state = read_json(folder / _STATE, _StateJson)
        if state.indices:
            raise ValueError(
                f"{folder} chooses rows by an index of an old version of `datasets`: call "
                "flatten_indices() and save it again."
            )
        files += [folder / _plain(each.filename, folder / _STATE) for each in state.data_files]
    return files


def _plain(name: str, where: Path) -> str:
    # A name with folders could lead out of the data set.
    if PurePosixPath(name).name != name:
        raise ValueError(f"{where} names {shown(name)}: expected a name beside it, without `/`.")
    return name


def _split_of(path: Path) -> str:
    """The split that a file is named by, or else the nearest folder."""
    for part in reversed(path.parts):
        if match := _SPLIT.match(part):
            name = match[1].lower()
            return _OURS.get(name, name)
    return ""


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _labels(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes of each column of labels."""
    if (data := metadata.get(b"huggingface")) is None:
        return {}

    features = parse_json(data, _FeaturesJson, f"{path}, its metadata").info.features
    return {
        name: [str(label) for label in feature["names"]]
        for name, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }


def _label(labels: Sequence[str], value: Any) -> Any:
    # `datasets` writes -1 for a row without a label, as in its hidden test splits.
    if value is None or value == -1:
        return None
    if isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    return Broken(f"{shown(value)} is no label, of which there are {len(labels)}")
