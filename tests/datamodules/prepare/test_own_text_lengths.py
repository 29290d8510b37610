"""The share of a table's texts that a CLIP would cut, told before anything is written."""

from __future__ import annotations

from datamodules.prepare.folder.table import OwnRow, OwnSide
from datamodules.prepare.folder.text_lengths import long_texts


def row(number: int, query: str, target: str, instruction: str = "") -> OwnRow:
    return OwnRow(
        number, str(number), "t", "train", OwnSide(query, (), instruction), (OwnSide(target),)
    )


def test_each_side_is_told_with_its_longest_row() -> None:
    # Of `flag` 75 and of `!` 75 fit between a text's start and its end; one more does not.
    rows = [row(n, "flag " * 75, "a red flag") for n in range(6)]
    rows += [row(6, "flag " * 74, "flag " * 90, "Find it. "), row(7, "x", "flag " * 200)]
    lines = list(long_texts(rows))
    assert lines[0].startswith(
        "longer than 77 tokens, of which a CLIP leaves out the end: 1 of 8 query texts (12 %). The "
        "longest is in row 6, with 79: 'flag"
    )
    assert "2 of 8 target texts (25 %)" in lines[1]
    assert "in row 7, with 202: " in lines[1]
    assert lines[1].endswith("--passages splits such targets.")
    assert list(long_texts(rows[:6])) == []
