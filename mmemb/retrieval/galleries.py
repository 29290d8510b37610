"""Galleries of embedded candidates, and what ranking queries in them gives.

Shapes: B queries, N candidates of a gallery, D embedding width.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.backbones.base import Backbone
from mmemb.distributed import gather_objects, gather_ragged
from mmemb.records.batches import CandidateBatch
from mmemb.records.gate_state import score_shape
from mmemb.records.outputs import CandidateOutput
from mmemb.records.pairs import Query
from mmemb.records.ranked_queries import RankedQuery
from mmemb.retrieval.ranking import TiedRanks, rank_positives, rank_scores, search
from mmemb.retrieval.ranking_metrics import chance_recall, metrics_by_query


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """Standing of one query's candidates.

    Attributes:
        rank: expected rank of the best right candidate, 1 at best; ties are in random order.
        top: name of the best candidate; of equals the one listed first.
    """

    rank: float
    top: str


@final
class Galleries:
    """Candidates by gallery; of rows with the same name the first counts.

    Raises:
        ValueError: a gallery lacks a row of the candidate table, or has one twice.
    """

    def __init__(self, outputs: Sequence[CandidateOutput]) -> None:
        check_complete(outputs)
        self._columns: dict[str, dict[str, int]] = defaultdict(dict)
        self._column_of_row: dict[str, dict[int, int]] = defaultdict(dict)
        places: dict[str, list[int]] = defaultdict(list)

        rows = [r for o in outputs for r in zip(o.galleries, o.names, o.rows, strict=True)]

        # Rows of one name share a column, but a local list may name any of these rows.
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

    def places(self, gallery: str) -> list[tuple[int, str]]:
        """Row in the candidate table and name of each column."""
        # Reversed, so that the first row of a name is the one that stays.
        row_of = {column: row for row, column in reversed(self._column_of_row[gallery].items())}
        return [(row_of[column], name) for name, column in self._columns[gallery].items()]

    def named(self, gallery: str, names: Sequence[Sequence[str]]) -> Tensor:
        """bool (B, N), True where a column bears one of a row's names; others are ignored."""
        columns = self._columns[gallery]
        named_BN = torch.zeros(len(names), len(columns), dtype=torch.bool)

        for row, row_names in enumerate(names):
            named_BN[row, [columns[name] for name in row_names if name in columns]] = True
        return named_BN

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

    def own_lists(self, queries: Sequence[Query]) -> list[list[int]] | None:
        """Columns of each query's own candidates, as listed; None = all have the whole gallery.

        A candidate that is listed twice is there twice, as the published evaluator ranks it.

        Raises:
            ValueError: some have a list of their own and some do not.
        """
        local = {query.candidates is not None for query in queries}
        if len(local) > 1:
            raise ValueError(
                f"Task {queries[0].task}: some queries have a list of candidates of their own and "
                "some do not; prepare the data again."
            )
        return [self._listed(query) for query in queries] if True in local else None

    def _scores(
        self, vectors_BD: Tensor, queries: Sequence[Query], tau: float
    ) -> list[tuple[Query, Tensor]]:
        """Each query with its scores over the whole gallery, in the order of the queries."""
        scores: dict[int, Tensor] = {}
        for gallery, rows, _ in self._rankable(queries):
            score_BN = vectors_BD[rows].cpu().double() @ self.vectors(gallery).double().T / tau
            scores |= dict(zip(rows, score_BN, strict=True))
        return [(query, scores[row]) for row, query in enumerate(queries)]

    def _num_candidates(self, query: Query) -> int:
        """How many candidates a query is ranked among; those of its own list count once."""
        if query.candidates is None:
            return len(self.vectors(query.gallery))
        return len(self._local(query))

    def _columns_of(self, query: Query) -> list[int] | slice:
        return slice(None) if query.candidates is None else self._local(query)

    def metrics(
        self, vectors_BD: Tensor, queries: Sequence[Query], cutoffs: Sequence[int]
    ) -> list[dict[str, float]]:
        """Tie-aware metrics of each query, in order, among its gallery or its own list."""
        metrics: list[dict[str, float]] = [{} for _ in queries]
        for rows, ranks in self._ranks(vectors_BD, queries):
            grades = [list(queries[row].relevance.values()) for row in rows]
            for row, values in zip(rows, metrics_by_query(ranks, grades, cutoffs), strict=True):
                metrics[row] = values
        return metrics

    def ranked(
        self, vectors_BD: Tensor, queries: Sequence[Query], cutoffs: Sequence[int], num_found: int
    ) -> list[RankedQuery]:
        """Each query with rank, metrics and chance level, in order.

        Args:
            vectors_BD: of the queries.
            queries: B queries.
            cutoffs: k of the metrics.
            num_found: names of the best candidates that are kept; 0 saves their search.
        """
        found = self.best(vectors_BD, queries, num_found) if num_found else [()] * len(queries)
        ranked: dict[int, RankedQuery] = {}

        for rows, ranks in self._ranks(vectors_BD, queries):
            grades = [list(queries[row].relevance.values()) for row in rows]
            metrics = metrics_by_query(ranks, grades, cutoffs)
            best = best_rank(ranks).tolist()

            for row, rank, values in zip(rows, best, metrics, strict=True):
                query = queries[row]
                count = self._num_candidates(query)
                ranked[row] = RankedQuery(
                    key=query.key,
                    task=query.task,
                    concept=query.concept,
                    gallery=query.gallery,
                    candidates=count,
                    right=tuple(sorted(query.relevance, key=lambda n: -query.relevance[n])),
                    rank=rank,
                    metrics=values | chance_recall(count, cutoffs),
                    found=found[row],
                )
        return [ranked[row] for row in range(len(queries))]

    def averaged_metrics(
        self,
        draws: Sequence[Tensor],
        queries: Sequence[Query],
        tau: float,
        cutoffs: Sequence[int],
    ) -> list[dict[str, float]]:
        """Metrics when the probabilities of several draws are averaged (docs/method.md section 4).

        Args:
            draws: (B, D) vectors of each draw.
            queries: B queries.
            tau: temperature of the softmax over the query's candidates.
            cutoffs: k of the metrics.
        """
        metrics = []

        scores = [self._scores(vectors_BD, queries, tau) for vectors_BD in draws]
        for row, query in enumerate(queries):
            columns = list(range(len(self.vectors(query.gallery))))
            columns = columns if query.candidates is None else self._local(query)

            p_N = torch.stack([score[row][1][columns].softmax(0) for score in scores]).mean(0)
            right = [columns.index(column) for column in self.positives(query)]

            ranks = rank_scores(p_N.log()[None], torch.tensor([right]))
            metrics += metrics_by_query(ranks, [list(query.relevance.values())], cutoffs)
        return metrics

    def standings(self, vectors_BD: Tensor, queries: Sequence[Query]) -> list[Standing]:
        """Rank of the right candidate and name of the best one, of each query in order."""
        rank_of: dict[int, float] = {}
        for rows, ranks in self._ranks(vectors_BD, queries):
            rank_of |= dict(zip(rows, best_rank(ranks).tolist(), strict=True))

        tops = self.best(vectors_BD, queries, 1)
        return [Standing(rank_of[row], names[0]) for row, names in enumerate(tops)]

    def best(self, vectors_BD: Tensor, queries: Sequence[Query], k: int) -> list[tuple[str, ...]]:
        """Names of the k best candidates of each query in order, best first."""
        best: dict[int, tuple[str, ...]] = {}
        for gallery, rows, lists in self._rankable(queries):
            names = list(self._columns[gallery])
            top_bk = search(vectors_BD[rows].cpu(), self.vectors(gallery), k, local_QC=lists)[1]
            for row, columns in zip(rows, top_bk.tolist(), strict=True):
                best[row] = tuple(names[column] for column in columns if column >= 0)
        return [best[row] for row in range(len(queries))]

    def _ranks(
        self, vectors_BD: Tensor, queries: Sequence[Query]
    ) -> Iterator[tuple[list[int], TiedRanks]]:
        """Rows of queries that are ranked together, and their ranks."""
        for gallery, rows, lists in self._rankable(queries):
            positives = [self.positives(queries[row]) for row in rows]
            vectors_bD, vectors_ND = vectors_BD[rows].cpu(), self.vectors(gallery)
            yield rows, rank_positives(vectors_bD, vectors_ND, positives, local_QC=lists)

    def _rankable(
        self, queries: Sequence[Query]
    ) -> Iterator[tuple[str, list[int], list[list[int]] | None]]:
        """Galleries with rows of their queries, apart by whether they have lists of their own."""
        groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for row, query in enumerate(queries):
            groups[query.gallery, query.candidates is not None].append(row)

        for (gallery, is_local), rows in groups.items():
            yield gallery, rows, [self._local(queries[row]) for row in rows] if is_local else None

    def _local(self, query: Query) -> list[int]:
        """Columns of the query's own candidates, each once, in listed order."""
        return list(dict.fromkeys(self._listed(query)))

    def _listed(self, query: Query) -> list[int]:
        """Columns of the query's own candidate list, repeats kept."""
        columns, rows = self._column_of_row[query.gallery], query.candidates or ()

        # A rank among candidates without the right one would mean nothing.
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


@final
class GalleryCollector:
    """Collects candidates as they are embedded: all of a data root's come before what is ranked."""

    def __init__(self) -> None:
        self._outputs: list[CandidateOutput] = []
        self._galleries = Galleries([])

    def add(self, output: CandidateOutput) -> None:
        """Takes the candidates of one batch."""
        self._outputs.append(output)

    def galleries(self) -> Galleries:
        """Returns galleries of the candidates added since the last call; if there are none, the
        last galleries again."""
        if self._outputs:
            self._galleries, self._outputs = Galleries(self._outputs), []
        return self._galleries


def embed_candidates(backbone: Backbone, batch: CandidateBatch) -> CandidateOutput:
    """Embeds rows of the candidate table, directly."""
    candidates = batch.candidates
    return CandidateOutput(
        vectors_ND=backbone([candidate.side for candidate in candidates]).detach().cpu(),
        names=tuple(candidate.name for candidate in candidates),
        galleries=tuple(candidate.gallery for candidate in candidates),
        rows=tuple(int(candidate.key) for candidate in candidates),
        sizes=batch.sizes,
    )


def check_complete(outputs: Sequence[CandidateOutput]) -> None:
    """Compares embedded candidates with the sizes that the candidate table gives them.

    Raises:
        ValueError: a row is missing, or occurs twice.
    """
    counts = Counter(place for o in outputs for place in zip(o.galleries, o.rows, strict=True))
    if twofold := [place for place, count in counts.items() if count > 1]:
        gallery, row = twofold[0]
        raise ValueError(
            f"Gallery {gallery!r}: row {row} of the candidate table was embedded "
            f"{counts[twofold[0]]} times ({len(twofold)} rows were embedded more than once). "
            "Expected each once: give every rank a part of its own, as the data modules of this "
            "project do."
        )

    embedded = Counter(gallery for gallery, _ in counts)
    sizes = {gallery: size for o in outputs for gallery, size in o.sizes.items()}
    for gallery, size in sizes.items():
        if embedded[gallery] != size:
            raise ValueError(
                f"Gallery {gallery!r}: {embedded[gallery]} of its {size} candidates were embedded, "
                "and ranks among a part of them would be too good. A limit on batches must cut "
                "queries only, as `limit_val_batches` and `limit_test_batches` do with the data "
                "modules of this project."
            )


def best_rank(ranks: TiedRanks) -> Tensor:
    """(Q,) expected rank of the best right candidate when equal scores are in random order.

    Of r right ones among e equals the first comes, on average, at place (e + 1) / (r + 1).

    >>> from mmemb.retrieval.ranking import rank_scores
    >>> best_rank(rank_scores(torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([[1, -1]])))
    tensor([2.5000], dtype=torch.float64)
    """
    before_Q, equal_Q, right_Q = ranks.best_group()
    return before_Q.double() + (equal_Q + 1) / (right_Q + 1).double()


def gather_candidates(outputs: Sequence[CandidateOutput], embedding_dim: int) -> CandidateOutput:
    """The candidates of all ranks, in the order of their table, so that it does not matter which
    rank embedded which. Collective: a rank without candidates must call it too."""
    local = merge_candidates(outputs, embedding_dim)
    places = gather_objects([(local.galleries, local.rows)])
    # For a gate that looks at scores every rank has embedded all: there is nothing to gather.
    if len(places) > 1 and all(place == places[0] for place in places):
        return local

    vectors_ND = gather_ragged(local.vectors_ND)
    names = gather_objects(list(local.names))
    galleries = [gallery for of_rank, _ in places for gallery in of_rank]
    rows = [row for _, of_rank in places for row in of_rank]
    sizes = dict(gather_objects(list(local.sizes.items())))

    # In the order of the table, whichever rank embedded a row.
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return CandidateOutput(
        vectors_ND=vectors_ND[order],
        names=tuple(names[place] for place in order),
        galleries=tuple(galleries[place] for place in order),
        rows=tuple(rows[place] for place in order),
        sizes=sizes,
    )


def merge_candidates(outputs: Sequence[CandidateOutput], embedding_dim: int) -> CandidateOutput:
    """The candidates of one rank in one record, in the order in which they came."""
    empty = [torch.zeros(0, embedding_dim)]
    return CandidateOutput(
        vectors_ND=torch.cat([*empty, *(out.vectors_ND for out in outputs)]),
        names=tuple(name for out in outputs for name in out.names),
        galleries=tuple(gallery for out in outputs for gallery in out.galleries),
        rows=tuple(row for out in outputs for row in out.rows),
        sizes={gallery: size for out in outputs for gallery, size in out.sizes.items()},
    )
