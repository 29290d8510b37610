"""The frontier, quality against cost over the gate's budgets: bands, its area, overthinking.

Shapes: N queries, P budgets, A depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from experiments.report.data.query_table import Floats, QueryTable
from experiments.report.policies.comparisons import mean_over_tasks, task_mean
from experiments.report.policies.decisions import Policy
from mmemb.gate.budget import BudgetCalibration

NUM_BUDGETS = 21


def budgets_of(calibration: BudgetCalibration) -> list[float]:
    """Returns token budgets from none to all."""
    return [float(b) for b in np.linspace(0, calibration.max_cost("tokens"), NUM_BUDGETS)]


def policies_along(
    table: QueryTable, logit_NA: Floats, calibration: BudgetCalibration, depths: Sequence[int]
) -> list[Policy]:
    """Returns the gate's decisions at each budget, spent in full on `calibration`.

    Args:
        table: the queries.
        logit_NA: the gate's logits, one column for each of its depths.
        calibration: the calibration of the gate, which turns a budget into a multiplier.
        depths: numbers of the gate's depths among those of the table: `[0, 2]` for a binary gate.
    """
    numbers, rows = np.array(depths), []
    for budget in budgets_of(calibration):
        depth_N = calibration.decide(
            torch.tensor(logit_NA), table.keys, budget, "tokens", exact=True
        )

        # A binary gate counts its depths 0 and 1, the table may have three.
        taken_N = numbers[depth_N.numpy()] * table.eligible_N
        rows.append(Policy.of_depths(taken_N, len(table.depths)))
    return rows


def points_of(
    table: QueryTable, policies: Sequence[Policy], budgets: Sequence[float]
) -> list[dict[str, Any]]:
    """Returns one point for each budget, with a band over concepts."""
    points = []
    for budget, policy in zip(budgets, policies, strict=True):
        value = mean_over_tasks(table, policy.value(table.metric["recall@1"]))

        points.append(
            {
                "budget": budget,
                "tokens": float(policy.cost(table.cost_NA).mean()),
                "invocation": float(policy.invocation_N.sum() / max(table.eligible_N.sum(), 1)),
                "recall@1": value.mean,
                "low": value.low,
                "high": value.high,
                "clusters": value.clusters,
            }
        )
    return points


def area_N(table: QueryTable, policies: Sequence[Policy]) -> Floats:
    """Returns each query's share (N,) of the area under the frontier, over its width in tokens.

    Their mean over tasks is the area, and a bootstrap of them gives its interval; costs are not
    resampled.
    """
    # Policies come in the order of budgets, and the area needs the order of costs.
    order = np.argsort([policy.cost(table.cost_NA).mean() for policy in policies], kind="stable")
    tokens_P = np.array([policies[p].cost(table.cost_NA).mean() for p in order])
    value_PN = np.stack([policies[p].value(table.metric["recall@1"]) for p in order])

    # The width is 0 if all budgets cost the same, for instance where no query is eligible.
    width = tokens_P[-1] - tokens_P[0]
    if not width:
        return value_PN.mean(0)

    step_P = np.diff(tokens_P)[:, None] / width
    return ((value_PN[1:] + value_PN[:-1]) / 2 * step_P).sum(0)


def area_of(table: QueryTable, policies: Sequence[Policy]) -> dict[str, Any]:
    """Returns the area under the frontier with its interval."""
    return asdict(mean_over_tasks(table, area_N(table, policies)))


def at_cost(table: QueryTable, policies: Sequence[Policy], tokens: float) -> Policy:
    """Returns the frontier's policy at a cost of `tokens` a query: two neighbours, mixed by a coin.

    Costs beyond an end give the policy at that end.
    """
    cost_P = np.array([policy.cost(table.cost_NA).mean() for policy in policies])
    order = np.argsort(cost_P, kind="stable")

    place = float(np.interp(tokens, cost_P[order], np.arange(len(order))))
    low, high = (policies[order[p]] for p in (int(place), min(int(place) + 1, len(order) - 1)))

    share = place - int(place)
    return Policy(*((1 - share) * a + share * b for a, b in zip(low, high, strict=True)))


def overthinking(
    test: QueryTable,
    calibration: QueryTable,
    on_test: Sequence[Policy],
    on_calibration: Sequence[Policy],
) -> dict[str, Any]:
    """Returns the best budget on `calibration`, and its gain on the test over spending everything.

    A gain above 0 is overthinking: quality falls beyond some cost.
    """
    values = [
        task_mean(calibration, policy.value(calibration.metric["recall@1"]))
        for policy in on_calibration
    ]

    # Chosen on `calibration`, so that the best budget is no lucky one of the test.
    best = int(np.argmax(values))

    metric = test.metric["recall@1"]
    most = int(np.argmax([policy.cost(test.cost_NA).mean() for policy in on_test]))
    difference_N = on_test[best].value(metric) - on_test[most].value(metric)
    invoked = on_test[best].invocation_N[test.eligible_N]
    return {
        "invocation": float(invoked.mean()) if len(invoked) else 0.0,
        "tokens": float(on_test[best].cost(test.cost_NA).mean()),
        "minus_all": asdict(mean_over_tasks(test, difference_N)),
    }
