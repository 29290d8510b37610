"""Columns of a table from elsewhere under our names: mapped, recognised, or not used and said."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Literal, final

from datamodules.prepare.cells import Broken, is_missing, shown
from datamodules.prepare.row_files import Cells
from mmemb.records.nearest_name import nearest

Direction = Literal["text-to-picture", "picture-to-text"]
"""What is the query of a picture with its caption, and what is found."""

GUIDE = "docs/own_data.md"

LABELS = ("id", "task", "split", "concept")
FLAT = (
    "query_text", "query_media", "target_text", "target_media", "negative_text", "negative_media",
    "instruction",
)  # fmt: skip
NESTED = ("query", "positives", "negatives")

NEGATIVE = re.compile(r"negative_(text|media)(?:_([0-9]{1,3}))?")
"""Columns of a flat row's negatives: one, or several with numbers."""

_NAMELESS = re.compile(r"Unnamed: \d+|__index_level_\d+__|")
"""Names that pandas gives to columns without one, such as that of its row numbers."""

_TEXT_PAIRS = (
    ("anchor", "positive"), ("query", "positive"), ("query", "document"), ("question", "answer"),
)  # fmt: skip
_NUMBERED_NEGATIVE = re.compile(r"negative(?:_([0-9]{1,3}))?")

_PICTURES = ("image", "picture", "image_path", "filepath", "file_name")
_CAPTIONS = (("caption",), ("text", "title"))
"""A caption is one whatever stands beside it; a text or a title only if the other is missing."""

_MOST_NAMED = 10

_PEEKED = 1000
"""Rows without a heading whose keys are the columns."""


@final
class Columns:
    """Renames the columns of one table, and remembers which ones are not used.

    Args:
        given: the user's mapping, column of the table -> our name.
        direction: of rows that are recognised as pictures with captions; None is text to picture.
    """

    def __init__(
        self, given: Mapping[str, str] | None = None, direction: Direction | None = None
    ) -> None:
        self._given = dict(given or {})
        self._direction = direction
        self._renamed: dict[str, str] = dict(self._given)
        self._theirs: dict[str, str] = {}
        self._recognised: dict[str, str] = {}
        self._unused: dict[str, None] = {}

    def match(self, where: str, names: Collection[str], media: Collection[str] = ()) -> None:
        """Decides what the columns of a table stand for.

        Args:
            where: names the table in errors.
            names: of its columns.
            media: those that hold pictures themselves, and no paths or texts.

        Raises:
            ValueError: the mapping does not fit the columns, or no column is a query or a target.
        """
        self._check_given(where, names)

        # Sides that the user names are the only ones: a guess beside them could be wrong.
        left = [name for name in names if name not in self._given]
        if not any(map(_is_side, (*self._given.values(), *left))):
            self._recognised = self._recognise(left, media)
        if self._direction and not self._recognised:
            raise ValueError(
                f"{where}: --direction is for pictures with captions, and the columns say already "
                "what the query is: leave it out."
            )

        self._renamed = self._given | self._recognised
        self._theirs = {ours: name for name, ours in self._renamed.items()}
        sides = {self._renamed.get(name, name) for name in names}
        lacking = [
            what
            for what, first in (("query", "query"), ("target", ("target_", "positives")))
            if not any(name.startswith(first) for name in sides if _is_ours(name))
        ]
        if lacking:
            raise ValueError(
                f"{where} has no column for the {' and the '.join(lacking)}: it has "
                f"{_listed(names)}. Say which one is what, such as --map COLUMN=query_text "
                f"COLUMN=target_media ({GUIDE} has all names)."
            )

    def matched(
        self, where: str, rows: Iterator[Cells | Broken | None]
    ) -> Iterator[Cells | Broken | None]:
        """Yields rows that have no heading: the keys of the first ones are the columns.

        Raises:
            ValueError: see `match`.
        """
        first = list(islice(rows, _PEEKED))
        objects = [row for row in first if isinstance(row, dict)]
        if objects:
            self.match(where, list(dict.fromkeys(chain.from_iterable(objects))))
        yield from chain(first, rows)

    def takes(self, ours: str, names: Iterable[str]) -> bool:
        """Tells whether one of the columns is read under a name of ours."""
        return any(self._given.get(name, name) == ours for name in names)

    def maps_to(self, ours: str) -> bool:
        """Tells whether the user has mapped a column to one of our names."""
        return ours in self._given.values()

    def used(self, names: Iterable[str]) -> list[str]:
        """Returns the columns that are used, so that others need not be read."""
        used = [name for name in names if _is_ours(self._renamed.get(name, name))]
        self._unused |= dict.fromkeys(name for name in names if name not in used)
        return used

    def rename(self, cells: Cells) -> Cells:
        """Returns the cells that are used, under our names."""
        used: Cells = {}
        for name, value in cells.items():
            # Excel and pandas add empty cells and row numbers, of which nothing need be said.
            if is_missing(value) or _is_row_number(name, value):
                continue

            ours = self._renamed.get(name, name)
            if _is_ours(ours):
                used[ours] = value
            else:
                self._unused.setdefault(name)
        return used

    @property
    def theirs(self) -> Mapping[str, str]:
        """Our names -> the table's, of the columns that are renamed."""
        return self._theirs

    def notes(self) -> list[str]:
        """Returns a sentence about what was recognised, and one about what is not used."""
        notes = []
        if self._recognised:
            pairs = ", ".join(f"{shown(name)} as {ours}" for name, ours in self._recognised.items())
            notes.append(f"columns that are read without --map: {pairs}.")

        if names := list(self._unused):
            listed = ", ".join(shown(name) for name in names[:_MOST_NAMED])
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            hint = nearest(names[0], (*LABELS, *FLAT)) if len(names) == 1 else ""
            notes.append(
                f"columns that are not used: {listed}{more}.{hint} --map COLUMN=NAME would use one "
                f"({GUIDE} has the names)."
            )
        return notes

    def _check_given(self, where: str, names: Collection[str]) -> None:
        for name, ours in self._given.items():
            if name not in names:
                raise ValueError(
                    f"--map {name}={ours}: {where} has no column {shown(name)}; it has "
                    f"{_listed(names)}.{nearest(name, names)}"
                )
            # Two columns for one name would silently lose one of them.
            if ours in names and ours not in self._given:
                raise ValueError(
                    f"--map {name}={ours}: {where} has a column {ours} as well: leave out the "
                    "mapping, or map that column to another name."
                )

    def _recognise(self, names: Sequence[str], media: Collection[str]) -> dict[str, str]:
        """Returns the one well-known pair of columns; none if there is none, or more than one."""
        pictures = [name for name in _PICTURES if name in names]
        captions = next(
            (found for group in _CAPTIONS if (found := [n for n in group if n in names])), []
        )
        texts = [pair for pair in _TEXT_PAIRS if set(pair) <= set(names)]
        # A table with a picture, a question and an answer could be read in several ways.
        if len(texts) + len(pictures) != 1:
            return {}

        def kind(name: str) -> str:
            return "media" if name in media else "text"

        if texts:
            query, target = texts[0]
            found = {query: f"query_{kind(query)}", target: f"target_{kind(target)}"}
            for name in names:
                if match := _NUMBERED_NEGATIVE.fullmatch(name):
                    number = f"_{match[1]}" if match[1] else ""
                    found[name] = f"negative_{kind(name)}{number}"
            return found

        if len(captions) != 1 or captions[0] in media:
            return {}
        if self._direction == "picture-to-text":
            return {pictures[0]: "query_media", captions[0]: "target_text"}
        return {captions[0]: "query_text", pictures[0]: "target_media"}


def parse_map(words: Iterable[str]) -> dict[str, str]:
    """Reads words `COLUMN=NAME`: column of the table -> our name.

    Raises:
        ValueError: a word is none of this form, or two are about one column or one name.

    >>> parse_map(["filepath=query_media", "a=b=target_text"])
    {'filepath': 'query_media', 'a=b': 'target_text'}
    """
    given: dict[str, str] = {}
    for word in words:
        # The last sign separates: a column may hold one, our names do not.
        name, sign, ours = word.rpartition("=")
        if not (sign and name):
            raise ValueError(f"--map {word}: expected COLUMN=NAME, such as filepath=query_media.")

        if not _is_ours(ours):
            names = (*LABELS, *FLAT)
            raise ValueError(
                f"--map {word}: {shown(ours)} is no name of a column: expected one of "
                f"{', '.join(names)}.{nearest(ours, names)}"
            )
        if name in given or ours in given.values():
            twice = f"column {shown(name)}" if name in given else ours
            raise ValueError(f"--map {word}: {twice} is mapped twice: leave one of them out.")
        given[name] = ours
    return given


def _listed(names: Collection[str]) -> str:
    """Returns the names of columns for a message."""
    named = [shown(name) for name in names if not _NAMELESS.fullmatch(name)]
    if len(named) == 1:
        return f"the one column {named[0]} (expected commas between the columns of a CSV)"
    return ", ".join(named[:20]) or "none"


def _is_ours(name: str) -> bool:
    return name in (*LABELS, *FLAT, *NESTED) or NEGATIVE.fullmatch(name) is not None


def _is_side(name: str) -> bool:
    """Tells whether a column is one of our sides' own."""
    is_nested = name in ("positives", "negatives")
    return is_nested or (name in FLAT and name != "instruction") or bool(NEGATIVE.fullmatch(name))


def _is_row_number(column: str, value: Any) -> bool:
    """Tells whether a cell holds the row number that pandas adds."""
    is_whole = type(value) is int or (isinstance(value, str) and value.isdecimal())
    return is_whole and _NAMELESS.fullmatch(column) is not None
