"""The rows of every table: for each way to decide, how likely a query takes each depth.

The rows are those of docs/method.md section 7.
Shapes: N queries, A depths (0 = direct, the last one = full).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from experiments.report.data.query_table import Bools, Floats, QueryTable
from experiments.report.policies.baselines import best_threshold, oracle_depth, per_task_rule

NEVER, ALWAYS, RULE, RANDOM = "never", "always", "per-task rule", "random at equal cost"
SHUFFLED = "gated, shuffled within tasks"
ROUTER, SUPERVISED, DRAFT = "training-free router", "supervised gate", "draft, then use or drop"
GATED, ORACLE = "gated", "oracle"


class Policy(NamedTuple):
    """The decisions of one row.

    Attributes:
        take_NA: probability that a query is embedded at each depth.
        spend_NA: probability that it pays for each depth; only who drops drafts pays for more than
            it takes.
    """

    take_NA: Floats
    spend_NA: Floats

    @classmethod
    def of_depths(cls, depth_N: np.ndarray, num_depths: int) -> Policy:
        """Makes a policy of one depth for each query."""
        take_NA = np.eye(num_depths)[depth_N.astype(int)]
        return cls(take_NA, take_NA)

    @classmethod
    def of_share(cls, share_N: Floats, num_depths: int) -> Policy:
        """Makes a policy that takes the full depth with a probability, else the direct one."""
        take_NA = np.zeros((len(share_N), num_depths))

        take_NA[:, 0], take_NA[:, -1] = 1 - share_N, share_N
        return cls(take_NA, take_NA)

    def select(self, chosen_N: Bools) -> Policy:
        """Returns the rows where `chosen_N` holds."""
        return Policy(self.take_NA[chosen_N], self.spend_NA[chosen_N])

    def value(self, values_NA: Floats) -> Floats:
        """Returns the expected value of each query."""
        return (values_NA * self.take_NA).sum(1)

    def cost(self, cost_NA: Floats) -> Floats:
        """Returns the expected cost of each query."""
        return (cost_NA * self.spend_NA).sum(1)

    @property
    def invocation_N(self) -> Floats:
        """Returns the probability that something is written about each query."""
        return 1 - self.spend_NA[:, 0]


def policies(
    test: QueryTable,
    tuning: QueryTable,
    token_cost: float,
    clip: float,
    others: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Policy]:
    """Returns row -> policy on the test queries; ineligible ones are always embedded directly.

    Args:
        test: the queries of split `test`.
        tuning: those of `gate` and `calibration`. The per-task rule is taken from both, thresholds
            of router and draft from `calibration`.
        token_cost: lambda of the gate's reward.
        clip: c of the gate's reward.
        others: further rows: name -> (N,) depth of each test query.
    """
    depths = len(test.depths)
    calibration = tuning.of_splits("calibration")

    # Ineligible queries have a decision as well, which is never used.
    gated = Policy.of_depths(test.depth_N * test.eligible_N, depths)
    rule = task_rule(tuning, token_cost, clip)
    oracle_N = oracle_depth(torch.tensor(test.depth_value_NA), torch.tensor(test.cost_NA)).numpy()

    constants = {
        (ALWAYS if depth == depths - 1 else f"always {test.depths[depth]}"): depth
        for depth in range(1, depths)
    }

    depth_of = {NEVER: np.zeros(len(test.keys))}
    depth_of |= {name: np.full(len(test.keys), depth) for name, depth in constants.items()}
    depth_of |= {RULE: np.array([rule.get(task, 0) for task in test.tasks])}
    depth_of |= dict(others or {}) | {ORACLE: oracle_N}

    # Depth 0 is the direct path, which ineligible queries always take.
    rows = {
        name: Policy.of_depths(depth_N * test.eligible_N, depths)
        for name, depth_N in depth_of.items()
    }
    rows[RANDOM] = Policy.of_share(equal_cost_share(test, gated) * test.eligible_N, depths)
    rows[ROUTER] = router(test, calibration, token_cost, clip)
    rows[DRAFT] = draft(test, calibration, clip)
    rows[GATED], rows[SHUFFLED] = gated, shuffled_within_tasks(test, gated)

    # The order of the rows in every table of a report.
    order = [NEVER, *constants, RULE, RANDOM, ROUTER, SUPERVISED, DRAFT, SHUFFLED, GATED, ORACLE]
    return {name: rows[name] for name in order if name in rows}


def task_rule(tuning: QueryTable, token_cost: float, clip: float) -> dict[str, int]:
    """Returns the best constant depth of each task by mean reward on the tuning splits."""
    rows = tuning.select(tuning.eligible_N)
    return per_task_rule(torch.tensor(rows.reward(token_cost, clip)), rows.tasks)


def equal_cost_share(test: QueryTable, gated: Policy) -> float:
    """Returns the share of eligible queries that costs as many tokens as the gate spends."""
    # No random share can spend more than to reason about every eligible query.
    full = float((test.cost_NA[:, -1] * test.eligible_N).sum())
    return min(1.0, float(gated.cost(test.cost_NA).sum()) / full) if full else 0.0


def shuffled_within_tasks(test: QueryTable, gated: Policy) -> Policy:
    """Shuffles the gate's decisions within each task: the same depths for other eligible queries.

    What the gate has over this row it owes to picking queries; what this row has over the per-task
    rule, to knowing better than the rule which tasks pay. An expectation, not a draw.
    """
    take_NA = gated.take_NA.copy()
    for task in dict.fromkeys(test.tasks):
        rows_N = test.in_tasks({task}) & test.eligible_N
        if rows_N.any():
            # The mean over a task is the expectation over all its permutations: no seed is
            # needed.
            take_NA[rows_N] = gated.take_NA[rows_N].mean(0)
    return Policy(take_NA, take_NA)


def router(test: QueryTable, calibration: QueryTable, token_cost: float, clip: float) -> Policy:
    """Decides without training: full where the best direct score leads the second by little."""
    rows = calibration.select(calibration.eligible_N)
    reward_NA = rows.reward(token_cost, clip)

    # Thresholds come from `calibration` alone: the test queries decide nothing.
    least = best_threshold(-rows.lead_N, reward_NA[:, -1] - reward_NA[:, 0], rows.task_weights())
    open_N = (-test.lead_N > least) & test.eligible_N
    return Policy.of_share(open_N.astype(float), len(test.depths))


def draft(test: QueryTable, calibration: QueryTable, clip: float) -> Policy:
    """Writes about every eligible query, and uses what the writer was sure of (mean
    log-probability). It protects quality and saves no token."""
    # Drafts without a log-probability have no confidence, and cannot place the threshold.
    rows = calibration.select(calibration.eligible_N & np.isfinite(calibration.confidence_N))
    gain_N = rows.reward(0.0, clip)[:, -1]

    least = best_threshold(rows.confidence_N, gain_N, rows.task_weights())
    used_N = (np.nan_to_num(test.confidence_N, nan=-np.inf) > least) & test.eligible_N

    # The draft is written in any case, so it is paid for also where it is dropped.
    taken = Policy.of_share(used_N.astype(float), len(test.depths))
    paid = Policy.of_share(test.eligible_N.astype(float), len(test.depths))
    return Policy(taken.take_NA, paid.spend_NA)
