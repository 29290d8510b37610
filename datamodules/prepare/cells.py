"""Cells of tables from elsewhere, read as texts and paths by their type, or as errors."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, final

from mmemb.records.counted_nouns import with_article
from mmemb.records.text import has_text

MAX_LETTERS = 1_000_000
"""Most letters of a cell: a page has thousands; a quote that is not closed takes the rest."""

_EXACT = 2**53
"""Below it every whole number is a float of its own, and is written without a point."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 3
_SHORT.maxlevel = 2


@final
class CellError(ValueError):
    """A fault of a cell or a row; the message follows the name of the column or row."""


@final
@dataclass(frozen=True, slots=True)
class Broken:
    """Stands for a cell or a row that could not be read; `reason` says why."""

    reason: str


def is_missing(value: Any) -> bool:
    """Tells whether a cell is null, NaN, or a text without a visible letter."""
    match value:
        case None:
            return True
        case float():
            return math.isnan(value)
        case str():
            return not has_text(value)
    return False


def text_of(value: Any) -> str:
    """Returns the text of a cell; a missing cell is the empty text.

    A number is its digits, a whole one without a point, as tables turn 7 into 7.0 where a
    neighbour is missing; a decimal keeps its places.

    Raises:
        CellError: it has no single text, or one that no tokenizer reads.

    >>> [text_of(value) for value in (0, 0.0, 2.5, None, math.nan, "a")]
    ['0', '0', '2.5', '', '', 'a']
    """
    if is_missing(value):
        return ""

    match value:
        case str():
            if "\0" in value:
                raise CellError(f"{shown(value)} holds a NUL: expected a text")
            return checked_text(value)
        case bool():
            raise CellError(f"{value} is a truth value: expected the text that is meant")
        case int():
            return str(value)
        case Decimal():
            return format(value, "f")
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)
        case float():
            raise CellError(f"{value} is not finite: expected a text or a number")
        case Broken():
            raise CellError(value.reason)
    raise CellError(f"{shown(value)} is {_kind(value)}: expected a text or a number")


def paths_of(value: Any, separator: str = "") -> tuple[str, ...]:
    """Returns the paths of a cell: one, or a list of several.

    Args:
        value: of the cell.
        separator: stands between several paths in one text.

    Raises:
        CellError: it is of another kind, or one of the paths is empty.

    >>> paths_of("a.png | b.png", "|"), paths_of(["a|b.png", 7]), paths_of(None)
    (('a.png', 'b.png'), ('a|b.png', '7'), ())
    """
    parts: Sequence[Any]
    if is_missing(value):
        return ()

    match value:
        case list():
            parts = value
        case _:
            text = text_of(value)
            # An empty separator means that the format has lists, and a path may hold any letter.
            parts = [part.strip() for part in text.split(separator)] if separator else [text]

    texts = [text_of(each) for each in parts]
    if not all(texts):
        raise CellError(f"{shown(value)} holds an empty path")
    return tuple(str(PurePosixPath(text)) for text in texts)


def shown(value: Any) -> str:
    """Returns a value as it stands in messages: short, and always printable."""
    match value:
        case bytes():
            return f"{value[:16]!r}{'...' if len(value) > 16 else ''}"
        case str() if len(value) > 60:
            return f"{value[:60]!r}..."
    return _SHORT.repr(value)[:80]


def checked_text(text: str) -> str:
    """Returns the text unchanged if a tokenizer reads it and a file holds it.

    Raises:
        CellError: half of a surrogate pair, a byte that is no UTF-8, or too many letters.
    """
    # Beyond the bound it is most likely a quote that was never closed, not a text.
    if len(text) > MAX_LETTERS:
        raise CellError(
            f"{shown(text)} has {len(text):,} letters: expected at most {MAX_LETTERS:,}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # A reader of bytes puts 0xDC80 + byte in place of a byte that is no UTF-8.
        code = ord(text[error.start])
        what = f"the byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ""
        fault = f"{what}, which is no UTF-8" if what else "half of a surrogate pair"
        raise CellError(f"{shown(text)} holds {fault}: repair it in the table") from None
    return text


def _kind(value: Any) -> str:
    match value:
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case bytes():
            return "bytes"
    return with_article(type(value).__name__)
