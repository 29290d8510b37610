"""The best and the worst places that right candidates can take when near scores fall either way.

Shapes: Q queries, C columns, P right candidates of a query, M places of right candidates among
themselves (as many as P).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmemb.records.padding import PADDING
from mmemb.retrieval.ranking import MISS, TiedRanks

NEAR = 1e-6
"""Scores this close may be in either order: fp32 products differ by as much between machines."""


def tie_bounds(
    score_QC: Tensor, column_QP: Tensor, grades_QP: Tensor, tolerance: float = NEAR
) -> tuple[TiedRanks, TiedRanks]:
    """Ranks when every near tie goes well, and when every one goes badly.

    Being near is not transitive: of three scores in a row the outer two may be apart. The places
    that right candidates take together are the first (the last) that any order of near ones gives
    them. Grades are laid onto these places by what each one's own score allows: exact where near
    scores are equal, else at most too wide, never too narrow.

    Args:
        score_QC: scores, -inf where a row has fewer candidates.
        column_QP: columns of the right candidates, padded with -1; -2 = not among them.
        grades_QP: their grades; the better one takes the earlier place, or the later one.
        tolerance: how far apart near scores are.

    >>> score, column = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1]])
    >>> [ranks.greater_QP.item() for ranks in tie_bounds(score, column, torch.ones(1, 1))]
    [0, 1]
    """
    found_QP = column_QP >= 0
    own_QP = score_QC.gather(1, column_QP.clamp(min=0)).masked_fill(~found_QP, -torch.inf)
    well_QP = _lucky_places(own_QP, found_QP, score_QC, grades_QP, tolerance)

    # The worst order is the best one of the reversed ranking, counted from its other end.
    listed_QC = score_QC > -torch.inf
    own_QP, score_QC = (-own_QP).masked_fill(~found_QP, -torch.inf), -score_QC
    score_QC = score_QC.masked_fill(~listed_QC, -torch.inf)
    from_end_QP = _lucky_places(own_QP, found_QP, score_QC, grades_QP, tolerance)
    badly_QP = (listed_QC.sum(1, keepdim=True) - 1 - from_end_QP).masked_fill(~found_QP, MISS)

    valid_QP, one_QP = column_QP != PADDING, torch.ones_like(column_QP)
    return TiedRanks(well_QP, one_QP, valid_QP), TiedRanks(badly_QP, one_QP, valid_QP)


def _lucky_places(
    own_QP: Tensor, found_QP: Tensor, score_QC: Tensor, grades_QP: Tensor, tolerance: float
) -> Tensor:
    """Number of candidates before each right one if near ties go well; `MISS` for an absent one.

    Args:
        own_QP: scores of the right candidates; -inf where there is none.
        found_QP: where there is one.
        score_QC: all scores, -inf where a row has fewer candidates.
        grades_QP: their grades.
        tolerance: how far apart near scores are.
    """
    edge_QP = own_QP + tolerance
    above_QP = score_QC.shape[1] - torch.searchsorted(
        score_QC.sort(dim=1).values, edge_QP, right=True
    )
    right_above_QP = (own_QP[:, None] > edge_QP[..., None]).sum(2)

    # Taken by score, the m-th right one has the m others and the wrong ones surely above it.
    order_QM = own_QP.argsort(dim=1, descending=True)
    place_QM = (above_QP - right_above_QP).gather(1, order_QM)
    place_QM = place_QM + torch.arange(own_QP.shape[1], device=own_QP.device)

    turn_QP = _turns(right_above_QP, found_QP, grades_QP)
    return place_QM.gather(1, turn_QP).masked_fill(~found_QP, MISS)


def _turns(right_above_QP: Tensor, found_QP: Tensor, grades_QP: Tensor) -> Tensor:
    """Turn of each right one among them: the best grade first, of those that may have the turn.

    One may have a turn if all that are surely above it fit before; the m-th by score always may.
    """
    turn_QP = torch.zeros_like(right_above_QP)
    waiting_QP = found_QP.clone()
    for turn in range(found_QP.shape[1]):
        may_QP = waiting_QP & (right_above_QP <= turn)
        taken_Q1 = grades_QP.masked_fill(~may_QP, -torch.inf).argmax(1, keepdim=True)
        taken_QP = torch.zeros_like(may_QP).scatter(1, taken_Q1, may_QP.gather(1, taken_Q1))
        turn_QP[taken_QP] = turn
        waiting_QP &= ~taken_QP
    return turn_QP
