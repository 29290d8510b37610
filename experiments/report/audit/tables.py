"""Makes the tables at the head of `audit.html`."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.bootstrap import Interval
from experiments.report.audit.figures import DraftGroup, GainGroup
from experiments.tables import Table, percent

DRAFT_HEADINGS = (
    "", "drafts", "draws", "kept", "name the target", "of the kept", "false-helpful",
    "of the kept", "gain (nats)",
)  # fmt: skip
GAIN_HEADINGS = ("", "rows", "direct", "gain (nats)", "helped")
RANK_HEADINGS = ("first before", "first after")


def draft_table(groups: Sequence[DraftGroup]) -> Table:
    """Returns counts and rates of each group, one group a row."""
    # In the order of `DRAFT_HEADINGS`.
    rows = [
        [
            group.name,
            str(group.drafts),
            str(group.draws),
            percent(group.kept),
            percent(group.names_target),
            percent(group.names_target_kept),
            percent(group.false_helpful),
            percent(group.false_helpful_kept),
            nats(group.gain),
        ]
        for group in groups
    ]
    return Table(DRAFT_HEADINGS, rows)


def gain_table(groups: Sequence[GainGroup]) -> Table:
    """Returns the gain by reasoning in each group, with ranks if any query was ranked."""
    # In the order of `GAIN_HEADINGS`, then `RANK_HEADINGS`.
    rows = [
        [
            group.name,
            str(group.rows),
            f"{group.direct:.2f}",
            nats(group.gain),
            percent(group.helped),
            percent(group.first_before),
            percent(group.first_after),
        ]
        for group in groups
    ]

    # Train drafts were never ranked, so their table has no columns of ranks.
    if any(group.first_before is not None for group in groups):
        return Table((*GAIN_HEADINGS, *RANK_HEADINGS), rows)
    return Table(GAIN_HEADINGS, [row[: len(GAIN_HEADINGS)] for row in rows])


def nats(interval: Interval | None) -> str:
    """Returns `+0.12 [-0.05, 0.30]`."""
    return "–" if interval is None else interval.text(digits=2, sign="+")
