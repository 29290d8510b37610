"""Contrastive losses of METHOD 6 as (sum, count); only `contrastive_loss` and `combine` know ranks.

Shapes: B rows of this rank, M rows of all ranks, N target columns (the M targets, then hard
negatives), H hard negatives of this rank, P positives of a row, F false negatives, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from mmemb.distributed import gather_padded, gather_rows, rank_and_world, sum_over_ranks
from mmemb.tiled_nce import Direction, Embeddings, Problem, nce_sum

PADDING = -1
"""The id that fills up rows of ids; a column with this id is nobody's negative."""


@final
@dataclass(frozen=True, slots=True)
class LossTerm:
    """A loss as the sum over this rank's rows and their number, so that ranks may be uneven."""

    sum: Tensor
    count: Tensor


@final
@dataclass(frozen=True, slots=True)
class QueryColumns:
    """All ranks' queries, the columns of the target-to-query direction.

    Attributes:
        query_MD: embeddings; row m belongs to column m of the targets.
        query_ids_M: int64 content ids.
        positive_ids_MP: ids of every right target, padded with -1.
        valid_M: whether the row has such an embedding at all (False: nobody's negative).
    """

    query_MD: Tensor
    query_ids_M: Tensor
    positive_ids_MP: Tensor
    valid_M: Tensor


def combine(term: LossTerm, world: int | None = None) -> Tensor:
    """The scalar to call backward on: `world * local_sum / global_count` (METHOD 6).

    DDP averages gradients over ranks, so this is the mean over all valid rows of all ranks. It
    stays joined to the graph, and is 0, when no rank has a valid row. Runs on every rank.
    """
    world = rank_and_world()[1] if world is None else world
    return world * term.sum / sum_over_ranks(term.count).clamp(min=1)


def contrastive_loss(
    query_BD: Tensor,
    target_BD: Tensor,
    *,
    query_ids_B: Tensor,
    target_ids_B: Tensor,
    positive_ids_BP: Tensor,
    temperature: Tensor | float,
    valid_B: Tensor | None = None,
    negative_HD: Tensor | None = None,
    negative_ids_H: Tensor | None = None,
    false_negative_ids_BF: Tensor | None = None,
    symmetric: bool = True,
    false_negative_margin: float | None = None,
    dims: Sequence[int] = (),
) -> LossTerm:
    """InfoNCE of this rank's rows against all ranks' columns: gathers, then `info_nce`.

    Runs its collectives on every rank, whatever `valid_B` says; all ranks pass the same B and H
    (pad hard negatives with id -1) and the same choice of optional arguments.

    Args:
        query_BD: unit vectors; rows that `valid_B` excludes may hold anything.
        target_BD: unit vectors of the rows' own targets; candidates even where a row is invalid.
        query_ids_B: int64 content ids of the queries.
        target_ids_B: int64 ids of the targets.
        positive_ids_BP: ids of every right target of a row, padded with -1.
        temperature: tau, a number or a 0-d tensor with gradient.
        valid_B: rows that take part (those that reason); all by default.
        negative_HD: hard negatives, columns only.
        negative_ids_H: their target ids.
        false_negative_ids_BF: targets a row must not push away, padded with -1.
        symmetric: also target to query.
        false_negative_margin: columns whose cosine exceeds the own one's by more than this repel
            nobody: they may be right as well. None = all repel.
        dims: Matryoshka prefixes that are trained beside the whole vector; the loss is their mean.

    Returns:
        The term of this rank's rows; `combine` makes it a loss.
    """
    assert (negative_HD is None) == (negative_ids_H is None), "hard negatives need their ids"
    valid_B = torch.ones_like(query_ids_B, dtype=torch.bool) if valid_B is None else valid_B.bool()
    query_BD = torch.where(valid_B[:, None], query_BD, 0.0)  # a NaN here must not spread
    id_columns = [query_ids_B, target_ids_B, valid_B.long()]
    ids_MI = gather_padded(torch.cat([torch.stack(id_columns, 1), positive_ids_BP], 1), PADDING)
    target_ND, target_ids_N = gather_rows(target_BD), ids_MI[:, 1]
    if negative_HD is not None and negative_ids_H is not None:
        target_ND = torch.cat([target_ND, gather_rows(negative_HD)])
        target_ids_N = torch.cat([target_ids_N, gather_rows(negative_ids_H)])
    columns = None
    if symmetric and rank_and_world()[1] > 1:
        query_MD = gather_rows(query_BD)
        columns = QueryColumns(query_MD, ids_MI[:, 0], ids_MI[:, 3:], ids_MI[:, 2].bool())
    return info_nce(
        query_BD,
        target_ND,
        query_ids_B=query_ids_B,
        target_ids_N=target_ids_N,
        positive_ids_BP=positive_ids_BP,
        temperature=temperature,
        valid_B=valid_B,
        offset=rank_and_world()[0] * len(query_BD),
        false_negative_ids_BF=false_negative_ids_BF,
        symmetric=symmetric,
        columns=columns,
        false_negative_margin=false_negative_margin,
        dims=dims,
    )


def info_nce(
    query_BD: Tensor,
    target_ND: Tensor,
    *,
    query_ids_B: Tensor,
    target_ids_N: Tensor,
    positive_ids_BP: Tensor,
    temperature: Tensor | float,
    valid_B: Tensor | None = None,
    offset: int = 0,
    false_negative_ids_BF: Tensor | None = None,
    symmetric: bool = True,
    columns: QueryColumns | None = None,
    false_negative_margin: float | None = None,
    dims: Sequence[int] = (),
    tile: int | None = None,
) -> LossTerm:
    """InfoNCE with several positives and masks (METHOD 6), no collectives, in O(tile) memory.

    A row's own target is column `offset + row`. Another listed positive among the columns is a
    positive too, once. Both directions have the same count, the valid rows: half the sum of their
    sums over that count is half the sum of their means.

    Args:
        query_BD: this rank's queries.
        target_ND: all candidates; column `offset + b` is row b's own.
        query_ids_B: as in `contrastive_loss`.
        target_ids_N: ids of the columns; -1 marks padding.
        positive_ids_BP: as in `contrastive_loss`.
        temperature: tau.
        valid_B: rows that take part.
        offset: where this rank's rows begin among the columns.
        false_negative_ids_BF: as in `contrastive_loss`.
        symmetric: half query to target, half target to query; False = the former alone.
        columns: all ranks' queries; by default this rank's are all there are.
        false_negative_margin: as in `contrastive_loss`.
        dims: as in `contrastive_loss`.
        tile: rows that meet all columns together; None chooses.
    """
    valid_B = torch.ones_like(query_ids_B, dtype=torch.bool) if valid_B is None else valid_B.bool()
    query_BD = torch.where(valid_B[:, None], query_BD, 0.0)
    columns_of_back = columns or QueryColumns(query_BD, query_ids_B, positive_ids_BP, valid_B)
    first_N = is_first(target_ids_N)

    def forth(rows: slice) -> tuple[Tensor, Tensor]:
        listed = None if false_negative_ids_BF is None else false_negative_ids_BF[rows]
        return target_masks(
            target_ids_N, positive_ids_BP[rows], offset + rows.start, listed, first_N
        )

    def back(rows: slice) -> tuple[Tensor, Tensor]:
        return query_masks(query_ids_B[rows], target_ids_N, columns_of_back, offset + rows.start)

    share = 0.5 if symmetric else 1.0
    problem = Problem(
        forth=Direction(forth, share, false_negative_margin),
        back=Direction(back, share, false_negative_margin) if symmetric else None,
        valid_B=valid_B,
        offset=offset,
        tile=tile,
    )
    whole = Embeddings(
        _full(query_BD),
        _full(target_ND),
        _full(columns.query_MD) if columns and symmetric else None,
    )
    widths = [whole, *(_prefix(whole, dim) for dim in dims)]
    scale = 1 / torch.as_tensor(
        temperature, dtype=whole.query_BD.dtype, device=whole.query_BD.device
    )
    return LossTerm(nce_sum(widths, scale, problem), valid_B.sum())


def target_masks(
    target_ids_N: Tensor,
    positive_ids_BP: Tensor,
    offset: int = 0,
    false_negative_ids_BF: Tensor | None = None,
    first_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which target columns attract a query and which repel it.

    Returns:
        positive (B, N): the own column, and the first column of every other listed positive.
        negative (B, N): columns that are no positive, no duplicate of one (same id), no listed
        false negative and no padding.
    """
    B, N = len(positive_ids_BP), len(target_ids_N)
    own_B1 = target_ids_N[offset : offset + B, None]
    duplicate_BN = own_B1 == target_ids_N
    listed_BN = _is_listed(positive_ids_BP, target_ids_N)
    first_N = is_first(target_ids_N) if first_N is None else first_N
    positive_BN = listed_BN & ~duplicate_BN & first_N
    positive_BN |= _diagonal(B, N, offset, target_ids_N.device)
    masked_BN = duplicate_BN | listed_BN | (target_ids_N == PADDING)
    if false_negative_ids_BF is not None:
        masked_BN |= _is_listed(false_negative_ids_BF, target_ids_N)
    return positive_BN, ~masked_BN


def query_masks(
    query_ids_B: Tensor, target_ids_N: Tensor, columns: QueryColumns, offset: int = 0
) -> tuple[Tensor, Tensor]:
    """Which queries attract a row's target (its own alone) and which repel it.

    Returns:
        positive (B, M): the own query.
        negative (B, M): valid queries with another id for which this target is not right.
    """
    B, M = len(query_ids_B), len(columns.query_ids_M)
    own_ids_B = target_ids_N[offset : offset + B]
    same_query_BM = query_ids_B[:, None] == columns.query_ids_M
    shares_BM = own_ids_B[:, None] == target_ids_N[:M]
    shares_BM |= _is_listed(columns.positive_ids_MP, own_ids_B).T
    negative_BM = columns.valid_M & ~same_query_BM & ~shares_BM
    return _diagonal(B, M, offset, query_ids_B.device), negative_BM


def _prefix(whole: Embeddings, dim: int) -> Embeddings:
    """The first `dim` numbers of every vector, of unit length again."""
    if not 0 < dim < whole.query_BD.shape[1]:
        raise ValueError(
            f"Matryoshka prefix {dim}: expected less than the embedding's {whole.query_BD.shape[1]}"
        )

    def cut(x: Tensor) -> Tensor:
        return nn.functional.normalize(x[:, :dim], dim=1)

    queries = None if whole.query_MD is None else cut(whole.query_MD)
    return Embeddings(cut(whole.query_BD), cut(whole.target_ND), queries)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _is_listed(ids_BP: Tensor, column_ids_N: Tensor) -> Tensor:
    listed_BN = torch.zeros(len(ids_BP), len(column_ids_N), dtype=torch.bool, device=ids_BP.device)
    for ids_B in ids_BP.unbind(1):  # one (B, N) at a time, never (B, N, P)
        listed_BN |= (ids_B[:, None] == column_ids_N) & (ids_B[:, None] != PADDING)
    return listed_BN


def is_first(ids_N: Tensor) -> Tensor:
    """bool (N,), where an id stands for the first time."""
    order_N = ids_N.argsort(stable=True)
    sorted_N = ids_N[order_N]
    new_N = torch.ones_like(ids_N, dtype=torch.bool)
    new_N[1:] = sorted_N[1:] != sorted_N[:-1]
    first_N = torch.empty_like(new_N)
    first_N[order_N] = new_N
    return first_N


def _diagonal(B: int, N: int, offset: int, device: torch.device) -> Tensor:
    own_B1 = torch.arange(B, device=device)[:, None] + offset
    return own_B1 == torch.arange(N, device=device)
