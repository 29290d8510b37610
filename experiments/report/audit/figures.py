"""Figures of an audit: keep rates, false-helpful rates, gain by difficulty and by fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from experiments.bootstrap import Interval, cluster_bootstrap
from experiments.report.audit.rows import AuditRow
from mmemb.selection.contrasts import false_helpful

TERCILES = ("hardest", "middle", "easiest")
NUM_RESAMPLES = 2_000


@final
@dataclass(frozen=True, slots=True)
class DraftGroup:
    """Distinct train drafts of one writer or task; rates are shares, None of nothing."""

    name: str
    drafts: int
    draws: int
    kept: float
    names_target: float
    names_target_kept: float | None
    false_helpful: float | None
    false_helpful_kept: float | None
    gain: Interval | None


@final
@dataclass(frozen=True, slots=True)
class GainGroup:
    """Rows of one difficulty, or fitted or not: what reasoning adds, in nats.

    Attributes:
        direct: mean log-probability of the target without a rationale.
        helped: share of rows with a gain above 0.
        first_before: share of test queries whose right candidate stands alone in front.
    """

    name: str
    rows: int
    direct: float
    gain: Interval
    helped: float
    first_before: float | None
    first_after: float | None


@final
@dataclass(frozen=True, slots=True)
class AuditFigures:
    """The head of an audit."""

    swap_test: Mapping[str, float]
    all_drafts: DraftGroup
    writers: tuple[DraftGroup, ...]
    tasks: tuple[DraftGroup, ...]
    train_difficulty: tuple[GainGroup, ...]
    test_difficulty: tuple[GainGroup, ...]
    fit: tuple[GainGroup, ...]


def audit_figures(rows: Sequence[AuditRow], swap_test: Mapping[str, float]) -> AuditFigures:
    """Returns all figures of an audit.

    Args:
        rows: all rows.
        swap_test: metrics of the selector's test run; empty if there was none.
    """
    # Only train drafts were selected, and only test queries were ranked.
    train = [row for row in rows if row.kept is not None]
    test = [row for row in rows if row.rank_before is not None]

    if not train:
        raise ValueError("no train pair has a draft: run the stages `rationales` and `selected`.")

    swap = {k.removeprefix("test/"): v for k, v in swap_test.items() if k.startswith("test/logp_")}
    return AuditFigures(
        swap_test=swap,
        all_drafts=draft_group("all", train),
        writers=draft_groups(train, lambda row: row.writer),
        tasks=draft_groups(train, lambda row: row.task),
        train_difficulty=by_difficulty(train),
        test_difficulty=by_difficulty(test),
        fit=by_fit(test),
    )


def draft_groups(
    rows: Sequence[AuditRow], name_of: Callable[[AuditRow], str]
) -> tuple[DraftGroup, ...]:
    """Returns one group for each name, in alphabetical order."""
    groups: dict[str, list[AuditRow]] = defaultdict(list)
    for row in rows:
        groups[name_of(row)].append(row)
    return tuple(draft_group(name, groups[name]) for name in sorted(groups))


def draft_group(name: str, rows: Sequence[AuditRow]) -> DraftGroup:
    """Returns counts and rates of some drafts."""
    kept = [row for row in rows if row.kept]
    return DraftGroup(
        name=name,
        drafts=len(rows),
        draws=sum(row.count for row in rows),
        kept=len(kept) / len(rows),
        names_target=right_share(rows) or 0.0,
        names_target_kept=right_share(kept),
        false_helpful=false_helpful_share(rows),
        false_helpful_kept=false_helpful_share(kept),
        gain=gain_interval(rows),
    )


def right_share(rows: Sequence[AuditRow]) -> float | None:
    """Returns the share of rationales that name the target."""
    return sum(bool(row.names_target) for row in rows) / len(rows) if rows else None


def false_helpful_share(rows: Sequence[AuditRow]) -> float | None:
    """Returns the share of candidates that bring the target closer, but its negatives more."""
    # A chain of two tests: neither contrast is None.
    pairs = [(r.positive, r.margin) for r in rows if r.positive is not None is not r.margin]
    if not pairs:
        return None

    positive_N, margin_N = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    false, scored = false_helpful(positive_N, margin_N)
    return false / scored


def gain_interval(rows: Sequence[AuditRow]) -> Interval | None:
    """Returns the mean gain; clusters are concepts. None if no row has a gain."""
    scored = [row for row in rows if row.gain is not None]
    if not scored:
        return None

    gains = [row.gain or 0.0 for row in scored]
    return cluster_bootstrap(gains, [row.concept for row in scored], num_resamples=NUM_RESAMPLES)


def by_difficulty(rows: Sequence[AuditRow]) -> tuple[GainGroup, ...]:
    """Returns thirds of the rows by the target's log-probability without a rationale."""
    scored_rows = sorted(
        (row for row in rows if row.direct is not None), key=lambda row: row.direct or 0
    )

    thirds = np.array_split(np.arange(len(scored_rows)), len(TERCILES))

    # Hardest first: the lower the log-probability without a rationale, the harder the query.
    groups = zip(TERCILES, ([scored_rows[i] for i in third] for third in thirds), strict=True)
    return tuple(group for name, part in groups if (group := gain_group(name, part)))


def by_fit(rows: Sequence[AuditRow]) -> tuple[GainGroup, ...]:
    """Compares fitted with unfitted facts, within each task that has both."""
    groups: dict[str, dict[bool, list[AuditRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.fitted is not None:
            groups[row.task][row.fitted].append(row)

    # Tasks differ in difficulty, so a task with rows of one kind alone would bias the comparison.
    gains = [
        gain_group(f"{task}, {'fitted' if fitted else 'not fitted'}", sides[fitted])
        for task, sides in sorted(groups.items())
        if len(sides) == 2
        for fitted in (True, False)
    ]
    return tuple(group for group in gains if group)


def gain_group(name: str, rows: Sequence[AuditRow]) -> GainGroup | None:
    """Returns figures of some rows; None if no row was scored."""
    scored_rows = [row for row in rows if row.gain is not None and row.direct is not None]
    gain = gain_interval(scored_rows)
    if gain is None:
        return None

    return GainGroup(
        name=name,
        rows=len(scored_rows),
        direct=float(np.mean([row.direct for row in scored_rows])),
        gain=gain,
        helped=sum((row.gain or 0) > 0 for row in scored_rows) / len(scored_rows),
        first_before=first_share([row.rank_before for row in scored_rows]),
        first_after=first_share([row.rank_after for row in scored_rows]),
    )


def first_share(ranks: Sequence[float | None]) -> float | None:
    """Returns the share of ranks that are 1; None for rows without ranks."""
    return None if None in ranks else sum(rank == 1 for rank in ranks) / len(ranks)
