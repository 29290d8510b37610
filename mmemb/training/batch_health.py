"""What a training batch tells about the health of a run, from its vectors and ids alone.

Shapes: B rows of this rank, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mmemb.losses.masks import target_masks


@final
@dataclass(frozen=True, slots=True)
class BatchHealth:
    """Of one rank's rows among each other.

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
        """Name -> value, for TensorBoard; the loss also by group.

        Without any negative there is no gap, and it is left out.
        """
        found = {
            "in_batch_accuracy": float(self.accuracy_B.mean()),
            "positive_negative_gap": float(self.gap_B.nanmean()),
            "effective_rank": self.effective_rank,
            "masked_share": self.masked,
        }
        if self.gap_B.isnan().all():
            del found["positive_negative_gap"]
        for name in sorted(set(groups)):
            rows = [row for row, group in enumerate(groups) if group == name]
            found[f"loss/{name}"] = float(self.loss_B[rows].mean())
        return found


@torch.no_grad()
def batch_health(
    query_BD: Tensor,
    target_BD: Tensor,
    *,
    target_ids_B: Tensor,
    positive_ids_BP: Tensor,
    temperature: float,
) -> BatchHealth:
    """Measures a batch of at least one row; arguments as in `contrastive_loss`."""
    _, negative_BB = target_masks(target_ids_B, positive_ids_BP)
    cosine_BB = query_BD.float() @ target_BD.float().T
    own_B = cosine_BB.diagonal()
    away_BB = cosine_BB.masked_fill(~negative_BB, -torch.inf)
    num_B = negative_BB.sum(1)
    mean_B = torch.where(negative_BB, cosine_BB, 0.0).sum(1) / num_B
    others = max(1, len(own_B) * (len(own_B) - 1))
    scaled_B1 = (own_B / temperature)[:, None]
    loss_B = torch.cat([scaled_B1, away_BB / temperature], 1).logsumexp(1) - scaled_B1[:, 0]
    return BatchHealth(
        accuracy_B=(own_B > away_BB.amax(1)).float(),
        gap_B=own_B - mean_B,
        loss_B=loss_B,
        effective_rank=effective_rank(torch.cat([query_BD, target_BD])),
        masked=1 - float(num_B.sum()) / others if len(own_B) > 1 else 0.0,
    )


@torch.no_grad()
def effective_rank(vectors_BD: Tensor) -> float:
    """How many directions vectors use: exp of the entropy of their normalised singular values
    (Roy and Vetterli 2007), 1 for a collapsed batch. Not centred: a common direction counts.

    >>> round(effective_rank(torch.eye(4)), 3), round(effective_rank(torch.ones(4, 4)), 3)
    (4.0, 1.0)
    """
    value_K = torch.linalg.svdvals(vectors_BD.float().cpu())
    share_K = value_K / value_K.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return float(torch.special.entr(share_K).sum().exp())
