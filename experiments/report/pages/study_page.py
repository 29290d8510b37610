"""The study of gates as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.report.pages.markdown_page import interval, markdown_table


def study_words(study: Mapping[str, Any]) -> str:
    """The study as Markdown."""
    head = ("", "Recall@1", "seed sd", "minus per-task rule", "invocation", "")
    tables = []
    for title, key in (("state (exact)", "states"), ("estimator (own state)", "estimators")):
        lines = [
            [
                name,
                interval(row["recall@1"]),
                f"{100 * row['seed_sd']:.1f}",
                interval(row["minus_rule"]),
                f"{100 * row['invocation']:.0f} %",
                "" if row["collapsed_to"] is None else f"collapsed to depth {row['collapsed_to']}",
            ]
            for name, row in study[key].items()
        ]
        tables.append(markdown_table((title, *head[1:]), lines))
    return "\n\n".join([*tables, within_words(study["within_tasks"])])


def within_words(tasks: Mapping[str, Any]) -> str:
    """Tasks whose oracle gap is real, and what each state sees within them."""
    shown = {task: row for task, row in tasks.items() if row["states"]}
    if not shown:
        return "No task has an oracle gap whose interval excludes 0: nothing to see within tasks."
    states = list(next(iter(shown.values()))["states"])
    lines = [
        [
            task,
            interval(row["oracle_gap"]),
            *(
                f"{row['states'][s]['auc']:.2f}, {100 * row['states'][s]['share_of_gap']:.0f} %"
                for s in states
            ),
        ]
        for task, row in shown.items()
    ]
    heads = ["within the task", "oracle gap", *(f"{s}: AUC, share of gap" for s in states)]
    return markdown_table(heads, lines)
