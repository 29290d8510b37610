"""The report's first table: what training and the gate add to the backbone as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.bootstrap import Interval, share_without_exception
from experiments.report.data.ranked_tests import GATED, TRAINED, UNTRAINED
from experiments.runs.ranked_test import RankedTest, metric_names, ranked_alike


def first_table(tests: Mapping[str, RankedTest]) -> dict[str, Any] | None:
    """Returns the figures of each test, all over the same queries; None without a test.

    Args:
        tests: row -> test, in the order of the table.

    Returns:
        `headline`: the metric that is compared, Recall@1 unless it was not measured; `rows`: metric
        -> mean with interval, and `minus_first`, the paired difference; `chance`: metric -> level
        of candidates in random order; `tasks`: the same by task; `left_out`: rows whose tests
        ranked other queries or candidates.
    """
    if not tests:
        return None

    # A test of data that were prepared again since must not be compared with the others.
    main = next(tests[row] for row in (TRAINED, GATED, UNTRAINED, *tests) if row in tests)
    alike = {row: test for row, test in tests.items() if ranked_alike(test, main)}
    first = next(iter(alike.values()))

    metrics = [n for n in metric_names(main) if all(n in metric_names(t) for t in alike.values())]
    headline = metrics[0]
    chance = headline.replace("recall", "chance")

    return {
        "headline": headline,
        "queries": len(main.queries),
        "concepts": len({query.concept for query in main.queries}),
        "chance": {
            name: main.mean(name.replace("recall", "chance")).mean
            for name in metrics
            if name.startswith("recall@")
        },
        "rows": {
            row: {name: asdict(test.mean(name)) for name in metrics}
            | {"run": test.run.name, "minus_first": _difference(test, first, headline)}
            for row, test in alike.items()
        },
        "tasks": {
            task: {
                "queries": len(main.of_task(task).queries),
                "chance": main.of_task(task).mean(chance).mean,
                "rows": {r: asdict(t.of_task(task).mean(headline)) for r, t in alike.items()},
            }
            for task in main.tasks
        },
        "left_out": [row for row in tests if row not in alike],
    }


def _difference(test: RankedTest, first: RankedTest, metric: str) -> dict[str, Any] | None:
    """Returns test minus first, query by query; None of the first row itself."""
    if test is first:
        return None
    difference_N = test.values(metric) - first.values(metric)
    if np.any(difference_N):
        return asdict(test.interval(difference_N))

    # Resamples of no difference are no certainty: so many queries may differ in truth.
    num = len({query.concept for query in test.queries})
    bound = share_without_exception(0.0, num).high
    return asdict(Interval(0.0, None if bound is None else -bound, bound, num))
