"""Tables and the texts of figures: intervals, effects and shares, the same in every page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from experiments.bootstrap import Interval


@final
@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows of texts; the first column names the rows."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Returns the table as Markdown.

        >>> print(Table(("task", "x"), [("flags", "1.5")]).markdown())
        | task  | x   |
        | ----- | --- |
        | flags | 1.5 |
        """
        # Padded columns read as plain text too: the same table is printed on terminals.
        columns = zip(self.headings, *self.rows, strict=True)
        widths = [max(map(len, column)) for column in columns]
        rule = ["-" * width for width in widths]
        return "\n".join(
            "| " + " | ".join(map(str.ljust, row, widths)) + " |"
            for row in (self.headings, rule, *self.rows)
        )


def points(row: Mapping[str, Any]) -> str:
    """Returns mean and bounds of a share in points: `21.6 [18.0, 25.1]`."""
    return Interval.from_row(row).text(100, 1)


def effect(size: float | None) -> str:
    """Returns a minimal detectable effect in points; a dash where there are too few clusters."""
    return "-" if size is None else f"{100 * size:.1f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Returns `12.3 %`; a dash for a share of nothing."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"
