"""Queries of a file or of a data root, read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from datamodules.lines import split_lines
from datamodules.prepare.cells import CellError
from datamodules.prepare.row_files import json_row
from datamodules.samples import FeatureTable, Row, SampleReader
from mmemb.media.inputs import Input
from mmemb.records.inputs import Side
from mmemb.records.schema import Schema, parse_json
from mmemb.records.text import has_text
from mmemb.storage.shard_index import ShardIndex

_QUERIES = "queries"
_JSON_LINES = (".jsonl", ".ndjson")


@final
class _QueryJson(Schema):
    """A line of a file of queries; files are named from the folder of that file."""

    text: str = ""
    image: str | tuple[str, ...] = ()
    video: str = ""
    instruction: str = ""


def read_queries(
    path: Path, split: str = "", tasks: Sequence[str] = (), features: Path | None = None
) -> Sequence[Input]:
    """Returns the queries; their pictures are read when they are taken.

    Args:
        path: a data root, JSON lines (`.jsonl`), or any other file of texts, one a line.
        split: of the data root.
        tasks: of the data root; none = all.
        features: cached features of the data root's pictures, for a backbone without a tower.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a line is no query, there are none, or the data root has no such split or task.
    """
    if path.is_dir():
        return _of_root(path, split, tasks, features)
    if split or tasks or features:
        raise ValueError(
            f"{path} is a file, which has no splits, tasks or features: leave --split, --task and "
            "--features out, or name a data root."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: expected a file of queries (a text on each line, or JSON lines "
            "in a file .jsonl), or a data root."
        )

    if path.suffix.lower() == ".json":
        raise ValueError(
            f"{path} is JSON: expected JSON lines, an object on each line of a file .jsonl."
        )

    is_json = path.suffix.lower() in _JSON_LINES
    queries: list[Input] = []
    for number, line in enumerate(split_lines(path.read_bytes()), 1):
        where = f"{path}, line {number}"
        text = _text(line, where)
        if has_text(text):
            queries.append(_of_json(line, path.parent, where) if is_json else Side(text))

    if not queries:
        raise ValueError(f"{path} holds no query: expected a text, or a JSON object, on each line.")
    return queries


def _text(line: bytes, where: str) -> str:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{where} is no UTF-8: save the file as UTF-8.") from None

    # The old Mac's ends of lines would make the whole file one query.
    if "\r" in text or "\0" in text:
        raise ValueError(
            f"{where} holds a carriage return or a NUL: save the file as plain text whose lines "
            "end with a line feed."
        )
    return text


def _of_json(line: bytes, folder: Path, where: str) -> dict[str, Any]:
    row = parse_json(line, _QueryJson, where, "Keys are text, image, video and instruction.")
    try:
        json_row(line)
    except CellError as error:  # a key that occurs twice, of which the last would count
        raise ValueError(f"{where}: {error}.") from None

    images = (row.image,) if isinstance(row.image, str) else row.image
    if not (has_text(row.text) or images or row.video):
        raise ValueError(f"{where} holds no query: give it a `text`, an `image` or a `video`.")

    # One without the key takes the instruction of the call.
    query: dict[str, Any] = {"text": row.text}
    if row.instruction:
        query["instruction"] = row.instruction
    if images:
        query["image"] = [_picture(image, folder) for image in images]
    if row.video:
        query["video"] = folder / row.video
    return query


def _picture(image: str, folder: Path) -> str | Path:
    return image if image.startswith("data:") else folder / image


@final
class _Rows(Sequence[Side]):
    """Sides of a data root: a list of all their pictures may exceed the memory."""

    def __init__(self, rows: Sequence[Row], reader: SampleReader) -> None:
        self._rows, self._reader = rows, reader

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._reader.query_side(self._rows[place])


def _of_root(root: Path, split: str, tasks: Sequence[str], features: Path | None) -> Sequence[Side]:
    folder = root / _QUERIES if (root / _QUERIES).is_dir() else root
    index = ShardIndex.open(folder)
    rows = [Row(index, entry) for entry in index.entries]

    for name, wanted in (("split", [split] if split else []), ("task", tasks)):
        there = {row.meta.get(name, "") for row in rows}
        if unknown := sorted(set(wanted) - there):
            raise ValueError(
                f"{folder} has no {name} {unknown[0]!r}; there are {', '.join(sorted(there))}."
            )
        rows = [row for row in rows if not wanted or row.meta.get(name) in wanted]

    if not rows:
        raise ValueError(f"{folder} holds no query of this split and these tasks.")
    return _Rows(rows, SampleReader(FeatureTable(features) if features else None))
