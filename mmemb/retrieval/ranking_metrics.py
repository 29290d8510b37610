"""Retrieval metrics: expected values under ties, a public scorer of ranked names, sums over ranks.

Shapes: Q queries, P right candidates of a query, k positions up to a cutoff.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mmemb.retrieval.ranking import TiedRanks
from mmemb.storage.set_order import set_order

_Label = TypeVar("_Label", bound=Hashable)

CUTOFFS = (1, 5, 10)

HIGHEST_GRADE = 1000
"""NDCG with exponential gains is made of 2 ** grade, which above it is no fp64 number."""


def expected_metrics(
    ranks: TiedRanks, grades_QP: Tensor | None = None, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, Tensor]:
    """Every metric's EXACT expectation when equal scores are put in random order.

    Right candidates with one score form a group of r among e equals. Recall, precision, f1 (which
    is 2 hits / (k + R), linear in the hits) and NDCG need each one's own rank alone. Hit and MRR
    depend on the best group alone: its first j places hold no right one with probability
    C(e - j, r) / C(e, r). For map, place j of a group holds a right one with probability r / e,
    and then (r - 1) / (e - 1) of the j - 1 places before it do too.

    Args:
        ranks: of the right candidates.
        grades_QP: their grades, 1 by default.
        cutoffs: the k of `name@k`.

    Returns:
        Name to (Q,) fp64 values; all 0 for a query without right candidates.
    """
    valid_QP = ranks.valid_QP
    greater_QP, equal_QP = ranks.greater_QP.double(), ranks.equal_QP.double()
    grades_QP = torch.ones_like(greater_QP) if grades_QP is None else grades_QP.double()
    grades_QP = torch.where(valid_QP, grades_QP.to(greater_QP.device), 0.0)

    num_right_Q = valid_QP.sum(1).double()
    metrics: dict[str, Tensor] = {}

    for k in cutoffs:
        place_k = torch.arange(1, k + 1, device=greater_QP.device).double()
        # (Q, P, k): probability that a right candidate stands at this place.
        at_QPk = (place_k > greater_QP[..., None]) & (place_k <= (greater_QP + equal_QP)[..., None])
        share_QPk = at_QPk / equal_QP[..., None].clamp(min=1) * valid_QP[..., None]

        hits_Q = share_QPk.sum((1, 2))
        metrics[f"precision@{k}"] = hits_Q / k
        metrics[f"recall@{k}"] = hits_Q / num_right_Q.clamp(min=1)
        metrics[f"f1@{k}"] = 2 * hits_Q / (k + num_right_Q)

        metrics[f"hit@{k}"], metrics[f"mrr@{k}"] = _first_hit(ranks, k)
        metrics[f"map@{k}"] = _average_precision(ranks, share_QPk, place_k)
        for name, gain_QP in _gains(grades_QP).items():
            metrics[f"ndcg_{name}@{k}"] = _ndcg(gain_QP, share_QPk, place_k)
    return metrics


def metrics_by_query(
    ranks: TiedRanks, grades: Sequence[Sequence[float]], cutoffs: Sequence[int] = CUTOFFS
) -> list[dict[str, float]]:
    """`expected_metrics` as plain numbers, one dict per query; far faster than query by query.

    Args:
        ranks: of Q queries.
        grades: of the right candidates of each, in the same order, without padding.
        cutoffs: the k of `name@k`.
    """
    table = expected_metrics(ranks, pad_grades(grades, ranks.greater_QP.shape[1]), cutoffs)
    rows = zip(*(values.tolist() for values in table.values()), strict=True)
    return [dict(zip(table, row, strict=True)) for row in rows]


def chance_recall(num_candidates: int, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Expected recall@k of candidates in random order, as `chance@k`: exact.

    Each right candidate is among the first k with the same probability, however many there are.

    >>> chance_recall(20, (1, 5))
    {'chance@1': 0.05, 'chance@5': 0.25}
    """
    return {f"chance@{k}": min(1.0, k / num_candidates) for k in cutoffs}


def pad_grades(grades: Sequence[Sequence[float]], width: int) -> Tensor:
    """Grades (Q, width) fp64; places that are only padding have grade 0, so they count nowhere."""
    padded = [[*row, *[0.0] * (width - len(row))] for row in grades]
    return torch.tensor(padded, dtype=torch.float64).reshape(len(padded), width)


def _gains(grades_QP: Tensor) -> dict[str, Tensor]:
    return {"linear": grades_QP, "exponential": torch.exp2(grades_QP) - 1}


def _ndcg(gain_QP: Tensor, share_QPk: Tensor, place_k: Tensor) -> Tensor:
    discount_k = 1 / torch.log2(place_k + 1)
    expected_Q = (gain_QP * (share_QPk @ discount_k)).sum(1)
    best_Qk = gain_QP.sort(dim=1, descending=True).values[:, : len(place_k)]
    ideal_Q = best_Qk @ discount_k[: best_Qk.shape[1]]

    # `where` evaluates both sides: the clamp keeps a query without gain from dividing by 0.
    return torch.where(ideal_Q > 0, expected_Q / ideal_Q.clamp(min=1e-300), 0.0)


def _first_hit(ranks: TiedRanks, k: int) -> tuple[Tensor, Tensor]:
    """Expected hit@k and MRR@k, (Q,) each, from the best group of equals."""
    before_Q, equal_Q, right_Q = ranks.best_group()
    equal_Q, right_Q = equal_Q.double(), right_Q.double()

    # P(first at j) = P(none among j - 1) - P(none among j).
    none_Q1 = _none_among(torch.zeros(1, device=before_Q.device).double(), right_Q, equal_Q)
    slots_k = torch.arange(1, k + 1, device=before_Q.device).double()
    none_Qk = _none_among(slots_k, right_Q, equal_Q)
    first_Qk = torch.cat([none_Q1, none_Qk[:, :-1]], 1) - none_Qk  # the first right one is j-th

    place_Qk = before_Q.double()[:, None] + slots_k
    first_Qk = torch.where((place_Qk <= k) & (right_Q > 0)[:, None], first_Qk, 0.0)
    return first_Qk.sum(1), (first_Qk / place_Qk).sum(1)


def _none_among(slots_k: Tensor, right_Q: Tensor, equal_Q: Tensor) -> Tensor:
    """C(e - j, r) / C(e, r) for each number of places j, (Q, k); 0 where it is impossible."""
    left_Qk = equal_Q[:, None] - slots_k
    spare_Qk = left_Qk - right_Q[:, None]

    # By logarithms: the binomials of a large group of equals are no fp64 numbers.
    log_Qk = torch.lgamma(left_Qk.clamp(min=0) + 1) - torch.lgamma(spare_Qk.clamp(min=0) + 1)
    log_Q = torch.lgamma(equal_Q + 1) - torch.lgamma((equal_Q - right_Q).clamp(min=0) + 1)
    return torch.where(spare_Qk >= 0, (log_Qk - log_Q[:, None]).exp(), 0.0)


def _average_precision(ranks: TiedRanks, share_QPk: Tensor, place_k: Tensor) -> Tensor:
    # Padding sorts behind all places, so that it is in no group.
    greater_QP, equal_QP = ranks.greater_QP.double(), ranks.equal_QP.double()
    sorted_QP = greater_QP.masked_fill(~ranks.valid_QP, torch.inf).sort(dim=1).values

    better_QP = torch.searchsorted(sorted_QP, greater_QP)
    group_QP = torch.searchsorted(sorted_QP, greater_QP, right=True) - better_QP
    beside_QP = (group_QP - 1) / (equal_QP - 1).clamp(min=1)

    earlier_QPk = (place_k - greater_QP[..., None] - 1) * beside_QP[..., None]
    hits_QPk = better_QP[..., None] + 1 + earlier_QPk
    total_Q = (share_QPk * hits_QPk / place_k).sum((1, 2))
    return total_Q / ranks.valid_QP.sum(1).clamp(min=1, max=len(place_k))


def score_prediction(
    prediction: Sequence[Hashable],
    labels: Sequence[Hashable] | str,
    grades: Sequence[float] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    mode: Literal["correct", "reference"] = "correct",
) -> dict[str, float]:
    """Scores one ranked list of names, with MMEB-V2's metrics.

    Modes agree wherever a list repeats no name, grades are equal and there is a label. `correct`:
    a name counts once, at its first place; grades belong to the labels they stand beside.
    `reference` repeats what the VLM2Vec code computes: repeated names count again in map and NDCG
    (which may pass 1), labels go through a Python set but their grades do not, so unequal grades
    land on other labels (see `reference_grades`), and an empty list of labels has recall 1. A label
    that was not predicted is a miss, and map@k divides by min(number of labels, k), in both.

    Args:
        prediction: names, best first.
        labels: right names; a plain string is one label.
        grades: their grades above 0, in the same order; 1 by default.
        cutoffs: the k of `name@k`.
        mode: `correct` or `reference`.

    Raises:
        ValueError: grades that are not numbers above 0, come with repeated labels or in another
            number; unequal ones in `reference` whose labels are not whole numbers.

    >>> score_prediction(["b", "a"], ["a"], cutoffs=(5,))["mrr@5"]
    0.5
    """
    labels = [labels] if isinstance(labels, str) else list(labels)
    graded = _grade_labels(labels, grades, mode)
    ranked = list(prediction) if mode == "reference" else list(dict.fromkeys(prediction))

    metrics: dict[str, float] = {}
    for k in cutoffs:
        if k < 1:
            raise ValueError(f"cutoff {k}: a cutoff is at least 1")
        metrics |= _score_top(ranked[:k], graded, k)
        if not graded and mode == "reference":
            metrics[f"recall@{k}"] = 1.0
    return metrics


def _grade_labels(
    labels: list[Hashable], grades: Sequence[float] | None, mode: str
) -> dict[Hashable, float]:
    if mode not in ("correct", "reference"):
        raise ValueError(f"mode {mode!r} is neither 'correct' nor 'reference'")
    if grades is None:
        return dict.fromkeys(labels, 1.0)

    if len(grades) != len(labels) or len(set(labels)) != len(labels):
        raise ValueError(
            f"{len(grades)} grades for {len(labels)} labels, {len(set(labels))} of them distinct: "
            "with grades, give every label once and one grade for each."
        )

    graded = {
        label: checked_grade(grade, repr(label))
        for label, grade in zip(labels, grades, strict=True)
    }
    return reference_grades(graded) if mode == "reference" else graded


def checked_grade(grade: object, name: str) -> float:
    """A grade of a right candidate as a number.

    Raises:
        ValueError: it is not a number above 0 and not above `HIGHEST_GRADE`.
    """
    is_number = isinstance(grade, Real) and not isinstance(grade, bool)
    if not is_number or not 0 < grade <= HIGHEST_GRADE:  # type: ignore[operator]
        raise ValueError(
            f"The grade of {name} is {grade!r}: expected a number above 0 and not above "
            f"{HIGHEST_GRADE}. Leave a candidate that is not right out of the labels."
        )
    return float(grade)  # type: ignore[arg-type]


def reference_grades(graded: Mapping[_Label, float]) -> dict[_Label, float]:
    """Label -> the grade that the published evaluator gives it.

    It sends the labels through a Python set and zips them with the grades in their old order. Equal
    grades stay where they are. Whole numbers have a fixed order there; that of other labels changes
    from run to run, so nothing published can be repeated.

    Raises:
        ValueError: unequal grades on labels that are not whole numbers from 0.

    >>> reference_grades({7: 3.0, 8: 2.0})
    {8: 3.0, 7: 2.0}
    """
    if len(set(graded.values())) <= 1:
        return dict(graded)

    # A bool is no label of this kind, although Python takes it for an int.
    labels = [label for label in graded if type(label) is int and label >= 0]
    if len(labels) < len(graded):
        other = next(label for label in graded if label not in labels)
        raise ValueError(
            f"Label {other!r} has another grade than its neighbours, and the published evaluator "
            "gives unequal grades to labels in the order of a Python set, which is fixed for whole "
            "numbers alone. Score in mode 'correct'."
        )
    return dict(zip(set_order(labels), graded.values(), strict=True))  # type: ignore[arg-type]


def _score_top(top: list[Hashable], graded: Mapping[Hashable, float], k: int) -> dict[str, float]:
    # A repeated name counts again in `right`, and so in map, as in the published evaluator.
    right = [place for place, name in enumerate(top, 1) if name in graded]
    num_hits, num_labels = len(set(top) & set(graded)), len(graded)
    precisions = [n / place for n, place in enumerate(right, 1)]

    return {
        f"hit@{k}": float(bool(right)),
        f"ndcg_linear@{k}": _ndcg_of([graded.get(n, 0.0) for n in top], graded, k),
        f"ndcg_exponential@{k}": _ndcg_of(
            [2 ** graded.get(n, 0.0) - 1 for n in top],
            {name: 2**grade - 1 for name, grade in graded.items()},
            k,
        ),
        f"precision@{k}": num_hits / k,
        f"recall@{k}": num_hits / num_labels if num_labels else 0.0,
        f"f1@{k}": 2 * num_hits / (k + num_labels),
        f"map@{k}": sum(precisions) / min(num_labels, k) if num_labels else 0.0,
        f"mrr@{k}": 1 / right[0] if right else 0.0,
    }


def _ndcg_of(gains: Sequence[float], ideal: Mapping[Hashable, float], k: int) -> float:
    best = _dcg(sorted(ideal.values(), reverse=True)[:k])
    return _dcg(gains) / best if best > 0 else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, 1))
