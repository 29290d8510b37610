"""Which columns of a contrastive loss attract a row and which repel it (METHOD 6), by ids alone.

Shapes: B rows of this rank, M rows of all ranks, N target columns (the M targets, then hard
negatives), P positives of a row, F false negatives, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.records.padding import PADDING


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
    own_B1 = target_ids_N[offset : offset + len(positive_ids_BP), None]
    negative_BN = own_B1 != target_ids_N
    positive_BN = torch.zeros_like(negative_BN)
    if positive_ids_BP.shape[1]:
        listed_BN = _is_listed(positive_ids_BP, target_ids_N)
        first_N = is_first(target_ids_N) if first_N is None else first_N
        positive_BN = listed_BN & negative_BN & first_N
        negative_BN &= ~listed_BN
    positive_BN.diagonal(offset).fill_(True)
    negative_BN &= target_ids_N != PADDING
    if false_negative_ids_BF is not None:
        negative_BN &= ~_is_listed(false_negative_ids_BF, target_ids_N)
    return positive_BN, negative_BN


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


def repelled_targets(
    query_ids_B: Tensor,
    target_ids_N: Tensor,
    positive_ids_BP: Tensor,
    valid_B: Tensor,
    rows: slice,
) -> Tensor:
    """The negatives of `query_masks` seen from the queries, in one process.

    Returns:
        (b, B): whether a query of `rows` repels the target of another row.
    """
    own_ids_B = target_ids_N[: len(query_ids_B)]
    repelled_bB = query_ids_B[rows, None] != query_ids_B
    repelled_bB &= own_ids_B[rows, None] != own_ids_B
    repelled_bB &= valid_B[rows, None]
    if positive_ids_BP.shape[1]:
        repelled_bB &= ~_is_listed(positive_ids_BP[rows], own_ids_B)
    return repelled_bB


def other_positives(positive_ids_BP: Tensor, own_ids_B: Tensor) -> Tensor:
    """The lists without columns that name nothing but the row's own target, or are padding.

    >>> other_positives(torch.tensor([[5, 7, -1], [6, 6, -1]]), torch.tensor([5, 6])).tolist()
    [[7], [6]]
    """
    says_BP = (positive_ids_BP != own_ids_B[:, None]) & (positive_ids_BP != PADDING)
    return positive_ids_BP[:, says_BP.any(0)]


def merge_contents(
    ids_N: Tensor, content_N: Tensor, positive_ids_BP: Tensor
) -> tuple[Tensor, Tensor]:
    """One id for columns of equal content, so that they are duplicates whatever they are called.

    Args:
        ids_N: ids of all columns.
        content_N: int64 hashes of what they hold.
        positive_ids_BP: lists that name columns by their ids.

    Returns:
        The ids and the lists, in which the first column of a content stands for all of them.

    >>> ids, listed = merge_contents(
    ...     torch.tensor([5, 6, 7]), torch.tensor([1, 2, 1]), torch.tensor([[7, 9], [6, -1]]))
    >>> ids.tolist(), listed.tolist()
    ([5, 6, 5], [[5, 9], [6, -1]])
    """
    content_N = torch.where(ids_N == PADDING, PADDING, content_N)
    contents, group_N = content_N.unique(return_inverse=True)
    places = torch.arange(len(ids_N), device=ids_N.device)
    far = torch.full_like(contents, len(ids_N))
    merged_N = ids_N[far.scatter_reduce(0, group_N, places, "amin")[group_N]]
    sorted_N, order_N = ids_N.sort(stable=True)
    at_BP = torch.searchsorted(sorted_N, positive_ids_BP.contiguous()).clamp(max=len(ids_N) - 1)
    known_BP = sorted_N[at_BP] == positive_ids_BP
    return merged_N, torch.where(known_BP, merged_N[order_N[at_BP]], positive_ids_BP)


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
