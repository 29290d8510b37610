"""The tables of the report, from its figures: the same in Markdown, in HTML and on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bootstrap import Interval
from experiments.runs.ranked_test import shown_name
from experiments.tables import Table, effect, percent, points

Rows = Mapping[str, Mapping[str, Any]]
"""Name of a row -> its figures."""

MIX_HEADINGS = (
    "row",
    "Recall@1",
    "Recall@5",
    "Recall@10",
    "hit@1",
    "inv. eligible",
    "inv. all",
    "tokens/query",
    "ms/query",
)


def compared_table(first: Mapping[str, Any]) -> Table:
    """Returns the first table: each test beside the chance level and the first of them."""
    headline, rows = first["headline"], first["rows"]
    others = [name for name in next(iter(rows.values())) if _is_metric(name) and name != headline]
    shown_names = [shown_name(name) for name in others]

    def chance(name: str) -> str:
        return f"{100 * first['chance'][name]:.1f}" if name in first["chance"] else "-"

    lines = [["candidates in random order", chance(headline), "-", *map(chance, others)]]
    for name, row in rows.items():
        difference = row["minus_first"]
        minus = "-" if difference is None else Interval.from_row(difference).text(100, 1, "+")
        means = [f"{100 * row[other]['mean']:.1f}" for other in others]
        lines.append([name, points(row[headline]), minus, *means])

    title = f"minus {next(iter(rows))}"
    return Table(("", shown_name(headline), title, *shown_names), lines)


def _is_metric(name: str) -> bool:
    return "@" in name


def task_table(first: Mapping[str, Any]) -> Table:
    """Returns the headline metric of each test by task."""
    rows = list(first["rows"])
    lines = [
        [name, str(task["queries"]), f"{100 * task['chance']:.1f}", *map(points, _of(task, rows))]
        for name, task in first["tasks"].items()
    ]
    return Table(("task", "queries", "chance", *rows), lines)


def _of(task: Mapping[str, Any], rows: Sequence[str]) -> list[Mapping[str, Any]]:
    return [task["rows"][row] for row in rows]


def mix_table(policies: Rows) -> Table:
    """Returns quality and cost of each policy."""
    return Table(MIX_HEADINGS, [_mix_row(name, row) for name, row in policies.items()])


def _mix_row(name: str, row: Mapping[str, Any]) -> list[str]:
    quality = [points(row[metric]) for metric in ("recall@1", "recall@5", "recall@10", "hit@1")]
    ratios = [percent(row[key], 0) for key in ("invocation", "invocation_all")]
    milliseconds = f"{row['latency_ms']:.0f}" if "latency_ms" in row else "-"
    return [name, *quality, *ratios, f"{row['reasoning_tokens']:.1f}", milliseconds]


def comparison_table(comparisons: Rows) -> Table:
    """Returns each paired difference, its verdict, and the smallest effect in reach."""
    headings = ("comparison", "points", "that is", "detectable effect", "queries")
    rows = [
        [
            f"{name} ({row['left']} - {row['right']})",
            points(row),
            verdict_word(row),
            effect(row["minimal_detectable_effect"]),
            str(row["queries"]),
        ]
        for name, row in comparisons.items()
    ]
    return Table(headings, rows)


def verdict_word(row: Mapping[str, Any]) -> str:
    """Returns what an interval shows; not inferior means by less than two points."""
    difference = Interval.from_row(row)

    if difference.low is None:
        return "no interval"
    if difference.is_above(0):
        return "better"

    # A difference below 0 can still lie wholly within two points.
    if difference.is_below(0):
        return "worse, by less than 2 points" if row["non_inferior"] else "worse"
    return "not inferior" if row["non_inferior"] else "open"


def study_tables(study: Mapping[str, Any]) -> list[Table]:
    """Returns the study of gates: one table of states, one of estimators."""
    headings = ("Recall@1", "seed sd", "minus per-task rule", "invocation", "")
    titles = {"states": "state (exact)", "estimators": "estimator (own state)"}
    return [
        Table((title, *headings), [_gate_row(name, row) for name, row in study[key].items()])
        for key, title in titles.items()
    ]


def _gate_row(name: str, row: Mapping[str, Any]) -> list[str]:
    depth = row["collapsed_to"]
    return [
        name,
        points(row["recall@1"]),
        f"{100 * row['seed_sd']:.1f}",
        points(row["minus_rule"]),
        percent(row["invocation"], 0),
        "" if depth is None else f"collapsed to depth {depth}",
    ]


def within_table(tasks: Rows) -> Table | None:
    """Returns the view of each gate state within tasks of a real oracle gap; None without any."""
    gaps = {task: row for task, row in tasks.items() if row["states"]}
    if not gaps:
        return None

    # The study leaves out states that were not measured, so the columns come from its figures.
    states = list(next(iter(gaps.values()))["states"])
    rows = []
    for task, row in gaps.items():
        cells = [
            f"{row['states'][state]['auc']:.2f}, {percent(row['states'][state]['share_of_gap'], 0)}"
            for state in states
        ]
        rows.append([task, points(row["oracle_gap"]), *cells])

    headings = [f"{state}: AUC, share of gap" for state in states]
    return Table(("within the task", "oracle gap", *headings), rows)


def picking_table(orders: Rows) -> Table | None:
    """Returns the gain of each order of queries over a coin; None without think queries."""
    rows = [[name, points(row)] for name, row in orders.items()]
    return Table(("ordered by", "area over a coin's"), rows) if rows else None


def writers_table(selection: Mapping[str, Any] | None) -> Table | None:
    """Returns each writer's share of a pool, by draw, and the kept part; None for one writer."""
    writers: Rows = (selection or {}).get("writers", {})
    if len(writers) < 2:
        return None

    headings = ("writer", "drawn", "name the target", "kept", "kept and name it")
    rows = [
        [
            name,
            str(row["drawn"]),
            _count_and_share(row["right"], row["drawn"]),
            _count_and_share(row["kept"], row["drawn"]),
            _count_and_share(row["right_kept"], row["kept"]),
        ]
        for name, row in writers.items()
    ]
    return Table(headings, rows)


def _count_and_share(count: int, whole: int) -> str:
    return f"{count} ({percent(count / whole)})" if whole else str(count)
