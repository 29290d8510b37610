"""Depths under a budget (docs/method.md, section 7): the prices that keep it, and their ties.

A query takes argmax_a(logit_a - price * cost_a). With two depths this is a threshold on the
difference of the logits. Depth 0 is direct. Shapes: B queries, C of part calibration, A depths,
R crossings of their lines.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from mmemb.records.hashing import stable_hash
from mmemb.records.schema import Schema

Unit = Literal["invocation", "tokens", "milliseconds"]
"""What a budget counts, per eligible query: the share that reasons, tokens, or milliseconds."""

_LOGIT_STEP = 1e-5
_EQUAL = 1e-9


@final
@dataclass(frozen=True, slots=True)
class Threshold:
    """A price. Among depths that are equal at this very price a query takes the dearest if the
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

    What calibration spends is a step function of the price: it changes where the lines
    `logit_a - price * cost_a` of a query cross, and nowhere else. All its steps, with the ties
    within each, are computed once for a unit, at its first budget.

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
    _spendings: dict[Unit, _Spending] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def calibrate(
        cls,
        logit_CA: Tensor,
        cost_CA: Tensor,
        keys: Sequence[str],
        milliseconds: Sequence[float] = (),
    ) -> Thresholds:
        """Makes thresholds from logits and costs of the eligible calibration queries."""
        if not keys:
            raise ValueError(
                "part `calibration` has no eligible query, so no threshold can be calibrated: give "
                "the stage `rationales` a worker that reads some of its queries, or prepare more."
            )
        if not (finite_C := cost_CA.isfinite().all(1)).all():
            key = keys[int((~finite_C).nonzero()[0])]
            raise ValueError(
                f"The costs of calibration query {key!r} are not finite: expected tokens at every "
                "depth. Make the utilities again."
            )

        logits = tuple(map(tuple, (_steps(logit_CA) * _LOGIT_STEP).tolist()))
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
        """(B,) int64: the depths that queries take under this budget.

        Equal depths at price 0: without a budget the first one is taken, under a budget the one
        that costs less in its unit.
        """
        threshold = self.at(budget, unit, exact=exact)
        cost_A = None if budget is None else self._spending(unit).cost_A
        return depths_at(logit_BA, cost_A, threshold, keys)

    def at(
        self, budget: float | None, unit: Unit = "invocation", *, exact: bool = False
    ) -> Threshold:
        """The price, and the share of its ties, under which queries like those of calibration cost
        `budget` on average.

        On calibration itself the result never costs more than the budget. Among the prices and
        ties that keep it, the result costs most; among those of equal cost it has the least price.
        So a larger budget never costs less.

        Args:
            budget: per eligible query, in `unit`; None = no budget, the arg max of the logits.
            unit: `invocation` is the share that reasons.
            exact: spend all of it (the frontier), at prices below 0, too. Otherwise it is an upper
                bound: prices are at least 0, and the price is 0 as soon as the budget allows it.

        Raises:
            ValueError: a budget that cannot be met, or a unit that was not measured.
        """
        if budget is None:
            return NATURAL
        self._check(budget, unit)
        spending = self._spending(unit)

        # Under a price that is merely high, new queries with a larger gain than any of calibration
        # would reason. With costs that fall with depth, price 0 may cost less than the highest one.
        if budget <= spending.least + _EQUAL and (
            exact or spending.least <= spending.natural + _EQUAL
        ):
            return Threshold(math.inf)
        if not exact and spending.natural <= budget + _EQUAL:
            return NATURAL
        return (spending.exact if exact else spending.bounded).within(budget)

    def dearest(self, unit: Unit) -> float:
        """Mean cost of the calibration queries if all of them take the dearest depth."""
        return self._spending(unit).most

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        names = ("logits", "costs", "ties", "milliseconds")
        return {name: getattr(self, name) for name in names}

    def _check(self, budget: float, unit: Unit) -> None:
        check_budget(budget, unit)

        if not self.logits:
            raise ValueError(
                "The gate has no calibration queries, so it cannot keep a budget: fit the gate on "
                "data with a part `calibration`, or leave the budget out."
            )
        if unit == "milliseconds" and len(self.milliseconds) != len(self.logits[0]):
            raise ValueError(
                f"A budget in milliseconds needs the time of each of the {len(self.logits[0])} "
                f"depths, but {len(self.milliseconds)} are known: run `experiments.run test` with "
                "the gate's config first, which measures them and writes latency.json."
            )
        least = self._spending(unit).least
        if budget < least - _EQUAL:
            raise ValueError(
                f"budget is {budget:g} {unit} per query, but the cheapest depth alone costs "
                f"{least:g}: give a budget of at least {least:g}."
            )

    def _spending(self, unit: Unit) -> _Spending:
        if unit not in self._spendings:
            self._spendings[unit] = _Spending.of(self, unit)
        return self._spendings[unit]


@final
class ThresholdsJson(Schema):
    """See `Thresholds`."""

    logits: tuple[tuple[float, ...], ...]
    costs: tuple[tuple[float, ...], ...]
    ties: tuple[float, ...]
    milliseconds: tuple[float, ...]

    def thresholds(self) -> Thresholds:
        """As a record.

        Raises:
            ValueError: the lists tell of unequally many queries.
        """
        if not len(self.logits) == len(self.costs) == len(self.ties):
            raise ValueError(
                f"there are logits of {len(self.logits)} queries, costs of {len(self.costs)} and "
                f"ties of {len(self.ties)}: expected equally many."
            )
        return Thresholds(self.logits, self.costs, self.ties, self.milliseconds)


def check_budget(budget: float, unit: str) -> None:
    """Checks what can be checked of a budget before any cost is known.

    Raises:
        ValueError: an unknown unit, a negative or undefined budget, or a share above 1.
    """
    if unit not in get_args(Unit):
        raise ValueError(f"unit of the budget is {unit!r}: expected one of {list(get_args(Unit))}.")
    most = 1.0 if unit == "invocation" else math.inf
    if not -_EQUAL <= budget <= most + _EQUAL:  # false for NaN, too
        expected = "a share from 0 to 1" if unit == "invocation" else "a number of at least 0"
        raise ValueError(f"budget is {budget:g}: expected {expected} for unit {unit!r}.")


@final
@dataclass(frozen=True, slots=True)
class _Ladder:
    """Distinct costs of calibration in rising order, and the least price with each of them."""

    spent: tuple[float, ...]
    thresholds: tuple[Threshold, ...]

    @classmethod
    def of(cls, states: Iterable[tuple[float, Threshold]]) -> _Ladder:
        """Makes a ladder from (cost, threshold) in the order of falling prices."""
        # Of equal keys a dict keeps the last value, which is the least price. Sums in another
        # order differ in the last digits.
        least_price = {round(spent, 9): threshold for spent, threshold in states}
        rungs = sorted(least_price.items(), key=lambda rung: rung[0])
        return cls(tuple(spent for spent, _ in rungs), tuple(price for _, price in rungs))

    def within(self, budget: float) -> Threshold:
        """The threshold that costs most within the budget."""
        place = bisect_right(self.spent, budget + _EQUAL)
        assert place, "a budget below the cheapest depth was refused before"
        return self.thresholds[place - 1]


@final
@dataclass(frozen=True, slots=True)
class _Spending:
    """Mean costs of the calibration queries in one unit, at every price and tie.

    Attributes:
        cost_A: expected cost of a depth, by which prices are paid.
        least: if all take the cheapest depth.
        natural: at price 0, equal depths cheap.
        most: if all take the dearest depth.
        exact: at all prices.
        bounded: at prices above 0.
    """

    cost_A: Tensor
    least: float
    natural: float
    most: float
    exact: _Ladder
    bounded: _Ladder

    @classmethod
    def of(cls, table: Thresholds, unit: Unit) -> _Spending:
        """Computes all states of one unit."""
        step_CA = _steps(torch.tensor(table.logits, dtype=torch.float64))
        token_CA = torch.tensor(table.costs, dtype=torch.float64)
        expected = {
            "invocation": [0.0] + [1.0] * (step_CA.shape[1] - 1),
            "tokens": token_CA.mean(0).tolist(),
            "milliseconds": table.milliseconds,
        }
        cost_A = torch.tensor(expected[unit], dtype=torch.float64)
        paid_CA = token_CA if unit == "tokens" else cost_A.expand_as(step_CA)

        def spent(price: float) -> float:
            """Mean cost at a price, equal depths cheap."""
            price_C = torch.full((len(step_CA),), price, dtype=torch.float64)
            depth_C = _choose(step_CA, cost_A, price_C, torch.tensor(False))
            return paid_CA.gather(1, depth_C[:, None]).mean().item()

        least, most = spent(math.inf), spent(-math.inf)
        changes = _changes(step_CA, cost_A, paid_CA, table.ties)
        states = list(_states(changes, least, len(step_CA)))
        positive = [state for state in states if state[1].price > 0]
        return cls(cost_A, least, spent(0.0), most, _Ladder.of(states), _Ladder.of(positive))


def _changes(
    step_CA: Tensor, cost_A: Tensor, paid_CA: Tensor, ties: Sequence[float]
) -> dict[tuple[float, float, int], float]:
    """(price, tie-break, query) -> what the query pays more once it is dear at this price.

    A query changes its depth at crossings of its own lines alone; most of its crossings lie below
    its best line and change nothing.
    """
    order = cost_A.argsort(stable=True).tolist()
    pairs = [(a, b) for a, b in combinations(order, 2) if cost_A[b] > cost_A[a]]
    cheaper, dearer = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    gain_CP = step_CA[:, dearer] - step_CA[:, cheaper]
    price_R = _crossing(gain_CP, cost_A[dearer] - cost_A[cheaper]).flatten()
    row_R = torch.arange(len(step_CA)).repeat_interleave(len(pairs))

    cheap_R = _choose(step_CA[row_R], cost_A, price_R, torch.tensor(False))
    dear_R = _choose(step_CA[row_R], cost_A, price_R, torch.tensor(True))
    extra_R = paid_CA[row_R, dear_R] - paid_CA[row_R, cheap_R]

    # Three lines may cross in one point: one change, not three.
    changed_R = (cheap_R != dear_R).nonzero()[:, 0]
    columns = (column[changed_R].tolist() for column in (price_R, row_R, extra_R))
    return {(price, ties[row], row): extra for price, row, extra in zip(*columns, strict=True)}


def _states(
    changes: Mapping[tuple[float, float, int], float], least: float, num: int
) -> Iterator[tuple[float, Threshold]]:
    """Mean cost and threshold of every state, from the highest price to the lowest.

    Within a price, queries turn dear in the order of falling tie-breaks. The state that is named
    after a change is the one just before it: `Threshold.tie` is the first that stays cheap.
    """
    total = least * num
    rows = sorted(changes.items(), reverse=True)
    for (price, tie), group in groupby(rows, key=lambda row: row[0][:2]):
        yield total / num, Threshold(price, tie)
        total += sum(extra for _, extra in group)
    yield total / num, Threshold(-math.inf)


def depths_at(
    logit_BA: Tensor, cost_A: Tensor | None, threshold: Threshold, keys: Sequence[str]
) -> Tensor:
    """(B,) int64 depths at a price; equals are parted by a hash of their keys.

    Args:
        logit_BA: of the gate.
        cost_A: what the price is paid for; None = depths cost more the deeper they are.
        threshold: the price, and which of the equals are dear.
        keys: B names of the queries.
    """
    step_BA = _steps(logit_BA)
    cost_A = torch.arange(step_BA.shape[1]) if cost_A is None else cost_A
    assert len(cost_A) == step_BA.shape[1], "one cost for each depth"
    tie_B = torch.tensor([tie_break(key) for key in keys], dtype=torch.float64)
    price_B = torch.full_like(tie_B, threshold.price)
    return _choose(step_BA, cost_A.double(), price_B, tie_B > threshold.tie)


def _choose(step_BA: Tensor, cost_A: Tensor, price_B: Tensor, is_dear_B: Tensor) -> Tensor:
    """(B,) the depth with the best `logit - price * cost`; of equals the dearest or the cheapest.

    Compares the price with crossings instead of values with one another. So a choice changes
    exactly at the numbers that `_crossing` gives, and budgets can be counted without a tolerance.
    """
    order = cost_A.argsort(stable=True).tolist()
    best_B = torch.full((len(step_BA),), order[0])

    for depth in order[1:]:
        gain_B = step_BA[:, depth] - step_BA.gather(1, best_B[:, None])[:, 0]
        extra_B = cost_A[depth] - cost_A[best_B]
        crossing_B = _crossing(gain_B, extra_B)
        worth_B = (crossing_B > price_B) | (is_dear_B & (crossing_B == price_B))
        # No price separates depths of equal cost; of equal ones the first stays.
        better_B = torch.where(extra_B > 0, worth_B, gain_B > 0)
        best_B = torch.where(better_B, depth, best_B)
    return best_B


def _crossing(gain: Tensor, extra: Tensor) -> Tensor:
    """The price at which a dearer depth is worth as much as a cheaper one."""
    return gain / extra * _LOGIT_STEP


def _steps(logit_BA: Tensor) -> Tensor:
    """(B, A) logits less that of depth 0, in whole steps: differences of them are exact."""
    if not logit_BA.isfinite().all():
        row = int((~logit_BA.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"NaN gate score in row {row}: its state is not finite; embed it again.")
    # Equal states get logits that differ by the batch they were computed in, about 1e-7.
    logit_BA = logit_BA.detach().cpu().double()
    return ((logit_BA - logit_BA[:, :1]) / _LOGIT_STEP).round()


def tie_break(key: str) -> float:
    """A key's place among equals, in [0, 1)."""
    return unit_hash("gate-tie", key)


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that is equal in every process and run.

    >>> 0 <= unit_hash("gate", "country:fr") < 1
    True
    """
    return stable_hash(*parts, bits=53) / 2**53
