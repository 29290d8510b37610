"""Prints how the source reads: paragraphs, comments and docstrings, for each room.

    python -m tests.rules.reading

Counts tell little about a page and much about a house: a body without blank lines, a file without a
reason, a docstring that hangs on an absent noun. `test_reading.py` fails below half of the targets.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from tests.fixtures.paths import REPO
from tests.rules.trees import nodes_of

ROOMS = ("mmemb", "datamodules", "lightning_modules", "callbacks", "experiments")

LONG = 12
"""Lines from which a body is expected to have paragraphs."""

BLANK_LINES, COMMENTS, HANGING = 6.0, 4.0, 20
"""Targets: blank lines per 100 lines of long bodies, comments per 100 code lines, and docstrings
of all rooms that begin with a word of `HANGS`."""

HANGS = ("Of", "What", "How", "Whether", "Where", "Which", "Whose", "Who", "Whom")

_BODIES = (ast.FunctionDef, ast.AsyncFunctionDef)


@final
@dataclass(frozen=True)
class Reading:
    """Counts of some files.

    Attributes:
        code: lines that are neither blank, nor a comment, nor part of a docstring.
        comments: lines with a comment that is no instruction to a tool.
        body: lines of long bodies.
        blank: blank lines among them.
        hanging: docstrings that begin with a word of `HANGS`, as `file:line`.
    """

    code: int
    comments: int
    body: int
    blank: int
    hanging: tuple[str, ...]

    @property
    def comments_per_100(self) -> float:
        """Comments per 100 code lines."""
        return 100 * self.comments / max(self.code, 1)

    @property
    def blank_per_100(self) -> float:
        """Blank lines per 100 lines of long bodies."""
        return 100 * self.blank / max(self.body, 1)


def read(*rooms: str) -> Reading:
    """Counts the files of rooms."""
    files = [_read(path) for room in rooms for path in sorted((REPO / room).rglob("*.py"))]
    return Reading(
        sum(each.code for each in files),
        sum(each.comments for each in files),
        sum(each.body for each in files),
        sum(each.blank for each in files),
        tuple(docstring for each in files for docstring in each.hanging),
    )


@cache
def _read(path: Path) -> Reading:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()

    docstrings = list(_docstrings(path))
    quoted = {row for node in docstrings for row in range(node.lineno, node.end_lineno + 1)}  # type: ignore[operator]
    code = sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and row not in quoted
        for row, line in enumerate(lines, 1)
    )
    hanging = tuple(
        f"{path.relative_to(REPO)}:{node.lineno}"
        for node in docstrings
        if str(node.value.value).split(" ", 1)[0].strip() in HANGS  # type: ignore[attr-defined]
    )

    bodies = list(_long_bodies(path))
    blank = sum(not line.strip() for first, last in bodies for line in lines[first - 1 : last])
    body = sum(last - first + 1 for first, last in bodies)
    return Reading(code, len(_comments(text)), body, blank, hanging)


def _docstrings(path: Path) -> Iterator[ast.Expr]:
    """Texts that stand as statements: docstrings, and those below constants and fields."""
    for node in nodes_of(path, ast.Expr):
        value = node.value  # type: ignore[attr-defined]
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield node  # type: ignore[misc]


def _comments(text: str) -> list[int]:
    """Rows with a comment for a reader."""
    tools = ("# noqa", "# type:", "# fmt:")
    return [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith(tools)
    ]


def _long_bodies(path: Path) -> Iterator[tuple[int, int]]:
    """First and last rows of bodies of at least `LONG` lines, without their docstrings."""
    for node in nodes_of(path, *_BODIES):
        statements = node.body[ast.get_docstring(node, clean=False) is not None :]
        if statements:
            first, last = statements[0].lineno, statements[-1].end_lineno or 0
            if last - first + 1 >= LONG:
                yield first, last


def main() -> int:
    """Prints the table and the docstrings that hang."""
    print(f"{'room':<20}{'code lines':>12}{'comments/100':>14}{'blank/100':>11}{'hanging':>9}")
    for room in (*ROOMS, "all"):
        reading = read(*(ROOMS if room == "all" else (room,)))
        print(
            f"{room:<20}{reading.code:>12}{reading.comments_per_100:>14.1f}"
            f"{reading.blank_per_100:>11.1f}{len(reading.hanging):>9}"
        )
    print("\n".join(read(*ROOMS).hanging))
    return 0


if __name__ == "__main__":
    sys.exit(main())
