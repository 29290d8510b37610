"""The model card of an exported backbone: facts in, Markdown out; reads no run."""

from __future__ import annotations

import json

from experiments.runs.facts import RunFacts
from experiments.tables import Table
from experiments.templates import markdown_page

INGREDIENT_HEADINGS = ("name", "version", "licence")
FIGURE_HEADINGS = ("metric", "percent", "95 % interval")


def card(run: RunFacts) -> str:
    """Returns the card: what the model is, how it is used, what it was made of, how good it is."""
    *others, last = run.reads
    return markdown_page(
        "export/model_card.md.j2",
        run=run,
        reads=f"{', '.join(others)} and {last}" if others else last,
        hub_base=json.dumps(run.hub_base, allow_nan=False),
        base=Table(INGREDIENT_HEADINGS, [ingredient.row for ingredient in run.base]),
        data=Table(INGREDIENT_HEADINGS, [ingredient.row for ingredient in run.data]),
        figures=Table(FIGURE_HEADINGS, [figure.row for figure in run.figures]),
    )
