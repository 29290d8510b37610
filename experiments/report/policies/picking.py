"""Measures the worth of picking the right queries of a task, and the part that an order wins.

An order lets the same share of every task reason, its first queries first. The area under its
frontier minus that of a coin, which spends the same share on whichever queries, owes nothing to
knowing the tasks. Shapes: N queries, P shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from experiments.report.data.query_table import Floats, QueryTable
from experiments.report.policies.comparisons import mean_over_tasks
from experiments.report.policies.decisions import Policy
from experiments.report.policies.frontier import area_N

NUM_SHARES = 21


def share_taken(score_N: Floats, share: float) -> Floats:
    """Returns (N,) probability that a query is among the first `share` by score; ties share.

    >>> share_taken(np.array([2.0, 1.0, 1.0, 0.0]), 0.5).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    above_N = (score_N[None] > score_N[:, None]).sum(1)
    equal_N = (score_N[None] == score_N[:, None]).sum(1)
    return np.clip((share * len(score_N) - above_N) / equal_N, 0.0, 1.0)


def order_area_N(table: QueryTable, score_N: Floats) -> Floats:
    """Returns (N,) each query's part of the area under the frontier of an order within tasks."""
    shares_P = np.linspace(0, 1, NUM_SHARES)
    share_PN = np.zeros((NUM_SHARES, len(score_N)))

    # Every task reasons about the same share, so knowing the tasks wins nothing.
    for task in dict.fromkeys(table.tasks):
        rows_N = table.in_tasks({task})
        share_PN[:, rows_N] = [share_taken(score_N[rows_N], share) for share in shares_P]

    return area_N(table, [Policy.of_share(share_N, len(table.depths)) for share_N in share_PN])


def picking(table: QueryTable, right: Mapping[str, bool]) -> dict[str, dict[str, float]]:
    """Returns order -> area over the coin's in Recall@1, with its interval.

    Args:
        table: eligible queries of the think tasks; without any there is nothing to say.
        right: key -> whether the draft names the answer.
    """
    if not table.keys:
        return {}

    orders = {
        "the gate, before anything is written": table.logit_NA[:, -1] - table.logit_NA[:, 0],
        "the draft's mean log-probability": np.nan_to_num(table.confidence_N, nan=-np.inf),
        "whether the draft is right": np.array([float(right[key]) for key in table.keys]),
        "the gain itself": table.metric["recall@1"][:, -1] - table.metric["recall@1"][:, 0],
    }

    # Equal scores share every place, which is what a coin does on average.
    coin_N = order_area_N(table, np.zeros(len(table.keys)))
    return {
        name: asdict(mean_over_tasks(table, order_area_N(table, score_N) - coin_N))
        for name, score_N in orders.items()
    }
