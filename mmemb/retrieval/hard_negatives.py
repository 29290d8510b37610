"""Hard negatives: wrong candidates that a model takes most for right (docs/method.md section 6).

Shapes: B pairs, b of them in one gallery, N candidates of it, D embedding width, K negatives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from mmemb.backbones import Backbone
from mmemb.records.batches import PairRowBatch
from mmemb.records.outputs import SidecarRow
from mmemb.records.pairs import Pair
from mmemb.records.schema import to_json
from mmemb.records.sidecar_json import NegativeJson
from mmemb.retrieval.galleries import Galleries


def negative_rows(
    backbone: Backbone, batch: PairRowBatch, galleries: Galleries, num: int, margin: float | None
) -> list[SidecarRow]:
    """One row of `negatives/` per pair; arguments as in `hardest_negatives`."""
    pairs = batch.readable
    negative_lists: list[list[NegativeJson]] = []

    # A batch may hold failed pairs only.
    if pairs:
        query_BD = backbone.encode([pair.query for pair in pairs]).cpu()
        target_BD = backbone.encode([pair.target for pair in pairs]).cpu()
        negative_lists = hardest_negatives(query_BD, target_BD, pairs, galleries, num, margin)

    rows = [
        SidecarRow(pair.key, {"json": list(map(to_json, negatives))})
        for pair, negatives in zip(pairs, negative_lists, strict=True)
    ]

    return list(batch.with_failed(rows, empty=[]))


def hardest_negatives(
    query_BD: Tensor,
    target_BD: Tensor,
    pairs: Sequence[Pair],
    galleries: Galleries,
    num: int,
    margin: float | None = 0.0,
) -> list[list[NegativeJson]]:
    """The nearest wrong candidates of each pair's gallery, the hardest first.

    Args:
        query_BD: unit vectors of the queries.
        target_BD: of their targets.
        pairs: they name what is right.
        galleries: embedded candidates.
        num: most negatives of a pair; fewer where the gallery has no more.
        margin: a candidate whose cosine exceeds that of the target by more than this is left out,
            since it may be right, too; None = none is.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        rows_of[pair.gallery].append(row)

    negatives: list[list[NegativeJson]] = [[] for _ in pairs]
    for gallery, rows in rows_of.items():
        score_bN = query_BD[rows] @ galleries.vectors(gallery).T
        own_b1 = (query_BD[rows] * target_BD[rows]).sum(1, keepdim=True)

        # Hidden is what is listed as right, and what is so near that it may be right unlisted.
        hidden_bN = galleries.named(gallery, [_right(pairs[row]) for row in rows])
        if margin is not None:
            hidden_bN |= score_bN > own_b1 + margin

        score_bN = score_bN.masked_fill(hidden_bN, -torch.inf)
        best_bK, column_bK = score_bN.topk(min(num, score_bN.shape[1]))

        places = galleries.places(gallery)
        for row, scores, columns in zip(rows, best_bK.tolist(), column_bK.tolist(), strict=True):
            negatives[row] = [
                NegativeJson(*places[column], round(score, 4))
                for score, column in zip(scores, columns, strict=True)
                # `topk` also returns hidden columns where the gallery has too few others.
                if score > -torch.inf
            ]
    return negatives


def _right(pair: Pair) -> tuple[str, ...]:
    return pair.target_name, *pair.positives
