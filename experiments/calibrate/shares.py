"""What budgets buy on queries, by the former calibration and by the new one.

Shapes: C queries that can reason, A depths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from experiments.bootstrap import Interval, cluster_bootstrap
from mmemb.gate.budget import BudgetCalibration, Price, Unit
from mmemb.gate.gate_scores import GateScores
from mmemb.records.hashing import stable_hash

FEW_QUERIES = 400
"""Below it a share is known to no better than 5 points."""

_RESAMPLES = 2000


@final
@dataclass(frozen=True, slots=True)
class BudgetShare:
    """Outcome of one budget.

    Attributes:
        budget: per query that can reason, in `unit`.
        unit: of the budget.
        former_price: by the former calibration.
        price: by the new one.
        former_share: of the queries that would reason at the former price.
        share: that would reason at the new price, on the queries that it was fitted on.
        held_out: of each half of the queries, at the price that was fitted on the other half;
            None where a half is too small.
    """

    budget: float
    unit: Unit
    former_price: Price
    price: Price
    former_share: Interval
    share: float
    held_out: Interval | None


def half_width(num: int) -> float:
    """Returns how exactly a share of some queries can be known: half of a 95 % interval at 50 %.

    >>> round(half_width(100), 3)
    0.098
    """
    return 1.96 * math.sqrt(0.25 / max(num, 1))


def budget_shares(
    scores: GateScores,
    former: BudgetCalibration,
    new: BudgetCalibration,
    budgets: Sequence[float],
    unit: Unit,
) -> list[BudgetShare]:
    """Returns the outcome of each budget on the queries of the scores.

    Raises:
        ValueError: a budget cannot be met.
    """
    halves = _halves(scores.keys)
    cost_A = new.mean_tokens()
    fitted = [scores.of_rows(half).calibrate(cost_A, new.milliseconds) for half in halves if half]

    shares = []
    for budget in budgets:
        before_C = _reasons(former, scores, budget, unit)
        held_out = None

        # Prices of one half are tried on the other, so that no query chooses its own.
        if len(fitted) == 2:
            parts = [
                _reasons(calibration, scores.of_rows(other), budget, unit)
                for calibration, other in zip(fitted, reversed(halves), strict=True)
            ]
            keys = [scores.keys[row] for half in reversed(halves) for row in half]
            held_out = _interval(torch.cat(parts), keys)

        shares.append(
            BudgetShare(
                budget,
                unit,
                former.price(budget, unit),
                new.price(budget, unit),
                _interval(before_C, scores.keys),
                float(_reasons(new, scores, budget, unit).double().mean()),
                held_out,
            )
        )
    return shares


def _reasons(
    calibration: BudgetCalibration, scores: GateScores, budget: float, unit: Unit
) -> Tensor:
    return calibration.decide(scores.logit_CA, scores.keys, budget, unit) > 0


def _interval(reasons_C: Tensor, keys: Sequence[str]) -> Interval:
    # A query that was asked often is one draw, not many.
    return cluster_bootstrap(reasons_C.double().numpy(), keys, num_resamples=_RESAMPLES)


def _halves(keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns the rows of two halves by content, so that equal queries are in one of them."""
    distinct = sorted(set(keys), key=lambda key: stable_hash("half", key))
    first = set(distinct[: len(distinct) // 2])
    rows = range(len(keys))
    return [r for r in rows if keys[r] in first], [r for r in rows if keys[r] not in first]
