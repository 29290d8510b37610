"""Rounds of EM side by side: what the generators know, what was kept, and what retrieval gains.

`python -m experiments.report rounds RUN RUN...`; every run is compared with the first.
Shapes: N queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from datamodules.data_roots import read_tasks
from experiments.report.data.query_table import Floats, QueryTable, read_queries
from experiments.report.data.reasoned import read_reasoned
from experiments.report.data.selection import selection_figures
from experiments.report.policies.comparisons import mean_over_tasks, of_eligible_tasks
from experiments.report.policies.decisions import ALWAYS, GATED, NEVER, Policy
from experiments.runs.recorded_data import data_root_of
from experiments.tables import Table, percent, points
from experiments.templates import markdown_page
from mmemb.storage.files import write_atomically
from mmemb.storage.json_files import write_json

SELECTION = {"right": "drafts right", "keep_rate": "kept", "right_kept": "kept right"}
RIGHT = "right"
HEADINGS = {RIGHT: "greedy draft names the answer"} | {row: row for row in (NEVER, ALWAYS, GATED)}


@final
@dataclass(frozen=True, slots=True)
class Round:
    """One run on split `test`.

    Attributes:
        eligible: its queries of tasks with eligible ones.
        value: name of a row -> (N,) Recall@1.
        think: the eligible queries of the think tasks whose concepts were never trained on.
        right_N: 1 where the greedy draft about one of `think` holds an answer.
        selection: what was kept on split `train`.
    """

    eligible: QueryTable
    value: Mapping[str, Floats]
    think: QueryTable
    right_N: Floats
    selection: Mapping[str, Any] | None


def read_round(experiment: Path, root: Path) -> Round:
    """Reads a finished run's sidecars."""
    test = read_queries(experiment).of_splits("test")

    # A generator that was trained on an answer would show memory, not reasoning.
    unseen = {task.name for task in read_tasks(root) if task.think and not task.seen_answer}
    is_think_N = test.in_tasks(unseen) & test.eligible_N
    right = {q.query.key: float(q.names_target) for q in read_reasoned(experiment, root)}

    eligible, think = test.select(of_eligible_tasks(test)), test.select(is_think_N)
    metric_NA, depths = eligible.metric["recall@1"], len(eligible.depths)

    # Ineligible queries have no deeper vector.
    deepest_N = np.where(eligible.eligible_N, depths - 1, 0)

    taken = {NEVER: np.zeros_like(deepest_N), ALWAYS: deepest_N, GATED: eligible.depth_N}
    return Round(
        eligible,
        {name: Policy.of_depths(d_N, depths).value(metric_NA) for name, d_N in taken.items()},
        think,
        np.array([right[key] for key in think.keys]),
        selection_figures(experiment),
    )


def rounds(runs: Sequence[Path], named: Path | None) -> tuple[str, dict[str, Any]]:
    """Returns the comparison as Markdown and as JSON data.

    Args:
        runs: finished experiments on the same data, the first one is the base.
        named: the prepared data; None takes that which the first run recorded.

    Raises:
        ValueError: a single run, or runs about different queries.
    """
    # The name stands for a run in tables and JSON, so two runs of one name would overwrite each
    # other.
    if len({run.name for run in runs}) < max(2, len(runs)):
        raise ValueError(
            "give two runs or more of different names, e.g. runs/pocket runs/pocket_round2"
        )
    root = data_root_of(runs[0], named)
    by_run = {run.name: read_round(run, root) for run in runs}

    # Rounds are compared query by query, so all must be about the same ones.
    base = next(iter(by_run.values()))
    for name, other in by_run.items():
        if (other.eligible.keys, other.think.keys) != (base.eligible.keys, base.think.keys):
            raise ValueError(f"{name} and {runs[0]} are about different queries: not comparable")

    data = {
        name: {
            "rows": _figures(other),
            "minus_first": _figures(other, base),
            "selection": other.selection,
        }
        for name, other in by_run.items()
    }
    return _page(data, len(base.eligible.keys), len(base.think.keys)), data


def _figures(one: Round, base: Round | None = None) -> dict[str, Any]:
    """Returns the means of a round's rows, or of their differences from another round's."""
    value, right_N = one.value, one.right_N
    if base is not None:
        value = {name: value_N - base.value[name] for name, value_N in value.items()}
        right_N = right_N - base.right_N

    figures = {name: asdict(mean_over_tasks(one.eligible, v_N)) for name, v_N in value.items()}
    return figures | {RIGHT: asdict(mean_over_tasks(one.think, right_N))}


def _page(data: Mapping[str, Any], num_eligible: int, num_think: int) -> str:
    rows, differences = [], []
    for name, figures in data.items():
        selection = figures["selection"]
        shares = [percent(selection[key]) if selection else "-" for key in SELECTION]
        rows.append([name, *shares, *(points(figures["rows"][key]) for key in HEADINGS)])
        differences.append([name, *(points(figures["minus_first"][key]) for key in HEADINGS)])

    return markdown_page(
        "report/policies/rounds.md.j2",
        num_eligible=num_eligible,
        num_think=num_think,
        first=next(iter(data)),
        rounds=Table(("run", *SELECTION.values(), *HEADINGS.values()), rows),
        differences=Table(("run", *HEADINGS.values()), differences[1:]),  # the first minus itself
    )


def write_rounds(runs: Sequence[Path], named: Path | None) -> None:
    """Prints the comparison and writes `rounds.{md,json}` into the last run's experiment."""
    text, data = rounds(runs, named)
    write_json(runs[-1] / "rounds.json", data)
    write_atomically(runs[-1] / "rounds.md", text.encode())
    print(f"{text}\n{runs[-1]}/rounds.md, rounds.json")
