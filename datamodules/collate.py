"""Collates records to batches: content ids of queries and targets, padded lists of positives.

See docs/method.md section 6. Shapes: B rows, P positives of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mmemb.records.batches import PairBatch
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.pairs import Candidate, Pair
from mmemb.records.rationales import Rationale


def pair_batch(
    pairs: Sequence[Pair], rationales: Sequence[Rationale | None], step: int = 0
) -> PairBatch:
    """Collates training pairs, with the ids that the masks of the loss need."""
    # Rows have unequal numbers of positives, so their ids are padded to the longest list.
    positives = [_positive_ids(pair) for pair in pairs]
    width = max(map(len, positives), default=0)

    return PairBatch(
        keys=tuple(pair.key for pair in pairs),
        queries=tuple(pair.query for pair in pairs),
        targets=tuple(pair.target for pair in pairs),
        rationales=tuple(rationales),
        query_ids_B=torch.tensor([query_id(pair) for pair in pairs], dtype=torch.int64),
        target_ids_B=torch.tensor([_target_id(p, p.target_name) for p in pairs], dtype=torch.int64),
        positive_ids_BP=_padded(positives, width),
        target_content_B=torch.tensor([content_id(p.target) for p in pairs], dtype=torch.int64),
        sources=tuple(pair.source for pair in pairs),
        step=step,
    )


def with_negatives(
    batch: PairBatch, negatives: Sequence[Sequence[Candidate]], num: int
) -> PairBatch:
    """Returns the batch with hard negatives, at most `num` a row; ids are padded to `num`."""
    # Named like targets, so that a mined candidate that is a row's positive is masked.
    ids = [[stable_hash("target", c.gallery, c.name) for c in row] for row in negatives]
    contents = [[content_id(candidate.side) for candidate in row] for row in negatives]

    # Padded to `num` and not to the longest list, since ranks gather tensors of equal shapes.
    return replace(
        batch,
        negatives=tuple(tuple(candidate.side for candidate in row) for row in negatives),
        negative_ids_BK=_padded(ids, num),
        negative_content_BK=_padded(contents, num),
    )


def _padded(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    # No id is negative, so -1 equals none.
    padded = [[*row, *[-1] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(padded), width)


def content_id(side: Side) -> int:
    """Returns an id below 2 ** 63, equal for sides of equal content, whatever their names."""
    return int(side.digest, 16) >> 1


def query_id(pair: Pair) -> int:
    """Returns an id that is equal for queries of equal content, whatever their source."""
    return stable_hash("query", pair.query.digest)


def _target_id(pair: Pair, name: str) -> int:
    return stable_hash("target", pair.gallery, name)


def _positive_ids(pair: Pair) -> list[int]:
    # The target is always among its positives, and once, though the data may list it again.
    names = dict.fromkeys((pair.target_name, *pair.positives))
    return [_target_id(pair, name) for name in names]
