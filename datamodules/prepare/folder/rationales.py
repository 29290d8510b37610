"""Rationales that others wrote, by the id of a row, as a pool that `PrecomputedWorker` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.prepare.folder.write import PAIRS, QUERIES
from datamodules.samples import SampleReader, rows_of
from mmemb.rationales.pools import write_pool
from mmemb.records import Rationale, Side
from mmemb.shards import MANIFEST, ShardIndex


def write_rationales(given: Path, out: Path, path: Path) -> tuple[int, int]:
    """Joins a file of JSON lines with the data by id and writes a pool.

    Args:
        given: lines `{"id": ..., "rationales": ["text" or {"thinking": ..., "answer": ...}]}`.
        out: the prepared data.
        path: of the pool.

    Returns:
        Rows with rationales, and rows without.

    Raises:
        ValueError: a line that is none, an id that occurs twice or that the data lacks; all of them
            are listed.
    """
    written = dict(_read(given))
    sides = _sides(out)
    if unknown := sorted(set(written) - set(sides)):
        raise ValueError(
            f"{given}: {len(unknown)} id(s) are not in {out}, e.g. {unknown[:3]}: expected ids of "
            "the table that the data was made from."
        )
    pool: dict[str, tuple[Rationale, ...]] = {}
    for key, rationales in written.items():
        digest = sides[key].digest
        pool[digest] = (*pool.get(digest, ()), *rationales)
    write_pool(path, pool)
    return len(written), len(sides) - len(written)


def _sides(out: Path) -> dict[str, Side]:
    reader, found = SampleReader(pixels=False), {}
    for folder in (PAIRS, QUERIES):
        if (out / folder / MANIFEST).is_file():
            rows = rows_of(ShardIndex.open(out / folder))
            found |= {row.entry.key: reader.query_side(row) for row in rows}
    return found


def _read(path: Path) -> Iterator[tuple[str, tuple[Rationale, ...]]]:
    faults, seen = [], set()
    with open(path, "rb") as file:  # a line that is no UTF-8 is that line's fault
        for number, line in enumerate(file, 1):
            try:
                data = json.loads(line)
                key, given = str(data["id"]), data["rationales"]
                if not isinstance(given, list):
                    raise ValueError("rationales: expected a list")
                if key in seen:
                    raise ValueError(f"id {key!r} occurs twice")
                seen.add(key)
                yield key, tuple(_rationale(each, n) for n, each in enumerate(given))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                faults.append(f"line {number}: {type(error).__name__} {error}")
    if faults:
        listed = "\n".join(faults[:20])
        raise ValueError(
            f'{path}: {len(faults)} line(s) are not {{"id": ..., "rationales": [...]}}:\n{listed}'
        )


def _rationale(given: Any, number: int) -> Rationale:
    if isinstance(given, str):
        given = {"answer": given}
    thinking, answer = (str(given.get(key) or "") for key in ("thinking", "answer"))
    if not (thinking or answer):
        raise ValueError("a rationale without thinking and answer")
    text = f"<think>{thinking}</think><answer>{answer}</answer>"
    return Rationale(
        text, "given", "", "", "", "", seed=number, num_tokens=len(text.split()),
        provenance="unknown",
    )  # fmt: skip
