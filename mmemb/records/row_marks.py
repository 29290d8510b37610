"""Marks of sidecar rows without content: the row was not asked about, or it failed.

A row without content and without a mark was asked about, and no rationale was written. The mark
stands in the index, in the row's `meta`.
"""

from __future__ import annotations

from collections.abc import Mapping

_STATE, _REASON = "state", "reason"

NOT_ASKED: Mapping[str, str] = {_STATE: "not asked"}
"""Mark of a row that only keeps its place: of a split, task or side that was not asked about."""


def failed(reason: str) -> Mapping[str, str]:
    """Mark of a row that could not be read.

    >>> failure_of(failed("no picture")), failure_of(NOT_ASKED), failure_of({})
    ('no picture', '', '')
    """
    return {_STATE: "failed", _REASON: reason[:300] or "unknown"}


def failure_of(meta: Mapping[str, str]) -> str:
    """Returns the reason why a row failed; "" if it did not."""
    return (meta.get(_REASON) or "unknown") if meta.get(_STATE) == "failed" else ""


def mark_of(meta: Mapping[str, str]) -> Mapping[str, str]:
    """The mark alone, to be handed down to what is made from the row.

    >>> dict(mark_of({"task": "a", "state": "not asked"})), dict(mark_of({"task": "a"}))
    ({'state': 'not asked'}, {})
    """
    return {name: meta[name] for name in (_STATE, _REASON) if name in meta}
