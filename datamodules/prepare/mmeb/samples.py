"""Rows of a plan as samples of `queries/` and `candidates/`, with the fields of `rows.QueryRow`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from datamodules.data_roots import REPEATS
from datamodules.prepare.mmeb.pictures import UnreadableError
from datamodules.prepare.mmeb.plan import TaskPlan
from mmemb.storage.shard_writer import Sample, encode_members

SPLIT = "test"


@final
@dataclass(frozen=True, slots=True)
class Table:
    """The candidate table as it was written.

    Attributes:
        row_of: number of a candidate in the plan -> its row.
        lost: names of candidates that were left out.
    """

    row_of: Mapping[int, int]
    lost: frozenset[str]

    @classmethod
    def of(cls, plan: TaskPlan, kept: Sequence[int]) -> Table:
        """Builds the table from the numbers of the candidates that it holds, in order."""
        row_of = {number: row for row, number in enumerate(kept)}
        lost = (c.name for n, c in enumerate(plan.candidates) if n not in row_of)
        return cls(row_of, frozenset(lost))


def query_sample(plan: TaskPlan, number: int, media: Mapping[str, bytes], table: Table) -> Sample:
    """Returns the sample of a query.

    Args:
        plan: of its task.
        number: of the query in the order of the data.
        media: its pictures, by member name.
        table: of its candidates.

    Raises:
        UnreadableError: it is empty, or none of its right candidates is left.
    """
    query = plan.queries[number]
    _check_content(query.where, "query", query.text, media)
    # Candidates without a picture were left out, and a grade for them would name no row.
    relevance = {name: g for name, g in query.relevance.items() if name not in table.lost}
    if not relevance:
        raise UnreadableError(f"{query.where}: none of the query's right candidates is left.")

    concept = f"{plan.task.name}:{query.concept}"
    data = {
        "task": plan.task.name,
        "split": SPLIT,
        "concept": concept,
        "fact": f"{concept}/{number}",
        "instruction": query.instruction,
        "text": query.text,
        "relevance": relevance,
        "answers": list(query.answers),
    }

    meta = {k: data[k] for k in ("task", "split", "concept", "fact")} | {"gallery": plan.task.name}
    members = dict(media)
    # Rows of the written table, not of the plan: rows that were left out shift all later ones.
    if query.candidates is not None:
        rows = [table.row_of[n] for n in query.candidates.tolist() if n in table.row_of]
        members |= encode_members({"candidates.npy": np.array(rows, np.int32)})
        if repeats := len(rows) - len(set(rows)):
            data[REPEATS] = repeats  # as published; a repeat that is not stated is refused
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


def _check_content(where: str, what: str, text: str, media: Mapping[str, bytes]) -> None:
    if not text and not media:
        raise UnreadableError(f"{where}: the {what} has neither text nor pictures.")


def _sample(
    number: int, data: dict[str, Any], members: dict[str, bytes], meta: dict[str, str]
) -> Sample:
    return Sample(f"{number:08d}", members | encode_members({"json": data}), meta)
