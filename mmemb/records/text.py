"""Text as it comes from data: whether it is valid Unicode, and whether anything can be read."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from string import Formatter

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
"""Unicode's categories of control letters, of zero-width and direction marks, and of blanks."""

_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # fillers and joiners
    "\u180b\u180c\u180d\u180f"  # and variation selectors, which only change their neighbour
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
"""Letters, symbols and marks by their category that are drawn as nothing all the same."""

_MOST_MARKS = 30
"""Marks in a row that Unicode's stream-safe format allows."""


def check_unicode(text: str, name: str = "The text") -> None:
    """Refuses halves of surrogate pairs, which no tokenizer reads and no file holds.

    Args:
        text: of data.
        name: says in an error which text it is.

    Raises:
        ValueError: the text has one.
    """
    if text.isascii():
        return

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} {text[:60]!r} holds half of a surrogate pair at letter {error.start}, so it "
            "is no valid Unicode: repair it in the data, or leave its sample out."
        ) from None


def has_text(text: str) -> bool:
    """True if a text has a visible letter, which blanks, zero-width and control letters and
    fillers are not. It is read up to its first visible letter.

    >>> has_text(" \\t a"), has_text(""), has_text(" \\n\\u200b\\ufeff\\u3164\\x00")
    (True, False, False)
    """
    return any(
        unicodedata.category(letter) not in _INVISIBLE and letter not in _BLANK for letter in text
    )


def printable(text: str) -> str:
    r"""A name or text of others for a message: it cannot begin a line, move the cursor, or fail to
    be written.

    >>> printable("caf\xe9.png") == "caf\xe9.png", printable("a\n\x1b[31m\udcff")
    (True, 'a\\n\\x1b[31m\\udcff')
    """
    return text if text.isprintable() else ascii(text)[1:-1]


def quote(error: BaseException, most: int = 300) -> str:
    r"""Text of another library's error, for a message: one line, printable and bounded.

    >>> quote(ValueError("no\n  such \udcff key"), most=14)
    'no such \\udcff'
    """
    return printable(" ".join(str(error).split()))[:most]


def check_template(template: str, fields: Collection[str], name: str) -> None:
    """Refuses a template with anything but plain fields, each of which stands for a text.

    `{text:>9999999999}` would take all memory, `{text.__class__}` shows what is no text.

    Args:
        template: for `str.format`.
        fields: names that it may use.
        name: says in an error which template it is.

    Raises:
        ValueError: it has another field, or one with an index, attribute, format or conversion.
    """
    try:
        parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError:  # a brace without its other half
        parts = [("", "", None)]

    if any(field not in fields or form or conversion for field, form, conversion in parts):
        expected = " and ".join(f"{{{field}}}" for field in fields)
        raise ValueError(f"{name} {template[:60]!r}: expected the fields {expected}, only.")


def limit_marks(text: str) -> str:
    """The text with at most 30 accents and other marks in a row, as many as Unicode's stream-safe
    format has: Python puts a run of marks in order in a time of its square.

    >>> len(limit_marks("a" + "\\u0301" * 1000))
    31
    """
    if text.isascii():
        return text

    kept, run = [], 0
    for letter in text:
        # Category M are the marks; any other letter ends the run.
        run = run + 1 if unicodedata.category(letter)[0] == "M" else 0
        if run <= _MOST_MARKS:
            kept.append(letter)
    return "".join(kept)
