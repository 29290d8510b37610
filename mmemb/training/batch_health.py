"""BatchHealth: measures of a training batch that show a sick run, from vectors and ids alone.

Shapes: B rows of this rank, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.losses.ids import PairIds
from mmemb.losses.masks import target_masks


@final
@dataclass(frozen=True, slots=True)
class BatchHealth:
    """Measures of one rank's rows among each other.

    Attributes:
        accuracy_B: 1 where no allowed negative comes nearer than the own target, 0 elsewhere.
        gap_B: cosine with the own target minus the mean over allowed negatives; NaN without any.
        loss_B: -log of the own target's share among it and the negatives, at the run's temperature.
        effective_rank: of queries and targets together, see `effective_rank`.
        masked: share of the other columns that are no negatives: duplicates, further positives.
    """

    accuracy_B: Tensor
    gap_B: Tensor
    loss_B: Tensor
    effective_rank: float
    masked: float

    def scalars(self, groups: Sequence[str] = ()) -> Mapping[str, float]:
        """Returns values by name, for TensorBoard; the loss also by group.

        Without any negative there is no gap, and it is left out.
        """
        scalars = {
            "in_batch_accuracy": float(self.accuracy_B.mean()),
            "positive_negative_gap": float(self.gap_B.nanmean()),
            "effective_rank": self.effective_rank,
            "masked_share": self.masked,
        }
        if self.gap_B.isnan().all():
            del scalars["positive_negative_gap"]

        for name in sorted(set(groups)):
            rows = [row for row, group in enumerate(groups) if group == name]
            scalars[f"loss/{name}"] = float(self.loss_B[rows].mean())
        return scalars


@torch.no_grad()
def batch_health(
    query_BD: Tensor, target_BD: Tensor, ids: PairIds, *, temperature: float
) -> BatchHealth:
    """Measures the first B rows of a batch among each other, at least one.

    Args:
        query_BD: unit vectors.
        target_BD: unit vectors of the rows' own targets.
        ids: of the whole batch; hard negatives and contents are not looked at.
        temperature: tau.
    """
    B = len(query_BD)
    _, negative_BN = target_masks(ids, slice(0, B))
    negative_BB = negative_BN[:, :B]
    num_B = negative_BB.sum(1)

    cosine_BB = query_BD.float() @ target_BD.float().T

    own_B = cosine_BB.diagonal()
    away_BB = cosine_BB.masked_fill(~negative_BB, -torch.inf)

    # Without any negative this is 0 / 0: NaN marks a row that has no gap.
    mean_B = torch.where(negative_BB, cosine_BB, 0.0).sum(1) / num_B

    # The own target among itself and the negatives: further positives do not compete.
    scaled_B1 = (own_B / temperature)[:, None]
    loss_B = torch.cat([scaled_B1, away_BB / temperature], 1).logsumexp(1) - scaled_B1[:, 0]
    return BatchHealth(
        accuracy_B=(own_B > away_BB.amax(1)).float(),
        gap_B=own_B - mean_B,
        loss_B=loss_B,
        effective_rank=effective_rank(torch.cat([query_BD, target_BD])),
        masked=1 - float(num_B.sum()) / (B * (B - 1)) if B > 1 else 0.0,
    )


@torch.no_grad()
def effective_rank(vectors_BD: Tensor) -> float:
    """Number of directions that vectors use: exp of the entropy of their normalised singular values
    (Roy and Vetterli 2007), 1 for a collapsed batch. Not centred: a common direction counts.

    >>> round(effective_rank(torch.eye(4)), 3), round(effective_rank(torch.ones(4, 4)), 3)
    (4.0, 1.0)
    """
    value_K = torch.linalg.svdvals(vectors_BD.float().cpu())
    share_K = value_K / value_K.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return float(torch.special.entr(share_K).sum().exp())
