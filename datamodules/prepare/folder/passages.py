"""Splits long texts of targets into passages, each of them a candidate of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from datamodules.prepare.folder.table import OwnRow, OwnSide
from mmemb.records.counted_nouns import counted

# Chinese and Japanese are written without blanks: each of their characters counts as a word.
_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\s{_CHARACTERS}]+")

_SENTENCE_END = re.compile(r"""[.!?\u3002\uff01\uff1f\u2026]["'\u201d\u2019)\]]*\Z""")
_PARAGRAPH = re.compile(r"\n\s*\n")


def in_passages(rows: Sequence[OwnRow], most: int) -> tuple[list[OwnRow], str]:
    """Splits the targets and negatives of a table whose text has more words than `most`.

    Each passage keeps the media and the instruction of its document. All passages of a right
    document are right answers; the first one is what a row is trained on.

    Args:
        rows: of the table.
        most: words of a passage.

    Returns:
        The rows, and a sentence that says how many documents were split.
    """
    split = [_row_in_passages(row, most) for row in rows]
    documents, sides = (
        {(row.task, side.name) for row in each for side in (*row.positives, *row.negatives)}
        for each in (rows, split)
    )
    whole = len(documents & sides)
    return split, (
        f"{len(documents) - whole} of {counted(len(documents), 'document')} split into "
        f"{counted(len(sides) - whole, 'passage')} of at most {counted(most, 'word')}"
    )


def passages(text: str, most: int) -> list[str]:
    """Splits a text at ends of paragraphs or sentences where there are some; no word is lost.

    A passage ends with the last paragraph in its second half, else with the last sentence that is
    whole, else behind `most` words.

    >>> passages("One two. Three four five. Six", 4)
    ['One two.', 'Three four five. Six']
    """
    words = list(_WORD.finditer(text))
    found, start = [], 0
    while len(words) - start > most:
        end = _end(text, words, start, most)
        found.append(text[words[start].start() : words[end - 1].end()])
        start = end

    # A text that fits stays as it is, with the blanks around it.
    return [*found, text[words[start].start() :].rstrip()] if found else [text]


def _end(text: str, words: Sequence[re.Match[str]], start: int, most: int) -> int:
    """Returns the number of the word behind a passage."""
    last = start + most
    for end in range(last, start + most // 2, -1):
        if _PARAGRAPH.search(text, words[end - 1].end(), words[end].start()):
            return end

    for end in range(last, start, -1):
        behind = text[words[end - 1].end() : words[end].start()]
        ends_sentence = _SENTENCE_END.search(words[end - 1][0])
        # A full stop inside of a number or an address has no blank behind it.
        if _PARAGRAPH.search(behind) or (ends_sentence and (behind or _is_wide(words[end - 1][0]))):
            return end
    return last


def _is_wide(word: str) -> bool:
    """Tells whether a word ends with a full stop that no blank follows in its language."""
    return word[-1] in "\u3002\uff01\uff1f"


def _row_in_passages(row: OwnRow, most: int) -> OwnRow:
    # A cell that could not be read holds no text.
    if row.faults:
        return row

    # The columns of media are named side by side with the sides.
    query_column, *columns = row.media_columns
    sides = dict(enumerate((*row.positives, *row.negatives)))
    parts = {place: _in_passages(side, most) for place, side in sides.items()}
    repeated = [column for place, column in enumerate(columns) for _ in parts.get(place, (None,))]

    num = len(row.positives)
    positives = [part for place in range(num) for part in parts[place]]
    negatives = [part for place in range(num, len(sides)) for part in parts[place]]
    return replace(
        row,
        positives=tuple(positives),
        negatives=tuple(negatives),
        media_columns=(query_column, *repeated),
    )


def _in_passages(side: OwnSide, most: int) -> list[OwnSide]:
    return [replace(side, text=text) for text in passages(side.text, most)]
