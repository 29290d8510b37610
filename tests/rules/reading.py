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
from typing import final

from tests.fixtures.paths import REPO

ROOMS = ("mmemb", "datamodules", "lightning_modules", "callbacks", "experiments")

LONG = 12
"""Lines from which a body is expected to have paragraphs."""

BLANK_LINES, COMMENTS, HANGING = 6.0, 4.0, 20
"""Targets: blank lines per 100 lines of long bodies, comments per 100 code lines, and docstrings
of all rooms that begin with a word of `HANGS`."""

HANGS = ("Of", "What", "How", "Whether", "Where", "Which", "Whose", "Who", "Whom")

_Body = ast.FunctionDef | ast.AsyncFunctionDef


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
    code = comments = body = blank = 0
    hanging: list[str] = []
    for path in (path for room in rooms for path in sorted((REPO / room).rglob("*.py"))):
        text = path.read_text(encoding="utf-8")
        lines, tree = text.splitlines(), ast.parse(text)

        docstrings = list(_docstrings(tree))
        quoted = {row for node in docstrings for row in range(node.lineno, node.end_lineno + 1)}  # type: ignore[operator]
        remarks = _comments(text)
        code += sum(
            bool(line.strip()) and not line.lstrip().startswith("#") and row not in quoted
            for row, line in enumerate(lines, 1)
        )
        comments += len(remarks)

        hanging += [
            f"{path.relative_to(REPO)}:{node.lineno}"
            for node in docstrings
            if str(node.value.value).split(" ", 1)[0].strip() in HANGS  # type: ignore[attr-defined]
        ]
        for first, last in _long_bodies(tree):
            body += last - first + 1
            blank += sum(not line.strip() for line in lines[first - 1 : last])
    return Reading(code, comments, body, blank, tuple(hanging))


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """Texts that stand as statements: docstrings, and those below constants and fields."""
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):  # type: ignore[attr-defined]
            yield node  # type: ignore[misc]


def _comments(text: str) -> list[int]:
    """Rows with a comment for a reader."""
    tools = ("# noqa", "# type:", "# fmt:")
    return [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith(tools)
    ]


def _long_bodies(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last rows of bodies of at least `LONG` lines, without their docstrings."""
    for node in ast.walk(tree):
        if not isinstance(node, _Body):
            continue
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
