"""The table of faults (docs/faults.md): each kind once, and what it names exists."""

from __future__ import annotations

import re
from collections import Counter

from tests.fixtures.paths import REPO

MOST_ROWS = 64


def rows() -> list[list[str]]:
    """Cells of the table's rows, without its heading."""
    lines = (REPO / "docs/faults.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [line.strip("| ").split(" | ") for line in table[2:]]


def test_every_kind_stands_once() -> None:
    kinds = [row[0] for row in rows()]
    assert [kind for kind, count in Counter(kinds).items() if count > 1] == []
    assert 0 < len(kinds) <= MOST_ROWS, "a new fault of a kind that is there extends its row"


def test_rows_have_three_cells_that_begin_with_a_capital() -> None:
    for row in rows():
        assert len(row) == 3, row
        assert all(cell[0].isupper() or cell[0] == "`" for cell in row), row


def test_every_file_and_test_of_the_table_exists() -> None:
    for row in rows():
        assert "`tests/" in row[2], row
        for name in re.findall(r"`([\w/]+\.py(?:::\w+)?)`", " ".join(row)):
            path, _, function = name.partition("::")
            assert (REPO / path).is_file(), name
            if function:
                text = (REPO / path).read_text(encoding="utf-8")
                assert f"def {function}(" in text, name
