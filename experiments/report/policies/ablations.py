"""The table of ablations: paired differences over seeds and concepts, against what was expected.

Shapes: S seeds, N test queries of the think tasks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from experiments.bootstrap import (
    Interval,
    cluster_bootstrap,
    minimal_detectable_effect,
    paired_bootstrap,
    seed_spread,
)
from experiments.pipelines.ablations import Ablations, Comparison, run_name
from experiments.report.data.query_table import Floats
from experiments.tables import Table, effect, points
from experiments.templates import markdown_page
from mmemb.records.sidecar_json import DepthValueJson
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex

NUM_RESAMPLES = 4_000
EQUAL = 0.02
"""Two points: `equal` is confirmed if the whole interval lies within them."""

COMPARISON_HEADINGS = (
    "left minus right", "expected", "points", "verdict", "detectable", "seed sd",
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class CellTable:
    """One cell on the think tasks of split `test`.

    Attributes:
        value: path -> (S, N) Recall@1: `never`, `always`, `averaged`.
        keys: of the queries, the same in every seed.
        tasks: of the queries; means weigh them equally.
        concepts: of the queries; the clusters of every interval.
        made_from: hashes of the data and the rationales that were measured.
    """

    value: Mapping[str, Floats]
    keys: tuple[str, ...]
    tasks: tuple[str, ...]
    concepts: tuple[str, ...]
    made_from: frozenset[str] = frozenset()

    def spread(self, value_SN: Floats) -> float:
        """Returns the deviation over seeds of the mean over tasks; NaN for a single seed."""
        names = np.array(self.tasks)
        of_tasks = [value_SN[:, names == name].mean(1) for name in dict.fromkeys(self.tasks)]
        return seed_spread(np.mean(of_tasks, axis=0)[:, None])


def read_cell(folder: Path, name: str, seeds: tuple[int, ...], think: frozenset[str]) -> CellTable:
    """Reads `depth_values-NAME-seedS` of every seed.

    Raises:
        ValueError: seeds were measured on different queries.
    """
    by_path: dict[str, list[list[float]]] = {"never": [], "always": [], "averaged": []}
    columns: set[tuple[Any, ...]] = set()
    for seed in seeds:
        index = ShardIndex.open(folder / f"depth_values-{run_name(name, seed)}")
        entries, rows = _rows(index, think)
        named = (
            tuple(entry.key for entry in entries),
            tuple(row.task for row in rows),
            tuple(row.concept for row in rows),
        )

        # Cells are paired query by query, so data or rationales of another origin have to show.
        origins = (origin for record in index.records.values() for origin in record.made_from)
        columns.add((*named, frozenset(origin.sha256 for origin in origins)))

        by_path["never"].append([row.metrics[0]["recall@1"] for row in rows])
        by_path["always"].append([row.metrics[-1]["recall@1"] for row in rows])
        by_path["averaged"].append([row.averaged[-1]["recall@1"] for row in rows])

    if len(columns) > 1:
        raise ValueError(
            f"{folder}: the seeds of cell {name} were measured on different queries. Delete its "
            "folders depth_values-* and run the ablations again."
        )

    values = {path: np.array(rows) for path, rows in by_path.items()}
    return CellTable(values, *columns.pop())


def _rows(
    index: ShardIndex, think: frozenset[str]
) -> tuple[list[IndexEntry], list[DepthValueJson]]:
    """Returns the eligible test queries of the think tasks."""
    entries = [e for e in index.entries if e.meta["split"] == "test" and e.meta["task"] in think]

    queries = [(entry, index.read_json(entry, DepthValueJson)) for entry in entries]
    eligible = [pair for pair in queries if pair[1].eligible]
    return [entry for entry, _ in eligible], [row for _, row in eligible]


def figures(folder: Path, ablations: Ablations, think: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Returns every cell and every comparison, as JSON data."""
    cells = {name: read_cell(folder, name, ablations.seeds, think) for name in ablations.cells}

    return {
        "cells": {name: cell_figures(cell) for name, cell in cells.items()},
        "comparisons": {title(row): compare(row, cells) for row in ablations.comparisons},
    }


def cell_figures(cell: CellTable) -> dict[str, Any]:
    """Returns Recall@1 of each path with interval and spread, and always minus never."""
    by_path: dict[str, Any] = {}

    for path, value_SN in cell.value.items():
        # Seeds are averaged within a query first, so the interval is about concepts alone.
        mean = cluster_bootstrap(
            value_SN, cell.concepts, tasks=cell.tasks, num_resamples=NUM_RESAMPLES
        )
        by_path[path] = asdict(mean) | {"seed_sd": cell.spread(value_SN)}

    gain = paired_bootstrap(
        cell.value["always"], cell.value["never"], cell.concepts, tasks=cell.tasks,
        num_resamples=NUM_RESAMPLES,
    )  # fmt: skip

    return by_path | {"always_minus_never": asdict(gain), "queries": len(cell.tasks)}


def compare(row: Comparison, cells: Mapping[str, CellTable]) -> dict[str, Any]:
    """Returns one paired difference, its verdict, and the smallest effect in reach."""
    left, right = cells[row.left], cells[row.right]

    # Cells may stem from different runs of the experiment, after data or rationales were made
    # again.
    if (left.keys, left.made_from) != (right.keys, right.made_from):
        raise ValueError(
            f"The cells {row.left} and {row.right} were measured on different queries: delete the "
            "folders depth_values-* of the experiment and run the ablations again."
        )

    left_SN, right_SN = left.value[row.path], right.value[row.against or row.path]
    difference = paired_bootstrap(
        left_SN, right_SN, left.concepts, tasks=left.tasks, num_resamples=NUM_RESAMPLES
    )

    # Of the mean over seeds, as the difference above.
    smallest = minimal_detectable_effect(
        left_SN.mean(0) - right_SN.mean(0), left.concepts, tasks=left.tasks
    )

    return asdict(difference) | {
        "expected": row.expected,
        "verdict": verdict(difference, row.expected),
        "minimal_detectable_effect": smallest,
        "seed_sd": left.spread(left_SN - right_SN),
    }


def verdict(interval: Interval, expected: str) -> str:
    """Tells whether an interval confirms the expectation.

    >>> verdict(Interval(0.05, 0.01, 0.09), "higher"), verdict(Interval(0.0, -0.01, 0.01), "equal")
    ('confirmed', 'confirmed')
    >>> verdict(Interval(0.05, 0.01, 0.09), "lower"), verdict(Interval(0.0, -0.1, 0.1), "equal")
    ('opposite', 'not seen')
    """
    if interval.low is None or interval.high is None:
        return "no interval"

    # Absence of an effect needs the whole interval near 0: an interval that holds 0 shows
    # nothing.
    if expected == "equal":
        if interval.low >= -EQUAL and interval.high <= EQUAL:
            return "confirmed"
        return "opposite" if interval.excludes_zero else "not seen"

    low, high = (
        (interval.low, interval.high) if expected == "higher" else (-interval.high, -interval.low)
    )
    return "confirmed" if low > 0 else "opposite" if high < 0 else "not seen"


def title(row: Comparison) -> str:
    """Returns `gain-30 minus raw-30`, with the path where it is not `always`."""
    path, against = row.path, row.against or row.path
    return f"{row.left} ({path}) minus {row.right} ({against})"


def page(result: Mapping[str, Any], seeds: tuple[int, ...]) -> str:
    """Returns the tables of all cells and comparisons as Markdown."""
    cells = [
        [
            name,
            *(points(row[path]) for path in ("never", "always", "always_minus_never")),
            f"{100 * row['always']['seed_sd']:.1f}",
        ]
        for name, row in result["cells"].items()
    ]

    comparisons = [
        [
            name,
            row["expected"],
            points(row),
            row["verdict"],
            effect(row["minimal_detectable_effect"]),
            f"{100 * row['seed_sd']:.1f}",
        ]
        for name, row in result["comparisons"].items()
    ]

    return markdown_page(
        "report/policies/ablations.md.j2",
        num_seeds=len(seeds),
        num_queries=next(iter(result["cells"].values()))["queries"],
        cells=Table(("cell", "never", "always", "always - never", "seed sd"), cells),
        comparisons=Table(COMPARISON_HEADINGS, comparisons),
    )


COLOURS = {
    "confirmed": "#2a7f3f",
    "not seen": "#777777",
    "opposite": "#b03030",
    "no interval": "#cccccc",
}


def picture(result: Mapping[str, Any]) -> bytes:
    """Draws a PNG of every comparison with its interval, coloured by its verdict."""
    from matplotlib.figure import Figure

    rows = result["comparisons"]

    # Without pyplot, whose backend may need a screen.
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()

    for place, row in enumerate(rows.values()):
        difference = Interval.from_row(row)
        reach = None
        if difference.low is not None and difference.high is not None:
            # Rounding goes below 0.
            left, right = difference.mean - difference.low, difference.high - difference.mean
            reach = [[100 * max(0.0, left)], [100 * max(0.0, right)]]

        axes.errorbar(
            100 * difference.mean, place, xerr=reach, fmt="o",
            color=COLOURS[row["verdict"]], capsize=3,
        )  # fmt: skip

    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvspan(-100 * EQUAL, 100 * EQUAL, color="black", alpha=0.06, label="equal")

    # The expectation was written before the runs, so it stands beside what came out.
    labels = [f"{name}: expected {row['expected']}" for name, row in rows.items()]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("difference in Recall@1, points (95 % over concepts)")

    for verdict_, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=verdict_)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
