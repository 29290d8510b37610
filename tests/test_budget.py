"""Budgets: kept on calibration to the query, met on new queries, in any unit and at any depths."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmemb.budget import NATURAL, Threshold, Thresholds, depths_at
from mmemb.gating import best_threshold

KEYS = [f"key-{i}" for i in range(200)]
COST_A = torch.tensor([0.0, 10.0, 40.0])


def two_depths(scores: list[float]) -> tuple[Tensor, Tensor]:
    """Logits whose difference is the score, and a cost of 20 tokens."""
    logit_BA = torch.tensor([[0.0, score] for score in scores])
    return logit_BA, torch.tensor([[0.0, 20.0]]).expand(len(scores), 2)


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
    table = Thresholds.calibrate(logit_BA, cost_BA, keys)
    exact = table.decide(logit_BA, keys, budget, exact=True)
    assert int(exact.sum()) == int(budget * len(scores) + 1e-7)
    bound = table.decide(logit_BA, keys, budget)
    assert torch.equal(bound, exact * (torch.tensor(scores) > 0))


@given(
    share=st.floats(0, 1), seed=st.integers(0, 99), unit=st.sampled_from(["tokens", "invocation"])
)
@settings(max_examples=60, deadline=None)
def test_three_depths_spend_what_they_may(share: float, seed: int, unit: str) -> None:
    logit_BA, cost_BA = three_depths(60, seed)
    table = Thresholds.calibrate(logit_BA, cost_BA, KEYS[:60])
    budget = share * table.dearest(unit)
    depth_B = table.decide(logit_BA, KEYS[:60], budget, unit, exact=True)
    paid_B = cost_BA.gather(1, depth_B[:, None]) if unit == "tokens" else (depth_B > 0).double()
    assert paid_B.mean() <= budget + 1e-6
    dearest = 43.0 if unit == "tokens" else 1.0
    assert paid_B.mean() > budget - 2 * dearest / 60, "and nearly all of it"


def test_a_bound_never_reasons_against_the_gates_will() -> None:
    logit_BA, cost_BA = three_depths(200)
    table = Thresholds.calibrate(logit_BA, cost_BA, KEYS)
    natural = table.decide(logit_BA, KEYS)
    assert torch.equal(natural, logit_BA.argmax(1))
    assert torch.equal(table.decide(logit_BA, KEYS, 40.0, "tokens"), natural)
    tight = table.decide(logit_BA, KEYS, 5.0, "tokens")
    assert (COST_A[tight] <= COST_A[natural]).all(), "a price makes nobody spend more"


def test_the_ends_of_a_budget() -> None:
    logit_BA, cost_BA = two_depths([1.0, -1.0])
    table = Thresholds.calibrate(logit_BA, cost_BA, ["a", "b"])
    new, _ = two_depths([50.0, -50.0])
    assert table.at(0.0) == Threshold(math.inf)
    assert table.decide(new, ["c", "d"], 0.0, exact=True).tolist() == [0, 0]
    assert table.decide(new, ["c", "d"], 1.0, exact=True).tolist() == [1, 1]
    assert table.decide(new, ["c", "d"], 1.0).tolist() == [1, 0]
    assert table.decide(new, ["c", "d"]).tolist() == [1, 0]
    assert table.at(None) == NATURAL


@pytest.mark.parametrize(
    ("budget", "unit", "words"),
    [
        (1.1, "invocation", "cannot be met"),
        (-0.1, "tokens", "cannot be met"),
        (5.0, "milliseconds", "no milliseconds were measured"),
        (0.5, "euros", "budget unit 'euros'"),
    ],
)
def test_a_budget_that_cannot_be_met_says_so(budget: float, unit: str, words: str) -> None:
    table = Thresholds.calibrate(*two_depths([1.0, -1.0]), ["a", "b"])
    with pytest.raises(ValueError, match=words):
        table.at(budget, unit)
    with pytest.raises(ValueError, match="no calibration queries"):
        Thresholds().at(0.5)


def test_milliseconds_count_the_direct_path() -> None:
    logit_BA, cost_BA = two_depths([float(n) for n in range(10)])
    table = Thresholds.calibrate(logit_BA, cost_BA, KEYS[:10], milliseconds=(10.0, 110.0))
    assert table.decide(logit_BA, KEYS[:10], 41.0, "milliseconds").sum() == 3
    with pytest.raises(ValueError, match="the direct path alone costs 10"):
        table.at(5.0, "milliseconds")


def test_a_constant_gate_opens_the_budget_on_new_keys() -> None:
    table = Thresholds.calibrate(*two_depths([1.0] * 200), KEYS)
    new = [f"new-{i}" for i in range(4000)]
    logit_BA, _ = two_depths([1.0] * 4000)
    noisy = logit_BA + 1e-7 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    opened = table.decide(noisy, new, 0.3)
    assert opened.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(opened.flip(0), table.decide(logit_BA, new[::-1], 0.3))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_new_queries_cost_what_was_asked_for(share: float) -> None:
    """Within two points, and within the 95 % prediction interval of both samples."""
    num = 10_000
    logit_BA, cost_BA = three_depths(2 * num, seed=7)
    keys = [f"{n}" for n in range(2 * num)]
    table = Thresholds.calibrate(logit_BA[:num], cost_BA[:num], keys[:num])
    depth_B = table.decide(logit_BA[num:], keys[num:], share, exact=True)
    achieved = (depth_B > 0).double().mean().item()
    assert abs(achieved - share) < 0.02
    assert abs(achieved - share) < 1.96 * math.sqrt(share * (1 - share) * 2 / num) + 1e-9
    tokens = share * table.dearest("tokens")
    depth_B = table.decide(logit_BA[num:], keys[num:], tokens, "tokens", exact=True)
    paid = cost_BA[num:].gather(1, depth_B[:, None]).mean().item()
    assert paid == pytest.approx(tokens, rel=0.02)


def test_thresholds_survive_json() -> None:
    table = Thresholds.calibrate(*three_depths(20), KEYS[:20], milliseconds=(1.0, 2.0, 3.0))
    again = Thresholds.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.at(4.0, "tokens", exact=True) == table.at(4.0, "tokens", exact=True)


def test_without_a_query_there_is_no_threshold() -> None:
    with pytest.raises(ValueError, match="part `calibration` has no eligible query"):
        Thresholds.calibrate(torch.zeros(0), torch.zeros(0), ())


def test_logits_that_are_not_finite_are_named() -> None:
    with pytest.raises(ValueError, match="row 1"):
        depths_at(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), None, NATURAL, ["a", "b"])


def test_equal_depths_go_to_the_cheaper_or_by_key_to_the_dearer() -> None:
    logit_BA = torch.zeros(2, 3)
    keys = ["a", "b"]
    assert depths_at(logit_BA, COST_A, NATURAL, keys).tolist() == [0, 0]
    assert depths_at(logit_BA, COST_A, Threshold(0.0, -1.0), keys).tolist() == [2, 2]


def test_a_query_reasons_while_any_depth_is_worth_its_price() -> None:
    logit_BA, _ = three_depths(200)
    opened = depths_at(logit_BA, COST_A.double(), Threshold(0.02), KEYS) > 0
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
