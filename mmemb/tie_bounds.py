"""The best and the worst places that right candidates can take when near scores fall either way.

Shapes: Q queries, C columns, P right candidates of a query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmemb.ranking import PADDING, TiedRanks

NEAR = 1e-6
"""Scores this close may be in either order: fp32 products differ by as much between machines."""


def tie_bounds(
    score_QC: Tensor, column_QP: Tensor, grades_QP: Tensor, tolerance: float = NEAR
) -> tuple[TiedRanks, TiedRanks]:
    """Ranks when every near tie goes well, and when every one goes badly.

    Args:
        score_QC: scores, -inf where a row has fewer candidates.
        column_QP: columns of the right candidates, padded with -1; -2 = not among them.
        grades_QP: their grades; of two right ones that are near, the better one comes first, or
            last.
        tolerance: how far apart near scores are.

    >>> score, column = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1]])
    >>> [ranks.greater_QP.item() for ranks in tie_bounds(score, column, torch.ones(1, 1))]
    [0, 1]
    """
    found_QP = column_QP >= 0
    own_QP = score_QC.gather(1, column_QP.clamp(min=0)).masked_fill(~found_QP, torch.inf)
    sorted_QC = score_QC.sort(dim=1).values
    well = _places(own_QP, found_QP, sorted_QC, grades_QP, tolerance, lucky=True)
    badly = _places(own_QP, found_QP, sorted_QC, -grades_QP, tolerance, lucky=False)
    valid_QP, one_QP = column_QP != PADDING, torch.ones_like(column_QP)
    return TiedRanks(well, one_QP, valid_QP), TiedRanks(badly, one_QP, valid_QP)


def _places(
    own_QP: Tensor,
    found_QP: Tensor,
    sorted_QC: Tensor,
    first_QP: Tensor,
    tolerance: float,
    *,
    lucky: bool,
) -> Tensor:
    """How many candidates stand before each right one: wrong ones, then right ones.

    Args:
        own_QP: scores of the right candidates; infinite where there is none.
        found_QP: where there is one.
        sorted_QC: all scores, ascending.
        first_QP: of near right ones the higher value comes first.
        tolerance: how far apart near scores are.
        lucky: near wrong candidates stand behind, else before.
    """
    C = sorted_QC.shape[1]
    edge_QP = own_QP + (tolerance if lucky else -tolerance)
    above_QP = C - torch.searchsorted(sorted_QC, edge_QP, right=lucky)
    other_Q1P, edge_QP1 = own_QP[:, None], edge_QP[..., None]
    right_QPP = (other_Q1P > edge_QP1) if lucky else (other_Q1P >= edge_QP1)
    wrong_QP = above_QP - (right_QPP & found_QP[:, None]).sum(2)
    # By score in steps, then by `first_QP`: a stable sort, the lesser key first.
    order_QP = first_QP.argsort(dim=1, descending=True, stable=True)
    step_QP = (own_QP / tolerance).round().gather(1, order_QP)
    order_QP = order_QP.gather(1, step_QP.argsort(dim=1, descending=True, stable=True))
    before_QP = order_QP.argsort(dim=1) - (~found_QP).sum(1, keepdim=True)
    return (wrong_QP + before_QP).masked_fill(~found_QP, C)
