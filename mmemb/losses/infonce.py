"""Contrastive losses of METHOD 6 as (sum, count); only `contrastive_loss` knows ranks.

Shapes: B rows of this rank, M rows of all ranks, N target columns (the M targets, then hard
negatives), H hard negatives of this rank, P positives of a row, F false negatives, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmemb.distributed import gather_padded, gather_rows, rank_and_world
from mmemb.losses.masks import (
    QueryColumns,
    is_first,
    merge_contents,
    other_positives,
    query_masks,
    repelled_targets,
    target_masks,
)
from mmemb.losses.nce_sweeps import Embeddings, Problem
from mmemb.losses.terms import LossTerm
from mmemb.losses.tiled_nce import nce_sum
from mmemb.records.padding import PADDING


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
    target_content_B: Tensor | None = None,
    negative_content_H: Tensor | None = None,
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
        target_content_B: int64 hashes of what the targets hold: equal ones are duplicates, whatever
            their ids; None = ids alone decide.
        negative_content_H: of the hard negatives.
        false_negative_ids_BF: targets a row must not push away, padded with -1.
        symmetric: also target to query.
        false_negative_margin: columns whose cosine exceeds the own one's by more than this repel
            nobody: they may be right as well. None = all repel.
        dims: Matryoshka prefixes that are trained beside the whole vector; the loss is their mean.

    Returns:
        The term of this rank's rows; `combine` makes it a loss.
    """
    assert (negative_HD is None) == (negative_ids_H is None), "hard negatives need their ids"
    clean_BD, takes_part_B = _without_invalid(query_BD, valid_B)
    content_B = target_ids_B if target_content_B is None else target_content_B
    id_columns = [query_ids_B, target_ids_B, takes_part_B.long(), content_B]
    ids_MI = gather_padded(torch.cat([torch.stack(id_columns, 1), positive_ids_BP], 1), PADDING)
    query_ids_M, target_ids_N, valid_M, content_N = ids_MI[:, :4].unbind(1)
    target_ND, positive_ids_MP = gather_rows(target_BD), ids_MI[:, 4:]
    if negative_HD is not None and negative_ids_H is not None:
        content_H = negative_ids_H if negative_content_H is None else negative_content_H
        target_ND = torch.cat([target_ND, gather_rows(negative_HD)])
        target_ids_N = torch.cat([target_ids_N, gather_rows(negative_ids_H)])
        content_N = torch.cat([content_N, gather_rows(content_H)])
    if target_content_B is not None:
        target_ids_N, positive_ids_MP = merge_contents(target_ids_N, content_N, positive_ids_MP)
    rank, world = rank_and_world()
    columns = None
    if symmetric and world > 1:
        query_MD = gather_rows(clean_BD)
        columns = QueryColumns(query_MD, query_ids_M, positive_ids_MP, valid_M.bool())
    return info_nce(
        clean_BD,
        target_ND,
        query_ids_B=query_ids_B,
        target_ids_N=target_ids_N,
        positive_ids_BP=positive_ids_MP[rank * len(query_BD) : (rank + 1) * len(query_BD)],
        temperature=temperature,
        valid_B=valid_B,
        offset=rank * len(query_BD),
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

    With s = cosine / temperature a row's loss is the mean over its positives p of
    -log(exp s_p / (exp s_p + sum over its negatives n of exp s_n));
    `tests/fixtures/dense_losses.py` has it in a few lines without tiles. A row's own target is
    column `offset + row`. Another listed positive among the columns is a positive too, once. Both
    directions have the same count, the valid rows: half the sum of their sums over that count is
    half the sum of their means.

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
    query_BD, valid_B = _without_invalid(query_BD, valid_B)
    columns_of_back = columns or QueryColumns(query_BD, query_ids_B, positive_ids_BP, valid_B)
    first_N = is_first(target_ids_N)
    own_ids_B = target_ids_N[offset : offset + len(query_BD)]
    others_BP = other_positives(positive_ids_BP, own_ids_B)

    def forth(rows: slice) -> tuple[Tensor, Tensor]:
        listed = None if false_negative_ids_BF is None else false_negative_ids_BF[rows]
        return target_masks(target_ids_N, others_BP[rows], offset + rows.start, listed, first_N)

    def back(rows: slice) -> tuple[Tensor, Tensor]:
        return query_masks(query_ids_B[rows], target_ids_N, columns_of_back, offset + rows.start)

    def repelled(rows: slice) -> Tensor:
        return repelled_targets(query_ids_B, target_ids_N, others_BP, valid_B, rows)

    problem = Problem(
        forth=forth,
        back=back if symmetric else None,
        repelled=repelled,
        valid_B=valid_B,
        offset=offset,
        margin=false_negative_margin,
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


def _without_invalid(query_BD: Tensor, valid_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros in rows that do not take part, since a NaN there would spread; and who takes part."""
    if valid_B is None:  # no copy of a large batch
        return query_BD, torch.ones(len(query_BD), dtype=torch.bool, device=query_BD.device)
    valid_B = valid_B.bool()
    return torch.where(valid_B[:, None], query_BD, 0.0), valid_B


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
