"""Worth of a gate, averaged over trainings: `python -m experiments.report seeds RUN RUN...`.

One training of an embedder and its gate is one draw of a lottery. So seeds are averaged
first, then comes an interval over concepts, with the spread of the seeds beside it
(docs/method.md section 8).
Shapes: S runs, N queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from datamodules.data_roots import read_tasks
from experiments.bootstrap import cluster_bootstrap, seed_spread
from experiments.report.build import gate_settings
from experiments.report.data.query_table import Bools, Floats, QueryTable, read_queries
from experiments.report.data.reasoned import check_covers
from experiments.report.pages.tables import comparison_table
from experiments.report.policies.comparisons import (
    NUM_RESAMPLES,
    compared,
    of_eligible_tasks,
    recalls,
    task_mean,
)
from experiments.report.policies.decisions import policies
from experiments.runs.recorded_data import data_root_of
from experiments.tables import Table, percent, points
from experiments.templates import markdown_page
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex


@final
@dataclass(frozen=True, slots=True)
class SeedRun:
    """One run on split `test`.

    Attributes:
        recall: row -> (N,) Recall@1.
        invocation: row -> (N,) how likely a query reasons.
    """

    test: QueryTable
    recall: Mapping[str, Floats]
    invocation: Mapping[str, Floats]


def read_seed_run(experiment: Path) -> SeedRun:
    """Reads a run's sidecars and what its gate was fitted with."""
    queries, gate = read_queries(experiment), gate_settings(experiment)
    test, tuning = queries.of_splits("test"), queries.of_splits("gate", "calibration")
    rows = policies(test, tuning, gate["token_cost"], gate["clip"])
    return SeedRun(test, recalls(test, rows), {n: row.invocation_N for n, row in rows.items()})


def seed_means(runs: Sequence[Path], named: Path | None) -> tuple[str, dict[str, Any]]:
    """Returns the means over runs as Markdown and as JSON data.

    Args:
        runs: finished experiments that differ in their seeds.
        named: the prepared data; None takes that which the first run recorded.

    Raises:
        ValueError: a single run, a run given twice, or runs about different queries.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise ValueError("give two different runs or more, e.g. runs/pocket runs/pocket_seed0")

    root = data_root_of(runs[0], named)
    seed_runs = [read_seed_run(run) for run in runs]
    for run, other in zip(runs, seed_runs, strict=True):
        if other.test.keys != seed_runs[0].test.keys:
            raise ValueError(f"{run} and {runs[0]} are about different queries: not comparable")

    # Equal keys are not enough: the data may have been made again under the same keys.
    source = ShardIndex.open(root / "queries")
    for run in runs:
        check_covers(source, ShardIndex.open(ExperimentFolder(run).depth_values))

    test, think = seed_runs[0].test, [task.name for task in read_tasks(root) if task.think]
    chosen_N = of_eligible_tasks(test)

    data = {
        "runs": [run.name for run in runs],
        "queries": int(chosen_N.sum()),
        "rows": {name: row_of(name, seed_runs, chosen_N) for name in seed_runs[0].recall},
        "comparisons": compared(test, [run.recall for run in seed_runs], think),
    }
    return page(data), data


def row_of(name: str, runs: Sequence[SeedRun], chosen_N: Bools) -> dict[str, Any]:
    """Returns Recall@1 of a row, mean over tasks, and how often it reasons."""
    table = runs[0].test.select(chosen_N)
    value_SN = np.stack([run.recall[name][chosen_N] for run in runs])

    mean = cluster_bootstrap(
        value_SN, table.concepts, tasks=table.tasks, num_resamples=NUM_RESAMPLES
    )

    # Only eligible queries can reason, so the share is one of these.
    invoked_SN = np.stack([run.invocation[name][chosen_N] for run in runs])
    return asdict(mean) | {
        "seed_sd": seed_spread([[task_mean(table, value_N)] for value_N in value_SN]),
        "invocation": float(invoked_SN[:, table.eligible_N].mean()),
    }


def page(data: Mapping[str, Any]) -> str:
    """Returns `seeds.md`."""
    rows = [
        [name, points(row), f"{100 * row['seed_sd']:.1f}", percent(row["invocation"], 0)]
        for name, row in data["rows"].items()
    ]

    singles = [
        [name, f"{100 * row['seed_sd']:.1f}", *(f"{100 * mean:.1f}" for mean in row["of_runs"])]
        for name, row in data["comparisons"].items()
    ]

    return markdown_page(
        "report/policies/seeds.md.j2",
        num_runs=len(data["runs"]),
        num_queries=data["queries"],
        rows=Table(("row", "Recall@1", "sd of runs", "inv. eligible"), rows),
        comparisons=comparison_table(data["comparisons"]),
        singles=Table(("comparison", "sd", *data["runs"]), singles),
    )


def write_seeds(runs: Sequence[Path], named: Path | None) -> None:
    """Prints the means and writes `seeds.{md,json}` into the first run's experiment."""
    text, data = seed_means(runs, named)
    write_json(runs[0] / "seeds.json", data)
    write_atomically(runs[0] / "seeds.md", text.encode())
    print(f"{text}\n{runs[0]}/seeds.md, seeds.json")
