"""Writes `report.md` and `report.html`, two templates over the same values and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from experiments.bootstrap import FEW_CLUSTERS, MIN_CLUSTERS, Interval
from experiments.report.data.pictures import data_url
from experiments.report.pages.examples import Examples
from experiments.report.pages.found import FoundExamples
from experiments.report.pages.tables import (
    compared_table,
    comparison_table,
    mix_table,
    picking_table,
    study_tables,
    task_table,
    within_table,
    writers_table,
)
from experiments.templates import html_page, markdown_page


@final
@dataclass(frozen=True, slots=True)
class PageExamples:
    """The cards of `report.html`; None where nothing was ranked, or nothing was reasoned about."""

    found: FoundExamples | None = None
    changed: Examples | None = None


def report_markdown(report: Mapping[str, Any]) -> str:
    """Returns the whole of `report.md`."""
    return markdown_page("report/pages/report.md.j2", **_values(report))


def report_html(report: Mapping[str, Any], examples: PageExamples, figure: bytes) -> bytes:
    """Returns the whole of `report.html`: all of `report.md`, and examples.

    Args:
        report: the figures of `report.json`.
        examples: the cards of the page.
        figure: `report.png`.
    """
    return html_page(
        "report/pages/report.html.j2",
        **_values(report),
        examples=examples,
        figure=data_url("report.png", figure),
    )


def _values(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all values that the two templates show."""
    # Plain records and tables: the words stand in the templates, and no template computes.
    first = report["first"]
    values = {
        "report": report,
        "few_clusters": FEW_CLUSTERS,
        "min_clusters": MIN_CLUSTERS,
        "compared": compared_table(first) if first else None,
        "by_task": task_table(first) if first and len(first["tasks"]) > 1 else None,
        "selection_gain": selection_gain(report["selection"]),
        "writers": writers_table(report["selection"]),
    }
    return values | (_policy_values(report) if report["mix"] else {})


def _policy_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values about a gate and its policies."""
    return {
        "mix": mix_table(report["mix"]),
        "is_overthinking": Interval.from_row(report["overthinking"]["minus_all"]).is_above(0),
        "comparisons": comparison_table(report["comparisons"]),
        "gate": gate_verdict(report["comparisons"]),
        "study": study_tables(report["gate_study"]),
        "within": within_table(report["gate_study"]["within_tasks"]),
        "picking": picking_table(report["picking"]),
        "cosines": {
            name: Interval.from_row(row)
            for name, row in (report["swap_cosines"] or {}).items()
            if name != "queries"
        },
        "tasks": [
            {"name": name, "marks": task_marks(task), "table": mix_table(task["rows"])}
            for name, task in report["tasks"].items()
        ],
    }


def gate_verdict(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the claim about the gate that its comparisons support, for which a template has text.

    One of `no interval`, `worse`, `decides per query`, `decides per task` and `open`.
    """
    over_rule = Interval.from_row(comparisons["gated minus per-task rule"])
    over_shuffled = Interval.from_row(comparisons["gated minus itself shuffled within tasks"])

    # Too few concepts give no interval, and thus no claim.
    if over_rule.low is None:
        return "no interval"
    if over_rule.is_below(0):
        return "worse"
    if not over_rule.is_above(0):
        return "open"

    # A gate can beat the rule by its choices for whole tasks, which shuffling within tasks keeps.
    return "decides per query" if over_shuffled.is_above(0) else "decides per task"


def selection_gain(selection: Mapping[str, Any] | None) -> Interval | None:
    """Returns what selection adds to the share of drafts that name the right country."""
    if selection is None:
        return None
    return Interval(*(selection[key] for key in ("gain", "gain_low", "gain_high", "concepts")))


def task_marks(task: Mapping[str, Any]) -> list[str]:
    """Returns the kind of a task in words, e.g. `I-RET`, `think`, `answers seen`."""
    marks = [task["meta_task"], "derived" if task["origin"] == "D" else ""]
    marks += ["think" if task["think"] else "", "answers seen" if task["seen_answer"] else ""]
    return [mark for mark in marks if mark]
