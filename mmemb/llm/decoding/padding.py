"""Rows of token ids padded on the left, and their positions; it needs no model.

Shapes: R rows, Q new tokens, L tokens of a row up to now.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (R, Q), padded on the left with 0, and their int64 mask (R, Q)."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(p)) + list(p) for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def real_positions(mask_RL: Tensor, num_new: int) -> Tensor:
    """Positions (R, Q) of the last `num_new` tokens, padding not counted.

    >>> real_positions(torch.tensor([[0, 1, 1], [1, 1, 1]]), 2).tolist()
    [[0, 1], [1, 2]]
    """
    return (mask_RL.cumsum(1)[:, mask_RL.shape[1] - num_new :] - 1).clamp(min=0)
