"""Table of every query's value and cost at each depth, read from the sidecars.

Shapes: N queries, A depths (0 = direct, 1 = reason).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.joins import check_join
from datamodules.sample_json import check_index
from mmemb.gate.policy_gradients import reward_BA
from mmemb.records.rationales import DIRECT, FULL
from mmemb.records.sidecar_json import DecisionJson, DepthValueJson
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex

METRICS = ("recall@1", "recall@5", "recall@10", "hit@1", "ndcg_linear@5")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@final
@dataclass(frozen=True, slots=True)
class QueryTable:
    """Columns over queries, joined from `depth_values/` and `decisions/` by key.

    Attributes:
        depth_value_NA: mean over draws of the true target's log-probability at each depth.
        cost_NA: reasoning tokens at each depth.
        metric: name -> (N, A) tie-aware values.
        depth_N: the gate's decision.
        logit_NA: the gate's logits.
        lead_N: lead of the best direct log-probability over the second.
        confidence_N: mean log-probability of the greedy full draft; NaN where there is none.
        depths: names of the depths.
    """

    keys: tuple[str, ...]
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    concepts: tuple[str, ...]
    eligible_N: Bools
    depth_value_NA: Floats
    cost_NA: Floats
    metric: dict[str, Floats]
    depth_N: NDArray[np.int64]
    logit_NA: Floats
    lead_N: Floats
    confidence_N: Floats
    depths: tuple[str, ...] = (DIRECT, FULL)

    def select(self, chosen_N: Bools) -> QueryTable:
        """Returns the rows where `chosen_N` holds."""
        rows = np.flatnonzero(chosen_N)

        def pick(values: Sequence[str]) -> tuple[str, ...]:
            return tuple(values[row] for row in rows)

        return QueryTable(
            keys=pick(self.keys),
            tasks=pick(self.tasks),
            splits=pick(self.splits),
            concepts=pick(self.concepts),
            eligible_N=self.eligible_N[rows],
            depth_value_NA=self.depth_value_NA[rows],
            cost_NA=self.cost_NA[rows],
            metric={name: values[rows] for name, values in self.metric.items()},
            depth_N=self.depth_N[rows],
            logit_NA=self.logit_NA[rows],
            lead_N=self.lead_N[rows],
            confidence_N=self.confidence_N[rows],
            depths=self.depths,
        )

    def reward(self, token_cost: float, clip: float) -> Floats:
        """Returns the (N, A) reward of each depth."""
        depth_value_NA, cost_NA = torch.tensor(self.depth_value_NA), torch.tensor(self.cost_NA)
        return reward_BA(depth_value_NA, cost_NA, clip=clip, token_cost=token_cost).numpy()

    def task_weights(self) -> Floats:
        """Returns (N,) weights under which every task counts the same."""
        counts = Counter(self.tasks)
        return np.array([1 / counts[task] for task in self.tasks])

    def of_splits(self, *splits: str) -> QueryTable:
        """Returns the queries of some splits."""
        return self.select(np.array([split in splits for split in self.splits], dtype=bool))

    def of_tasks(self, tasks: Sequence[str]) -> QueryTable:
        """Returns the queries of some tasks."""
        return self.select(self.in_tasks(tasks))

    def in_tasks(self, tasks: Collection[str]) -> Bools:
        """Returns (N,) True for the queries of some tasks."""
        return np.array([task in tasks for task in self.tasks], dtype=bool)


def read_queries(experiment: Path) -> QueryTable:
    """Reads and joins the sidecars of an experiment; decisions must cover every depth value."""
    depth_values = ShardIndex.open(ExperimentFolder(experiment).depth_values)
    decisions = ShardIndex.open(ExperimentFolder(experiment).decisions)

    # Both sidecars have to be about the same shards, or keys would join rows of different data.
    check_join(depth_values, decisions)

    rows, taken = [], []
    for entry in depth_values.entries:
        if entry.key not in decisions.by_key:
            raise ValueError(
                f"{decisions.folder} has no decision for query {entry.key} of shard "
                f"{depth_values.folder / entry.shard}: run the stage `decisions` again."
            )
        rows.append(depth_values.read_json(entry, DepthValueJson))
        taken.append(decisions.read_json(decisions.by_key[entry.key], DecisionJson))

    # Rows can parse and still lack a metric or a depth.
    try:
        return _table(depth_values, rows, taken)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{depth_values.folder} or {decisions.folder} holds rows that are not as `predict` "
            f"writes them ({type(error).__name__} {error}): run the stages that make them again."
        ) from None


def _table(
    depth_values: ShardIndex, rows: Sequence[DepthValueJson], taken: Sequence[DecisionJson]
) -> QueryTable:
    for entry, row in zip(depth_values.entries, rows, strict=True):
        check_index(row, entry.meta)

    return QueryTable(
        keys=tuple(entry.key for entry in depth_values.entries),
        tasks=tuple(row.task for row in rows),
        splits=tuple(row.split for row in rows),
        concepts=tuple(row.concept for row in rows),
        eligible_N=np.array([row.eligible for row in rows], dtype=bool),
        depth_value_NA=_over_draws([row.depth_value for row in rows]),
        cost_NA=_over_draws([row.cost for row in rows]),
        metric={
            name: np.array([[depth[name] for depth in row.metrics] for row in rows])
            for name in METRICS
        },
        depth_N=np.array([row.depth for row in taken]),
        logit_NA=np.array([row.logits for row in taken]),
        lead_N=np.array([row.scores[1] for row in rows]),
        confidence_N=np.array([_confidence(row) for row in rows]),
        depths=rows[0].depths if rows else (DIRECT, FULL),
    )


def _confidence(row: DepthValueJson) -> float:
    """Returns the log-probability of the first draft at the last depth; NaN without one."""
    log_probabilities = row.confidence[-1] if row.confidence else ()
    return (
        log_probabilities[0]
        if log_probabilities and log_probabilities[0] is not None
        else float("nan")
    )


def _over_draws(rows: Sequence[Sequence[Sequence[float]]]) -> Floats:
    return np.array([[np.mean(draws) for draws in row] for row in rows])
