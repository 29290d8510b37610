"""Tells whether a gate decides alike for almost all queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLLAPSED = 0.02
"""A gate that chooses one depth for all but this share has collapsed."""


def collapsed_to(depth_N: Tensor, num_depths: int) -> int | None:
    """The one depth that (nearly) all queries take, or None.

    >>> collapsed_to(torch.tensor([1] * 99 + [0]), 2), collapsed_to(torch.tensor([0, 1]), 2)
    (1, None)
    """
    share_A = torch.bincount(depth_N, minlength=num_depths) / max(len(depth_N), 1)
    depth = int(share_A.argmax())
    return depth if len(depth_N) and share_A[depth] >= 1 - COLLAPSED else None


def collapse_warning(depth_N: Tensor, depths: Sequence[str]) -> str:
    """Returns a warning about a gate that takes one depth for all; else an empty text."""
    depth = collapsed_to(depth_N, len(depths))
    if depth is None:
        return ""

    # No error: one depth may well be best for all queries.
    return (
        f"warning: the gate has collapsed: {depths[depth]!r} for at least 98 % of the calibration "
        "queries. That is right where one depth is best for all; otherwise change token_cost or "
        "what the gate sees.\n"
    )
