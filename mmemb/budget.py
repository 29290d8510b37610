"""Depths under a budget (METHOD 7): prices that keep it. Knows no head and no training.

A query takes argmax_a(logit_a - price * cost_a). With two depths this is a threshold on the
difference of the logits. Depth 0 is direct. Shapes: B queries, C of part calibration, A depths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from mmemb.records import stable_hash

Unit = Literal["invocation", "tokens", "milliseconds"]
"""What a budget counts, per eligible query: how many reason, what they write, what they take."""

_LOGIT_STEP = 1e-5
_EQUAL = 1e-9


@final
@dataclass(frozen=True, slots=True)
class Threshold:
    """A price. Of depths that are equal at this very price a query takes the dearest if the
    tie-break of its key is above `tie`, else the cheapest.
    """

    price: float
    tie: float = 1.0


NATURAL = Threshold(0.0)
"""Without a budget: the price of a token was in the reward already."""


@final
@dataclass(frozen=True, slots=True)
class Thresholds:
    """The calibration part as the gate sees it, which gives the price of any budget.

    Attributes:
        logits: (C, A) of the eligible queries.
        costs: (C, A) tokens that each would pay at each depth.
        ties: tie-breaks of their keys: among equals a fair, repeatable share is dear.
        milliseconds: (A,) measured live, or empty: then no budget can be given in them.
    """

    logits: tuple[tuple[float, ...], ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()
    ties: tuple[float, ...] = ()
    milliseconds: tuple[float, ...] = ()

    @classmethod
    def calibrate(
        cls,
        logit_CA: Tensor,
        cost_CA: Tensor,
        keys: Sequence[str],
        milliseconds: Sequence[float] = (),
    ) -> Thresholds:
        """From the logits and costs of the eligible calibration queries, at least one."""
        if not keys:
            raise ValueError(
                "part `calibration` has no eligible query, so no threshold can be calibrated: give "
                "the stage `rationales` a worker that reads some of its queries, or prepare more."
            )
        logits = tuple(map(tuple, _rounded(logit_CA).tolist()))
        costs = tuple(map(tuple, cost_CA.double().tolist()))
        return cls(logits, costs, tuple(map(tie_break, keys)), tuple(milliseconds))

    def decide(
        self,
        logit_BA: Tensor,
        keys: Sequence[str],
        budget: float | None = None,
        unit: Unit = "invocation",
        *,
        exact: bool = False,
    ) -> Tensor:
        """(B,) int64: the depths that queries take under this budget."""
        threshold = self.at(budget, unit, exact=exact)
        price_A = self.price_costs(unit, logit_BA.shape[1]) if threshold.price else None
        return depths_at(logit_BA, price_A, threshold, keys)

    def at(
        self, budget: float | None, unit: Unit = "invocation", *, exact: bool = False
    ) -> Threshold:
        """The price under which queries like those of calibration cost `budget` on average.

        Args:
            budget: per eligible query, in `unit`; None = no budget, the gate's own will.
            unit: `invocation` is the share that reasons.
            exact: spend all of it (the frontier). Otherwise it is an upper bound: the gate never
                reasons against its own will.

        Raises:
            ValueError: a budget that cannot be met, or a unit that nobody measured.
        """
        if budget is None:
            return NATURAL
        self._check(budget, unit)
        if budget <= self._spent(Threshold(math.inf), unit) + _EQUAL:
            return Threshold(math.inf)  # nothing reasons, whatever comes
        if not exact and self._spent(NATURAL, unit) <= budget + _EQUAL:
            return NATURAL
        price = self._lowest_price(budget, unit)
        if self._spent(Threshold(price, -1.0), unit) <= budget + _EQUAL:
            return Threshold(-math.inf)  # all of it is not enough to spend the budget
        return Threshold(price, self._tie(price, budget, unit))

    def price_costs(self, unit: Unit, num_depths: int) -> Tensor:
        """(A,) what a depth is expected to cost, by which prices are paid."""
        if unit == "invocation":
            return torch.tensor([0.0] + [1.0] * (num_depths - 1), dtype=torch.float64)
        if unit == "milliseconds":
            return torch.tensor(self.milliseconds, dtype=torch.float64)
        return torch.tensor(self.costs, dtype=torch.float64).mean(0)

    def dearest(self, unit: Unit) -> float:
        """What queries like those of calibration cost if all of them take the dearest depth."""
        return self._spent(Threshold(-math.inf), unit)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Thresholds:
        """The inverse of `to_json`."""
        pairs = {name: tuple(map(tuple, data[name])) for name in ("logits", "costs")}
        return cls(**pairs, ties=tuple(data["ties"]), milliseconds=tuple(data["milliseconds"]))

    def _check(self, budget: float, unit: Unit) -> None:
        if unit not in get_args(Unit):
            raise ValueError(f"budget unit {unit!r}: expected one of {list(get_args(Unit))}")
        if not self.logits:
            raise ValueError("no calibration queries: run `fit` of the gate on part calibration")
        if unit == "milliseconds" and not self.milliseconds:
            raise ValueError(
                "no milliseconds were measured, so no budget can be given in them: run "
                "`experiments.run test` with the gate's config, and give its latency.json."
            )
        least = self._spent(Threshold(math.inf), unit)
        most = 1.0 if unit == "invocation" else math.inf
        if not least <= budget <= most:
            raise ValueError(
                f"budget {budget} {unit} cannot be met: the direct path alone costs {least:g} and "
                f"nothing costs more than {most:g} per query."
            )

    def _paid(self, depth_C: Tensor, unit: Unit) -> Tensor:
        """(C,) what the queries pay at these depths."""
        if unit == "tokens":
            cost_CA = torch.tensor(self.costs, dtype=torch.float64)
            return cost_CA.gather(1, depth_C[:, None])[:, 0]
        return self.price_costs(unit, len(self.logits[0]))[depth_C]

    def _depths(self, threshold: Threshold, unit: Unit) -> Tensor:
        logit_CA = torch.tensor(self.logits, dtype=torch.float64)
        return _choose(logit_CA, self.price_costs(unit, logit_CA.shape[1]), threshold, self.ties)

    def _spent(self, threshold: Threshold, unit: Unit) -> float:
        return self._paid(self._depths(threshold, unit), unit).mean().item()

    def _lowest_price(self, budget: float, unit: Unit) -> float:
        """Of the prices at which some query changes its depth, the lowest that keeps the budget
        while the tied ones stay cheap; found by bisection."""
        logit_CA = torch.tensor(self.logits, dtype=torch.float64)
        cost_A = self.price_costs(unit, logit_CA.shape[1])
        gap_AA = cost_A[None] - cost_A[:, None]
        first, second = torch.nonzero(gap_AA > 0, as_tuple=True)
        price_K = (logit_CA[:, second] - logit_CA[:, first]) / gap_AA[first, second]
        prices = price_K.unique().tolist()
        low, high = 0, len(prices) - 1  # at the highest price everyone is direct
        while low < high:
            middle = (low + high) // 2
            affordable = self._spent(Threshold(prices[middle]), unit) <= budget + _EQUAL
            low, high = (low, middle) if affordable else (middle + 1, high)
        # A single query may pay less at a depth that is dearer on average.
        while self._spent(Threshold(prices[high]), unit) > budget + _EQUAL:
            high += 1
        return prices[high]

    def _tie(self, price: float, budget: float, unit: Unit) -> float:
        """The tie-break that lets as many of the tied be dear as the budget pays for."""
        cheap_C = self._paid(self._depths(Threshold(price), unit), unit)
        extra_C = self._paid(self._depths(Threshold(price, -1.0), unit), unit) - cheap_C
        left = (budget + _EQUAL) * len(cheap_C) - cheap_C.sum().item()
        rows = zip(self.ties, extra_C.tolist(), strict=True)
        for tie, extra in sorted((row for row in rows if row[1]), reverse=True):
            left -= extra
            if left < 0:
                return tie
        return -1.0


def depths_at(
    logit_BA: Tensor, cost_A: Tensor | None, threshold: Threshold, keys: Sequence[str]
) -> Tensor:
    """(B,) int64 depths at a price; equals are parted by a hash of their keys.

    Args:
        logit_BA: of the gate.
        cost_A: what the price is paid for; None where the price is 0.
        threshold: price, and who of the equals is dear.
        keys: B names of the queries.
    """
    logit_BA = _rounded(logit_BA)
    cost_A = torch.arange(logit_BA.shape[1], dtype=torch.float64) if cost_A is None else cost_A
    return _choose(logit_BA, cost_A, threshold, [tie_break(key) for key in keys])


def _choose(
    logit_BA: Tensor, cost_A: Tensor, threshold: Threshold, ties: Sequence[float]
) -> Tensor:
    if math.isinf(threshold.price):
        end = cost_A.min() if threshold.price > 0 else cost_A.max()
        value_BA = logit_BA.masked_fill(cost_A != end, -math.inf)
    else:
        value_BA = logit_BA - threshold.price * cost_A
    best_B1 = value_BA.amax(1, keepdim=True)
    equal_BA = value_BA >= best_B1 - _EQUAL * (1 + best_B1.abs())
    cheap_B = cost_A.expand_as(value_BA).masked_fill(~equal_BA, math.inf).argmin(1)
    dear_B = cost_A.expand_as(value_BA).masked_fill(~equal_BA, -math.inf).argmax(1)
    is_dear_B = torch.tensor(ties, dtype=torch.float64) > threshold.tie
    return torch.where(is_dear_B, dear_B, cheap_B)


def _rounded(logit_BA: Tensor) -> Tensor:
    # Equal states get logits that differ by the batch they were computed in, about 1e-7.
    if not logit_BA.isfinite().all():
        row = int((~logit_BA.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"NaN gate score in row {row}: its state is not finite; embed it again.")
    # Relative to depth 0, so that equal differences are equal after rounding.
    gap_BA = logit_BA.detach().cpu().double() - logit_BA[:, :1].detach().cpu().double()
    return (gap_BA / _LOGIT_STEP).round() * _LOGIT_STEP


def tie_break(key: str) -> float:
    """A key's place among equals, in [0, 1)."""
    return unit_hash("gate-tie", key)


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that is equal in every process and run.

    >>> 0 <= unit_hash("gate", "country:fr") < 1
    True
    """
    return stable_hash(*parts, bits=53) / 2**53
