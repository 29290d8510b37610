"""The keep rule of stage 2: which rationales are kept, and with which weights.

The one rule of the selector, of the ablations and of the reward (docs/method.md section 5).
Shapes: B pairs, K rationales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor

Contrast = Literal["none", "raw", "gain", "positive", "margin", "placebo_rank"]
"""The contrast that decides; `none` judges nothing and keeps every rationale."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRule:
    """Keeps a rationale that beats enough placebos and whose contrast is above eta.

    Attributes:
        contrast: the contrast that is compared with eta.
        keep_share: share of the train drafts that eta keeps; fewer where fewer beat enough
            placebos.
        min_placebo_rank: share of placebos that a kept rationale beats at least; 1 = all.
        weight_temperature: T of the weights; 1 makes them the posterior.
        hard: puts all weight of a pair on its best kept rationale.

    Raises:
        ValueError: a setting is out of its range.
    """

    contrast: Contrast = "gain"
    keep_share: float = 0.35
    min_placebo_rank: float = 0.0
    weight_temperature: float = 1.0
    hard: bool = False

    def __post_init__(self) -> None:
        if self.contrast not in get_args(Contrast):
            raise ValueError(f"contrast {self.contrast!r}: expected one of {get_args(Contrast)}.")
        if not 0 <= self.keep_share <= 1:
            raise ValueError(f"keep_share {self.keep_share}: expected a share between 0 and 1.")

        # All values are equal then, so that a threshold within them would keep none.
        if self.contrast == "none" and self.keep_share < 1:
            raise ValueError(
                f"contrast 'none' keeps every rationale, got keep_share {self.keep_share}. Set "
                "keep_share to 1."
            )

    def value(self, contrasts: Mapping[str, Tensor]) -> Tensor:
        """Returns the contrast that decides, (B, K); NaN pads.

        It is -inf where a rationale beats too few placebos.
        A rationale without placebos has the rank NaN and is not held back.

        Args:
            contrasts: see `mmemb.selection.contrasts.contrasts`.
        """
        if self.contrast == "none":
            # Zeros, but NaN where there is no rationale.
            return contrasts["raw"] * 0.0

        value_BK = contrasts[self.contrast]
        if self.min_placebo_rank > 0:
            is_beaten_BK = contrasts["placebo_rank"] < self.min_placebo_rank
            value_BK = value_BK.masked_fill(is_beaten_BK, -torch.inf)
        return value_BK

    def eta(self, value: Tensor) -> float:
        """The threshold above which `keep_share` of all values lies."""
        return keep_threshold(value, self.keep_share)

    def choose(self, value_BK: Tensor, count_BK: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Decides which rationales are kept, bool (B, K), and their weights (B, K).

        Args:
            value_BK: from `value`.
            count_BK: number of equal draws that each rationale stands for.
            eta: from `eta`.
        """
        kept_BK = keep(value_BK, eta)
        weight_BK = weights(
            value_BK, count_BK, kept_BK, temperature=self.weight_temperature, hard=self.hard
        )
        return kept_BK, weight_BK


def keep_threshold(contrast: Tensor, share: float) -> float:
    """eta, above which the stated share of the drafts lies (fewer where values tie).

    Args:
        contrast: contrasts of the cross-fitted drafts of `train`, any shape; NaN is padding.
        share: share of drafts to keep, in [0, 1].

    >>> keep_threshold(torch.tensor([4.0, 1.0, 3.0, 2.0]), 0.5)
    2.0
    """
    if not 0 <= share <= 1:
        raise ValueError(f"keep share {share} is not between 0 and 1")

    value_N = contrast[~contrast.isnan()].sort(descending=True).values
    if not len(value_N):
        raise ValueError(
            "no draft of split train was scored: the keep threshold needs at least one. Stage "
            "rationales says how many draws were dropped, and why."
        )

    # The first value below the share is the threshold, since a kept one is strictly above it.
    num_kept = round(share * len(value_N))
    return float(value_N[num_kept]) if num_kept < len(value_N) else -math.inf


def keep(contrast_BK: Tensor, eta: float) -> Tensor:
    """Keeps r if its contrast is above eta; padding (NaN) is never kept.

    >>> keep(torch.tensor([[1.0, 2.0, float("nan")]]), 1.0)
    tensor([[False,  True, False]])
    """
    return contrast_BK > eta


def weights(
    contrast_BK: Tensor,
    count_BK: Tensor,
    kept_BK: Tensor,
    *,
    temperature: float = 1.0,
    hard: bool = False,
) -> Tensor:
    """Weights, proportional to `count_k * exp(contrast_k / T)` over the kept; T = 1: the posterior.

    Args:
        contrast_BK: contrasts, NaN-padded.
        count_BK: number of equal draws that each draft stands for.
        kept_BK: True for the drafts that were kept.
        temperature: T; the smaller, the closer to `hard`.
        hard: all weight on the largest.

    Returns:
        (B, K); rows sum to 1, or to 0 where nothing is kept.

    >>> weights(torch.zeros(1, 2), torch.tensor([[3, 1]]), torch.ones(1, 2).bool())
    tensor([[0.7500, 0.2500]])
    """
    log_BK = contrast_BK / temperature + count_BK.to(contrast_BK.dtype).log()
    log_BK = log_BK.masked_fill(~kept_BK, -torch.inf)

    if hard and log_BK.numel():  # a batch without rationales has no largest one
        weight_BK = torch.zeros_like(log_BK).scatter(1, log_BK.argmax(1, keepdim=True), 1.0)
    else:
        weight_BK = log_BK.softmax(1)

    # A row without kept ones is softmax over -inf alone, which is NaN.
    return torch.where(kept_BK, weight_BK, 0.0)
