"""From shares to figures: means with intervals, costs, comparisons (METHOD 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.report.policies import ALWAYS, GATED, NEVER, RANDOM, RULE, value_of
from experiments.report.records import METRICS, Floats, QueryTable
from mmemb.statistics import Interval, cluster_bootstrap, minimal_detectable_effect

NUM_RESAMPLES = 4_000


def eligible_tasks(table: QueryTable) -> list[str]:
    """Tasks with eligible queries, in order of appearance."""
    return list(dict.fromkeys(t for t, e in zip(table.tasks, table.eligible_N, strict=True) if e))


def mean_over_tasks(table: QueryTable, value_N: Floats) -> Interval:
    """Mean over tasks of their means; clusters are concepts."""
    return cluster_bootstrap(
        value_N, table.concepts, tasks=table.tasks, num_resamples=NUM_RESAMPLES
    )


def row_figures(
    table: QueryTable, share_N: Floats, milliseconds: tuple[float, float, float] | None
) -> dict[str, Any]:
    """One line of a table.

    Args:
        table: the queries that the line is about.
        share_N: probability that each reasons.
        milliseconds: of the direct path, of what reasoning adds, and of what deciding about an
            eligible query adds, measured live.
    """
    figures: dict[str, Any] = {
        name: asdict(mean_over_tasks(table, value_of(table.metric[name], share_N)))
        for name in METRICS
    }
    eligible_N = table.eligible_N
    figures["invocation"] = float(share_N[eligible_N].mean()) if eligible_N.any() else 0.0
    figures["invocation_all"] = float(share_N.mean())
    figures["reasoning_tokens"] = float(value_of(table.cost_NA, share_N).mean())
    if milliseconds is not None:
        direct, reasoning, deciding = milliseconds
        figures["latency_ms"] = direct + reasoning * figures["invocation_all"]
        figures["latency_ms"] += deciding * float(eligible_N.mean())
    return figures


def comparison(
    table: QueryTable, left_N: Floats, right_N: Floats, *, pooled: bool = False
) -> dict[str, float]:
    """Left minus right in Recall@1, paired, with its interval and minimal detectable effect."""
    metric = table.metric["recall@1"]
    difference_N = value_of(metric, left_N) - value_of(metric, right_N)
    tasks = None if pooled else table.tasks
    interval = cluster_bootstrap(
        difference_N, table.concepts, tasks=tasks, num_resamples=NUM_RESAMPLES
    )
    effect = minimal_detectable_effect(difference_N, table.concepts, tasks=tasks)
    return asdict(interval) | {"minimal_detectable_effect": float(effect)}


def comparisons(
    test: QueryTable, shares: Mapping[str, Floats], think: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The comparisons that the method is judged by."""
    thinking_N = np.array([task in think for task in test.tasks]) & test.eligible_N
    eligible_N = np.array([task in set(eligible_tasks(test)) for task in test.tasks])
    on_think = test.select(thinking_N), {k: v[thinking_N] for k, v in shares.items()}
    on_mix = test.select(eligible_N), {k: v[eligible_N] for k, v in shares.items()}
    best = better_constant(*on_mix)

    def compare(
        data: tuple[QueryTable, dict[str, Floats]], left: str, right: str, pooled: bool = False
    ) -> dict[str, Any]:
        table, rows = data
        return {
            "left": left,
            "right": right,
            "queries": len(table.keys),
            **comparison(table, rows[left], rows[right], pooled=pooled),
        }

    return {
        "always minus never, think tasks pooled": compare(on_think, ALWAYS, NEVER, pooled=True),
        "always minus never": compare(on_mix, ALWAYS, NEVER),
        "gated minus the better of never and always": compare(on_mix, GATED, best),
        "gated minus random at equal cost": compare(on_mix, GATED, RANDOM),
        "gated minus per-task rule": compare(on_mix, GATED, RULE),
    }


def better_constant(table: QueryTable, shares: Mapping[str, Floats]) -> str:
    """`never` or `always`, whichever has the higher mean Recall@1 on these very queries."""
    means = {
        name: mean_over_tasks(table, value_of(table.metric["recall@1"], shares[name])).mean
        for name in (NEVER, ALWAYS)
    }
    return max(means, key=means.__getitem__)
