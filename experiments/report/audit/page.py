"""`audit.html`: figures in sum, and a list that the reader's browser sorts and filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from experiments.report.audit.figures import AuditFigures
from experiments.report.audit.tables import draft_table, gain_table
from experiments.templates import html_page


@final
@dataclass(frozen=True, slots=True)
class Column:
    """One column of the list.

    Attributes:
        kind: `words`, `short`, `number`, `flag` or `picture`.
        digits: decimals of a number; 0 shows it as it is.
    """

    name: str
    title: str
    kind: str
    help: str
    digits: int = 0


COLUMNS = (
    Column("query", "query", "words", "the text that the writer read"),
    Column("target", "target", "picture", "the right candidate"),
    Column("answer", "rationale", "words", "thought (slanted) and answer; sorts by answer"),
    Column("names_target", "names target", "flag", "the rationale holds an answer of the table"),
    Column("kept", "kept", "flag", "selected: the contrast is above eta"),
    Column("weight", "weight", "number", "share of the draws in training, among the kept", 3),
    Column("gain", "gain", "number", "log-probability of the target, with less without", 2),
    Column("direct", "direct", "number", "log-probability of the target without a rationale", 2),
    Column("raw", "raw", "number", "log-probability of the target with the rationale", 2),
    Column("positive", "positive", "number", "how much closer the target comes, over tau", 2),
    Column("margin", "margin", "number", "positive less the same of the hard negatives", 2),
    Column("placebo_rank", "placebo", "number", "share of placebos that it beats", 2),
    Column("rank_before", "rank before", "number", "of the right candidate, without rationale"),
    Column("rank_after", "rank after", "number", "of the right candidate, with the rationale"),
    Column("top_before", "first before", "picture", "the best candidate without rationale"),
    Column("top_after", "first after", "picture", "the best candidate with the rationale"),
    Column("writer", "writer", "short", "who wrote it"),
    Column("depth", "depth", "short", "short, or full with a thought"),
    Column("log_probability", "log p", "number", "of the rationale's words, by the writer", 2),
    Column("count", "draws", "number", "equal draws merged into this one"),
    Column("tokens", "tokens", "number", "that the writer generated"),
    Column("task", "task", "short", "the task"),
    Column("fitted", "fitted", "flag", "the embedder was fitted on this fact"),
    Column("split", "split", "short", "the split"),
    Column("key", "key", "short", "of the pair or query: the id of own data"),
)
PICTURES = tuple(column.name for column in COLUMNS if column.kind == "picture")
SEARCHED = ("query", "thought", "answer", "writer", "task", "concept", "target", "key")
FILTERS = {"split": "split", "task": "task", "kept": "kept", "names_target": "names target"}


def audit_page(
    origin: Mapping[str, Any], figures: AuditFigures, list_data: Mapping[str, Any]
) -> bytes:
    """Returns the whole of `audit.html`.

    Args:
        origin: when, where and from which commit.
        figures: shown at the top.
        list_data: what `audit.js` reads.
    """
    return html_page(
        "report/audit/audit.html.j2",
        script="report/audit/audit.js",
        made=origin,
        swap=swap_test(figures.swap_test),
        writers=draft_table([figures.all_drafts, *figures.writers]),
        tasks=draft_table(figures.tasks),
        difficulty={
            "Train drafts, by a judge": gain_table(figures.train_difficulty),
            "Test queries, by the embedder": gain_table(figures.test_difficulty),
        },
        fit=gain_table(figures.fit) if figures.fit else None,
        columns=COLUMNS,
        filters=FILTERS,
        list_data=list_data,
    )


def swap_test(metrics: Mapping[str, float]) -> dict[str, float] | None:
    """Returns the target's log-probability with the own, a placebo and no rationale.

    None where the selector was not tested.
    """
    values = {name: metrics.get(f"logp_{name}") for name in ("own", "placebo", "none")}
    log_probabilities = {name: value for name, value in values.items() if value is not None}
    return log_probabilities if len(log_probabilities) == len(values) else None
