"""PairVectors: the vectors of a training batch, from one forward pass for all losses.

docs/method.md section 6. Shapes: B rows, b rows of a micro-batch, K hard negatives of a row, D
embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmemb.backbones.base import Backbone, Paths
from mmemb.records.batches import PairBatch
from mmemb.training.gradient_cache import GradientCache, embed_cached


class PairVectors(NamedTuple):
    """Unit vectors with gradient.

    Attributes:
        query_BD: h_d(q).
        target_BD: h_d(t).
        reasoned_BD: h_r(q, r) where a row has a rationale, h_d(q) elsewhere.
        reasoned_target_BD: h_r(t, r) where the target has a rationale, h_d(t) elsewhere.
        negative_BKD: vectors of the hard negatives; zeros where a row has fewer than K.
        nll_B: summed negative log-likelihood of a row's rationales, of query and target.
        num_tokens_B: number of tokens of these rationales.
    """

    query_BD: Tensor
    target_BD: Tensor
    reasoned_BD: Tensor
    reasoned_target_BD: Tensor
    negative_BKD: Tensor
    nll_B: Tensor
    num_tokens_B: Tensor


def pair_vectors(
    backbone: Backbone,
    batch: PairBatch,
    *,
    reasons: bool = True,
    detach: bool = False,
    writes: bool = True,
    cache: GradientCache | None = None,
) -> PairVectors:
    """Embeds a batch, in micro-batches if there is a `cache`.

    Args:
        backbone: the embedder.
        batch: this rank's rows.
        reasons: reads rationales; False = direct vectors alone.
        detach: see `Backbone.encode_paths`.
        writes: computes the rationales' likelihood.
        cache: size of the micro-batches, and graphs that are kept in memory.
    """
    # A side that is embedded twice passes through the frozen parts once.
    if cache is not None:
        batch = replace(
            batch,
            queries=tuple(backbone.with_features(batch.queries)),
            targets=tuple(backbone.with_features(batch.targets)),
            negatives=tuple(tuple(backbone.with_features(row)) for row in batch.negatives),
        )

    read = partial(backbone, paths=True, detach=detach, writes=writes)
    embed = partial(_embed_rows, backbone, batch, read if reasons else None)
    return PairVectors(*embed_cached(embed, batch.costs(), cache, backbone.parameters))


def _embed_rows(
    backbone: Backbone, batch: PairBatch, read: Callable[..., Paths] | None, rows: Sequence[int]
) -> PairVectors:
    targets, queries = ([sides[row] for row in rows] for sides in (batch.targets, batch.queries))

    # Targets first: the order of forward passes decides which dropout mask each one gets.
    if batch.target_rationales and read is not None:
        target = read(targets, [batch.target_rationales[row] for row in rows])
    else:
        target = _direct_alone(backbone(targets))
    if read is not None:
        query = read(queries, [batch.rationales[row] for row in rows])
    else:
        query = _direct_alone(backbone(queries))

    return PairVectors(
        query.direct_BD,
        target.direct_BD,
        query.reasoned_BD,
        target.reasoned_BD,
        _negatives(backbone, batch, rows, query.direct_BD),
        query.nll_B + target.nll_B,
        query.num_tokens_B + target.num_tokens_B,
    )


def _direct_alone(vector_bD: Tensor) -> Paths:
    nothing_b = vector_bD.new_zeros(len(vector_bD))
    return Paths(vector_bD, vector_bD, nothing_b, nothing_b)


def _negatives(
    backbone: Backbone, batch: PairBatch, rows: Sequence[int], like_bD: Tensor
) -> Tensor:
    if batch.negative_ids_BK is None:
        return like_bD.new_zeros(len(rows), 0, like_bD.shape[1])

    # All negatives in one pass, then each to its place: rows have unequally many.
    lists = [batch.negatives[row] for row in rows]
    places = [(place, k) for place, sides in enumerate(lists) for k in range(len(sides))]
    index = torch.tensor(places, dtype=torch.long, device=like_bD.device).reshape(-1, 2)

    empty_bKD = like_bD.new_zeros(len(rows), batch.negative_ids_BK.shape[1], like_bD.shape[1])
    vectors = backbone([side for sides in lists for side in sides])
    return empty_bKD.index_put(tuple(index.unbind(1)), vectors)
