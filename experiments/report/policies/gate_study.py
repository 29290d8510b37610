"""Compares gate states and estimators: heads fitted for the report, with several seeds.

Within a task a gate is worth only what it knows beyond the task. Shapes: N queries, A depths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import torch

from experiments.report.data.query_table import Bools, Floats, QueryTable
from experiments.report.policies.comparisons import (
    eligible_tasks,
    mean_over_tasks,
    of_eligible_tasks,
    task_mean,
)
from experiments.report.policies.decisions import ORACLE, RULE, Policy
from experiments.report.policies.gates import fitted_logits
from mmemb.gate.collapse import collapsed_to
from mmemb.gate.policy_loss import Estimator
from mmemb.records.batches import DepthValueBatch
from mmemb.records.gate_state import StatePart

STATES: tuple[tuple[StatePart, ...], ...] = (
    ("embedding",),
    ("embedding", "scores"),
    ("prompt_state",),
    ("embedding", "scores", "prompt_state"),
)
SEEDS = (0, 1, 2)


def gate_study(
    splits: Mapping[str, DepthValueBatch],
    gate: Mapping[str, Any],
    test: QueryTable,
    rows: Mapping[str, Policy],
) -> dict[str, Any]:
    """Returns the figures of every state, fitted by `exact`, and of every estimator on one state.

    Args:
        splits: depth values by split.
        gate: settings of the gate's own run.
        test: the queries of split `test`.
        rows: the report's policies, for the per-task rule and the oracle.
    """
    chosen_N = of_eligible_tasks(test)
    gate_state = tuple(gate["state"] or ["embedding"])

    states = [state for state in STATES if is_measured(splits["gate"], state)]
    by_state = {" + ".join(state): _logits(splits, state, gate, "exact") for state in states}

    # The head on the own state by `exact` is among the states, and is not fitted twice.
    by_estimator = {
        name: logits
        if name == "exact" and (logits := by_state.get(" + ".join(gate_state)))
        else _logits(splits, gate_state, gate, name)
        for name in get_args(Estimator)
    }

    return {
        "states": {n: _figures(x, test, rows, chosen_N) for n, x in by_state.items()},
        "estimators": {n: _figures(x, test, rows, chosen_N) for n, x in by_estimator.items()},
        "within_tasks": within_tasks(by_state, test, rows),
        "seeds": list(SEEDS),
    }


def is_measured(batch: DepthValueBatch, state: Sequence[StatePart]) -> bool:
    """Returns True if the depth values hold every split of a state."""
    try:
        batch.inputs.state(state)
    except ValueError:
        return False
    return True


def _logits(
    splits: Mapping[str, DepthValueBatch],
    state: Sequence[StatePart],
    gate: Mapping[str, Any],
    estimator: Estimator,
) -> list[Floats]:
    state = tuple(state)
    return [fitted_logits(splits, state, gate, estimator, seed).numpy() for seed in SEEDS]


def _policy(logit_NA: Floats, test: QueryTable) -> Policy:
    return Policy.of_depths(logit_NA.argmax(1) * test.eligible_N, len(test.depths))


def _figures(
    logits: Sequence[Floats], test: QueryTable, rows: Mapping[str, Policy], chosen_N: Bools
) -> dict[str, Any]:
    """Returns means over seeds with an interval over concepts, and the spread of the seeds."""
    table, metric = test.select(chosen_N), test.metric["recall@1"][chosen_N]
    policies = [_policy(logit_NA, test).select(chosen_N) for logit_NA in logits]
    values = [policy.value(metric) for policy in policies]

    mean_N = np.mean(values, axis=0)

    # The rule tells tasks apart and no queries: a state is worth what it adds to that.
    rule_N = rows[RULE].select(chosen_N).value(metric)
    depth_N = torch.tensor(logits[0].argmax(1)[test.eligible_N])

    return {
        "recall@1": asdict(mean_over_tasks(table, mean_N)),
        "minus_rule": asdict(mean_over_tasks(table, mean_N - rule_N)),
        "seed_sd": float(np.std([task_mean(table, value_N) for value_N in values], ddof=1)),
        "invocation": float(
            np.mean([policy.invocation_N[table.eligible_N].mean() for policy in policies])
        ),
        "collapsed_to": collapsed_to(depth_N, len(test.depths)),
    }


def within_tasks(
    by_state: Mapping[str, Sequence[Floats]], test: QueryTable, rows: Mapping[str, Policy]
) -> dict[str, Any]:
    """Returns task -> the oracle's gap over the best constant depth and, if that is above 0,
    per state the AUC of the gate against the sign of the gain, and its share of the gap."""
    by_task = {}
    for task in eligible_tasks(test):
        chosen_N = test.in_tasks({task}) & test.eligible_N
        table = test.select(chosen_N)
        metric = table.metric["recall@1"]

        # The best constant depth is chosen on these same queries, which favours the constant,
        # not the oracle.
        constant_N = metric[:, metric.mean(0).argmax()]
        gap = mean_over_tasks(table, rows[ORACLE].select(chosen_N).value(metric) - constant_N)

        by_task[task] = {"oracle_gap": asdict(gap), "states": {}}
        if not gap.is_above(0):
            continue

        # Without a gap there is nothing that a state could see.
        gain_N = table.depth_value_NA[:, 1:].max(1) - table.depth_value_NA[:, 0]
        for state, logits in by_state.items():
            score = [x[chosen_N][:, 1:].max(1) - x[chosen_N][:, 0] for x in logits]
            won = [
                (_policy(x, test).select(chosen_N).value(metric) - constant_N).mean()
                for x in logits
            ]

            by_task[task]["states"][state] = {
                "auc": float(np.mean([auc(s, gain_N > 0) for s in score])),
                "share_of_gap": float(np.mean(won) / gap.mean),
            }
    return by_task


def auc(score_N: Floats, positive_N: Bools) -> float:
    """Returns the probability of a positive above a negative, ties half; NaN without either.

    >>> auc(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    0.75
    """
    high, low = score_N[positive_N][:, None], score_N[~positive_N][None]
    if not high.size or not low.size:
        return float("nan")
    return float(((high > low) + 0.5 * (high == low)).mean())
