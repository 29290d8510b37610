"""Masks of a contrastive loss, by ids alone: columns that attract a row, columns that repel it.

docs/method.md section 6. Shapes: B rows, b of them asked about, N target columns (the B own targets
of the rows, then hard negatives), P positives of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmemb.losses.ids import PairIds
from mmemb.records.padding import PADDING


def target_masks(ids: PairIds, rows: slice, first_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Finds the target columns that attract the queries of some rows, and those that repel them.

    Args:
        ids: of all rows and columns.
        rows: b consecutive rows.
        first_N: `is_first(ids.target_N)`, if it is there already.

    Returns:
        positive (b, N): the own column, and the first column of every other listed positive.
        negative (b, N): columns that are no positive, no duplicate of one (same id), no listed
        false negative and no padding.
    """
    negative_bN = ids.target_N[rows, None] != ids.target_N
    negative_bN &= ids.target_N != PADDING
    positive_bN = torch.zeros_like(negative_bN)

    # A positive that stands in several columns attracts once, but none of them repels.
    if ids.positive_BP.shape[1]:
        listed_bN = _is_listed(ids.target_N, ids.positive_BP[rows])
        first_N = is_first(ids.target_N) if first_N is None else first_N
        positive_bN = listed_bN & negative_bN & first_N
        negative_bN &= ~listed_bN
    positive_bN.diagonal(rows.start).fill_(True)

    if ids.false_negative_BF is not None:
        negative_bN &= ~_is_listed(ids.target_N, ids.false_negative_BF[rows])
    return positive_bN, negative_bN


def query_masks(ids: PairIds, rows: slice, valid_B: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the queries that attract the own targets of some rows, and those that repel them.

    Args:
        ids: of all rows and columns.
        rows: b consecutive rows.
        valid_B: rows whose query takes part; the others repel no target.

    Returns:
        positive (b, B): the own query.
        negative (b, B): valid queries with another id for which this target is not right.
    """
    negative_bB = repelled_targets(ids, slice(0, len(valid_B)), rows, valid_B).T
    positive_bB = torch.zeros_like(negative_bB)
    positive_bB.diagonal(rows.start).fill_(True)
    return positive_bB, negative_bB


def repelled_targets(ids: PairIds, queries: slice, targets: slice, valid_B: Tensor) -> Tensor:
    """bool (rows of `queries`, rows of `targets`), whether a row's query repels a row's target."""
    own_t = ids.target_N[targets]
    repelled_qt = ids.query_B[queries, None] != ids.query_B[targets]
    repelled_qt &= ids.target_N[queries, None] != own_t
    repelled_qt &= valid_B[queries, None]
    if ids.positive_BP.shape[1]:
        repelled_qt &= ~_is_listed(own_t, ids.positive_BP[queries])
    return repelled_qt


def is_first(ids_N: Tensor) -> Tensor:
    """bool (N,), true where an id stands for the first time.

    >>> is_first(torch.tensor([7, 5, 7])).tolist()
    [True, True, False]
    """
    order_N = ids_N.argsort(stable=True)
    sorted_N = ids_N[order_N]
    new_N = torch.ones_like(ids_N, dtype=torch.bool)
    new_N[1:] = sorted_N[1:] != sorted_N[:-1]

    first_N = torch.empty_like(new_N)
    first_N[order_N] = new_N
    return first_N


def _is_listed(ids_N: Tensor, lists_BP: Tensor) -> Tensor:
    """bool (B, N), whether a row's list holds a column's id."""
    listed_BN = torch.zeros(len(lists_BP), len(ids_N), dtype=torch.bool, device=ids_N.device)
    for list_B in lists_BP.unbind(1):  # one (B, N) at a time, never (B, N, P)
        listed_BN |= list_B[:, None] == ids_N
    return listed_BN
