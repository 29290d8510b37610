"""Gate scores and the thresholds that keep a budget (METHOD 7); knows no head and no training.

Depth 0 is direct. Shapes: B queries, A depths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from mmemb.records import stable_hash

NATURAL = 0.0
"""Gate scores above it reason when no budget is set: the price was in the reward already."""

_SCORE_STEP = 1e-5


def gate_score(logit_BA: Tensor, cost_A: Sequence[float] | None = None) -> Tensor:
    """What is compared with a threshold, (B,): the more, the sooner a query reasons.

    With two depths the difference of the logits. With more, the price mu at which the query stops
    reasoning under argmax_a(logit_a - mu cost_a), which needs the depths' costs.

    >>> gate_score(torch.tensor([[0.5, 2.0]]))
    tensor([1.5000])
    """
    gap_BA = logit_BA[:, 1:] - logit_BA[:, :1]
    if gap_BA.shape[1] == 1:
        return gap_BA[:, 0]
    if cost_A is None:
        raise ValueError(f"{logit_BA.shape[1]} depths have a common score only with their costs")
    extra_A = torch.as_tensor(cost_A, dtype=gap_BA.dtype, device=gap_BA.device)
    return (gap_BA / (extra_A[1:] - extra_A[0])).amax(1)


def depth_at_price(logit_BA: Tensor, cost_A: Tensor, price: float) -> Tensor:
    """argmax_a(logit_a - mu cost_a), (B,); of equals the cheaper depth."""
    return (logit_BA - price * cost_A).argmax(1)


def price_for_budget(logit_BA: Tensor, cost_A: Tensor, budget: float) -> float:
    """The least price mu >= 0 at which the mean cost is at most `budget`, by bisection."""

    def affordable(price: float) -> bool:
        return cost_A[depth_at_price(logit_BA, cost_A, price)].mean().item() <= budget

    if affordable(0.0):
        return 0.0
    if float(cost_A[0]) > budget:
        raise ValueError(f"budget {budget} is below the cost of depth 0, {float(cost_A[0])}")
    low, high = 0.0, 1.0
    while not affordable(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if affordable(middle) else (middle, high)
    return high


@final
@dataclass(frozen=True, order=True, slots=True)
class Threshold:
    """A query reasons if (score, tie-break of its key) is above (value, tie), in this order."""

    value: float
    tie: float = 1.0


@final
@dataclass(frozen=True, slots=True)
class Thresholds:
    """Gate scores of the calibration part, which give the threshold of any budget.

    Attributes:
        scores: in falling order.
        ties: the tie-breaks of their keys: among equal scores a fair, repeatable share opens.
    """

    scores: tuple[float, ...]
    ties: tuple[float, ...]

    @classmethod
    def calibrate(cls, score_B: Tensor, keys: Sequence[str]) -> Thresholds:
        """From the scores of the eligible calibration queries."""
        rows = zip(_rounded(score_B), map(_tie_break, keys), strict=True)
        ranked = sorted(rows, reverse=True)
        return cls(tuple(score for score, _ in ranked), tuple(tie for _, tie in ranked))

    def at(self, budget: float | None, *, exact: bool = False) -> Threshold:
        """The threshold that opens a share `budget` of queries like those of calibration.

        Args:
            budget: share in [0, 1]; None = no budget, the gate's own will.
            exact: spend all of it (the frontier). Otherwise it is an upper bound: the gate never
                reasons against its own will.
        """
        natural = Threshold(NATURAL)
        if budget is None:
            return natural
        if not 0 <= budget <= 1:
            raise ValueError(f"budget {budget} is not a share between 0 and 1")
        equality = self._equality(budget)
        return equality if exact else max(natural, equality)

    def _equality(self, budget: float) -> Threshold:
        if budget == 0:
            return Threshold(math.inf)  # nothing opens, whatever comes
        if budget < 1 and not self.scores:
            raise ValueError("no calibration scores: run `fit` of the gate on part calibration")
        num_open = math.floor(budget * len(self.scores) + 1e-9)  # 0.29 * 100 is 28.999...
        if num_open == len(self.scores):
            return Threshold(-math.inf)
        return Threshold(self.scores[num_open], self.ties[num_open])

    def decide(
        self,
        score_B: Tensor,
        keys: Sequence[str],
        budget: float | None = None,
        *,
        exact: bool = False,
    ) -> Tensor:
        """(B,) bool: which queries reason under this budget."""
        return decide(score_B, keys, self.at(budget, exact=exact))

    def to_json(self) -> dict[str, Any]:
        """Scores and ties as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Thresholds:
        """The inverse of `to_json`."""
        return cls(tuple(data["scores"]), tuple(data["ties"]))


def decide(score_B: Tensor, keys: Sequence[str], threshold: Threshold) -> Tensor:
    """(B,) bool: which queries reason. Equal scores are parted by a hash of their keys."""
    rows = zip(_rounded(score_B), keys, strict=True)
    open_B = [
        score > threshold.value or (score == threshold.value and _tie_break(key) > threshold.tie)
        for score, key in rows
    ]
    return torch.tensor(open_B, dtype=torch.bool)


def _rounded(score_B: Tensor) -> list[float]:
    # Equal states get scores that differ by the batch they were computed in, about 1e-7.
    if not score_B.isfinite().all():
        row = int((~score_B.isfinite()).nonzero()[0])
        raise ValueError(f"NaN gate score in row {row}: its state is not finite; embed it again.")
    return [round(score / _SCORE_STEP) * _SCORE_STEP for score in score_B.double().tolist()]


def _tie_break(key: str) -> float:
    return unit_hash("gate-tie", key)


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that is equal in every process and run.

    >>> 0 <= unit_hash("gate", "country:fr") < 1
    True
    """
    return stable_hash(*parts, bits=53) / 2**53
