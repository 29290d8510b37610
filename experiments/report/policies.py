"""The rows of every table (METHOD 7): for each way to decide, how likely each query reasons."""

from __future__ import annotations

import numpy as np
import torch

from experiments.report.records import Floats, QueryTable
from mmemb.gating import oracle_depth, per_task_rule, reward_BA

NEVER, ALWAYS, RULE, RANDOM = "never", "always", "per-task rule", "random at equal cost"
GATED, ORACLE = "gated", "oracle"
ROWS = (NEVER, ALWAYS, RULE, RANDOM, GATED, ORACLE)


def shares(test: QueryTable, tuning: QueryTable, price: float, clip: float) -> dict[str, Floats]:
    """Row -> (N,) probability that each test query reasons; ineligible queries never do.

    Args:
        test: the queries of part `test`.
        tuning: those of `gate` and `calibration`, from which the per-task rule is taken.
        price: lambda of the gate's reward.
        clip: c of the gate's reward.
    """
    eligible_N = test.eligible_N.astype(float)
    gated_N = test.depth_N * eligible_N
    rule = task_rule(tuning, price, clip)
    oracle_N = oracle_depth(torch.tensor(test.utility_NA), torch.tensor(test.cost_NA)).numpy()
    found = {
        NEVER: np.zeros(len(eligible_N)),
        ALWAYS: np.ones(len(eligible_N)),
        RULE: np.array([float(rule.get(task, 0)) for task in test.tasks]),
        RANDOM: np.full(len(eligible_N), equal_cost_share(test, gated_N)),
        GATED: gated_N,
        ORACLE: oracle_N.astype(float),
    }
    return {name: found[name] * eligible_N for name in ROWS}


def task_rule(tuning: QueryTable, price: float, clip: float) -> dict[str, int]:
    """The best constant depth of each task by mean reward on the tuning parts."""
    rows = tuning.select(tuning.eligible_N)
    reward = reward_BA(
        torch.tensor(rows.utility_NA), torch.tensor(rows.cost_NA), clip=clip, price=price
    )
    return per_task_rule(reward, rows.tasks)


def equal_cost_share(test: QueryTable, gated_N: Floats) -> float:
    """The coin's probability that spends as many tokens as the gate, over eligible queries."""
    cost_N = test.cost_NA[:, 1] * test.eligible_N
    return float((cost_N * gated_N).sum() / max(cost_N.sum(), 1))


def value_of(values_NA: Floats, share_N: Floats) -> Floats:
    """Expected value of each query when it reasons with probability `share_N`."""
    return values_NA[:, 0] * (1 - share_N) + values_NA[:, 1] * share_N
