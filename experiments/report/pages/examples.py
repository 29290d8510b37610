"""The queries that reasoning helped most, and those that it hurt most, as cards of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from experiments.report.data.pictures import (
    LONGEST_QUERY,
    CandidatePictures,
    Shown,
    shortened,
    shown,
)
from experiments.report.data.reasoned import ReasonedQuery

NUM_EXAMPLES = 5


@final
@dataclass(frozen=True, slots=True)
class Plate:
    """A candidate on a card: its role there, its name and picture."""

    title: str
    shown: Shown
    is_right: bool


@final
@dataclass(frozen=True, slots=True)
class Card:
    """A query, and what came first without and with its rationale.

    Attributes:
        asked: the query, with its pictures.
        shelf: the right candidate, the first one without and the first one with the rationale.
    """

    reasoned: ReasonedQuery
    asked: Shown
    shelf: tuple[Plate, ...]


@final
@dataclass(frozen=True, slots=True)
class Examples:
    """The extremes of some queries, and how many rose and fell among all of them."""

    helped: tuple[Card, ...]
    hurt: tuple[Card, ...]
    queries: int
    rose: int
    fell: int


def read_examples(queries: Sequence[ReasonedQuery], pictures: CandidatePictures) -> Examples:
    """Returns the examples that open `report.html`.

    Args:
        queries: those that were embedded with a rationale.
        pictures: of their candidates.
    """
    helped, hurt = most_changed(queries)
    return Examples(
        helped=tuple(card(query, pictures) for query in helped),
        hurt=tuple(card(query, pictures) for query in hurt),
        queries=len(queries),
        rose=sum(query.climb > 0 for query in queries),
        fell=sum(query.climb < 0 for query in queries),
    )


def most_changed(
    queries: Sequence[ReasonedQuery], count: int = NUM_EXAMPLES
) -> tuple[list[ReasonedQuery], list[ReasonedQuery]]:
    """Returns the largest rises and the largest falls in reciprocal rank, then in log-probability.

    A list is shorter where fewer queries rose, or fell.
    """
    # The key decides between equal changes, so that a report is the same every time.
    ordered = sorted(queries, key=lambda q: (q.climb, q.gain, q.query.key))
    helped = [query for query in reversed(ordered) if query.climb > 0]
    hurt = [query for query in ordered if query.climb < 0]
    return helped[:count], hurt[:count]


def card(query: ReasonedQuery, pictures: CandidatePictures) -> Card:
    """Returns the card of a query."""
    gallery = query.query.gallery
    plates = [Plate("right answer", pictures.find(gallery, query.shown_right), is_right=True)]
    for title, top in (("first without", query.before.top), ("first with", query.after.top)):
        plates.append(Plate(title, pictures.find(gallery, top), is_right=top in query.right))

    text = shortened(query.query.side.text, LONGEST_QUERY)
    asked = shown(text, query.row.index, query.row.entry, "q")
    return Card(query, asked, tuple(plates))
