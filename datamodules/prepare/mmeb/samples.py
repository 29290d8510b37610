"""Rows of a plan as samples of `queries/` and `candidates/`, with the fields of `rows.QueryRow`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from datamodules.prepare.mmeb.pictures import UnreadableError
from datamodules.prepare.mmeb.plan import TaskPlan
from mmemb.shard_writer import Sample, encode_members

PART = "test"


def query_sample(
    plan: TaskPlan, number: int, media: Mapping[str, bytes], row_of: Mapping[int, int]
) -> Sample:
    """A query.

    Args:
        plan: of its task.
        number: of the query in the order of the data.
        media: its pictures, by member name.
        row_of: number of a candidate -> its row in the table, without those that were left out.

    Raises:
        UnreadableError: it is empty, or none of its right candidates is left.
    """
    query = plan.queries[number]
    _check_content(query.where, "query", query.text, media)
    relevance = _left(plan, number, row_of)
    if not relevance:
        raise UnreadableError(f"{query.where}: none of the query's right candidates is left.")
    concept = f"{plan.task.name}:{query.concept}"
    data = {
        "task": plan.task.name,
        "part": PART,
        "concept": concept,
        "fact": f"{concept}/{number}",
        "instruction": query.instruction,
        "text": query.text,
        "relevance": relevance,
        "answers": list(query.answers),
    }
    meta = {k: data[k] for k in ("task", "part", "concept", "fact")} | {"gallery": plan.task.name}
    members = dict(media)
    if query.candidates is not None:
        rows = [row_of[n] for n in query.candidates.tolist() if n in row_of]
        members |= encode_members({"candidates.npy": np.array(rows, np.int32)})
    return _sample(number, data, members, meta)


def candidate_sample(plan: TaskPlan, number: int, media: Mapping[str, bytes]) -> Sample:
    """A row of the candidate table.

    Raises:
        UnreadableError: it is empty.
    """
    row, gallery = plan.candidates[number], plan.task.name
    _check_content(row.where, f"candidate {row.name!r:.60}", row.text, media)
    data = {"name": row.name, "gallery": gallery, "instruction": row.instruction, "text": row.text}
    return _sample(number, data, dict(media), {"gallery": gallery, "name": row.name})


def _left(plan: TaskPlan, number: int, row_of: Mapping[int, int]) -> dict[str, float]:
    """The query's right candidates that are in the table."""
    relevance = plan.queries[number].relevance
    if len(row_of) == len(plan.candidates):
        return dict(relevance)
    left = {plan.candidates[n].name for n in row_of}
    return {name: grade for name, grade in relevance.items() if name in left}


def _check_content(where: str, what: str, text: str, media: Mapping[str, bytes]) -> None:
    if not text and not media:
        raise UnreadableError(f"{where}: the {what} has neither text nor pictures.")


def _sample(
    number: int, data: dict[str, Any], members: dict[str, bytes], meta: dict[str, str]
) -> Sample:
    encoded = json.dumps(data, ensure_ascii=False, sort_keys=True).encode()
    return Sample(f"{number:08d}", members | {"json": encoded}, meta)
