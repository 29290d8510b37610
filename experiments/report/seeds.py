"""What the gate is worth, averaged over trainings: `python -m experiments.report seeds RUN RUN...`.

One training of an embedder and its gate is one draw of a lottery. METHOD 8: average over seeds
first, then an interval over concepts; the spread of the seeds stands beside it.
Shapes: S runs, N queries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from datamodules.evaluation import read_tasks
from experiments.report.build import gate_settings
from experiments.report.page import comparisons, interval, markdown_table
from experiments.report.policies import ALWAYS, NEVER, Policy, policies
from experiments.report.records import Bools, Floats, QueryTable, read_queries
from experiments.report.tables import (
    BETTER,
    NUM_RESAMPLES,
    WANTED,
    difference_figures,
    subsets_of,
    task_mean,
)
from mmemb.files import write_atomically
from mmemb.statistics import cluster_bootstrap, seed_spread


@final
@dataclass(frozen=True, slots=True)
class SeedRun:
    """One run on part `test`: its queries, and name of a row -> policy."""

    test: QueryTable
    rows: Mapping[str, Policy]

    def recall_N(self, row: str, chosen_N: Bools) -> Floats:
        """(N,) Recall@1 of the chosen queries."""
        return self.rows[row].value(self.test.metric["recall@1"])[chosen_N]


def read_seed_run(experiment: Path) -> SeedRun:
    """Reads a run's sidecars and what its gate was fitted with."""
    queries, gate = read_queries(experiment), gate_settings(experiment)
    test, tuning = queries.of_parts("test"), queries.of_parts("gate", "calibration")
    return SeedRun(test, policies(test, tuning, gate["price"], gate["clip"]))


def seed_means(runs: Sequence[Path], root: Path) -> tuple[str, dict[str, Any]]:
    """The means over runs as Markdown and as JSON data.

    Args:
        runs: finished experiments that differ in their seeds.
        root: the prepared data.

    Raises:
        ValueError: a single run, a run given twice, or runs about different queries.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise ValueError("give two different runs or more, e.g. runs/pocket runs/pocket_seed0")
    found = [read_seed_run(run) for run in runs]
    for run, other in zip(runs, found, strict=True):
        if other.test.keys != found[0].test.keys:
            raise ValueError(f"{run} and {runs[0]} are about different queries: not comparable")
    subsets = subsets_of(found[0].test, [task.name for task in read_tasks(root) if task.think])
    data = {
        "runs": [run.name for run in runs],
        "queries": int(subsets["mix"].sum()),
        "rows": {name: row_of(name, found, subsets["mix"]) for name in found[0].rows},
        "comparisons": compared(found, subsets),
    }
    return words(data), data


def row_of(name: str, runs: Sequence[SeedRun], chosen_N: Bools) -> dict[str, Any]:
    """Recall@1 of a row, mean over tasks, and how often it reasons."""
    table = runs[0].test.select(chosen_N)
    value_SN = np.stack([run.recall_N(name, chosen_N) for run in runs])
    mean = cluster_bootstrap(
        value_SN, table.concepts, tasks=table.tasks, num_resamples=NUM_RESAMPLES
    )
    invoked_SN = np.stack([run.rows[name].invocation_N[chosen_N] for run in runs])
    invocation = float(invoked_SN[:, table.eligible_N].mean())
    return asdict(mean) | {"seed_sd": seed_sd(table, value_SN), "invocation": invocation}


def compared(runs: Sequence[SeedRun], subsets: Mapping[str, Bools]) -> dict[str, dict[str, Any]]:
    """The comparisons of a report, of means over runs."""
    mix_N, test = subsets["mix"], runs[0].test
    means = {
        name: task_mean(
            test.select(mix_N), np.mean([run.recall_N(name, mix_N) for run in runs], axis=0)
        )
        for name in (NEVER, ALWAYS)
    }
    best, figures = max(means, key=means.__getitem__), {}
    for name, left, named, subset in WANTED:
        right, chosen_N = best if named == BETTER else named, subsets[subset]
        if not ({left, right} <= set(runs[0].rows) and chosen_N.any()):
            continue
        table = test.select(chosen_N)
        difference_SN = np.stack(
            [run.recall_N(left, chosen_N) - run.recall_N(right, chosen_N) for run in runs]
        )
        figures[name] = {
            "left": left,
            "right": right,
            "queries": int(chosen_N.sum()),
            **difference_figures(table, difference_SN, pooled=subset == "think"),
            "seed_sd": seed_sd(table, difference_SN),
            "of_runs": [task_mean(table, difference_N) for difference_N in difference_SN],
        }
    return figures


def seed_sd(table: QueryTable, value_SN: Floats) -> float:
    """Standard deviation over runs of the mean over tasks."""
    return seed_spread([[task_mean(table, value_N)] for value_N in value_SN])


def words(data: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [
        [name, interval(row), f"{100 * row['seed_sd']:.1f}", f"{100 * row['invocation']:.0f} %"]
        for name, row in data["rows"].items()
    ]
    single = [
        [name, f"{100 * row['seed_sd']:.1f}", *(f"{100 * mean:.1f}" for mean in row["of_runs"])]
        for name, row in data["comparisons"].items()
    ]
    return "\n\n".join(
        [
            f"# {len(data['runs'])} trainings of embedder and gate",
            f"{data['queries']} test queries. Recall@1, mean over tasks with eligible queries. "
            "Runs are averaged first; intervals are 95 %, over concepts.",
            markdown_table(("row", "Recall@1", "sd of runs", "inv. eligible"), lines),
            comparisons(data["comparisons"]),
            "Each run alone:",
            markdown_table(("comparison", "sd", *data["runs"]), single),
        ]
    )


def write_seeds(runs: Sequence[Path], root: Path) -> None:
    """Prints the means and writes `seeds.{md,json}` into the first run's experiment."""
    text, data = seed_means(runs, root)
    write_atomically(runs[0] / "seeds.json", json.dumps(data, indent=1).encode())
    write_atomically(runs[0] / "seeds.md", text.encode())
    print(f"{text}\n\n{runs[0]}/seeds.md, seeds.json")
