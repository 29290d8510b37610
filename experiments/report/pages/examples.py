"""The queries that reasoning helped most, and those that it hurt most, as cards of a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.report.data.pictures import CandidatePictures, Shown, picture_url
from experiments.report.data.reasoned import ReasonedQuery
from experiments.report.pages.markup import Markup, element, image, join

NUM_EXAMPLES = 5


def example_cards(queries: Sequence[ReasonedQuery], root: Path) -> Markup:
    """The section that opens `report.html`.

    Args:
        queries: those that reasoned.
        root: the prepared data, where the pictures are.
    """
    helped, hurt = most_changed(queries)
    pictures = CandidatePictures.open(root)
    return join(
        element("h2", f"Reasoning helped most: {counted(helped)}", id="helped"),
        cards(helped, pictures),
        element("h2", f"Reasoning hurt most: {counted(hurt)}", id="hurt"),
        cards(hurt, pictures),
        element("p", how_chosen(queries), class_="note"),
    )


def counted(queries: Sequence[ReasonedQuery]) -> str:
    """`1 test query`, `5 test queries`."""
    return f"{len(queries)} test {'query' if len(queries) == 1 else 'queries'}"


def most_changed(
    queries: Sequence[ReasonedQuery], count: int = NUM_EXAMPLES
) -> tuple[list[ReasonedQuery], list[ReasonedQuery]]:
    """The largest rises and the largest falls in reciprocal rank, then in log-probability.

    A list is shorter where fewer queries rose, or fell.
    """
    ordered = sorted(queries, key=lambda q: (q.climb, q.gain, q.query.key))
    helped = [query for query in reversed(ordered) if query.climb > 0]
    hurt = [query for query in ordered if query.climb < 0]
    return helped[:count], hurt[:count]


def how_chosen(queries: Sequence[ReasonedQuery]) -> str:
    """How the cards were drawn, and how many they were drawn from."""
    rose = sum(query.climb > 0 for query in queries)
    fell = sum(query.climb < 0 for query in queries)
    return (
        f"Of {len(queries)} eligible test queries the right answer rose for {rose}, fell for "
        f"{fell} and stayed for {len(queries) - rose - fell}. The cards are the extremes by change "
        "of 1 / rank, then of log-probability: they show what can happen, not what usually does. "
        "A rank that is not whole is the expectation among equal scores."
    )


def cards(queries: Sequence[ReasonedQuery], pictures: CandidatePictures) -> Markup:
    """Side by side where there is room."""
    if not queries:
        return element("p", "None.")
    return element("div", *(card(query, pictures) for query in queries), class_="cards")


def card(query: ReasonedQuery, pictures: CandidatePictures) -> Markup:
    """One query: its text, its rationale, and what came first before and after."""
    gallery = query.query.gallery
    right = query.shown_right
    shelf = [
        plate("right answer", pictures.find(gallery, right), "is-right"),
        *(
            plate(title, pictures.find(gallery, top), verdict(top in query.right))
            for title, top in (
                ("first without", query.before.top),
                ("first with", query.after.top),
            )
        ),
    ]
    return element(
        "article",
        element("p", element("span", query.query.task), ranks(query), class_="top"),
        element("p", asked(query), class_="asked"),
        rationale(query),
        element("div", *shelf, class_="shelf"),
        class_="card",
    )


def asked(query: ReasonedQuery) -> Markup:
    """The query's text, and its picture if it has one."""
    picture = picture_url(query.row.index, query.row.entry, "q")
    return join(image(picture, "the query's picture") if picture else "", query.query.side.text)


def rationale(query: ReasonedQuery) -> Markup:
    """Thought and answer; the mark says whether the text names the target."""
    written = query.rationale
    mark = "names the target" if query.names_target else "does not name the target"
    return join(
        element("p", written.thinking or "(no thought)", class_="thought"),
        element(
            "p",
            element("b", written.answer or "(no answer)"),
            " ",
            element("span", mark, class_=f"mark {verdict(query.names_target)}"),
            class_="answer",
        ),
    )


def ranks(query: ReasonedQuery) -> Markup:
    """`rank 212 → 1` of the right candidate."""
    before, after = rank_text(query.before.rank), rank_text(query.after.rank)
    return element("span", f"rank {before} → {after}", class_=f"rank {verdict(query.climb > 0)}")


def rank_text(rank: float) -> str:
    """An expected rank, whole where it is.

    >>> rank_text(3.0), rank_text(2.5)
    ('3', '2.5')
    """
    return f"{rank:.1f}".removesuffix(".0")


def plate(title: str, shown: Shown, kind: str) -> Markup:
    """A picture with its name, or the name alone."""
    inner = image(shown.picture, shown.label) if shown.picture else element("q", shown.label)
    caption = element("figcaption", element("small", title), element("span", shown.label))
    return element("figure", inner, caption, class_=kind)


def verdict(right: bool) -> str:
    """The class that colours what is right or wrong."""
    return "is-right" if right else "is-wrong"
