"""The ranks that a test left in its run, and their means with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from experiments.bootstrap import Interval, cluster_bootstrap, share_without_exception
from experiments.tables import Table, percent
from mmemb.records.ranked_queries import RankedQueries, RankedQuery
from mmemb.records.schema import read_json
from mmemb.storage.run_folder import RunFolder

NUM_RESAMPLES = 4_000


@final
@dataclass(frozen=True)
class RankedTest:
    """The queries of one test, in the order of their keys.

    Attributes:
        run: folder of the test, or a link to it.
        queries: at least one.
    """

    run: Path
    queries: tuple[RankedQuery, ...]

    @classmethod
    def read(cls, run: Path) -> RankedTest | None:
        """Reads the ranks of a run; None where it left none, as a test that ranks nothing."""
        path = RunFolder(run).ranks
        if not path.is_file():
            return None
        queries = read_json(path, RankedQueries).queries
        return cls(run, queries) if queries else None

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in alphabetical order."""
        return tuple(sorted({query.task for query in self.queries}))

    def values(self, metric: str) -> NDArray[np.float64]:
        """Returns (N,) values of a metric, one for each query."""
        return np.array([query.metrics[metric] for query in self.queries])

    def mean(self, metric: str) -> Interval:
        """Returns the mean over tasks of their means; the interval's clusters are concepts."""
        value_N = self.values(metric)
        for share in (0.0, 1.0):
            if np.all(value_N == share):
                return share_without_exception(share, len({q.concept for q in self.queries}))
        return self.interval(value_N)

    def interval(self, value_N: NDArray[np.float64]) -> Interval:
        """Returns the mean over tasks of any value of the queries."""
        return cluster_bootstrap(
            value_N,
            [query.concept for query in self.queries],
            tasks=[query.task for query in self.queries],
            num_resamples=NUM_RESAMPLES,
        )

    def of_task(self, task: str) -> RankedTest:
        """Returns the queries of one task."""
        return RankedTest(self.run, tuple(q for q in self.queries if q.task == task))

    def table(self) -> Table:
        """Returns metrics by task, with the chance level beside them.

        Only Recall@1 has an interval: a terminal has no room for more.
        """
        first, *others = metric_names(self)
        chance = first.replace("recall", "chance")
        parts = [(task, self.of_task(task)) for task in self.tasks]
        parts += [("mean over tasks", self)] if len(parts) > 1 else []

        rows = [
            [
                name,
                str(len(part.queries)),
                part.mean(first).text(100, 1),
                percent(_plain_mean(part, chance)),
                *(percent(_plain_mean(part, other)) for other in others),
            ]
            for name, part in parts
        ]
        titles = (shown_name(name) for name in (first, chance, *others))
        return Table(("task", "queries", *titles), rows)


def shown_name(metric: str) -> str:
    """Returns the name of a metric as tables show it.

    >>> shown_name("recall@1"), shown_name("ndcg_linear@5"), shown_name("chance@1")
    ('Recall@1', 'NDCG@5', 'chance')
    """
    name, _, cutoff = metric.partition("@")
    if name == "chance":
        return "chance"
    return f"{'NDCG' if name.startswith('ndcg') else name.capitalize()}@{cutoff}"


def metric_names(test: RankedTest) -> list[str]:
    """Returns the metrics that tables show, recall@k in the order of k first."""
    names = test.queries[0].metrics
    recalls = [name for name in names if name.startswith("recall@")]
    recalls.sort(key=lambda name: int(name.partition("@")[2]))
    return [*recalls, *(name for name in names if name.startswith("ndcg"))]


def _plain_mean(test: RankedTest, metric: str) -> float:
    """Returns the mean over tasks without an interval."""
    value_N = test.values(metric)
    tasks = np.array([query.task for query in test.queries])
    return float(np.mean([value_N[tasks == task].mean() for task in test.tasks]))


def ranked_alike(left: RankedTest, right: RankedTest) -> bool:
    """Tells whether two tests ranked the same queries among the same candidates."""
    asked = (
        [(q.key, q.task, q.concept, q.candidates, set(q.right)) for q in test.queries]
        for test in (left, right)
    )
    return next(asked) == next(asked)
