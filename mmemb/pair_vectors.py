"""One forward pass for all losses: the vectors of a training batch (METHOD 6).

Shapes: B rows, b rows of a micro-batch, R of them with a rationale, K hard negatives of a row, D
embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmemb.backbones.base import Backbone
from mmemb.batches import PairBatch
from mmemb.gradient_cache import GradientCache, embed_cached
from mmemb.records import Rationale, Side


class PairVectors(NamedTuple):
    """Unit vectors with gradient.

    Attributes:
        query_BD: h_d(q).
        target_BD: h_d(t).
        reasoned_BD: h_r(q, r) where a row has a rationale, h_d(q) elsewhere.
        negative_BKD: of the hard negatives; zeros where a row has fewer than K.
    """

    query_BD: Tensor
    target_BD: Tensor
    reasoned_BD: Tensor
    negative_BKD: Tensor


def pair_vectors(
    backbone: Backbone,
    batch: PairBatch,
    *,
    reasons: bool = True,
    cache: GradientCache | None = None,
) -> PairVectors:
    """Embeds a batch, in micro-batches if there is a `cache`.

    Args:
        backbone: the embedder.
        batch: this rank's rows.
        reasons: whether rationales are read.
        cache: how the batch is cut and what is kept in memory.
    """
    if cache is not None:  # what is embedded twice passes through frozen parts once
        batch = replace(
            batch,
            queries=tuple(backbone.with_features(batch.queries)),
            targets=tuple(backbone.with_features(batch.targets)),
            negatives=tuple(tuple(backbone.with_features(row)) for row in batch.negatives),
        )
    embed = partial(_embed_rows, backbone, batch, reasons)
    return PairVectors(*embed_cached(embed, batch.costs(), cache, backbone.parameters))


def _embed_rows(
    backbone: Backbone, batch: PairBatch, reasons: bool, rows: Sequence[int]
) -> PairVectors:
    target_bD = backbone([batch.targets[row] for row in rows])
    queries = [batch.queries[row] for row in rows]
    query_bD = reasoned_bD = backbone(queries)
    if reasons:
        reasoned_bD = _reasoned(
            backbone, queries, [batch.rationales[row] for row in rows], query_bD
        )
    return PairVectors(
        query_bD, target_bD, reasoned_bD, _negatives(backbone, batch, rows, query_bD)
    )


def _reasoned(
    backbone: Backbone,
    sides: Sequence[Side],
    rationales: Sequence[Rationale | None],
    direct_bD: Tensor,
) -> Tensor:
    """Ranks may differ in how many rows reason: a backbone's empty call joins the graph, so no
    gradient is waited for in vain."""
    rows = [row for row, rationale in enumerate(rationales) if rationale is not None]
    reasoned_RD = backbone([sides[r] for r in rows], [rationales[r] for r in rows])
    index_R = torch.tensor(rows, dtype=torch.long, device=direct_bD.device)
    return direct_bD.index_copy(0, index_R, reasoned_RD)


def _negatives(
    backbone: Backbone, batch: PairBatch, rows: Sequence[int], like_bD: Tensor
) -> Tensor:
    if batch.negative_ids_BK is None:
        return like_bD.new_zeros(len(rows), 0, like_bD.shape[1])
    lists = [batch.negatives[row] for row in rows]
    places = [(place, k) for place, found in enumerate(lists) for k in range(len(found))]
    index = torch.tensor(places, dtype=torch.long, device=like_bD.device).reshape(-1, 2)
    empty_bKD = like_bD.new_zeros(len(rows), batch.negative_ids_BK.shape[1], like_bD.shape[1])
    vectors = backbone([side for found in lists for side in found])
    return empty_bKD.index_put(tuple(index.unbind(1)), vectors)
