"""From policies to figures: means with intervals, costs, comparisons.

Statistics: docs/method.md section 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.bootstrap import (
    Interval,
    cluster_bootstrap,
    minimal_detectable_effect,
    seed_spread,
)
from experiments.report.data.query_table import METRICS, Bools, Floats, QueryTable
from experiments.report.policies.decisions import (
    ALWAYS,
    DRAFT,
    GATED,
    NEVER,
    RANDOM,
    ROUTER,
    RULE,
    SHUFFLED,
    SUPERVISED,
    Policy,
)

NUM_RESAMPLES = 4_000


def eligible_tasks(table: QueryTable) -> list[str]:
    """Returns the tasks with eligible queries, in order of appearance."""
    return list(dict.fromkeys(t for t, e in zip(table.tasks, table.eligible_N, strict=True) if e))


def mean_over_tasks(table: QueryTable, value_N: Floats) -> Interval:
    """Returns the mean over tasks of their means, with an interval whose clusters are concepts."""
    # Queries about one concept depend on each other, and large tasks must not drown small ones.
    return cluster_bootstrap(
        value_N, table.concepts, tasks=table.tasks, num_resamples=NUM_RESAMPLES
    )


def of_eligible_tasks(table: QueryTable) -> Bools:
    """Returns (N,) True for the queries of tasks that have eligible ones."""
    return table.in_tasks(set(eligible_tasks(table)))


def task_mean(table: QueryTable, value_N: Floats) -> float:
    """Returns the mean over tasks of their means, without an interval."""
    weight_N = table.task_weights()
    return float((value_N * weight_N).sum() / weight_N.sum())


def row_figures(
    table: QueryTable, policy: Policy, milliseconds: Floats | None = None, deciding: float = 0.0
) -> dict[str, Any]:
    """Returns one row of a table.

    Args:
        table: the queries that the row is about.
        policy: what it does with them.
        milliseconds: (A,) of each depth, measured live.
        deciding: milliseconds that a decision about an eligible query adds.
    """
    figures: dict[str, Any] = {
        name: asdict(mean_over_tasks(table, policy.value(table.metric[name]))) for name in METRICS
    }

    eligible_N, invoked_N = table.eligible_N, policy.invocation_N
    figures["invocation"] = float(invoked_N[eligible_N].mean()) if eligible_N.any() else 0.0
    figures["invocation_all"] = float(invoked_N.mean())
    figures["reasoning_tokens"] = float(policy.cost(table.cost_NA).mean())

    if milliseconds is not None:
        # Every query is embedded directly first; a deeper path adds what is left of its time.
        extra_A = milliseconds - milliseconds[0]
        extra_A[0] = 0.0
        figures["latency_ms"] = float(milliseconds[0] + policy.spend_NA.mean(0) @ extra_A)
        figures["latency_ms"] += deciding * float(eligible_N.mean())
    return figures


BETTER = "the better of never and always"

WANTED = (
    ("always minus never, think tasks pooled", ALWAYS, NEVER, "think"),
    ("always minus never", ALWAYS, NEVER, "mix"),
    ("gated minus the better of never and always", GATED, BETTER, "mix"),
    ("gated minus random at equal cost", GATED, RANDOM, "mix"),
    ("gated minus per-task rule", GATED, RULE, "mix"),
    ("gated minus per-task rule, mixed rows", GATED, RULE, "mixed"),
    ("gated minus itself shuffled within tasks", GATED, SHUFFLED, "mix"),
    ("gated minus itself shuffled within tasks, mixed rows", GATED, SHUFFLED, "mixed"),
    ("gated minus always, mixed rows", GATED, ALWAYS, "mixed"),
    ("gated minus training-free router", GATED, ROUTER, "mix"),
    ("gated minus supervised gate", GATED, SUPERVISED, "mix"),
    ("draft, then use or drop, minus always", DRAFT, ALWAYS, "mix"),
)
"""The comparisons that the method is judged by: name, left row, right row, of which queries."""


def subsets_of(test: QueryTable, think: Sequence[str]) -> dict[str, Bools]:
    """Returns the queries (N,) of each subset that `WANTED` names."""
    mixed = {task for task in eligible_tasks(test) if task.endswith("-mixed")}
    return {
        "think": test.in_tasks(think) & test.eligible_N,
        "mix": of_eligible_tasks(test),
        "mixed": test.in_tasks(mixed),
    }


def difference_figures(
    table: QueryTable, difference: Floats, *, pooled: bool = False
) -> dict[str, Any]:
    """Returns the mean of paired differences with its interval and minimal detectable effect.

    Args:
        table: the queries.
        difference: (N,), or (S, N) of several seeds, which are averaged first.
        pooled: mean over all queries instead of over tasks.
    """
    tasks = None if pooled else table.tasks
    interval = cluster_bootstrap(
        difference, table.concepts, tasks=tasks, num_resamples=NUM_RESAMPLES
    )

    # A null result comes with the smallest effect that could have been found.
    effect = minimal_detectable_effect(difference, table.concepts, tasks=tasks)
    return asdict(interval) | {
        "minimal_detectable_effect": effect,
        "non_inferior": interval.non_inferior(),
    }


def comparison(table: QueryTable, left: Policy, right: Policy) -> dict[str, Any]:
    """Returns left minus right in Recall@1, query by query, mean over tasks."""
    metric = table.metric["recall@1"]
    return difference_figures(table, left.value(metric) - right.value(metric))


def comparisons(
    test: QueryTable, rows: Mapping[str, Policy], think: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the figures of `WANTED` for one run."""
    return compared(test, [recalls(test, rows)], think)


def recalls(test: QueryTable, rows: Mapping[str, Policy]) -> dict[str, Floats]:
    """Returns Recall@1 (N,) of every query, by row."""
    return {name: policy.value(test.metric["recall@1"]) for name, policy in rows.items()}


def compared(
    test: QueryTable, runs: Sequence[Mapping[str, Floats]], think: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the figures of `WANTED`.

    Several runs on the same queries are averaged first; the mean of each (`of_runs`) and their
    spread (`seed_sd`) stand beside it.

    Args:
        test: the queries; its metrics are not looked at.
        runs: of each run, row -> (N,) Recall@1.
        think: names of the think tasks.
    """
    subsets, figures = subsets_of(test, think), {}
    mean = {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}

    # The better constant is chosen on the mean of all runs, or each run would have a row of its
    # own.
    best = better_constant(test, mean, subsets["mix"])
    for name, left, named, subset in WANTED:
        right, chosen_N = best if named == BETTER else named, subsets[subset]

        # A run may lack rows, such as the supervised gate, and a mix may have no mixed task.
        if not ({left, right} <= set(mean) and chosen_N.any()):
            continue

        table, pooled = test.select(chosen_N), subset == "think"

        # Left and right are paired within a run, so what is hard for both cancels.
        difference_SN = np.stack([(run[left] - run[right])[chosen_N] for run in runs])
        figures[name] = {
            "left": left,
            "right": right,
            "queries": int(chosen_N.sum()),
            **difference_figures(table, difference_SN, pooled=pooled),
        }

        if len(runs) > 1:
            means = [x.mean() if pooled else task_mean(table, x) for x in difference_SN]
            figures[name] |= {
                "of_runs": [float(value) for value in means],
                "seed_sd": seed_spread(np.array(means)[:, None]),
            }
    return figures


def better_constant(test: QueryTable, recall: Mapping[str, Floats], chosen_N: Bools) -> str:
    """Returns `never` or `always`: the one with the higher mean Recall@1 on these queries."""
    table = test.select(chosen_N)
    means = {name: task_mean(table, recall[name][chosen_N]) for name in (NEVER, ALWAYS)}
    return max(means, key=means.__getitem__)
