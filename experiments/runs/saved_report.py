"""Reads the figures of a report that was written earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from mmemb.records.schema import AGAIN, Excerpt, convert, read_json


@final
class _IntervalJson(Excerpt):
    """A mean with its interval, where there is one."""

    mean: float
    low: float | None
    high: float | None
    clusters: int | None = None


@final
class _ReportJson(Excerpt):
    """The fields of a `report.json` that are read; rows of the mix hold intervals and figures.

    Without a gate there is no mix.
    """

    made_of: str
    mix: dict[str, dict[str, _IntervalJson | float]]
    eligible_queries: int = 0


def read_report(path: Path) -> dict[str, Any]:
    """Reads the figures of a report, whose rows are what their readers expect.

    Raises:
        SchemaError: the file is broken.
    """
    report = read_json(path, dict[str, Any], nan_is_null=True)
    convert(report, _ReportJson, f"{path} is broken", AGAIN)
    return report
