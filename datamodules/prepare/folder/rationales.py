"""Rationales that others wrote, by the id of a row, as a pool that `PrecomputedWriter` reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from msgspec.structs import replace

from datamodules.lines import split_lines
from datamodules.prepare.cells import CellError, shown, text_of
from datamodules.prepare.folder.sample_keys import sample_key
from datamodules.prepare.folder.write import PAIRS, QUERIES
from datamodules.prepare.row_files import json_row
from datamodules.samples import SampleReader, rows_of
from mmemb.rationales.writers.pool import write_pool
from mmemb.records.inputs import Side
from mmemb.records.rationales import UNKNOWN, Rationale
from mmemb.records.schema import Schema, SchemaError, convert
from mmemb.storage.manifests import MANIFEST
from mmemb.storage.shard_index import ShardIndex

_WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")

_Words = str | int | float | None


@final
class _PartsJson(Schema):
    thinking: _Words = None
    answer: _Words = None


@final
class _LineJson(Schema):
    id: str | int
    rationales: list[_Words | _PartsJson]


@final
@dataclass(frozen=True, slots=True)
class GivenRationales:
    """The content of a file of rationales.

    Attributes:
        by_id: id of a row -> its rationales.
        faults: one sentence for each line that is left out.
    """

    by_id: Mapping[str, tuple[Rationale, ...]]
    faults: tuple[str, ...]


def read_rationales(path: Path, ids: Collection[str]) -> GivenRationales:
    """Reads JSON lines `{"id": ..., "rationales": ["text" or {"thinking": ..., "answer": ...}]}`.

    A text may carry its tags, `<think>...</think><answer>...</answer>`; a number is a text.

    Args:
        path: of the file.
        ids: of the rows that it may be about.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected JSON lines with rationales.")

    try:
        lines = split_lines(path.read_bytes())
    except OSError:
        raise ValueError(f"{path} cannot be read: is there no permission?") from None

    by_id: dict[str, tuple[Rationale, ...]] = {}
    faults = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue

        # All faults of the file are collected: one bad line must not hide the others.
        try:
            key, rationales = _line(line)
            if key in by_id:
                raise CellError(f"id {shown(key)} occurs twice")
            if key not in ids:
                raise CellError(f"id {shown(key)} is that of no row of the table")

            by_id[key] = rationales
        except CellError as error:
            faults.append(f"{path.name}, line {number}: {error}")

    return GivenRationales(by_id, tuple(faults))


def write_rationales(rationale_file: GivenRationales, out: Path, path: Path) -> tuple[int, int]:
    """Joins rationales with the data by id and writes a pool.

    Args:
        rationale_file: what was read; rationales of rows that the data lacks are left out.
        out: the prepared data.
        path: of the pool.

    Returns:
        Rows with rationales, and rows without.
    """
    sides = _sides(out)
    # Rows with faults were skipped, and their rationales go with them.
    joined = {
        key: rationales
        for own_id, rationales in rationale_file.by_id.items()
        if (key := sample_key(own_id)) in sides
    }

    pool: dict[str, tuple[Rationale, ...]] = {}
    for key, rationales in joined.items():
        # Two rows may ask the same: a seed stands for one rationale of both.
        digest = sides[key].digest
        others = pool.get(digest, ())
        more = (replace(each, seed=n) for n, each in enumerate(rationales, len(others)))
        pool[digest] = (*others, *more)

    write_pool(path, pool)
    return len(joined), len(sides) - len(joined)


def _sides(out: Path) -> dict[str, Side]:
    reader, sides = SampleReader(pixels=False), {}
    for folder in (PAIRS, QUERIES):
        if (out / folder / MANIFEST).is_file():
            rows = rows_of(ShardIndex.open(out / folder))
            sides |= {row.entry.key: reader.query_side(row) for row in rows}
    return sides


def _line(data: bytes) -> tuple[str, tuple[Rationale, ...]]:
    try:
        line = convert(json_row(data), _LineJson, "")
    except SchemaError as error:
        raise CellError(error.problem.removeprefix(": ").removesuffix(".")) from None
    return text_of(line.id), tuple(_rationales(line.rationales))


def _rationales(values: list[_Words | _PartsJson]) -> Iterator[Rationale]:
    for number, each in enumerate(values):
        try:
            thinking, answer = _parts(each)
        except CellError as error:
            # The position shows which of several rationales is wrong.
            raise CellError(f"rationales[{number}]: {error}") from None

        text = f"<think>{thinking}</think><answer>{answer}</answer>"
        # The origin is unknown, so no model and no prompt are named.
        yield Rationale(
            text, "given", "", "", "", "", seed=number, num_tokens=len(text.split()),
            provenance=UNKNOWN,
        )  # fmt: skip


def _parts(value: _Words | _PartsJson) -> tuple[str, str]:
    """Splits a rationale into thinking and answer."""
    match value:
        case _PartsJson(thinking=thinking, answer=answer):
            parts = (text_of(thinking), text_of(answer))
        case words:
            text = text_of(words)
            whole = _WHOLE.fullmatch(text)
            parts = (whole[1].strip(), whole[2].strip()) if whole else ("", text)

    if not any(parts):
        raise CellError("expected something in thinking or answer")
    if not parts[1]:
        # A text in one piece is an answer without thinking: one without an answer counts as a
        # draw that was cut off.
        parts = ("", parts[0])
    # A tag inside would break the parser of `<think>` and `<answer>` in training.
    if tag := _TAG.search("".join(parts)):
        raise CellError(
            f"{tag[0]} stands inside a text: expected thinking and answer apart, or "
            "<think>...</think><answer>...</answer>"
        )
    return parts
