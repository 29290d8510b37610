"""Frozen records of many rows that loaders hand to steps; `outputs` has what steps return.

Lightning moves them to a device (`Movable`); only tensors move, since a backbone collates its own
inputs. Shapes: B rows, P positives of a row, N candidates,
D embedding width, H width of a prompt state, A depths. The gate's rows: docs/method.md section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from mmemb.records.gate_state import GateInputs
from mmemb.records.inputs import Media, Side
from mmemb.records.outputs import SidecarRow
from mmemb.records.pairs import Candidate, EvaluationTask, Pair, Query
from mmemb.records.rationales import DIRECT, FULL, Rationale, ScoredRationale
from mmemb.records.row_marks import failure_of
from mmemb.records.tensor_fields import Movable


@dataclass(frozen=True, slots=True)
class PairBatch(Movable):
    """A training batch on one rank. `rationales[i]` is None where row i does not reason.

    Attributes:
        query_ids_B: int64 content ids of the queries; equal ids are the same query.
        target_ids_B: int64 ids of the targets.
        positive_ids_BP: int64 ids of every right target of a row, padded with -1.
        target_content_B: int64 hashes of what the targets hold.
        sources: candidate space of each row, for logs.
        step: the global step that this batch belongs to.
        negatives: hard negatives of each row, at most K; none at all if none are read.
        negative_ids_BK: int64 ids of the negatives, padded with -1; K is equal on all ranks.
        negative_content_BK: int64 hashes of what they hold.
        teacher_B2E: a teacher's unit vectors of query and target, or None.
        target_rationales: as `rationales`, of the targets; empty if none are read.
    """

    keys: tuple[str, ...]
    queries: tuple[Side, ...]
    targets: tuple[Side, ...]
    rationales: tuple[Rationale | None, ...]
    query_ids_B: Tensor
    target_ids_B: Tensor
    positive_ids_BP: Tensor
    target_content_B: Tensor | None = None
    sources: tuple[str, ...] = ()
    step: int = 0
    negatives: tuple[tuple[Side, ...], ...] = ()
    negative_ids_BK: Tensor | None = None
    negative_content_BK: Tensor | None = None
    teacher_B2E: Tensor | None = None
    target_rationales: tuple[Rationale | None, ...] = ()

    def costs(self) -> list[int]:
        """Estimates the tokens that are read for each row: of query, target, hard negatives, and of
        query and target once more with their rationales."""
        # A rationale is read together with its side, in a second pass beside the direct one.
        tokens = []
        for row, (query, rationale) in enumerate(zip(self.queries, self.rationales, strict=True)):
            negatives = self.negatives[row] if self.negatives else ()
            sides = (query, self.targets[row], *negatives)
            reasoned = query.num_tokens + rationale.num_tokens if rationale else 0

            if self.target_rationales and (target_rationale := self.target_rationales[row]):
                reasoned += self.targets[row].num_tokens + target_rationale.num_tokens

            tokens.append(sum(side.num_tokens for side in sides) + reasoned)
        return tokens


@dataclass(frozen=True, slots=True)
class PairRowBatch(Movable):
    """Consecutive pairs of one shard with their candidate rationales, for `predict`.

    `candidates[i]`, where a judge needs them: the target first, then every wrong candidate.
    `marks[i]` is the mark that a sidecar gives row i, see `mmemb.records.row_marks`; none at all if
    no row has one.
    """

    shard: str
    pairs: tuple[Pair, ...]
    rationales: tuple[tuple[ScoredRationale, ...], ...]
    candidates: tuple[tuple[Side, ...], ...] = ()
    marks: tuple[Mapping[str, str], ...] = ()

    def mark(self, row: int) -> Mapping[str, str]:
        """The mark of a row; empty if it has none."""
        return self.marks[row] if self.marks else {}

    @property
    def readable(self) -> tuple[Pair, ...]:
        """The pairs that did not fail: the others hold nothing that could be embedded."""
        return tuple(p for row, p in enumerate(self.pairs) if not failure_of(self.mark(row)))

    def with_failed(self, rows: Iterable[SidecarRow], empty: Any) -> tuple[SidecarRow, ...]:
        """Rows about the readable pairs, and in the places of the others marked ones whose `json`
        is `empty`: a sidecar keeps every key of its source."""
        readable_rows = iter(rows)

        # `rows` holds no entry for a failed pair, so it is consumed only at the others.
        return tuple(
            SidecarRow(pair.key, {"json": empty}, mark)
            if failure_of(mark := self.mark(row))
            else next(readable_rows)
            for row, pair in enumerate(self.pairs)
        )


@dataclass(frozen=True, slots=True)
class SideBatch(Movable):
    """Consecutive query sides of one shard, for stage 1: a writer may see nothing else."""

    shard: str
    keys: tuple[str, ...]
    sides: tuple[Side, ...]
    metas: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class MediaBatch(Movable):
    """Distinct pictures of one shard, for the feature cache."""

    shard: str
    media: tuple[Media, ...]


@dataclass(frozen=True, slots=True)
class CandidateBatch(Movable):
    """Rows of the candidate table.

    `sizes` is the number of rows that the table has of each of their galleries; an absent gallery
    has an unknown size.
    """

    candidates: tuple[Candidate, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueryBatch(Movable):
    """Evaluation queries of one shard with their rationales (empty where none was written).

    `prompt_states[i]` is the writer's hidden state (H,) before it wrote about row i; None if not
    measured.
    """

    shard: str
    queries: tuple[Query, ...]
    rationales: tuple[tuple[Rationale, ...], ...]
    prompt_states: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True, slots=True)
class DepthValueBatch(Movable):
    """Rows that the gate learns from, one per query.

    Attributes:
        inputs: what the gate's state is made of.
        depth_value_BA: log-probability of the true target at each depth.
        cost_BA: tokens at each depth.
        eligible_B: True where some writer can read the query.
        depths: names of the depths, direct first.
    """

    keys: tuple[str, ...]
    metas: tuple[Mapping[str, str], ...]
    inputs: GateInputs
    depth_value_BA: Tensor
    cost_BA: Tensor
    eligible_B: Tensor
    shard: str = ""
    depths: tuple[str, ...] = (DIRECT, FULL)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> DepthValueBatch:
        """See `Movable`."""
        # `inputs` is a record of its own, whose tensors the base does not reach.
        moved = Movable.map_tensors(self, function)
        return replace(moved, inputs=self.inputs.map(function))


@dataclass(frozen=True, slots=True)
class TaskEnd(Movable):
    """End of a data root, after its last batch; every rank gets one, whatever it read.

    Attributes:
        root: path of the root below the benchmark's folder, e.g. `image/ImageNet-1K`.
        tasks: those that it holds.
        data: fingerprint and revision of the data.
        skipped: one sentence for each sample that this rank could not read.
    """

    root: str
    tasks: tuple[EvaluationTask, ...]
    data: Mapping[str, str]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RankingBatch(Movable):
    """A batch of what is ranked: it has one part, and the parts come in the order of the fields.

    Candidates, the rows that are ranked among them, and the end of a data root come in one stream,
    so that one step serves every data module: it handles the part that is there.

    Attributes:
        candidates: rows of the candidate table.
        queries: evaluation queries.
        pairs: training pairs, for which hard negatives are mined.
        end: after the last batch of a data root.
    """

    candidates: CandidateBatch | None = None
    queries: QueryBatch | None = None
    pairs: PairRowBatch | None = None
    end: TaskEnd | None = None


def as_pairs(batch: object) -> PairBatch | None:
    """Returns a training batch if it is one of pairs: a callback of every fit meets others, too."""
    return batch if isinstance(batch, PairBatch) else None
