"""`report.html`: the examples, then all of `report.md`, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from experiments.report.pages.markup import (
    Markup,
    bullets,
    data_url,
    element,
    image,
    page_bytes,
    table,
)


def report_page(report: str, examples: Markup, figure: bytes) -> bytes:
    """The whole of `report.html`.

    Args:
        report: `report.md`, whose first block is the title.
        examples: the cards that open the page.
        figure: `report.png`, which stands where the Markdown shows it.
    """
    title, *blocks = report.strip().split("\n\n")
    title = title.removeprefix("# ")
    head = element("h1", title), examples, element("h2", "All test queries")
    return page_bytes(title, *head, *sections(blocks, figure))


def sections(blocks: list[str], figure: bytes) -> Iterator[Markup]:
    """Blocks of Markdown as HTML; what stands below a heading of the third level is folded."""
    left = list(blocks)
    while left:
        block = left.pop(0)
        if block.startswith("### "):
            inner = list(takewhile(lambda other: not other.startswith("#"), left))
            del left[: len(inner)]
            body = [one(other, figure) for other in inner]
            yield element("details", element("summary", block.removeprefix("### ")), *body)
        else:
            yield one(block, figure)


def one(block: str, figure: bytes) -> Markup:
    """One block, of the few kinds that `page.py` writes.

    >>> one("## A & B", b"")
    '<h2>A &amp; B</h2>'
    """
    if block.startswith("## "):
        return element("h2", block.removeprefix("## "))
    if block.startswith("!["):
        picture = image(data_url("report.png", figure), block[2:].split("]")[0])
        return element("figure", picture, class_="chart")
    if block.startswith("| "):
        return pipes(block)
    if block.startswith("* "):
        return bullets([line.removeprefix("* ") for line in block.split("\n")])
    return element("p", block)


def pipes(block: str) -> Markup:
    """A Markdown table; the line below its head is a rule."""
    head, _, *body = (
        [cell.strip() for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")]
        for line in block.split("\n")
    )
    return table(head, body)
