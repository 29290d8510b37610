"""Depths under a budget (docs/method.md, section 7): the price that keeps it, and who pays it.

A query takes the depth with the largest `logit - multiplier * cost`. With two depths this is a
threshold on the difference of the logits. Depth 0 is direct. Shapes: B queries, C queries of
split `calibration`, A depths, P pairs of depths, R crossings of their lines.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import combinations, groupby
from numbers import Real
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np
import torch
from torch import Tensor

from mmemb.records.hashing import stable_hash
from mmemb.records.schema import Schema

Unit = Literal["invocation", "tokens", "milliseconds"]
"""Counts of a budget, per eligible query: the share that reasons, tokens, or milliseconds."""

Amounts = float | Sequence[float | None] | Tensor | None
"""One budget for all rows, or one for each; None = no budget. Budgets in a tensor are float64: the
float32 next to 0.7 is less than 0.7, and buys less."""

Units = Unit | Sequence[Unit]
"""One unit for all rows, or one for each."""

_LOGIT_STEP = 1e-5
_EQUAL = 1e-9
_MOST_PRICES = 4096


@final
class Budget(NamedTuple):
    """Upper bound on what an eligible query costs on average; `amount` None = no bound."""

    amount: float | None
    unit: Unit = "invocation"


@final
@dataclass(frozen=True, slots=True)
class Price:
    """Price that a query pays for the cost of a depth.

    Attributes:
        multiplier: mu, in nats per unit of cost.
        tie_break: among depths that are equal at this multiplier, a query takes the most expensive
            one if the tie-break of its key is above this number, else the cheapest.
    """

    multiplier: float
    tie_break: float = 1.0


NO_BUDGET = Price(0.0)
"""Takes the arg max of the logits: the price of a token was in the reward already."""


@final
@dataclass(frozen=True, slots=True)
class BudgetCalibration:
    """The calibration queries as the gate sees them, from which the price of any budget follows.

    Their mean cost is a step function of the multiplier: it changes where the lines
    `logit_a - multiplier * cost_a` of a query cross, and nowhere else. All its steps are computed
    once for a unit, at its first budget; the price of a budget is searched among them once.

    Attributes:
        logits: (C, A) of the eligible queries.
        costs: (C, A) tokens that each would pay at each depth.
        ties: (C,) tie-breaks of their keys: among equals a fair, repeatable share pays more.
        milliseconds: (A,) measured live, or empty: then no budget can be given in them.
    """

    logits: tuple[tuple[float, ...], ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()
    ties: tuple[float, ...] = ()
    milliseconds: tuple[float, ...] = ()

    _mean_costs: dict[Unit, _MeanCosts] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _prices: dict[tuple[Budget, bool], Price] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def calibrate(
        cls,
        logit_CA: Tensor,
        cost_CA: Tensor,
        keys: Sequence[str],
        milliseconds: Sequence[float] = (),
    ) -> BudgetCalibration:
        """Keeps logits (C, A) and token costs (C, A) of the eligible calibration queries.

        Raises:
            ValueError: there is no query, or a logit or cost is not finite.
        """
        if not keys:
            raise ValueError(
                "no query of the calibration can reason, so no threshold can be calibrated: in a "
                "fit, give stage `rationales` a writer that reads some of split `calibration`, or "
                "prepare more; of your own traffic, give queries that the gate's writers can read."
            )
        if not (finite_C := cost_CA.isfinite().all(1)).all():
            key = keys[int((~finite_C).nonzero()[0])]
            raise ValueError(
                f"The costs of calibration query {key!r} are not finite: expected tokens at every "
                "depth. Make the depth values again."
            )

        logits = tuple(map(tuple, (_steps(logit_CA) * _LOGIT_STEP).tolist()))
        costs = tuple(map(tuple, cost_CA.cpu().double().tolist()))
        return cls(logits, costs, tuple(map(tie_break, keys)), tuple(milliseconds))

    def decide(
        self,
        logit_BA: Tensor,
        keys: Sequence[str],
        budget: Amounts = None,
        unit: Units = "invocation",
        *,
        exact: bool = False,
    ) -> Tensor:
        """Returns the depths (B,) int64 that queries take; each depends on its own budget alone.

        Args:
            logit_BA: of the gate.
            keys: B names of the queries, which break ties.
            budget: one for all, or B of them. Without one, the first of equal depths is taken;
                under one, the depth that costs less in its unit.
            unit: what the budgets count; one for all, or B of them.
            exact: see `price`.
        """
        budgets = row_budgets(budget, unit, len(logit_BA))
        _check_finite(logit_BA)  # before rows are picked, so that the error counts all rows

        # Rows of one unit pay for the same costs, each at its own price.
        units = [None if amount is None else of_unit for amount, of_unit in budgets]
        depth_B = torch.zeros(len(budgets), dtype=torch.long)
        for one in dict.fromkeys(units):
            rows = [row for row, other in enumerate(units) if other == one]
            prices = [self.price(*budgets[row], exact=exact) for row in rows]
            cost_A = None if one is None else self._mean_costs_in(one).cost_A
            depth_B[rows] = depths_at(logit_BA[rows], cost_A, prices, [keys[row] for row in rows])
        return depth_B

    def price(
        self, budget: float | None, unit: Unit = "invocation", *, exact: bool = False
    ) -> Price:
        """Returns the price under which queries like those of calibration cost `budget` on average.

        On calibration itself the result never costs more than the budget. Among the prices that
        keep it, the result costs most; among those of equal cost it has the least multiplier. So a
        larger budget never costs less.

        Args:
            budget: per eligible query, in `unit`; None = no budget.
            unit: `invocation` is the share that reasons.
            exact: spend all of it (the frontier), at multipliers below 0, too. Otherwise it is an
                upper bound: the multiplier is at least 0, and 0 as soon as the budget allows it.

        Raises:
            ValueError: a budget that cannot be met, or a unit that was not measured.
        """
        if budget is None:
            return NO_BUDGET

        key = (Budget(budget, unit), exact)
        if key not in self._prices:
            price = self._search(budget, unit, exact)
            # A server may be asked for any number of budgets: they must not fill its memory.
            if len(self._prices) >= _MOST_PRICES:
                self._prices.clear()
            self._prices[key] = price
        return self._prices[key]

    def mean_tokens(self) -> Tensor:
        """Returns the mean tokens (A,) of the calibration queries at each depth.

        Raises:
            ValueError: there are no calibration queries.
        """
        self._check_queries()
        return torch.tensor(self.costs, dtype=torch.float64).mean(0)

    def max_cost(self, unit: Unit) -> float:
        """Mean cost of the calibration queries if all of them take the most expensive depth."""
        return self._mean_costs_in(unit).max

    def to_json(self) -> dict[str, Any]:
        """Plain data, which `CalibrationJson` reads."""
        names = ("logits", "costs", "ties", "milliseconds")
        return {name: getattr(self, name) for name in names}

    def _search(self, budget: float, unit: Unit, exact: bool) -> Price:
        self._check(budget, unit)
        costs = self._mean_costs_in(unit)

        # A multiplier that is merely high would let new queries reason that gain more than any of
        # calibration. Where costs fall with depth, multiplier 0 may cost less than the highest one.
        cheapest_keeps_it = exact or costs.min <= costs.at_zero + _EQUAL
        if budget <= costs.min + _EQUAL and cheapest_keeps_it:
            return Price(math.inf)

        if not exact and costs.at_zero <= budget + _EQUAL:
            return NO_BUDGET
        return (costs.steps if exact else costs.positive_steps).within(budget)

    def _check(self, budget: float, unit: Unit) -> None:
        check_budget(budget, unit)

        self._check_queries()
        if unit == "milliseconds" and len(self.milliseconds) != len(self.logits[0]):
            raise ValueError(
                f"A budget in milliseconds needs the time of each of the {len(self.logits[0])} "
                f"depths, but {len(self.milliseconds)} are known: run `experiments.run test` with "
                "the gate's config first, which measures them and writes latency.json."
            )

        least = self._mean_costs_in(unit).min
        if budget < least - _EQUAL:
            raise ValueError(
                f"budget is {budget:g} {unit} per query, but the cheapest depth alone costs "
                f"{least:g}: give a budget of at least {least:g}."
            )

    def _check_queries(self) -> None:
        if not self.logits:
            raise ValueError(
                "The gate has no calibration queries, so it cannot keep a budget: fit the gate on "
                "data with a split `calibration`, or leave the budget out."
            )

    def _mean_costs_in(self, unit: Unit) -> _MeanCosts:
        if unit not in self._mean_costs:
            self._mean_costs[unit] = _MeanCosts.measure(self, unit)
        return self._mean_costs[unit]


@final
class CalibrationJson(Schema):
    """See `BudgetCalibration`."""

    logits: tuple[tuple[float, ...], ...]
    costs: tuple[tuple[float, ...], ...]
    ties: tuple[float, ...]
    milliseconds: tuple[float, ...]

    def record(self) -> BudgetCalibration:
        """Returns the record.

        Raises:
            ValueError: the lists tell of unequally many queries.
        """
        if not len(self.logits) == len(self.costs) == len(self.ties):
            raise ValueError(
                f"there are logits of {len(self.logits)} queries, costs of {len(self.costs)} and "
                f"ties of {len(self.ties)}: expected equally many."
            )
        return BudgetCalibration(self.logits, self.costs, self.ties, self.milliseconds)


def row_budgets(budget: Amounts, unit: Units, num_rows: int) -> list[Budget]:
    """Returns the budget of each row; a budget or unit that is given for all is repeated.

    Raises:
        ValueError: a budget is wrong in itself (`check_budget`), or there are not as many as rows.

    >>> row_budgets([0.5, None], "tokens", 2)
    [Budget(amount=0.5, unit='tokens'), Budget(amount=None, unit='tokens')]
    """
    is_array = isinstance(budget, Tensor | np.ndarray | np.generic)
    amounts = budget.tolist() if is_array else budget  # type: ignore[union-attr]
    amounts, units = _per_row("budget", amounts, num_rows), _per_row("unit", unit, num_rows)
    budgets = [Budget(*pair) for pair in zip(amounts, units, strict=True)]

    for amount, of_unit in budgets:
        if amount is not None:
            check_budget(amount, of_unit)
    return budgets


def _per_row(name: str, value: Any, num_rows: int) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sized):
        return [value] * num_rows
    if len(value) != num_rows:
        raise ValueError(
            f"{name} must be one value, or one for each of {num_rows} rows, got {len(value)}."
        )
    return list(value)


def check_budget(budget: float, unit: str) -> None:
    """Checks what can be checked of a budget before any cost is known.

    Raises:
        ValueError: an unknown unit, a negative or undefined budget, or a share above 1.
    """
    if unit not in get_args(Unit):
        raise ValueError(f"unit of the budget is {unit!r}: expected one of {list(get_args(Unit))}.")
    if not isinstance(budget, Real):
        raise ValueError(f"budget is {budget!r:.60}: expected a number, or None for no bound.")
    most = 1.0 if unit == "invocation" else math.inf
    if not -_EQUAL <= budget <= most + _EQUAL:  # false for NaN, too
        expected = "a share from 0 to 1" if unit == "invocation" else "a number of at least 0"
        raise ValueError(f"budget is {budget:g}: expected {expected} for unit {unit!r}.")


def depths_at(
    logit_BA: Tensor, cost_A: Tensor | None, prices: Sequence[Price], keys: Sequence[str]
) -> Tensor:
    """Returns the depths (B,) int64 that are taken at given prices.

    Args:
        logit_BA: of the gate.
        cost_A: what the multiplier is paid for; None = depths cost more the deeper they are.
        prices: of the B queries.
        keys: B names of the queries.
    """
    step_BA = _steps(logit_BA)
    cost_A = torch.arange(step_BA.shape[1]) if cost_A is None else cost_A
    assert len(cost_A) == step_BA.shape[1], "one cost for each depth"

    multiplier_B = torch.tensor([price.multiplier for price in prices], dtype=torch.float64)
    pairs = zip(keys, prices, strict=True)
    pays_more_B = torch.tensor([tie_break(key) > price.tie_break for key, price in pairs])
    return _choose(step_BA, cost_A.double(), multiplier_B, pays_more_B)


def _choose(step_BA: Tensor, cost_A: Tensor, multiplier_B: Tensor, pays_more_B: Tensor) -> Tensor:
    """Returns the depth (B,) with the best `logit - multiplier * cost`; of equals the most
    expensive one where `pays_more_B`, else the cheapest.

    Compares the multiplier with crossings instead of values with one another. So a choice changes
    exactly at the numbers that `_crossing` gives, and budgets can be counted without a tolerance.
    """
    order = cost_A.argsort(stable=True).tolist()
    best_B = torch.full((len(step_BA),), order[0])

    # From the cheapest depth upwards: each one must be worth what it costs more than the best yet.
    for depth in order[1:]:
        gain_B = step_BA[:, depth] - step_BA.gather(1, best_B[:, None])[:, 0]
        extra_B = cost_A[depth] - cost_A[best_B]
        crossing_B = _crossing(gain_B, extra_B)
        worth_B = (crossing_B > multiplier_B) | (pays_more_B & (crossing_B == multiplier_B))

        # No multiplier separates depths of equal cost; of equal ones the first stays.
        better_B = torch.where(extra_B > 0, worth_B, gain_B > 0)
        best_B = torch.where(better_B, depth, best_B)
    return best_B


def _crossing(gain: Tensor, extra: Tensor) -> Tensor:
    """Multiplier at which a depth that costs `extra` more is worth as much as the cheaper one."""
    return gain / extra * _LOGIT_STEP


def _steps(logit_BA: Tensor) -> Tensor:
    """Logits (B, A) less that of depth 0, in whole steps: differences of them are exact."""
    _check_finite(logit_BA)
    # Equal states get logits that differ by the batch they were computed in, about 1e-7.
    logit_BA = logit_BA.detach().cpu().double()
    return ((logit_BA - logit_BA[:, :1]) / _LOGIT_STEP).round()


def _check_finite(logit_BA: Tensor) -> None:
    if not logit_BA.isfinite().all():
        row = int((~logit_BA.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"NaN gate score in row {row}: its state is not finite; embed it again.")


@final
@dataclass(frozen=True, slots=True)
class _Steps:
    """Distinct mean costs of calibration in rising order, and the least price with each of them."""

    cost: tuple[float, ...]
    prices: tuple[Price, ...]

    @classmethod
    def collect(cls, states: Iterable[tuple[float, Price]]) -> _Steps:
        """Sorts (mean cost, price) that come in the order of falling multipliers."""
        # Of equal keys a dict keeps the last value, which is the least price. Sums in another
        # order differ in the last digits.
        least_price = {round(cost, 9): price for cost, price in states}
        steps = sorted(least_price.items(), key=lambda step: step[0])
        return cls(tuple(cost for cost, _ in steps), tuple(price for _, price in steps))

    def within(self, budget: float) -> Price:
        """Returns the price that costs most within the budget."""
        place = bisect_right(self.cost, budget + _EQUAL)
        assert place, "a budget below the cheapest depth was refused before"
        return self.prices[place - 1]


@final
@dataclass(frozen=True, slots=True)
class _MeanCosts:
    """Mean costs of the calibration queries in one unit, at every price.

    Attributes:
        cost_A: expected cost of a depth, by which the multiplier is paid.
        min: if all take the cheapest depth.
        at_zero: at multiplier 0, the cheapest of equal depths.
        max: if all take the most expensive depth.
        steps: at all multipliers.
        positive_steps: at multipliers above 0.
    """

    cost_A: Tensor
    min: float
    at_zero: float
    max: float
    steps: _Steps
    positive_steps: _Steps

    @classmethod
    def measure(cls, calibration: BudgetCalibration, unit: Unit) -> _MeanCosts:
        """Computes the mean cost at every price, in one unit."""
        step_CA = _steps(torch.tensor(calibration.logits, dtype=torch.float64))
        token_CA = torch.tensor(calibration.costs, dtype=torch.float64)

        # The tokens of a rationale are not known before it is written: the multiplier is paid for
        # their mean, while the budget counts what each calibration query really took.
        expected = {
            "invocation": [0.0] + [1.0] * (step_CA.shape[1] - 1),
            "tokens": token_CA.mean(0).tolist(),
            "milliseconds": calibration.milliseconds,
        }
        cost_A = torch.tensor(expected[unit], dtype=torch.float64)
        paid_CA = token_CA if unit == "tokens" else cost_A.expand_as(step_CA)

        def mean_cost(multiplier: float) -> float:
            """Mean cost at a multiplier, where the cheapest of equal depths is taken."""
            multiplier_C = torch.full((len(step_CA),), multiplier, dtype=torch.float64)
            depth_C = _choose(step_CA, cost_A, multiplier_C, torch.tensor(False))
            return paid_CA.gather(1, depth_C[:, None]).mean().item()

        least = mean_cost(math.inf)
        changes = _changes(step_CA, cost_A, paid_CA, calibration.ties)
        states = list(_states(changes, least, len(step_CA)))
        positive = [state for state in states if state[1].multiplier > 0]
        return cls(
            cost_A,
            min=least,
            at_zero=mean_cost(0.0),
            max=mean_cost(-math.inf),
            steps=_Steps.collect(states),
            positive_steps=_Steps.collect(positive),
        )


def _changes(
    step_CA: Tensor, cost_A: Tensor, paid_CA: Tensor, ties: Sequence[float]
) -> dict[tuple[float, float, int], float]:
    """Returns (multiplier, tie-break, query) -> the extra cost of the query past this point.

    At the multiplier two depths of the query are equal; past it the more expensive one is taken.

    A query changes its depth at crossings of its own lines alone; most of its crossings lie below
    its best line and change nothing.
    """
    order = cost_A.argsort(stable=True).tolist()
    pairs = [(a, b) for a, b in combinations(order, 2) if cost_A[b] > cost_A[a]]
    low_P, high_P = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)

    gain_CP = step_CA[:, high_P] - step_CA[:, low_P]
    multiplier_R = _crossing(gain_CP, cost_A[high_P] - cost_A[low_P]).flatten()
    row_R = torch.arange(len(step_CA)).repeat_interleave(len(pairs))

    cheap_R = _choose(step_CA[row_R], cost_A, multiplier_R, torch.tensor(False))
    costly_R = _choose(step_CA[row_R], cost_A, multiplier_R, torch.tensor(True))
    extra_R = paid_CA[row_R, costly_R] - paid_CA[row_R, cheap_R]

    # Three lines may cross in one point: one change, not three.
    changed_R = (cheap_R != costly_R).nonzero()[:, 0]
    columns = (column[changed_R].tolist() for column in (multiplier_R, row_R, extra_R))
    return {
        (multiplier, ties[row], row): extra for multiplier, row, extra in zip(*columns, strict=True)
    }


def _states(
    changes: Mapping[tuple[float, float, int], float], least: float, num_queries: int
) -> Iterator[tuple[float, Price]]:
    """Mean cost and price of every state, from the highest multiplier to the lowest.

    At one multiplier, queries change in the order of falling tie-breaks. The state that is named
    after a change is the one just before it: `Price.tie_break` is the first that stays cheap.
    """
    total = least * num_queries
    rows = sorted(changes.items(), reverse=True)
    for (multiplier, tie), group in groupby(rows, key=lambda row: row[0][:2]):
        yield total / num_queries, Price(multiplier, tie)
        total += sum(extra for _, extra in group)
    yield total / num_queries, Price(-math.inf)


def tie_break(key: str) -> float:
    """Place of a key among equals, in [0, 1)."""
    return unit_hash("gate-tie", key)


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that is equal in every process and run.

    >>> 0 <= unit_hash("gate", "country:fr") < 1
    True
    """
    return stable_hash(*parts, bits=53) / 2**53
