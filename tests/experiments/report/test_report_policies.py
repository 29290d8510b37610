"""The rows of the report, and what they are compared with, on a made-up table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.report.data.query_table import METRICS, QueryTable
from experiments.report.pages.report_page import report_markdown
from experiments.report.pages.tables import comparison_table
from experiments.report.policies.comparisons import (
    better_constant,
    comparisons,
    recalls,
    row_figures,
)
from experiments.report.policies.decisions import (
    ALWAYS,
    DRAFT,
    GATED,
    NEVER,
    ORACLE,
    RANDOM,
    ROUTER,
    RULE,
    SHUFFLED,
    Policy,
    policies,
)
from experiments.report.policies.frontier import area_N, at_cost, overthinking
from experiments.report.policies.picking import order_area_N, picking, share_taken
from tests.fixtures.reports import report_figures


def table(parts: str = "test") -> QueryTable:
    """Four eligible queries of two tasks and one that is not: reasoning helps 0 and 2, costs 1."""
    direct = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    reasoned = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    return QueryTable(
        keys=tuple("abcde"),
        tasks=("x", "x", "y", "y", "z"),
        splits=(parts,) * 5,
        concepts=("fr", "de", "fr", "it", "de"),
        eligible_N=np.array([True, True, True, True, False]),
        depth_value_NA=np.array([[-2.0, -1], [-1, -3], [-2, -1], [-1, -1], [-1, -1]]),
        cost_NA=np.array([[0.0, 10]] * 4 + [[0, 0]]),
        metric={name: np.stack([direct, reasoned], axis=1) for name in METRICS},
        depth_N=np.array([1, 0, 1, 0, 0]),
        logit_NA=np.array([[0.0, 2], [0, -2], [0, 1], [0, -1], [0, 5]]),
        lead_N=np.array([0.1, 0.9, 0.2, 0.8, 0.1]),
        confidence_N=np.array([-0.1, -0.9, -0.2, -0.3, np.nan]),
    )


def invoked(policy: Policy) -> list[float]:
    return policy.invocation_N.tolist()


def test_policies_are_what_each_row_says() -> None:
    found = policies(table(), table("calibration"), token_cost=0.0, clip=3.0)
    assert invoked(found[NEVER]) == [0, 0, 0, 0, 0]
    assert invoked(found[ALWAYS]) == [1, 1, 1, 1, 0], "who is not eligible never reasons"
    assert invoked(found[GATED]) == [1, 0, 1, 0, 0]
    assert invoked(found[ORACLE]) == [1, 0, 1, 0, 0]
    assert invoked(found[RULE]) == [0, 0, 1, 1, 0], "task x loses 1 - 2, task y wins 1 + 0"
    assert invoked(found[RANDOM]) == [0.5, 0.5, 0.5, 0.5, 0]
    assert invoked(found[SHUFFLED]) == [0.5, 0.5, 0.5, 0.5, 0], "half of x, half of y"
    assert invoked(found[ROUTER]) == [1, 0, 1, 0, 0], "where the lead is small"
    assert invoked(found[DRAFT]) == [1, 1, 1, 1, 0], "every draft is paid for"
    used = found[DRAFT].value(table().metric["recall@1"])
    assert used.tolist() == [1, 1, 1, 1, 1], "and the uncertain ones are dropped"


def test_shuffling_within_tasks_keeps_each_tasks_share() -> None:
    always_x = replace(table(), depth_N=np.array([1, 1, 0, 1, 1]))
    found = policies(always_x, table("gate"), token_cost=0.0, clip=3.0)
    assert invoked(found[SHUFFLED]) == [1, 1, 0.5, 0.5, 0]
    assert found[SHUFFLED].cost(always_x.cost_NA).sum() == found[GATED].cost(always_x.cost_NA).sum()


@pytest.mark.parametrize(
    ("rule", "shuffled", "said"),
    [
        ((0.01, 0.03), (0.01, 0.03), "it decides per query"),
        ((0.01, 0.03), (-0.01, 0.02), "perhaps for more tokens; that it picks the right"),
        ((-0.01, 0.03), (0.01, 0.03), "no claim of deciding per query"),
        ((-0.03, -0.01), (0.01, 0.03), "WORSE"),
        ((None, None), (None, None), "4 concepts are too few for an interval"),
    ],
)
def test_deciding_per_query_wants_both_intervals(
    rule: tuple[float | None, float | None],
    shuffled: tuple[float | None, float | None],
    said: str,
) -> None:
    report = report_figures("x")
    few = {"mean": 0.0, "clusters": 4}
    report["comparisons"] = {
        name: report["comparisons"][name] | few | {"low": low, "high": high}
        for name, (low, high) in (
            ("gated minus per-task rule", rule),
            ("gated minus itself shuffled within tasks", shuffled),
        )
    }
    assert said in report_markdown(report)


def test_a_price_changes_the_rule() -> None:
    found = policies(table(), table("gate"), token_cost=0.1, clip=3.0)
    assert invoked(found[RULE]) == [0, 0, 0, 0, 0], "1 nat is not worth 20 tokens"


def test_with_three_depths_each_constant_is_a_row() -> None:
    def deeper(values_NA: np.ndarray) -> np.ndarray:
        return np.concatenate([values_NA, values_NA[:, 1:] + 0.5], axis=1)

    small = table()
    three = replace(
        small,
        depth_value_NA=deeper(small.depth_value_NA),
        cost_NA=deeper(small.cost_NA),
        metric={name: deeper(values) for name, values in small.metric.items()},
        logit_NA=deeper(small.logit_NA),
        depths=("direct", "short", "full"),
    )
    found = policies(three, three, token_cost=0.0, clip=3.0)
    assert list(found)[:3] == [NEVER, "always short", ALWAYS]
    assert found[ALWAYS].take_NA[:4].tolist() == [[0, 0, 1]] * 4
    assert found["always short"].take_NA[:4].tolist() == [[0, 1, 0]] * 4
    assert found[RANDOM].cost(three.cost_NA).sum() == pytest.approx(
        found[GATED].cost(three.cost_NA).sum()
    )


def test_figures_of_a_row() -> None:
    policy = Policy.of_share(np.array([1.0, 0, 0.5, 0.5, 0]), 2)
    found = row_figures(table(), policy, np.array([10.0, 110.0]), 1.0)
    assert found["invocation"] == pytest.approx(2 / 4)
    assert found["invocation_all"] == pytest.approx(2 / 5)
    assert found["reasoning_tokens"] == pytest.approx(20 / 5)
    assert found["latency_ms"] == pytest.approx(10 + 100 * 2 / 5 + 1 * 4 / 5)
    # Tasks weigh equally: x has 1 and 1, y has 0.5 and 1, z has 1.
    assert found["recall@1"]["mean"] == pytest.approx((1 + 0.75 + 1) / 3)


def test_comparisons_are_paired_and_leave_out_tasks_that_nobody_reasons_about() -> None:
    found = comparisons(table(), policies(table(), table("gate"), 0.0, 3.0), think=["y"])
    pooled = found["always minus never, think tasks pooled"]
    assert (pooled["queries"], pooled["mean"]) == (2, pytest.approx(0.5))
    mix = found["always minus never"]
    assert (mix["queries"], mix["mean"]) == (4, pytest.approx((0.0 + 0.5) / 2))
    gated = found["gated minus the better of never and always"]
    assert gated["right"] == ALWAYS
    assert gated["mean"] == pytest.approx(1 - 0.75)
    for row in found.values():  # of two concepts or four
        assert row["low"] is row["high"] is row["minimal_detectable_effect"] is None
        assert row["clusters"] < 5
        assert row["non_inferior"] is False
    text = comparison_table(found).markdown()
    assert "[no interval: 3 clusters]" in text
    assert "| no interval | -  " in text


def test_the_better_constant_is_found_on_the_same_queries() -> None:
    found = policies(table(), table("gate"), 0.0, 3.0)
    everybody_N = np.ones(5, dtype=bool)
    assert better_constant(table(), recalls(table(), found), everybody_N) == ALWAYS


def test_the_area_under_a_straight_line_is_its_middle() -> None:
    small = table()
    shares = [0.0, 1.0, 0.5]
    line = [Policy.of_share(np.full(5, share) * small.eligible_N, 2) for share in shares]
    middle = line[2].value(small.metric["recall@1"])
    assert area_N(small, line).tolist() == pytest.approx(middle.tolist())
    assert area_N(small, line[:1]).tolist() == small.metric["recall@1"][:, 0].tolist()


@pytest.mark.parametrize("tokens", [0.0, 1.0, 3.0, 4.0, 6.0, 8.0])
def test_the_frontier_costs_what_is_asked(tokens: float) -> None:
    small = table()
    opened = [np.array([1, 1, 1, 1, 0]), np.zeros(5), np.array([1, 0, 1, 0, 0])]
    along = [Policy.of_depths(depth_N, 2) for depth_N in opened]
    found = at_cost(small, along, tokens)
    assert found.cost(small.cost_NA).mean() == pytest.approx(tokens)
    assert found.take_NA.sum(1) == pytest.approx(np.ones(5))
    assert at_cost(small, along, 99.0).take_NA.tolist() == along[0].take_NA.tolist()


def test_overthinking_is_judged_at_the_budget_that_calibration_likes() -> None:
    """Reasoning helps queries 0 and 2 and costs 1: opening the two is best, on both parts."""
    small = table()
    opened = [np.zeros(5), np.array([1, 0, 1, 0, 0]), np.array([1, 1, 1, 1, 0])]
    along = [Policy.of_depths(depth_N, 2) for depth_N in opened]
    found = overthinking(small, small, along, along)
    assert found["invocation"] == 0.5
    assert found["minus_all"]["mean"] == pytest.approx((0.5 + 0 + 0) / 3)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_share_is_taken_in_full_whoever_ties(share: float) -> None:
    score_N = np.array([3.0, 1.0, 1.0, 1.0, -np.inf])
    taken_N = share_taken(score_N, share)
    assert taken_N.sum() == pytest.approx(5 * share)
    assert taken_N[0] == min(1.0, 5 * share), "the first is served first"
    assert (np.diff(taken_N) <= 0).all()


def test_picking_counts_what_an_order_wins_within_tasks() -> None:
    """In task x reasoning helps a and costs b; in y it helps c and changes nothing for d."""
    small = table().select(table().eligible_N)
    coin_N, best_N, worst_N = (
        order_area_N(small, np.array(score_N))
        for score_N in ([0.0, 0, 0, 0], [1.0, 0, 1, 0], [0.0, 1, 0, 1])
    )
    assert coin_N.tolist() == pytest.approx([0.5, 0.5, 0.5, 1.0])
    assert best_N.sum() > coin_N.sum() > worst_N.sum()
    found = picking(small, dict.fromkeys("abcd", False))
    assert found["whether the draft is right"]["mean"] == pytest.approx(0.0), "no order at all"
    assert found["the gain itself"]["mean"] == pytest.approx((best_N - coin_N).mean())
    assert "the gain itself" in found


def test_nothing_to_pick_from() -> None:
    assert picking(table().select(np.zeros(5, dtype=bool)), {}) == {}
    assert "No think task" in report_markdown(report_figures("x") | {"picking": {}})
