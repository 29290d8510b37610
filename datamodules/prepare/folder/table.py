"""Tables of pairs (CSV, Parquet, JSON lines) as rows; what a row says wrongly becomes a fault."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from mmemb.records import PARTS

COLUMNS = (
    "id", "task", "split", "query_text", "query_media", "target_text", "target_media",
    "negative_text", "negative_media", "instruction", "concept",
)  # fmt: skip

_NESTED = {"id", "task", "split", "query", "positives", "negatives", "concept"}
_SIDE = {"text", "media", "instruction"}


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
        faults: what is wrong with it.
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

    @property
    def sides(self) -> tuple[OwnSide, ...]:
        """All of them, the query first."""
        return (self.query, *self.positives, *self.negatives)

    @property
    def topic(self) -> str:
        """Subject of the row: its concept, or the name of its first target."""
        return self.concept or self.positives[0].name


def read_table(path: Path) -> Iterator[OwnRow]:
    """The rows of a table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the three kinds, or is broken as a whole.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: the table of pairs (.csv, .parquet, .jsonl).")
    readers = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a table that ends in {', '.join(sorted(readers))}.")
    number = 0
    try:
        for number, (data, fault) in enumerate(readers[path.suffix](path), 1):
            yield _row(number, data, fault)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read after row {number} ({error}): expected comma-separated UTF-8."
        ) from None


def _csv(path: Path) -> Iterator[tuple[Any, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{path}: column(s) {twice} occur twice in the heading.")
        for row in reader:
            more = row.pop(None, None)  # type: ignore[call-overload]
            yield row, f"{len(more)} more cells than the heading" if more else ""


def _parquet(path: Path) -> Iterator[tuple[Any, str]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from ((row, "") for row in batch.to_pylist())
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}.") from None


def _json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    with open(path, "rb") as file:  # a line that is no UTF-8 is that line's fault
        for line in file:
            try:
                yield (json.loads(line), "") if line.strip() else ({}, "the line is empty")
            except ValueError as error:
                yield {}, f"no JSON ({error})"


def _row(number: int, data: Any, fault: str) -> OwnRow:
    if fault or not isinstance(data, dict):
        return OwnRow(number, "", "", "", OwnSide(), (), faults=(fault or "no JSON object",))
    data = {key: value for key, value in data.items() if value not in (None, "")}
    nested = isinstance(data.get("query"), dict)
    faults: list[str] = []
    if unknown := sorted(set(data) - (_NESTED if nested else set(COLUMNS))):
        faults.append(f"unknown column(s) {unknown}")
    query, positives, negatives = (_of_nested if nested else _of_flat)(data, faults)
    row = OwnRow(
        number, *(str(data.get(name, "")) for name in ("id", "task", "split")),
        query, positives, negatives, str(data.get("concept", "")),
    )  # fmt: skip
    faults += [f"no {name}" for name in ("id", "task") if not getattr(row, name)]
    if row.split not in PARTS:
        faults.append(f"split {row.split!r}: expected one of {list(PARTS)}")
    if not positives:
        faults.append("no target")
    faults += ["an empty side (neither text nor media)" for side in row.sides if not side.name]
    return OwnRow(
        row.number, row.id, row.task, row.split, query, positives, negatives, row.concept,
        tuple(faults),
    )  # fmt: skip


Sides = tuple[OwnSide, tuple[OwnSide, ...], tuple[OwnSide, ...]]


def _of_flat(data: Mapping[str, Any], faults: list[str]) -> Sides:
    def side(kind: str, instruction: str = "") -> OwnSide:
        media = tuple(p.strip() for p in str(data.get(f"{kind}_media", "")).split("|") if p.strip())
        return OwnSide(str(data.get(f"{kind}_text", "")), media, instruction)

    target, negative = side("target"), side("negative")
    negatives = (negative,) if negative.name else ()
    return side("query", str(data.get("instruction", ""))), (target,), negatives


def _of_nested(data: Mapping[str, Any], faults: list[str]) -> Sides:
    def side(given: Any, what: str) -> OwnSide:
        if not isinstance(given, dict) or set(given) - _SIDE:
            faults.append(f"{what}: expected an object with some of {sorted(_SIDE)}")
            return OwnSide("?")
        media = given.get("media") or ()
        media = [media] if isinstance(media, str) else media
        text, instruction = (str(given.get(key) or "") for key in ("text", "instruction"))
        return OwnSide(text, tuple(map(str, media)), instruction)

    def several(key: str) -> tuple[OwnSide, ...]:
        given = data.get(key) or []
        if not isinstance(given, list):
            faults.append(f"{key}: expected a list")
            given = []
        return tuple(side(each, f"{key}[{n}]") for n, each in enumerate(given))

    return side(data["query"], "query"), several("positives"), several("negatives")
