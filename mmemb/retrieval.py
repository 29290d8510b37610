"""Galleries of embedded candidates, and what ranking queries in them gives.

Shapes: B queries, N candidates of a gallery, D embedding width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from mmemb.batches import CandidateOutput
from mmemb.distributed import gather_objects, gather_ragged
from mmemb.gate_inputs import score_shape
from mmemb.metrics import metrics_by_query
from mmemb.ranking import rank_positives
from mmemb.records import Query


@final
class Galleries:
    """Candidates by gallery; of rows with the same name the first counts."""

    def __init__(self, outputs: Sequence[CandidateOutput]) -> None:
        self._columns: dict[str, dict[str, int]] = defaultdict(dict)
        self._column_of_row: dict[str, dict[int, int]] = defaultdict(dict)
        places: dict[str, list[int]] = defaultdict(list)
        rows = [r for o in outputs for r in zip(o.galleries, o.names, o.rows, strict=True)]
        for place, (gallery, name, row) in enumerate(rows):
            columns = self._columns[gallery]
            if name not in columns:
                columns[name] = len(columns)
                places[gallery].append(place)
            self._column_of_row[gallery][row] = columns[name]
        vectors_ND = torch.cat([out.vectors_ND for out in outputs]) if outputs else torch.empty(0)
        self._vectors = {gallery: vectors_ND[place] for gallery, place in places.items()}

    def vectors(self, gallery: str) -> Tensor:
        """(N, D) vectors of a gallery."""
        if gallery not in self._vectors:
            raise ValueError(
                f"There is no gallery {gallery!r} among the candidates (there are "
                f"{sorted(self._vectors)}): the candidate table and tasks.json disagree; prepare "
                "the data again."
            )
        return self._vectors[gallery]

    def positives(self, query: Query) -> list[int]:
        """Columns of the query's right candidates; an absent one is an error."""
        columns = self._columns[query.gallery]
        missing = [name for name in query.relevance if name not in columns]
        if missing:
            raise ValueError(
                f"Query {query.key} ({query.task}): right candidate {missing[0]!r} is not in "
                f"gallery {query.gallery!r}; prepare the data again."
            )
        return [columns[name] for name in query.relevance]

    def log_probability(self, vectors_BD: Tensor, queries: Sequence[Query], tau: float) -> Tensor:
        """(B,) log-probability that a softmax over the gallery gives to the right candidates."""
        values = torch.zeros(len(queries), dtype=torch.float64)
        for row, (query, score_N) in enumerate(self._scores(vectors_BD, queries, tau)):
            right = score_N[self.positives(query)]
            values[row] = right.logsumexp(0) - score_N[self._columns_of(query)].logsumexp(0)
        return values

    def score_shapes(self, vectors_BD: Tensor, queries: Sequence[Query], tau: float) -> Tensor:
        """(B, 3) `score_shape` of each query over its candidates; no target is looked at."""
        shapes = torch.zeros(len(queries), 3)
        for row, (query, score_N) in enumerate(self._scores(vectors_BD, queries, tau)):
            shapes[row] = score_shape(score_N[self._columns_of(query)][None])[0]
        return shapes

    def of_query(self, query: Query) -> Tensor:
        """(N, D) vectors of the query's candidates: its gallery's, or its own list's."""
        return self.vectors(query.gallery)[self._columns_of(query)]

    def _scores(
        self, vectors_BD: Tensor, queries: Sequence[Query], tau: float
    ) -> list[tuple[Query, Tensor]]:
        """Each query with its scores over the whole gallery, in the order of the queries."""
        found: dict[int, Tensor] = {}
        for (gallery, _), rows in rankable(queries).items():
            score_BN = vectors_BD[rows].cpu().double() @ self.vectors(gallery).double().T / tau
            found |= dict(zip(rows, score_BN, strict=True))
        return [(query, found[row]) for row, query in enumerate(queries)]

    def _columns_of(self, query: Query) -> list[int] | slice:
        return slice(None) if query.candidates is None else self._local(query)

    def metrics(
        self, vectors_BD: Tensor, queries: Sequence[Query], cutoffs: Sequence[int]
    ) -> list[dict[str, float]]:
        """Tie-aware metrics of each query, in order, among its gallery or its own list."""
        found: list[dict[str, float]] = [{} for _ in queries]
        for (gallery, local), rows in rankable(queries).items():
            asked = [queries[row] for row in rows]
            ranks = rank_positives(
                vectors_BD[rows].cpu(),
                self.vectors(gallery),
                [self.positives(query) for query in asked],
                local_QC=[self._local(query) for query in asked] if local else None,
            )
            grades = [list(query.relevance.values()) for query in asked]
            for row, values in zip(rows, metrics_by_query(ranks, grades, cutoffs), strict=True):
                found[row] = values
        return found

    def _local(self, query: Query) -> list[int]:
        """Columns of the query's own candidate list."""
        columns, rows = self._column_of_row[query.gallery], query.candidates or ()
        right = set(self.positives(query))
        if absent := right - {columns[row] for row in rows if row in columns}:
            raise ValueError(
                f"Query {query.key} ({query.task}): its candidates.npy lacks {len(absent)} of its "
                f"{len(right)} right candidates, so no rank of theirs exists; prepare the data "
                "again."
            )
        if unknown := sorted(set(rows) - set(columns)):
            raise ValueError(
                f"Query {query.key} ({query.task}): candidates.npy lists row {unknown[0]}, which "
                f"gallery {query.gallery!r} does not have; prepare the data again."
            )
        return [columns[row] for row in rows]


def gather_candidates(outputs: Sequence[CandidateOutput], embedding_dim: int) -> CandidateOutput:
    """The candidates of all ranks. Collective: a rank without candidates must call it too."""
    empty = [torch.zeros(0, embedding_dim)]
    return CandidateOutput(
        vectors_ND=gather_ragged(torch.cat([*empty, *(out.vectors_ND for out in outputs)])),
        names=tuple(gather_objects([name for out in outputs for name in out.names])),
        galleries=tuple(gather_objects([name for out in outputs for name in out.galleries])),
        rows=tuple(gather_objects([row for out in outputs for row in out.rows])),
    )


def rankable(queries: Sequence[Query]) -> dict[tuple[str, bool], list[int]]:
    """Row numbers of the queries by gallery, apart by whether they have their own list."""
    rows: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for row, query in enumerate(queries):
        rows[query.gallery, query.candidates is not None].append(row)
    return rows
