"""InfoNCE the plain way: all scores at once, gradients by autograd. Tiles must equal it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmemb.masks import QueryColumns, query_masks, target_masks


def dense_nce(
    query_BD: Tensor,
    target_ND: Tensor,
    *,
    query_ids_B: Tensor,
    target_ids_N: Tensor,
    positive_ids_BP: Tensor,
    temperature: Tensor | float,
    valid_B: Tensor,
    symmetric: bool = True,
    false_negative_margin: float | None = None,
    dims: Sequence[int] = (),
) -> Tensor:
    """The sum that `info_nce` returns, for all rows of one process."""
    B = len(query_BD)
    query_BD = torch.where(valid_B[:, None], query_BD, 0.0)
    forth = target_masks(target_ids_N, positive_ids_BP)
    columns = QueryColumns(query_BD, query_ids_B, positive_ids_BP, valid_B)
    back = query_masks(query_ids_B, target_ids_N, columns)
    cosine_BN, share = query_BD @ target_ND.T, 0.5 if symmetric else 1.0
    margin = false_negative_margin
    total = torch.zeros((), dtype=query_BD.dtype)
    for dim in (query_BD.shape[1], *dims):
        cut = [x if dim == x.shape[1] else unit(x[:, :dim]) for x in (query_BD, target_ND)]
        score_BN = cut[0] @ cut[1].T / temperature
        total = total + share * nce(score_BN, *allowed(forth, cosine_BN, margin), valid_B)
        if symmetric:
            whole_BB, score_BB = cosine_BN[:, :B].T, score_BN[:, :B].T
            total = total + share * nce(score_BB, *allowed(back, whole_BB, margin), valid_B)
    return total / (1 + len(dims))


def unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=1)


def allowed(
    masks: tuple[Tensor, Tensor], cosine_BN: Tensor, margin: float | None
) -> tuple[Tensor, Tensor]:
    """The masks without negatives that are nearer than the own column by the margin."""
    if margin is None:
        return masks
    near_BN = cosine_BN > cosine_BN.diagonal()[:, None] + margin
    return masks[0], masks[1] & ~near_BN


def nce(score_BN: Tensor, positive_BN: Tensor, negative_BN: Tensor, valid_B: Tensor) -> Tensor:
    floor = torch.finfo(score_BN.dtype).min / 2
    repel_B1 = score_BN.masked_fill(~negative_BN, floor).logsumexp(1, keepdim=True)
    loss_BN = torch.where(positive_BN, nn.functional.softplus(repel_B1 - score_BN), 0.0)
    loss_B = loss_BN.sum(1) / positive_BN.sum(1)
    return torch.where(valid_B, loss_B, 0.0).sum()
