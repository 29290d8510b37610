"""Budgets: kept on calibration to the query, met on new queries, in any unit and at any depths."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experiments.report.policies.baselines import best_threshold
from mmemb.gate.budget import (
    NO_BUDGET,
    Budget,
    BudgetCalibration,
    CalibrationJson,
    Price,
    Unit,
    depths_at,
    row_budgets,
)
from mmemb.records.schema import parse_json

KEYS = [f"key-{i}" for i in range(200)]
COST_A = torch.tensor([0.0, 10.0, 40.0])


def from_json(table: BudgetCalibration) -> BudgetCalibration:
    return parse_json(json.dumps(table.to_json()), CalibrationJson, "F").record()


def two_depths(scores: list[float]) -> tuple[Tensor, Tensor]:
    """Logits whose difference is the score, and a cost of 20 tokens."""
    logit_BA = torch.tensor([[0.0, score] for score in scores])
    return logit_BA, torch.tensor([[0.0, 20.0]]).expand(len(scores), 2)


def rows_of(made: tuple[Tensor, Tensor]) -> tuple[Tensor, list[str]]:
    """Logits, and a key for each row."""
    return made[0], KEYS[: len(made[0])]


def three_depths(num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of three depths, and costs that vary about 0, 10 and 40 tokens."""
    random = torch.Generator().manual_seed(seed)
    noise_BA = torch.randint(-3, 4, (num, 3), generator=random)
    return torch.randn(num, 3, generator=random), (COST_A + noise_BA).clamp(min=0) * (COST_A > 0)


@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=200), budget=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_an_invocation_budget_is_kept_even_among_ties(scores: list[int], budget: float) -> None:
    logit_BA, cost_BA = two_depths([float(score) for score in scores])
    keys = KEYS[: len(scores)]
    table = BudgetCalibration.calibrate(logit_BA, cost_BA, keys)
    exact = table.decide(logit_BA, keys, budget, exact=True)
    assert int(exact.sum()) == int(budget * len(scores) + 1e-7)
    bound = table.decide(logit_BA, keys, budget)
    assert torch.equal(bound, exact * (torch.tensor(scores) > 0))


@st.composite
def calibrations(draw: st.DrawFn) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Logits, tokens and milliseconds of 2 to 5 depths: tied logits, costs in any order. Powers of
    two as numbers of queries keep mean costs exact."""
    num, depths = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(2, 5))

    def table(lowest: int, highest: int) -> Tensor:
        row = st.lists(st.integers(lowest, highest), min_size=depths, max_size=depths)
        return torch.tensor(draw(st.lists(row, min_size=num, max_size=num))).float()

    milliseconds = st.lists(st.integers(1, 9).map(float), min_size=depths, max_size=depths)
    return table(-2, 2), table(0, 6), tuple(draw(milliseconds))


def prices_of(logit_CA: Tensor, cost_A: Tensor) -> list[float]:
    """Every price at which two lines of a query cross, one between each two, and both ends."""
    crossings = {0.0, -1e6, 1e6}
    for a, b in combinations(range(len(cost_A)), 2):
        if gap := float(cost_A[b] - cost_A[a]):
            crossings |= set(((logit_CA[:, b] - logit_CA[:, a]) / gap).tolist())
    prices = sorted(crossings)
    return prices + [(low + high) / 2 for low, high in pairwise(prices)]


def brute_force(
    logit_CA: Tensor, cost_A: Tensor, paid_CA: Tensor, tie_C: Tensor
) -> dict[tuple[float, float], float]:
    """(price, tie) -> mean cost, from the values of all depths at every price and tie."""
    price_P = torch.tensor(prices_of(logit_CA, cost_A), dtype=torch.float64)
    value_PCA = logit_CA - price_P[:, None, None] * cost_A
    equal_PCA = value_PCA >= value_PCA.amax(2, keepdim=True) - 1e-9
    cheap_PC = cost_A.expand_as(value_PCA).masked_fill(~equal_PCA, math.inf).argmin(2)
    dear_PC = cost_A.expand_as(value_PCA).masked_fill(~equal_PCA, -math.inf).argmax(2)
    tie_T = torch.cat([tie_C, torch.tensor([1.0, -1.0])])
    depth_PTC = torch.where(tie_C > tie_T[:, None], dear_PC[:, None], cheap_PC[:, None])
    paid_PT = paid_CA.expand(len(price_P), len(tie_T), -1, -1)
    mean_PT = paid_PT.gather(3, depth_PTC[..., None]).mean((2, 3))
    found = {}
    for price, row in zip(price_P.tolist(), mean_PT.tolist(), strict=True):
        found |= {(price, tie): mean for tie, mean in zip(tie_T.tolist(), row, strict=True)}
    return found


@given(made=calibrations(), unit=st.sampled_from(["invocation", "tokens", "milliseconds"]))
@settings(max_examples=40, deadline=None)
def test_a_budget_buys_the_best_that_keeps_it(
    made: tuple[Tensor, Tensor, tuple[float, ...]], unit: Unit
) -> None:
    """Never above the budget, equal to brute force, and never less for a larger budget."""
    logit_CA, token_CA, milliseconds = made
    keys = KEYS[: len(logit_CA)]
    table = BudgetCalibration.calibrate(logit_CA, token_CA, keys, milliseconds)

    expected = {
        "invocation": torch.tensor([0.0] + [1.0] * (logit_CA.shape[1] - 1)).double(),
        "tokens": token_CA.double().mean(0),
        "milliseconds": torch.tensor(milliseconds).double(),
    }
    cost_A = expected[unit]
    paid_CA = token_CA.double() if unit == "tokens" else cost_A.expand_as(token_CA)
    tie_C = torch.tensor(table.ties, dtype=torch.float64)
    states = brute_force(logit_CA.double(), cost_A, paid_CA, tie_C)
    positive = {state: mean for state, mean in states.items() if state[0] > 0}

    least, natural = states[1e6, 1.0], states[0.0, 1.0]
    most = 1.0 if unit == "invocation" else math.inf
    budgets = sorted({least, *(min(m + 0.01, most) for m in states.values() if m >= least)})
    for exact in (False, True):
        last = -math.inf
        for budget in budgets:
            depth_C = table.decide(logit_CA, keys, budget, unit, exact=exact)
            spent = paid_CA.gather(1, depth_C[:, None]).mean().item()
            best = max(m for m in (states if exact else positive).values() if m <= budget + 1e-9)
            if not exact and natural <= budget + 1e-9:
                best = natural
            assert spent <= budget + 1e-9, "never above the budget"
            assert spent >= last - 1e-9, "never less for a larger budget"
            if budget > least or exact or natural >= least:
                assert spent == pytest.approx(least if budget == least else best, abs=1e-9)
            last = spent


def test_the_least_price_is_taken_among_those_of_equal_cost() -> None:
    """The second query pays nothing at depth 1, so opening it is free."""
    table = BudgetCalibration.calibrate(
        torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]]),
        torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.0, 3.0]]),
        KEYS[:3],
    )
    price = 1.0 / 2.0  # of the last query: its logit by the mean cost
    assert table.price(1.0, "tokens") == Price(pytest.approx(price), table.ties[2])


def test_ties_at_price_0_go_to_the_depth_that_costs_less() -> None:
    """Depth 1 costs 25 tokens and depth 2 costs 5; the gate likes them equally."""
    logit_BA, cost_BA = torch.tensor([[0.0, 1.0, 1.0]] * 4), torch.tensor([[0.0, 25.0, 5.0]] * 4)
    table = BudgetCalibration.calibrate(logit_BA, cost_BA, KEYS[:4])
    assert table.decide(logit_BA, KEYS[:4], 5.0, "tokens").tolist() == [2, 2, 2, 2]
    assert table.decide(logit_BA, KEYS[:4]).tolist() == [1, 1, 1, 1], "without a budget the first"


def test_a_price_is_searched_once_for_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean costs of a unit are computed at its first budget."""
    table = BudgetCalibration.calibrate(*three_depths(20), KEYS[:20])
    budgets = [4.0, 7.0, None, 4.0]
    expected = table.decide(*rows_of(three_depths(4)), budgets, "tokens")

    mean_costs = dict(table._mean_costs)
    assert list(mean_costs) == ["tokens"]
    monkeypatch.setattr(BudgetCalibration, "_search", None)
    assert torch.equal(table.decide(*rows_of(three_depths(4)), budgets, "tokens"), expected)
    assert table._mean_costs == mean_costs
    assert table == from_json(table), "what is kept is no part of the value"


def test_few_prices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmemb.gate.budget._MOST_PRICES", 3)
    table = BudgetCalibration.calibrate(*three_depths(20), KEYS[:20])
    prices = [table.price(budget / 9, "invocation") for budget in range(9)]
    assert len(table._prices) <= 3
    assert prices == [table.price(budget / 9, "invocation") for budget in range(9)]


def test_a_bound_never_reasons_against_the_gates_will() -> None:
    logit_BA, cost_BA = three_depths(200)
    table = BudgetCalibration.calibrate(logit_BA, cost_BA, KEYS)
    natural = table.decide(logit_BA, KEYS)
    assert torch.equal(natural, logit_BA.argmax(1))
    assert torch.equal(table.decide(logit_BA, KEYS, 40.0, "tokens"), natural)
    tight = table.decide(logit_BA, KEYS, 5.0, "tokens")
    assert (COST_A[tight] <= COST_A[natural]).all(), "a price makes nobody spend more"


def test_the_ends_of_a_budget() -> None:
    logit_BA, cost_BA = two_depths([1.0, -1.0])
    table = BudgetCalibration.calibrate(logit_BA, cost_BA, ["a", "b"])
    new, _ = two_depths([50.0, -50.0])
    assert table.price(0.0) == Price(math.inf)
    assert table.decide(new, ["c", "d"], 0.0, exact=True).tolist() == [0, 0]
    assert table.decide(new, ["c", "d"], 1.0, exact=True).tolist() == [1, 1]
    assert table.decide(new, ["c", "d"], 1.0).tolist() == [1, 0]
    assert table.decide(new, ["c", "d"]).tolist() == [1, 0]
    assert table.price(None) == NO_BUDGET


@pytest.mark.parametrize(
    ("budget", "unit", "words"),
    [
        (1.1, "invocation", r"budget is 1\.1: expected a share from 0 to 1"),
        (math.nan, "invocation", "budget is nan: expected a share from 0 to 1"),
        (-0.1, "tokens", r"budget is -0\.1: expected a number of at least 0"),
        (5.0, "milliseconds", "each of the 2 depths, but 0 are known"),
        (0.5, "euros", "unit of the budget is 'euros'"),
    ],
)
def test_a_budget_that_cannot_be_met_says_so(budget: float, unit: str, words: str) -> None:
    table = BudgetCalibration.calibrate(*two_depths([1.0, -1.0]), ["a", "b"])
    with pytest.raises(ValueError, match=words):
        table.price(budget, unit)
    with pytest.raises(ValueError, match="The gate has no calibration queries"):
        BudgetCalibration().price(0.5)


@given(data=st.data(), num=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_row_depends_on_its_own_budget_alone(data: st.DataObject, num: int) -> None:
    """Budgets and units of a batch in one call, as if each row were asked for by itself."""
    milliseconds = (1.0, 2.0, 9.0)
    table = BudgetCalibration.calibrate(*three_depths(40), KEYS[:40], milliseconds)
    logit_BA, keys = rows_of(three_depths(num, seed=3))

    most = {"invocation": 1.0, "tokens": 50.0, "milliseconds": 9.0}
    units: list[Unit] = data.draw(
        st.lists(st.sampled_from(sorted(most)), min_size=num, max_size=num)
    )
    amounts = [
        data.draw(st.none() | st.sampled_from([1.0, most[unit]]) | st.floats(1.0, most[unit]))
        for unit in units
    ]
    exact = data.draw(st.booleans())

    together = table.decide(logit_BA, keys, amounts, units, exact=exact).tolist()
    for row, (amount, unit) in enumerate(zip(amounts, units, strict=True)):
        one_row = slice(row, row + 1)
        alone = table.decide(logit_BA[one_row], keys[one_row], amount, unit, exact=exact)
        assert together[row] == alone.item()


def test_a_tensor_of_budgets_is_a_budget_for_each_row() -> None:
    table = BudgetCalibration.calibrate(*two_depths([1.0, 2.0]), ["a", "b"])
    logit_BA, _ = two_depths([9.0, 9.0, 9.0])
    budget_B = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert table.decide(logit_BA, ["c", "d", "e"], budget_B).tolist() == [0, 1, 0]
    assert table.decide(logit_BA, ["c", "d", "e"], torch.tensor(1.0)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="budget must be one value, or one for each of 3 rows"):
        table.decide(logit_BA, ["c", "d", "e"], [0.5, 0.5])
    with pytest.raises(ValueError, match="unit must be one value, or one for each of 3 rows"):
        table.decide(logit_BA, ["c", "d", "e"], 0.5, ["tokens"])
    with pytest.raises(ValueError, match=r"budget is 1\.5: expected a share"):
        table.decide(logit_BA, ["c", "d", "e"], [0.5, None, 1.5])


def test_numbers_of_numpy_are_budgets_and_texts_are_none() -> None:
    for half in (np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)):
        assert row_budgets(half, "tokens", 2) == [Budget(0.5, "tokens")] * 2
    assert row_budgets([np.float32(0.5), None], "tokens", 2)[0] == Budget(0.5, "tokens")
    assert row_budgets(np.array([1, 2]), "tokens", 2)[1] == Budget(2, "tokens")

    for wrong in ("0.5", 1j, [0.5, "0.5"], [[0.5], [0.5]], torch.ones(2, 1)):
        with pytest.raises(ValueError, match="expected a number, or None for no bound"):
            row_budgets(wrong, "tokens", 2)


def test_milliseconds_count_the_direct_path() -> None:
    logit_BA, cost_BA = two_depths([float(n) for n in range(10)])
    table = BudgetCalibration.calibrate(logit_BA, cost_BA, KEYS[:10], milliseconds=(10.0, 110.0))
    assert table.decide(logit_BA, KEYS[:10], 41.0, "milliseconds").sum() == 3
    with pytest.raises(ValueError, match="the cheapest depth alone costs 10"):
        table.price(5.0, "milliseconds")


@pytest.mark.parametrize("milliseconds", [(0.1, 5.0), (10.1, 110.0), (5.3, 2.1)])
def test_the_cost_of_the_cheapest_depth_is_a_budget(milliseconds: tuple[float, float]) -> None:
    """Though a mean of many equal floats may exceed them in the last digit."""
    table = BudgetCalibration.calibrate(*two_depths([1.0] * 7), KEYS[:7], milliseconds)
    cheapest = milliseconds.index(min(milliseconds))
    assert table.price(min(milliseconds), "milliseconds") == Price(math.inf)
    depth_B = table.decide(torch.zeros(7, 2), KEYS[:7], min(milliseconds), "milliseconds")
    assert depth_B.tolist() == [cheapest] * 7


def test_a_constant_gate_opens_the_budget_on_new_keys() -> None:
    table = BudgetCalibration.calibrate(*two_depths([1.0] * 200), KEYS)
    new = [f"new-{i}" for i in range(4000)]
    logit_BA, _ = two_depths([1.0] * 4000)
    noisy = logit_BA + 1e-7 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    opened = table.decide(noisy, new, 0.3)
    assert opened.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(opened.flip(0), table.decide(logit_BA, new[::-1], 0.3))


@pytest.mark.parametrize("share", [pytest.param(0.1, marks=pytest.mark.slow), 0.5, 0.9])
def test_new_queries_cost_what_was_asked_for(share: float) -> None:
    """Within two points, and within the 95 % prediction interval of both samples."""
    num = 10_000
    logit_BA, cost_BA = three_depths(2 * num, seed=7)
    keys = [f"{n}" for n in range(2 * num)]
    table = BudgetCalibration.calibrate(logit_BA[:num], cost_BA[:num], keys[:num])
    depth_B = table.decide(logit_BA[num:], keys[num:], share, exact=True)
    achieved = (depth_B > 0).double().mean().item()
    assert abs(achieved - share) < 0.02
    assert abs(achieved - share) < 1.96 * math.sqrt(share * (1 - share) * 2 / num) + 1e-9
    tokens = share * table.max_cost("tokens")
    depth_B = table.decide(logit_BA[num:], keys[num:], tokens, "tokens", exact=True)
    paid = cost_BA[num:].gather(1, depth_B[:, None]).mean().item()
    assert paid == pytest.approx(tokens, rel=0.02)


def test_a_calibration_survives_json() -> None:
    table = BudgetCalibration.calibrate(*three_depths(20), KEYS[:20], milliseconds=(1.0, 2.0, 3.0))
    assert table.max_cost("milliseconds") == 3.0
    again = from_json(table)
    assert again == table
    assert again.price(4.0, "tokens", exact=True) == table.price(4.0, "tokens", exact=True)
    faster = replace(table, milliseconds=(1.0, 2.0, 9.0))  # after a new measurement
    assert faster.max_cost("milliseconds") == 9.0


def test_without_a_query_there_is_no_threshold() -> None:
    with pytest.raises(ValueError, match="no query of the calibration can reason"):
        BudgetCalibration.calibrate(torch.zeros(0), torch.zeros(0), ())


def test_a_cost_that_is_not_finite_is_named() -> None:
    cost_CA = torch.tensor([[0.0, 1.0], [0.0, torch.nan]])
    with pytest.raises(ValueError, match="calibration query 'b' are not finite"):
        BudgetCalibration.calibrate(torch.zeros(2, 2), cost_CA, ["a", "b"])


def test_logits_that_are_not_finite_are_named() -> None:
    with pytest.raises(ValueError, match="row 1"):
        depths_at(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), None, [NO_BUDGET] * 2, ["a", "b"])


def test_equal_depths_go_to_the_cheaper_or_by_key_to_the_dearer() -> None:
    logit_BA = torch.zeros(2, 3)
    keys = ["a", "b"]
    assert depths_at(logit_BA, COST_A, [NO_BUDGET] * 2, keys).tolist() == [0, 0]
    assert depths_at(logit_BA, COST_A, [Price(0.0, -1.0)] * 2, keys).tolist() == [2, 2]


def test_a_query_reasons_while_any_depth_is_worth_its_price() -> None:
    logit_BA, _ = three_depths(200)
    opened = depths_at(logit_BA, COST_A.double(), [Price(0.02)] * 200, KEYS) > 0
    cost_A = COST_A.double()
    price_BA = (logit_BA[:, 1:] - logit_BA[:, :1]) / (cost_A[1:] - cost_A[0])
    assert torch.equal(opened, price_BA.amax(1) > 0.02)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-3, 3)), max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_best_threshold_is_the_best_of_all(rows: list[tuple[int, int]]) -> None:
    scores, gains = [float(s) for s, _ in rows], [float(g) for _, g in rows]

    def worth(threshold: float) -> float:
        return sum(gain for score, gain in zip(scores, gains, strict=True) if score > threshold)

    found = best_threshold(scores, gains, [1.0] * len(rows))
    assert worth(found) == max([0.0, *(worth(score - 0.5) for score in scores)])
