"""`audit.html`: figures in sum, and a list that the reader's browser sorts and filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from experiments.report.audit.figures import AuditFigures
from experiments.report.audit.tables import summary
from experiments.report.pages.markup import (
    Markup,
    bullets,
    element,
    embedded,
    join,
    page_bytes,
    read_asset,
)


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
    Column("query", "query", "words", "the text that the worker read"),
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
    Column("placebo_rank", "placebo", "number", "share of foreign rationales that it beats", 2),
    Column("rank_before", "rank before", "number", "of the right candidate, without rationale"),
    Column("rank_after", "rank after", "number", "of the right candidate, with the rationale"),
    Column("top_before", "first before", "picture", "the best candidate without rationale"),
    Column("top_after", "first after", "picture", "the best candidate with the rationale"),
    Column("worker", "worker", "short", "who wrote it"),
    Column("depth", "depth", "short", "short, or full with a thought"),
    Column("log_probability", "log p", "number", "of the rationale's words, by the worker", 2),
    Column("count", "draws", "number", "equal draws merged into this one"),
    Column("tokens", "tokens", "number", "that the worker generated"),
    Column("task", "task", "short", "the task"),
    Column("fitted", "fitted", "flag", "the embedder was fitted on this fact"),
    Column("part", "part", "short", "the data part"),
    Column("key", "key", "short", "of the pair or query"),
)
PICTURES = tuple(column.name for column in COLUMNS if column.kind == "picture")
SEARCHED = ("query", "thought", "answer", "worker", "task", "concept", "target", "key")
FILTERS = {"part": "part", "task": "task", "kept": "kept", "names_target": "names target"}


def audit_page(
    made: Mapping[str, Any], figures: AuditFigures, list_data: Mapping[str, Any]
) -> bytes:
    """The whole of `audit.html`.

    Args:
        made: when, where and from which commit.
        figures: shown at the top.
        list_data: what `audit.js` reads.
    """
    title = f"{made['experiment']}: every rationale"
    dirty = ", with uncommitted changes" if made["uncommitted_changes"] else ""
    return page_bytes(
        title,
        element("h1", title),
        summary(figures),
        element("h2", "The list"),
        filters(),
        element("p", id="count", class_="note"),
        element("div", element("table", id="table"), id="list", class_="scroll"),
        element("button", "500 more", id="more", type="button"),
        legend(),
        element("noscript", element("p", "The list needs JavaScript; audit.json has its rows.")),
        element(
            "p",
            f"{made['data_root']}; {made['git_commit']}{dirty}; {made['written']}.",
            class_="note",
        ),
        embedded("rows", list_data),
        script=read_asset("audit.js"),
    )


def filters() -> Markup:
    """The controls above the list; the script fills the choices."""
    every = Markup('<option value="">all</option>')
    words = Markup('<input id="text" type="search" placeholder="all of these words" size="24">')
    return element(
        "div",
        element("label", "text", words),
        *(element("label", t, element("select", every, id=n)) for n, t in FILTERS.items()),
        class_="filters",
    )


def legend() -> Markup:
    """What the columns mean, for screens without a mouse."""
    lines = [join(element("b", column.title), ": ", column.help) for column in COLUMNS]
    return element("details", element("summary", "What the columns mean"), bullets(lines))
