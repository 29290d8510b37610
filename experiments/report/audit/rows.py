"""The rows of an audit: every draft of a train pair, and every test query's rationale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from datamodules.joins import check_join
from datamodules.samples import Row, rows_of
from datamodules.sidecars import RationaleTable
from experiments.report.data.reasoned import (
    ReasonedQuery,
    not_about,
    open_stage,
    read_pair,
    read_reasoned,
)
from experiments.runs.recorded_data import pair_folders
from mmemb.records.pairs import Pair, Query
from mmemb.records.rationales import Rationale, ScoredRationale
from mmemb.storage.run_folder import ExperimentFolder
from mmemb.storage.shard_index import ShardIndex
from mmemb.storage.trained_facts import read_fitted


@final
@dataclass(frozen=True, slots=True)
class AuditRow:
    """One rationale; None is what this kind of row does not have.

    Attributes:
        log_probability: of its words, by the writer that wrote it.
        direct: log-probability of the target without a rationale.
        gain: what the rationale adds to `direct`: by a judge for train pairs, by the embedder for
            test queries.
        kept: of train pairs alone, like the other contrasts and `weight`.
        rank_before: of test queries alone, like everything after it.
        fitted: whether the embedder was fitted on the query's fact.
    """

    split: str
    task: str
    key: str
    concept: str
    gallery: str
    query: str
    thought: str
    answer: str
    target: str
    writer: str
    depth: str
    count: int
    tokens: int
    log_probability: float | None
    names_target: bool | None
    direct: float | None
    gain: float | None
    raw: float | None = None
    positive: float | None = None
    margin: float | None = None
    placebo_rank: float | None = None
    kept: bool | None = None
    weight: float | None = None
    rank_before: float | None = None
    rank_after: float | None = None
    top_before: str | None = None
    top_after: str | None = None
    top_before_right: bool | None = None
    top_after_right: bool | None = None
    fitted: bool | None = None


def read_audit(experiment: Path, root: Path) -> tuple[AuditRow, ...]:
    """Reads train drafts first, then test queries.

    Args:
        experiment: e.g. `runs/pocket`, with `rationales/`, `selected/` and `depth_values/`.
        root: the prepared data that the experiment was made from.
    """
    selected = open_stage(experiment, "selected")
    queries = read_reasoned(experiment, root)
    fitted = facts_of_embedder(experiment)

    sources = [ShardIndex.open(folder) for folder in pair_folders(experiment, root)]
    drafts = tuple(train_rows(selected, sources))
    return drafts + tuple(query_row(query, fitted) for query in queries)


def facts_of_embedder(experiment: Path) -> frozenset[str] | None:
    """Returns the facts that the embedder was fitted on; None without a complete list of them."""
    path = ExperimentFolder(experiment).embedder.facts
    facts = read_fitted(path) if path.is_file() else None

    # A list with unknown weights is not complete: any fact may have been trained on.
    return None if facts is None or facts.unknown else facts.trained


def train_rows(selected: ShardIndex, sources: Sequence[ShardIndex]) -> Iterator[AuditRow]:
    """Yields one row for each draft, source after source."""
    # A sidecar of other data could have the same keys, and would give wrong rows.
    covered = [source for source in sources if check_join(source, selected)]
    if not covered:
        names = ", ".join(str(source.folder) for source in sources) or "any pairs"
        raise not_about(selected, names)

    table = RationaleTable(selected.folder, covered)
    for source in covered:
        for row in rows_of(source):
            pool = table.read(row)
            if pool:
                pair = read_pair(row)
                yield from (train_row(row, pair, scored) for scored in pool)


def train_row(row: Row, pair: Pair, scored: ScoredRationale) -> AuditRow:
    """Returns the row of a draft, with its contrasts."""
    rationale = scored.rationale
    names = ("raw", "gain", "positive", "margin", "placebo_rank")
    contrasts = {name: number(scored.scores.get(name)) for name in names}

    # The judge writes what a rationale adds and where it ends; the start is their difference.
    raw, gain = contrasts["raw"], contrasts["gain"]
    direct = None if raw is None or gain is None else round(raw - gain, 4)

    return _row(
        pair,
        rationale,
        key=row.entry.own_id,
        query=pair.query.text,
        target=pair.target_name,
        names_target=scored.names_target,
        direct=direct,
        kept=scored.kept,
        weight=number(scored.weight),
        **contrasts,
    )


def query_row(query: ReasonedQuery, fitted: frozenset[str] | None) -> AuditRow:
    """Returns the row of a test query: its greedy rationale, and what came first."""
    question, rationale, before, after = query.query, query.rationale, query.before, query.after

    return _row(
        question,
        rationale,
        key=query.row.entry.own_id,
        query=question.side.text,
        target=query.shown_right,
        names_target=query.names_target,
        direct=number(before.depth_value),
        gain=number(query.gain),
        rank_before=before.rank,
        rank_after=after.rank,
        top_before=before.top,
        top_after=after.top,
        top_before_right=before.top in query.right,
        top_after_right=after.top in query.right,
        fitted=None if fitted is None else question.fact in fitted,
    )


def _row(subject: Pair | Query, rationale: Rationale, **figures: Any) -> AuditRow:
    """Returns the row of a rationale about a pair or a query."""
    return AuditRow(
        split=subject.split,
        task=subject.task,
        concept=subject.concept,
        gallery=subject.gallery,
        thought=rationale.thinking,
        answer=rationale.answer,
        writer=rationale.writer,
        depth=rationale.depth,
        count=rationale.count,
        tokens=rationale.num_tokens,
        log_probability=number(rationale.log_probability),
        **figures,
    )


def number(value: float | None) -> float | None:
    """Returns four decimals; None for what is no finite number, which JSON cannot hold.

    >>> number(0.123456), number(float("nan")), number(None)
    (0.1235, None, None)
    """
    return None if value is None or not math.isfinite(value) else round(value, 4)
