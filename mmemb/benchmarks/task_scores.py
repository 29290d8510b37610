"""Scores of one task of a benchmark from embeddings or predictions, with bounds from ties.

Shapes: Q queries, N candidates, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from torch import Tensor

from mmemb.records.pairs import Query
from mmemb.records.precision import to_float64_device
from mmemb.retrieval.ranking import (
    TiedRanks,
    check_finite,
    check_unit,
    rank_positives,
    scored_positives,
    search,
)
from mmemb.retrieval.ranking_metrics import (
    CUTOFFS,
    metrics_by_query,
    pad_grades,
    reference_grades,
    score_prediction,
)
from mmemb.retrieval.tie_bounds import tie_bounds

Mode = Literal["correct", "reference"]

NUM_PREDICTED = 100
"""Names that are kept of a query's ranking over a gallery; of a list of its own, all are."""

_COLLAPSED = 1e-6
"""Variance of unit vectors below which they count as collapsed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """Scores of one model in one task.

    Attributes:
        task: its name.
        metric: the headline's name.
        means: metric -> mean over queries.
        keys: of the queries.
        values: of the headline metric, query by query.
        clusters: what queries are resampled by.
        ties: queries in which a right and a wrong candidate are nearer than 1e-6.
        pessimistic: the headline if every near tie goes badly.
        optimistic: the headline if every near tie goes well.
        predictions: the first names of each query.
        mode: how they were computed.
    """

    task: str
    metric: str
    means: dict[str, float]
    keys: tuple[str, ...]
    values: tuple[float, ...]
    clusters: tuple[str, ...]
    ties: int
    pessimistic: float
    optimistic: float
    predictions: tuple[tuple[str, ...], ...]
    mode: Mode = "correct"


def score_embeddings(
    task: str,
    metric: str,
    queries: Sequence[Query],
    query_QD: Tensor,
    names: Sequence[str],
    candidate_ND: Tensor,
    lists: Sequence[Sequence[int]] | None = None,
    mode: Mode = "correct",
) -> TaskScores:
    """Ranks candidates by their vectors and scores the ranks.

    Args:
        task: its name.
        metric: the headline's name, of `mmemb.retrieval.ranking_metrics`.
        queries: with their right candidates.
        query_QD: their vectors.
        names: of the candidates, each once.
        candidate_ND: their vectors, row by row.
        lists: for each query the rows of its own candidates, in stored order; None = all.
        mode: `correct`: fp64 scores, exact expectations where scores are equal; `reference`: what
            the published evaluator computes, with fp32 scores and its handling of grades.

    Raises:
        ValueError: vectors that are not finite or have collapsed, a right candidate that is none;
            in `reference` unequal grades on names that are not whole numbers.
    """
    # Before any rank: with collapsed vectors the first candidate wins, and image tasks list the
    # right one first.
    check_spread(query_QD, f"{task}: query vectors", len({q.side.digest for q in queries}))
    check_spread(candidate_ND, f"{task}: candidate vectors", len(set(names)))

    row_of = {name: row for row, name in enumerate(names)}
    positives = [[_row(row_of, name, query, task) for name in query.relevance] for query in queries]
    grades = [_grades(query, mode) for query in queries]

    ranks = rank_positives(query_QD, candidate_ND, positives, local_QC=lists)
    bounds, ties = _bounds(query_QD, candidate_ND, positives, grades, lists)

    # One query may tie by chance even in a tiny task; half of them are a collapse.
    if ties > max(1, len(queries) // 2):
        raise ValueError(
            f"{task}: in {ties} of {len(queries)} queries a right and a wrong candidate have the "
            "same score: the embeddings have collapsed, and any number would be made of ties. Use "
            "an earlier checkpoint, or look for candidates that are the same."
        )

    k = NUM_PREDICTED if lists is None else max(map(len, lists))
    top_Qk = search(query_QD, candidate_ND, k, local_QC=lists)[1].tolist()

    # Rows below 0 only fill up lists that are shorter than the longest one.
    predictions = tuple(tuple(names[row] for row in rows if row >= 0) for rows in top_Qk)

    rows = metrics_by_query(ranks, grades)
    if mode == "reference":
        rows = _reference(queries, query_QD, names, candidate_ND, lists)

    # The lucky bound comes first, so the reversed pair gives low before high.
    low, high = ([row[metric] for row in metrics_by_query(b, grades)] for b in bounds[::-1])
    return TaskScores(
        task=task,
        metric=metric,
        means=means_of(rows),
        keys=tuple(query.key for query in queries),
        values=tuple(row[metric] for row in rows),
        clusters=tuple(query.concept for query in queries),
        ties=ties,
        pessimistic=float(np.mean(low)),
        optimistic=float(np.mean(high)),
        predictions=predictions,
        mode=mode,
    )


def score_predictions(
    task: str,
    metric: str,
    queries: Sequence[Query],
    predictions: Sequence[Sequence[str]],
    mode: Mode = "correct",
) -> TaskScores:
    """Scores ranked names, best first; ties cannot be seen in them."""
    rows = [
        _score_names(names, query, mode) for query, names in zip(queries, predictions, strict=True)
    ]

    values = tuple(row[metric] for row in rows)
    return TaskScores(
        task=task,
        metric=metric,
        means=means_of(rows),
        keys=tuple(query.key for query in queries),
        values=values,
        clusters=tuple(query.concept for query in queries),
        ties=0,
        pessimistic=float(np.mean(values)),
        optimistic=float(np.mean(values)),
        predictions=tuple(tuple(names) for names in predictions),
        mode=mode,
    )


def means_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metric -> mean over queries."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def check_spread(vector_ND: Tensor, what: str, num_different: int) -> None:
    """Refuses vectors that are not finite, not of length 1, or nearly all the same.

    Args:
        vector_ND: unit vectors.
        what: names them in the error.
        num_different: how many different things they stand for.
    """
    check_finite(vector_ND, what)
    check_unit(vector_ND, what)

    # In fp64: near a collapse the differences are below the steps of fp32.
    vector_ND = to_float64_device(vector_ND)
    mean_D = vector_ND.double().mean(0)
    variance = float((vector_ND.double() - mean_D).pow(2).sum(1).mean())
    if num_different > 1 and variance < _COLLAPSED:
        raise ValueError(
            f"{what} are all the same (variance {variance:.1e}, {num_different} different inputs): "
            "the model has collapsed, and its first candidate would look right. Lower the learning "
            "rate or use an earlier checkpoint."
        )


def _bounds(
    query_QD: Tensor,
    candidate_ND: Tensor,
    positives: Sequence[Sequence[int]],
    grades: Sequence[Sequence[float]],
    lists: Sequence[Sequence[int]] | None,
) -> tuple[tuple[TiedRanks, TiedRanks], int]:
    """Lucky and unlucky ranks, and the number of queries in which they differ."""
    grades_QP = pad_grades(grades, max(map(len, positives)))
    parts = [
        tie_bounds(score_qC, column_qP, grades_QP[rows])
        for rows, score_qC, column_qP in scored_positives(
            query_QD, candidate_ND, positives, local_QC=lists
        )
    ]
    lucky, unlucky = map(TiedRanks.join, zip(*parts, strict=True))

    # Two right ones of unequal grades may change places, too: that is no tie with a wrong one.
    places = [bound.greater_QP.sort(dim=1).values for bound in (lucky, unlucky)]
    return (lucky, unlucky), int((places[0] != places[1]).any(1).sum())


def _reference(
    queries: Sequence[Query],
    query_QD: Tensor,
    names: Sequence[str],
    candidate_ND: Tensor,
    lists: Sequence[Sequence[int]] | None,
) -> list[dict[str, float]]:
    """As published: fp32 products, NumPy's default sort of the negated scores, repeats kept."""
    query, candidate = query_QD.float().numpy(), candidate_ND.float().numpy()
    rows = []
    for number, record in enumerate(queries):
        listed = np.arange(len(names)) if lists is None else np.array(lists[number])
        order = listed[np.argsort(-(query[number] @ candidate[listed].T))]

        ranked = [names[row] for row in order[: max(NUM_PREDICTED, max(CUTOFFS))]]
        rows.append(_score_names(ranked, record, "reference"))
    return rows


def _score_names(ranked: Sequence[str], query: Query, mode: Mode) -> dict[str, float]:
    """Metrics of a query's ranked names; page ids are whole numbers in the published files."""
    names, labels = ([page_id(name) for name in row] for row in (ranked, query.relevance))
    grades = list(query.relevance.values())
    return score_prediction(names, labels, grades, mode=mode)


def _grades(query: Query, mode: Mode) -> list[float]:
    """Grades of the right candidates of a query under a mode."""
    graded = {page_id(name): grade for name, grade in query.relevance.items()}
    grades = reference_grades(graded) if mode == "reference" else graded
    return [grades[name] for name in graded]


def page_id(name: str) -> str | int:
    """A whole number if the name is written as one, without sign or leading zeros; else the name.

    >>> page_id("12"), page_id("012"), page_id("p12")
    (12, '012', 'p12')
    """
    return int(name) if name.isdecimal() and str(int(name)) == name else name


def _row(row_of: dict[str, int], name: str, query: Query, task: str) -> int:
    if name not in row_of:
        raise ValueError(
            f"{task}: right candidate {name!r} of query {query.key} is not among the "
            f"{len(row_of)} candidates; prepare the data again."
        )
    return row_of[name]
