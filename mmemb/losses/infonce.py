"""InfoNCE with several positives, masks, both directions and Matryoshka prefixes.

The definition of docs/method.md section 6 in plain tensors; large batches are summed in tiles
instead (`mmemb.losses.tiled_infonce`), to the same numbers. Shapes: B rows of this rank, M rows of
all ranks, N target columns (the M own targets of the rows, then hard negatives), C columns of one
direction (N targets, or M queries), K positive cells, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmemb.losses.gathered_pairs import GatheredPairs, gather_pairs
from mmemb.losses.ids import PairIds
from mmemb.losses.masks import repelled_targets, target_masks
from mmemb.losses.tiled_infonce import TILE_NUMBERS, tiled_info_nce
from mmemb.records.loss_term import LossTerm

DENSE_SCORES = 2**20
"""Rows times columns up to which all scores are made at once: 1,024 rows in one process.

Measured on one core with 512 numbers a vector: the dense way takes 0.75 times as long as tiles at
64 rows, 0.94 at 1,024 and 1.4 at 1,448. It keeps 35 MB until backward at 1,024 rows.
"""

DENSE_COPIES = 9
"""Numbers that the dense loss keeps for each score until backward, as measured."""


def contrastive_loss(
    query_BD: Tensor,
    target_ND: Tensor,
    ids: PairIds,
    *,
    temperature: Tensor | float,
    valid_B: Tensor | None = None,
    symmetric: bool = True,
    false_negative_margin: float | None = None,
    dims: Sequence[int] = (),
) -> LossTerm:
    """InfoNCE of this rank's rows against the columns of all ranks.

    Runs its collectives on every rank, whatever `valid_B` says; all ranks pass equally many rows
    and hard negatives (fill up with id -1) and the same choice of optional arguments.

    Args:
        query_BD: unit vectors; rows that `valid_B` excludes may hold anything.
        target_ND: unit vectors of the rows' own targets, then of this rank's hard negatives;
            candidates even where a row is invalid.
        ids: of these rows and columns.
        temperature: tau, a number or a 0-d tensor with gradient.
        valid_B: rows that take part (those that reason); all by default.
        symmetric: half query to target, half target to query; False = the former alone.
        false_negative_margin: columns whose cosine exceeds the own one's by more than this do not
            repel a row: they may be right as well. None = all repel.
        dims: Matryoshka prefixes that are trained beside the whole vector; the loss is their mean.

    Returns:
        The term of this rank's rows; `combine` makes it a loss.
    """
    # All collectives are in here: what follows is the same on one rank and on many.
    pairs = gather_pairs(query_BD, target_ND, ids, valid_B, symmetric)
    is_small = len(pairs.query_BD) * len(pairs.target_ND) <= DENSE_SCORES
    sum_of = info_nce if is_small else tiled_info_nce

    # Under autocast the products would be bf16: three digits are too few for cosine / 0.02.
    with torch.autocast(query_BD.device.type, enabled=False):
        total = sum_of(pairs, temperature, false_negative_margin, dims)
    return LossTerm(total, pairs.valid_M[pairs.rows].sum())


def info_nce(
    pairs: GatheredPairs,
    temperature: Tensor | float,
    margin: float | None = None,
    dims: Sequence[int] = (),
) -> Tensor:
    """Sum of the loss over this rank's valid rows, a mean over directions and widths (0-d).

    Both directions count the same rows, so half the sum of their sums over that count is half the
    sum of their means. Arguments as in `contrastive_loss`.
    """
    widths = [pairs, *(pairs.prefix(dim) for dim in dims)]
    everyone, valid_B = slice(0, len(pairs.valid_M)), pairs.valid_M[pairs.rows]
    symmetric = pairs.query_MD is not None

    # Ids decide which cells attract and which repel, alike for every width.
    positive_BN, negative_BN = target_masks(pairs.ids, pairs.rows)
    if symmetric:
        repelled_MB = repelled_targets(pairs.ids, everyone, pairs.rows, pairs.valid_M)

    # What is nearer than the own column may be right, too; the whole vectors judge that.
    if margin is not None:
        cosine_BN, cosine_MB = _scores(pairs, 1.0)
        limit_B = _own(cosine_BN, pairs) + margin
        negative_BN &= cosine_BN <= limit_B[:, None]
        if symmetric:
            repelled_MB &= cosine_MB <= limit_B

    losses = []
    for width in widths:
        # Rows are queries and columns targets in both, so target to query reduces over rows.
        score_BN, score_MB = _scores(width, temperature)
        loss_B = query_to_target(score_BN, positive_BN, negative_BN)
        if symmetric:
            loss_B = (loss_B + target_to_query(score_MB, _own(score_BN, pairs), repelled_MB)) / 2
        losses.append(torch.where(valid_B, loss_B, 0.0).sum())
    return torch.stack(losses).mean()


def query_to_target(score_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor) -> Tensor:
    """Loss of each query (B,): the mean over its positives p of
    `-log(exp s_p / (exp s_p + sum over its negatives n of exp s_n))`.

    >>> own = torch.tensor([[True, False, False]])
    >>> query_to_target(torch.zeros(1, 3), own, ~own).exp()
    tensor([3.])
    """
    repel_B = _masked_logsumexp(score_BN, negative_BN, 1)

    # Few cells are positive: a softplus of all would be the dearest operation.
    row_K, column_K = positive_BN.nonzero(as_tuple=True)
    loss_K = softplus(repel_B[row_K] - score_BN[row_K, column_K])
    num_B = row_K.bincount(minlength=len(score_BN))
    return torch.zeros_like(repel_B).index_add(0, row_K, loss_K) / num_B


def target_to_query(score_MB: Tensor, own_B: Tensor, repelled_MB: Tensor) -> Tensor:
    """Loss of each row's own target (B,), which has one positive: its own query."""
    return softplus(_masked_logsumexp(score_MB, repelled_MB, 0) - own_B)


def _masked_logsumexp(score: Tensor, mask: Tensor, dim: int) -> Tensor:
    # A finite floor: a row without negatives has no -inf - -inf, and its loss is 0.
    return score.masked_fill(~mask, torch.finfo(score.dtype).min / 2).logsumexp(dim)


def _scores(pairs: GatheredPairs, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """This rank's queries with all targets (B, N); all queries with this rank's targets (M, B)."""
    score_BN = (pairs.query_BD / temperature) @ pairs.target_ND.T
    if pairs.is_whole or pairs.query_MD is None:  # in one process both read the same scores
        return score_BN, score_BN[:, : len(score_BN)]
    return score_BN, (pairs.query_MD / temperature) @ pairs.own_target_BD.T


def _own(score_BN: Tensor, pairs: GatheredPairs) -> Tensor:
    return score_BN.diagonal(pairs.rows.start)[: len(score_BN)]


def kept_scores(rows: int, columns: int, terms: int = 1) -> int:
    """Numbers that losses keep beside vectors and their gradients, for plans of memory.

    >>> kept_scores(8, 8), kept_scores(4096, 4096) == 2 * TILE_NUMBERS
    (576, True)
    """
    if rows * columns <= DENSE_SCORES:
        return DENSE_COPIES * terms * rows * columns
    return 2 * max(TILE_NUMBERS, columns)
