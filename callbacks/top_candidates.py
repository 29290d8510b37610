"""A figure of the first query of each task beside its five best candidates."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from mmemb.media.pictures import SHARD_FORMATS, PictureError, read_picture
from mmemb.storage.manifests import IndexEntry
from mmemb.storage.shard_index import ShardIndex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_CANDIDATES = 5
MOST_ROWS = 12
"""Most tasks that are drawn; of a benchmark with more these are the first ones."""

_LONGEST_SIDE = 512
"""Pixels of a drawn picture; a cell of the figure has fewer."""

_RIGHT, _WRONG = "#2e7d32", "#bdbdbd"


@final
@dataclass(frozen=True, slots=True)
class TopRow:
    """One query and its best candidates.

    Attributes:
        task: name of its task.
        key: its key in `queries/`.
        text: its text.
        gallery: gallery of its candidates.
        names: names of its best candidates, best first.
        right: for each name, whether it is a right one.
    """

    task: str
    key: str
    text: str
    gallery: str
    names: tuple[str, ...]
    right: tuple[bool, ...]


@final
class TopCandidates:
    """Draws rows with the pictures of a data set.

    Args:
        root: holds `queries/` and `candidates/`.
    """

    def __init__(self, root: Path) -> None:
        self._queries = ShardIndex.open(root / "queries")
        self._candidates = ShardIndex.open(root / "candidates")
        self._entries: dict[tuple[str, str], IndexEntry] = {}

        # Of equal names in a gallery the first one is drawn.
        for entry in self._candidates.entries:
            self._entries.setdefault((entry.meta["gallery"], entry.meta["name"]), entry)

    def figure(self, rows: Sequence[TopRow]) -> Figure:
        """A line for each query; a right candidate has a green frame."""
        # Imported here, since only a run that draws needs matplotlib.
        from matplotlib.figure import Figure

        rows = rows[:MOST_ROWS]
        figure = Figure(figsize=(2 * (1 + NUM_CANDIDATES), 1.7 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), 1 + NUM_CANDIDATES, squeeze=False)

        for cells, row in zip(axes, rows, strict=True):
            entry = self._queries.by_key.get(row.key)
            query_picture = entry and self._queries.first_picture(entry, "q")
            _draw(cells[0], row.task, row.text, query_picture, "#ffffff")

            for cell, name, right in zip(cells[1:], row.names, row.right, strict=False):
                entry = self._entries.get((row.gallery, name))
                picture = entry and self._candidates.first_picture(entry, "c")
                _draw(cell, "", name, picture, _RIGHT if right else _WRONG)

            # A small gallery leaves cells empty, and axes without a picture would show a frame.
            for cell in cells[1 + len(row.names) :]:
                cell.set_axis_off()

        return figure


def _draw(axes: Any, title: str, text: str, picture: tuple[str, bytes] | None, colour: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=7, loc="left")
    axes.patch.set_alpha(0)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3)

    if picture is None:
        _write(axes, text)
        return

    # A figure must not end a training; whether a broken picture does, is decided by its loader.
    name, data = picture
    try:
        axes.imshow(read_picture(data, SHARD_FORMATS, name, _LONGEST_SIDE))
    except PictureError as error:
        _write(axes, str(error))
    axes.set_xlabel(textwrap.shorten(text, 28), fontsize=7)


def _write(axes: Any, text: str) -> None:
    lines = "\n".join(textwrap.wrap(text, 24)[:5])
    axes.text(0.5, 0.5, lines, ha="center", va="center", fontsize=8, transform=axes.transAxes)
